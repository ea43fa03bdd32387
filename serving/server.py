"""A development server that speaks TensorFlow Serving's gRPC API, for machines without `tensorflow_model_server`.

    python -m serving.server --model_base_path=RUN/serving/subpixel --model_name=subpixel --port=8500
    python -m serving.server --model_config_file=models.config --port=8500

takes tensorflow_model_server's own flags and configuration files and answers with its codes and words, so that what
works here works there: Predict, GetModelMetadata, GetModelStatus, HandleReloadConfigRequest and health checks; version
policies and labels; newer versions taken up while it runs; a bound on calls, deadlines, TLS, metrics for Prometheus.
It has no batching, no REST but the metrics, and no Classify, Regress or MultiInference. It binds the loopback unless
told otherwise. docs/serving.md tells what differs.
"""

import contextlib
import logging
import os
import signal
import threading
import types
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import grpc
from absl import flags
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from harmonize_tf import command
from harmonize_tf.errors import FlagError, ServerError
from serving import server_config
from serving.metrics import MetricsServer
from serving.model_store import ModelStore
from serving.servable import RequestError
from serving.services import Gate, ModelService, PredictionService

FLAGS = flags.FlagValues()
_MODEL_BASE_PATH = flags.DEFINE_string(
    "model_base_path", None, "Folder with a model's numbered versions.", flag_values=FLAGS
)
_MODEL_NAME = flags.DEFINE_string("model_name", "default", "Name that requests give it.", flag_values=FLAGS)
_MODEL = flags.DEFINE_multi_string("model", [], "NAME=PATH of one more model; may be repeated.", flag_values=FLAGS)
_CONFIG_FILE = flags.DEFINE_string(
    "model_config_file", None, "ModelServerConfig to serve instead, as a text proto.", flag_values=FLAGS
)
_CONFIG_POLL = flags.DEFINE_float(
    "model_config_file_poll_wait_seconds", 0.0, "How often to read that file again; 0: never.", 0, flag_values=FLAGS
)
_ALLOW_LABELS = flags.DEFINE_bool(
    "allow_version_labels_for_unavailable_models", False,
    "Let new labels name versions that are not loaded yet, as labels in a file do at the start.", flag_values=FLAGS,
)  # fmt: skip
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to bind; 0.0.0.0 opens it to the network.", flag_values=FLAGS)
_PORT = flags.DEFINE_integer("port", 8500, "Port; 0 takes a free one and prints it.", 0, 65535, flag_values=FLAGS)
_POLL = flags.DEFINE_float(
    "file_system_poll_wait_seconds", 1.0, "How often to look for new versions; 0: never again.", 0, flag_values=FLAGS
)
_CONTENT = flags.DEFINE_bool(
    "enable_serialization_as_tensor_content",
    True,
    "Answer with raw bytes; tensorflow_model_server's default is value by value.",
    flag_values=FLAGS,
)
_MAX_THREADS = flags.DEFINE_integer(
    "grpc_max_threads", None, "Most calls at a time. Default: four for each CPU.", 1, flag_values=FLAGS
)
_SSL = flags.DEFINE_string("ssl_config_file", None, "SSLConfig for TLS, as a text proto.", flag_values=FLAGS)
_MONITORING = flags.DEFINE_string(
    "monitoring_config_file", None, "MonitoringConfig, as a text proto; needs --rest_api_port.", flag_values=FLAGS
)
_REST_PORT = flags.DEFINE_integer(
    "rest_api_port", 0, "Port for the metrics, on the same address; 0: none.", 0, 65535, flag_values=FLAGS
)
# tensorflow_model_server's flags for what has no counterpart here, so that its command line can be used as it is
# (model_servers/main.cc). But for --use_alts_credentials: who asks for it shall not be served in plain text.
_WITHOUT_EFFECT = frozenset(
    "batching_parameters_file enable_batching enable_grpc_healthcheck_service enable_model_warmup "
    "enable_per_model_batching_parameters enable_profiler enable_signature_method_name_check "
    "flush_filesystem_caches grpc_channel_arguments grpc_socket_path load_retry_interval_micros "
    "max_num_load_retries mixed_precision num_load_threads num_request_iterations_for_warmup "
    "num_tflite_interpreters_per_pool num_tflite_pools num_unload_threads per_process_gpu_memory_fraction "
    "platform_config_file prefer_tflite_model remove_unused_fields_from_bundle_metagraph "
    "rest_api_enable_cors_support rest_api_num_threads rest_api_timeout_in_ms saved_model_tags "
    "skip_initialize_tpu tensorflow_inter_op_parallelism tensorflow_intra_op_parallelism "
    "tensorflow_session_config_file tensorflow_session_parallelism thread_pool_factory_config_file version "
    "xla_cpu_compilation_enabled xla_gpu_compilation_enabled".split()
)

_log = logging.getLogger("harmonize.serving")
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)


class DevelopmentServer:
    """Serves models from this process; a context manager.

    Example:
      with DevelopmentServer({"subpixel": "RUN/serving/subpixel"}) as server:
          Client(server.address, "subpixel")

    Attributes:
      address: "host:port" it listens on.
    """

    def __init__(
        self,
        models: Mapping[str, Any] | model_server_config_pb2.ModelServerConfig,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        poll_seconds: float = 1.0,
        as_content: bool = True,
        max_calls: int | None = None,
        credentials: grpc.ServerCredentials | None = None,
        allow_labels_for_unavailable: bool = False,
    ) -> None:
        """Loads the models and starts to listen.

        Args:
          models: folder with numbered versions, by model name; or a configuration.
          host: address to bind.
          port: 0 takes a free one.
          poll_seconds: how often to look for new versions; 0: never again.
          as_content: answer with raw bytes instead of value by value.
          max_calls: most calls at a time; None: four for each CPU.
          credentials: for TLS; None: plain text.
          allow_labels_for_unavailable: let a new label name a version that is not loaded yet.

        Raises:
          ModelError: the configuration is refused, or a model has no version that can be loaded.
          ServerError: the address cannot be bound.
        """
        self._store = ModelStore(models, poll_seconds, allow_labels_for_unavailable=allow_labels_for_unavailable)
        max_calls = max_calls or 4 * (os.cpu_count() or 1)
        # Twice as many threads as calls, so that there is always one to refuse a call or to tell that all is well.
        threads = futures.ThreadPoolExecutor(2 * max_calls)
        self._server = grpc.server(threads, interceptors=[Gate(max_calls, self._store.knows)], options=_CHANNEL_OPTIONS)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._store, as_content), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._store), self._server)
        self._health = health.HealthServicer()
        for service in ("", "PredictionService", "ModelService"):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            address = f"{host}:{port}"
            bound = (
                self._server.add_secure_port(address, credentials)
                if credentials
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            self._store.close()
            raise ServerError(
                f"the address cannot be bound{', or key and certificate do not fit' if credentials else ''}. "
                f"Received: {address}. Stop what listens there, or take --port=0."
            ) from error
        self.address = f"{host}:{bound}"
        self._server.start()

    def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Takes another configuration, as HandleReloadConfigRequest does.

        Raises:
          RequestError: it is refused, or a new model cannot be loaded.
        """
        self._store.reload(config)

    def stop(self, grace: float = 10.0) -> None:
        """Refuses new requests, lets those under way end within `grace` seconds, and frees the models."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._store.close()

    def __enter__(self) -> "DevelopmentServer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        self.stop()


def _models() -> model_server_config_pb2.ModelServerConfig:
    if _CONFIG_FILE.value:
        return server_config.read_models(_CONFIG_FILE.value)
    models = dict([(_MODEL_NAME.value, _MODEL_BASE_PATH.value)] if _MODEL_BASE_PATH.value else [])
    for text in _MODEL.value:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise FlagError(f"--model must be NAME=PATH. Received: model={text!r}")
        models[name] = path
    if not models:
        raise FlagError(
            "there is no model to serve. Give --model_base_path=RUN/serving/MODEL, --model=NAME=PATH or "
            "--model_config_file=FILE."
        )
    return server_config.models_config(models)


def _check_unknown(arguments: Sequence[str]) -> None:
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].removeprefix("no")
        if not argument.startswith("--") or not {name, f"no{name}"} & _WITHOUT_EFFECT:
            raise FlagError(f"unknown argument. See --help for the flags of this command. Received: {argument}")
        _log.warning("--%s has no effect in the development server", name)


@contextlib.contextmanager
def _metrics() -> Any:
    """Serves the metrics meanwhile, if flags ask for it."""
    path = server_config.read_metrics_path(_MONITORING.value) if _MONITORING.value else None
    if not _REST_PORT.value:
        yield
        return
    try:
        server = MetricsServer(_HOST.value, _REST_PORT.value, path)
    except OSError as error:
        raise FlagError(
            f"the port for metrics cannot be bound ({error}). Received: rest_api_port={_REST_PORT.value}"
        ) from error
    try:
        yield
    finally:
        server.stop()


def _serve(server: DevelopmentServer, stopping: threading.Event) -> None:
    """Waits for the end; takes the models' configuration anew as often as flags ask for it."""
    while not stopping.wait(_CONFIG_POLL.value or None):
        try:
            server.reload(_models())
        except (FlagError, RequestError) as error:
            _log.warning("%s is not taken up: %s", _CONFIG_FILE.value, error)


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests under way end."""
    _check_unknown(command.parse(FLAGS, argv, known_only=True))
    models = _models()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server = DevelopmentServer(
        models,
        host=_HOST.value,
        port=_PORT.value,
        poll_seconds=_POLL.value,
        as_content=_CONTENT.value,
        max_calls=_MAX_THREADS.value,
        credentials=server_config.read_credentials(_SSL.value) if _SSL.value else None,
        allow_labels_for_unavailable=_ALLOW_LABELS.value,
    )
    with server, _metrics():
        names = ", ".join(model.name for model in models.model_config_list.config)
        print(f"serving {names} at {server.address}", flush=True)
        _serve(server, stopping)
        _log.info("stopping")


if __name__ == "__main__":
    command.run(main)
