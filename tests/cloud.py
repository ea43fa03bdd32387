"""What a job meets in the cloud, on loopback: a storage service, credentials, Dataflow, and workers elsewhere."""

import contextlib
import functools
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any
from unittest import mock

import gcp_storage_emulator.server
from apache_beam.internal.gcp import auth
from apache_beam.runners.portability.local_job_service import LocalJobServicer
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

import beam_jobs.folder  # noqa: F401 - before gcsfs, whose environment it sets
from harmonize_tf.testing.service_account import ServiceAccount

import gcsfs  # isort: skip

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = "emulator-project"


@contextlib.contextmanager
def storage(bucket: str = "bucket") -> Iterator[str]:
    """A storage service with one bucket: all that this process, and processes it starts, find at gs://.

    Yields:
      The bucket's URL.
    """
    for name in ("gcp_storage_emulator", "api.object", "api.bucket"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    stored = Storage(use_memory_fs=True)
    buckets.create_bucket(bucket, stored)
    handler = functools.partial(gcp_storage_emulator.server.RequestHandler, stored)
    with (
        _served(_StorageServer(("127.0.0.1", 0), handler)) as url,
        credentials(),
        mock.patch.dict(os.environ, STORAGE_EMULATOR_HOST=url),
    ):
        # fsspec keeps instances, with the sockets and credentials of a service that is gone.
        gcsfs.GCSFileSystem.clear_instance_cache()
        try:
            yield f"gs://{bucket}"
        finally:
            gcsfs.GCSFileSystem.clear_instance_cache()


@contextlib.contextmanager
def credentials() -> Iterator[None]:
    """Application default credentials, so that no client looks for Google's metadata server, for 22 s."""
    account = ServiceAccount()

    class Handler(_Handler):
        def answer(self, body: bytes) -> dict[str, Any]:
            return account.token(body.decode())

    with _served(_Server(("127.0.0.1", 0), Handler)) as url, tempfile.TemporaryDirectory() as place:
        key = os.fspath(account.write_key(pathlib.Path(place) / "key.json", f"{url}/token"))
        with (
            mock.patch.dict(os.environ, GOOGLE_APPLICATION_CREDENTIALS=key, GOOGLE_CLOUD_PROJECT=PROJECT),
            # Beam keeps the first credentials, or that there are none.
            mock.patch.multiple(auth._Credentials, _credentials_init=False, _credentials=None),
        ):
            yield


class Dataflow:
    """A Dataflow service whose jobs are done as soon as they are submitted, and of which nothing is run."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.url = ""

    @property
    def flags(self) -> list[str]:
        """What sends a pipeline here; --temp_location is needed besides."""
        # The word `localhost` makes Beam's client speak REST over http.
        endpoint = f"--dataflow_endpoint={self.url.replace('127.0.0.1', 'localhost')}"
        return ["--runner=DataflowRunner", endpoint, f"--project={PROJECT}", "--region=us-central1"]


@contextlib.contextmanager
def dataflow() -> Iterator[Dataflow]:
    """A Dataflow service, to be used inside `storage`, to which Beam uploads what workers need."""
    service = Dataflow()

    class Handler(_Handler):
        def answer(self, body: bytes) -> dict[str, Any]:
            path = self.path.split("?")[0]
            if self.command == "POST" and path.endswith("/jobs"):
                service.jobs.append(json.loads(body))
                return _job(service.jobs[-1]["name"], "JOB_STATE_PENDING")
            if path.endswith(("/messages", "/metrics", "/jobs")):
                return {}
            return _job(path.rsplit("/", 1)[-1], "JOB_STATE_DONE")

    with _served(_Server(("127.0.0.1", 0), Handler)) as service.url:
        yield service


def _job(name: str, state: str) -> dict[str, Any]:
    return {"id": name, "name": name, "projectId": PROJECT, "location": "us-central1", "currentState": state}


# A worker process of Beam's, which ends with the process that holds its standard input. Beam's own command for it
# listens to the whole network and starts whatever `python` is on the path.
_WORKER = """
import concurrent.futures, grpc, os, sys
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
port = server.add_insecure_port("127.0.0.1:0")
beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(BeamFnExternalWorkerPoolServicer(), server)
server.start()
print(port, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def portable() -> Iterator[list[str]]:
    """A job service, and a worker in a process of its own, with this one's environment.

    Yields:
      The flags that send a pipeline there.
    """
    service = LocalJobServicer()
    command = [sys.executable, "-c", _WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as worker:
        job_port = service.start_grpc_server()
        try:
            yield [
                "--runner=PortableRunner",
                f"--job_endpoint=localhost:{job_port}",
                "--environment_type=EXTERNAL",
                f"--environment_config=127.0.0.1:{int(worker.stdout.readline())}",
            ]
        finally:
            service.stop()
            worker.kill()


class _StorageServer(HTTPServer):
    """One request at a time, which is what the emulator's storage stands; the others queue."""

    request_queue_size = 256


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class _Handler(BaseHTTPRequestHandler):
    """Sends what `answer` returns, as JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def answer(self, body: bytes) -> dict[str, Any]:
        raise NotImplementedError

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = json.dumps(self.answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _served(server: HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
