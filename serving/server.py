"""A development server that speaks TensorFlow Serving's gRPC API, for machines without `tensorflow_model_server`.

    python -m serving.server --model_base_path=RUN/serving/subpixel --model_name=subpixel --port=8500

answers Predict, GetModelMetadata, GetModelStatus and health checks with the codes and words of the real server, so
that what works here works there. Newer versions are picked up while it runs. It has no batching, no REST, no TLS and
no authentication: it binds the loopback unless told otherwise.
"""

import logging
import signal
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import grpc
from absl import flags
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from harmonize_tf import command
from harmonize_tf.errors import FlagError, ServerError
from serving import tensors
from serving.model_store import ModelStore
from serving.servable import DEFAULT_SIGNATURE, RequestError

FLAGS = flags.FlagValues()
_MODEL_BASE_PATH = flags.DEFINE_string(
    "model_base_path", None, "Folder with a model's numbered versions.", flag_values=FLAGS
)
_MODEL_NAME = flags.DEFINE_string("model_name", "default", "Name that requests give it.", flag_values=FLAGS)
_MODEL = flags.DEFINE_multi_string("model", [], "NAME=PATH of one more model; may be repeated.", flag_values=FLAGS)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to bind; 0.0.0.0 opens it to the network.", flag_values=FLAGS)
_PORT = flags.DEFINE_integer("port", 8500, "Port; 0 takes a free one and prints it.", 0, 65535, flag_values=FLAGS)
_POLL = flags.DEFINE_float(
    "file_system_poll_wait_seconds", 1.0, "How often to look for new versions.", 0.01, flag_values=FLAGS
)
_CONTENT = flags.DEFINE_bool(
    "enable_serialization_as_tensor_content",
    True,
    "Answer with raw bytes; tensorflow_model_server's default is value by value.",
    flag_values=FLAGS,
)

_log = logging.getLogger("harmonize.serving")
# grpc_status_util.cc of TensorFlow Serving.
_LONGEST_MESSAGE = 1024
_THREADS = 8
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)


def _answering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a `RequestError` of a servicer's method into a gRPC status."""

    def wrapped(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except RequestError as error:
            text = str(error)
            context.abort(
                error.code, text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "...TRUNCATED"
            )

    return wrapped


def _name_and_version(spec: model_pb2.ModelSpec, request: Any) -> tuple[str, int | None]:
    if not request.HasField("model_spec"):
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
    if not spec.name:
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
    if spec.WhichOneof("version_choice") == "version_label":
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}"
        )
    return spec.name, spec.version.value if spec.HasField("version") else None


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, store: ModelStore, as_content: bool) -> None:
        self._store = store
        self._as_content = as_content

    @_answering
    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        spec = request.model_spec
        name, version = _name_and_version(spec, request)
        with self._store.servable(name, version) as (number, servable):
            inputs = {alias: _decode(alias, proto) for alias, proto in request.inputs.items()}
            outputs = servable.predict(inputs, spec.signature_name, request.output_filter, context.time_remaining())
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.version.value = name, number
        response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
        for alias, array in outputs.items():
            tensors.encode(array, response.outputs[alias], as_content=self._as_content)
        return response

    @_answering
    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        name, version = _name_and_version(request.model_spec, request)
        if not request.metadata_field:
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != "signature_def":
                raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._store.servable(name, version) as (number, servable):
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        response.model_spec.name, response.model_spec.version.value = name, number
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> None:
        _abort_unimplemented("Classify", context)

    def Regress(self, request: Any, context: grpc.ServicerContext) -> None:
        _abort_unimplemented("Regress", context)

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> None:
        _abort_unimplemented("MultiInference", context)


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, store: ModelStore) -> None:
        self._store = store

    @_answering
    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        name, version = _name_and_version(request.model_spec, request)
        known = self._store.status(name)
        listed = [entry for entry in known if version in (None, entry[0])]
        if not known:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        if not listed:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state, error in listed:
            entry = response.model_version_status.add(version=number, state=int(state))
            entry.status.error_code = grpc.StatusCode.UNKNOWN.value[0] if error else 0
            entry.status.error_message = error
        return response

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> None:
        _abort_unimplemented("HandleReloadConfigRequest", context)


def _decode(alias: str, proto: Any) -> Any:
    try:
        return tensors.decode(proto)
    except ValueError as error:
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, f"tensor parsing error: {alias} ({error})") from error


def _abort_unimplemented(method: str, context: grpc.ServicerContext) -> None:
    context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        f"{method} is not part of the development server; use tensorflow_model_server for it.",
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
        models: Mapping[str, Any],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        poll_seconds: float = 1.0,
        as_content: bool = True,
    ) -> None:
        """Loads the models and starts to listen.

        Args:
          models: folder with numbered versions, by model name.
          host: address to bind.
          port: 0 takes a free one.
          poll_seconds: how often to look for new versions.
          as_content: answer with raw bytes instead of value by value.

        Raises:
          ModelError: a model has no version that can be loaded.
          ServerError: the address cannot be bound.
        """
        self._store = ModelStore(models, poll_seconds)
        self._server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=_CHANNEL_OPTIONS)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _PredictionService(self._store, as_content), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(self._store), self._server)
        self._health = health.HealthServicer()
        for service in ("", "PredictionService", "ModelService"):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self.address = f"{host}:{self._server.add_insecure_port(f'{host}:{port}')}"
        except RuntimeError as error:
            self._store.close()
            raise ServerError(
                f"the address cannot be bound. Received: {host}:{port}. Stop what listens there, or take --port=0."
            ) from error
        self._server.start()

    def stop(self, grace: float = 10.0) -> None:
        """Refuses new requests, lets those under way end within `grace` seconds, and frees the models."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._store.close()

    def __enter__(self) -> "DevelopmentServer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        self.stop()


def _models() -> dict[str, str]:
    models = dict([(_MODEL_NAME.value, _MODEL_BASE_PATH.value)] if _MODEL_BASE_PATH.value else [])
    for text in _MODEL.value:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise FlagError(f"--model must be NAME=PATH. Received: model={text!r}")
        models[name] = path
    if not models:
        raise FlagError("there is no model to serve. Give --model_base_path=RUN/serving/MODEL, or --model=NAME=PATH.")
    return models


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests under way end."""
    command.parse(FLAGS, argv)
    models = _models()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server = DevelopmentServer(
        models, host=_HOST.value, port=_PORT.value, poll_seconds=_POLL.value, as_content=_CONTENT.value
    )
    with server:
        print(f"serving {', '.join(models)} at {server.address}", flush=True)
        stopping.wait()
        _log.info("stopping")


if __name__ == "__main__":
    command.run(main)
