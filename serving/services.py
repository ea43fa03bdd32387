"""TensorFlow Serving's gRPC services over a model store, with its codes and words.

Sources of the texts: tensorflow_serving/model_servers/{server_core,get_model_status_impl,model_service_impl}.cc and
tensorflow_serving/servables/tensorflow/{predict_util,get_model_metadata_impl}.cc.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import metrics, tensors
from serving.model_store import ModelStore
from serving.servable import DEFAULT_SIGNATURE, RequestError, Servable, invalid

_log = logging.getLogger("harmonize.serving")
# grpc_status_util.cc of TensorFlow Serving.
_LONGEST_MESSAGE = 1024
# A tensor may say its shape and one value only. More elements than this must be sent, so that twenty bytes of request
# cannot ask for all the memory there is.
_MOST_UNSENT = 2**24
_COUNTED = ("Predict", "Classify", "Regress")


class Gate(grpc.ServerInterceptor):
    """Lets at most so many calls run, only in time, and turns what goes wrong in them into a status.

    grpc's own bound on calls answers in other words than TensorFlow Serving, and its own answer to an exception is
    the exception's text.
    """

    def __init__(self, max_calls: int, knows: Callable[[str], bool]) -> None:
        """Counts calls under their model's name if the server `knows` it."""
        self._knows = knows
        self._free = threading.BoundedSemaphore(max_calls)

    def intercept_service(self, continuation: Callable, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of a call; health checks are never turned away."""
        handler = continuation(details)
        if handler is None or not handler.unary_unary:
            return handler
        _, service, api = details.method.split("/")
        bounded = not service.startswith("grpc.health")

        def parse(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except Exception as error:  # protobuf's, which differs between its implementations
                return error

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if bounded and not self._free.acquire(blocking=False):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
            try:
                return _answer(handler.unary_unary, api, request, context, self._knows)
            except RequestError as error:
                code, text = error.code, str(error)
            finally:
                if bounded:
                    self._free.release()
            context.abort(code, text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "...TRUNCATED")

        return grpc.unary_unary_rpc_method_handler(answer, parse, handler.response_serializer)


def _answer(
    method: Callable, api: str, request: Any, context: grpc.ServicerContext, knows: Callable[[str], bool]
) -> Any:
    """Runs a method and counts it as TensorFlow Serving does: failed calls have no latency."""
    start, status = time.perf_counter(), grpc.StatusCode.OK
    try:
        if isinstance(request, Exception):
            raise invalid(f"The bytes received are no request of {api}")
        if not context.is_active() or context.time_remaining() <= 0:
            raise RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        return method(request, context)
    except RequestError as error:
        status = error.code
        raise
    except Exception as error:
        _log.exception("%s failed", api)
        status = grpc.StatusCode.INTERNAL
        raise RequestError(status, "The development server has failed; its log says why") from error
    finally:
        if api in _COUNTED and not isinstance(request, Exception):
            name = request.model_spec.name if knows(request.model_spec.name) else metrics.UNKNOWN_MODEL
            metrics.REQUEST_COUNT.labels(name, status.name).inc()
            if status is grpc.StatusCode.OK:
                elapsed = (time.perf_counter() - start) * 1e6
                metrics.REQUEST_LATENCY.labels(name, api, "GRPC").observe(elapsed)


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _servable(store: ModelStore, request: Any) -> contextlib.AbstractContextManager[tuple[int, Servable]]:
    """The version that a request's ModelSpec names."""
    spec = request.model_spec
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    version = spec.version.value if spec.HasField("version") else None
    label = spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None
    return store.servable(spec.name, version, label)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the other methods refuse what TensorFlow Serving refuses, and no more."""

    def __init__(self, store: ModelStore, as_content: bool) -> None:
        """Answers with raw bytes (`as_content`) or value by value."""
        self._store = store
        self._as_content = as_content

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Runs a signature."""
        _check_spec(request)
        spec = request.model_spec
        with _servable(self._store, request) as (number, servable):
            start = time.perf_counter()
            outputs = servable.predict(
                request.inputs, spec.signature_name, request.output_filter, context.time_remaining(), _decode
            )
            elapsed = (time.perf_counter() - start) * 1e6
        metrics.RUNTIME_LATENCY.labels(spec.name, "Predict", "TF1").observe(elapsed)
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.version.value = spec.name, number
        response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
        for alias, array in outputs.items():
            tensors.encode(array, response.outputs[alias], as_content=self._as_content)
        return response

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Describes the signatures."""
        _check_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with _servable(self._store, request) as (number, servable):
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        response.model_spec.name, response.model_spec.version.value = request.model_spec.name, number
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> None:
        """Refuses, as no signature of this project is made for it."""
        self._refuse("Classify", request)

    def Regress(self, request: Any, context: grpc.ServicerContext) -> None:
        """Refuses, as no signature of this project is made for it."""
        self._refuse("Regress", request)

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> None:
        """Refuses."""
        raise _left_out("MultiInference")

    def _refuse(self, api: str, request: Any) -> None:
        _check_spec(request)
        with _servable(self._store, request) as (_, servable):
            servable.check_examples_signature(api, request.model_spec.signature_name)
        raise _left_out(api)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Tells versions and their states, newest first; labels are not looked at."""
        _check_spec(request)
        name = request.model_spec.name
        version = request.model_spec.version.value if request.model_spec.HasField("version") else None
        listed = [entry for entry in self._store.status(name) if version in (None, entry[0])]
        if not listed:
            which = "any versions" if version is None else f"version {version}"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find {which} of model {name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state, error in listed:
            entry = response.model_version_status.add(version=number, state=int(state))
            entry.status.error_code = grpc.StatusCode.UNKNOWN.value[0] if error else 0
            entry.status.error_message = error
        return response

    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        """Takes another configuration."""
        self._store.reload(request.config)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response


def _decode(alias: str, proto: Any) -> Any:
    try:
        elements = math.prod(dim.size for dim in proto.tensor_shape.dim)
        if not proto.tensor_content and elements - proto.ByteSize() > _MOST_UNSENT:
            raise ValueError(f"its shape asks for {elements} values, most of which were not sent")
        return tensors.decode(proto)
    except ValueError as error:
        raise invalid(f"tensor parsing error: {alias} ({error})") from error


def _left_out(method: str) -> RequestError:
    return RequestError(
        grpc.StatusCode.UNIMPLEMENTED,
        f"{method} is not part of the development server; use tensorflow_model_server for it.",
    )
