"""What the development server counts, under TensorFlow Serving's names, for Prometheus.

Names, labels and buckets: tensorflow_serving/servables/tensorflow/{util,saved_model_warmup_util}.cc; latencies are
microseconds. How a name is spelt for Prometheus: tensorflow_serving/util/prometheus_exporter.cc.
"""

import http.server
import threading

import prometheus_client

_REGISTRY = prometheus_client.CollectorRegistry()
# Label of requests for models that the server has never had. Names that anybody may make up would each take memory.
UNKNOWN_MODEL = "(unknown)"
# Seconds that a client may take to send a line of its request.
_TIMEOUT = 10.0
_MICROSECONDS = tuple(10 * 1.8**power for power in range(33))

REQUEST_COUNT = prometheus_client.Counter(
    ":tensorflow:serving:request_count",
    "The total number of requests.",
    ("model_name", "status"),
    registry=_REGISTRY,
)


def _latency(name: str, of: str, labels: tuple[str, ...]) -> prometheus_client.Histogram:
    return prometheus_client.Histogram(
        f":tensorflow:serving:{name}",
        f"Distribution of wall time (in microseconds) for {of}.",
        labels,
        buckets=_MICROSECONDS,
        registry=_REGISTRY,
    )


REQUEST_LATENCY = _latency("request_latency", "Tensorflow Serving request", ("model_name", "API", "entrypoint"))
RUNTIME_LATENCY = _latency("runtime_latency", "Tensorflow runtime", ("model_name", "API", "runtime"))
MODEL_WARMUP_LATENCY = _latency("model_warmup_latency", "warming up the model", ("model_path", "status"))


def page() -> bytes:
    """All metrics in Prometheus's text format."""
    # prometheus_client ends every counter's name in _total; TensorFlow Serving does not.
    return prometheus_client.generate_latest(_REGISTRY).replace(b":request_count_total", b":request_count")


class MetricsServer:
    """Answers GET of one path; a context of its own thread.

    Attributes:
      port: the port it listens on.
    """

    def __init__(self, host: str, port: int, path: str | None) -> None:
        """Starts to listen.

        Args:
          host: address to bind.
          port: 0 takes a free one.
          path: where the metrics are; None: nowhere, every path is unknown.

        Raises:
          OSError: the address cannot be bound.
        """

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = _TIMEOUT

            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == path
                body = page() if found else b"Only the metrics are served here.\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", prometheus_client.CONTENT_TYPE_LATEST if found else "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Says nothing about requests."""

        self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
