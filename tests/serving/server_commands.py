"""The development server and, where there is one, a real tensorflow_model_server, started by their command lines."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys

import grpc

REAL = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which("tensorflow_model_server")
WHY_NOT = "no tensorflow_model_server on PATH or in $TENSORFLOW_MODEL_SERVER"
DEVELOPMENT = [sys.executable, "-m", "serving.server"]


@contextlib.contextmanager
def running(command, log, *flags, start_seconds=120):
    """Runs a server on a free port with the same flags whichever it is; gives an open channel to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*command, f"--port={port}", *flags], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            grpc.channel_ready_future(channel).result(start_seconds)
            yield channel
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
