"""A model server that does what a test tells it."""

import threading
from concurrent import futures

import grpc
import numpy as np
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from serving import tensors


class Scripted(prediction_service_pb2_grpc.PredictionServiceServicer):
    """A server that answers Predict by calling a script with the request and the number of the call.

    It has one version, 3 to begin with, and knows of no other; `labels` name versions.
    """

    def __init__(self, local, script):
        self.calls, self.version, self.labels = 0, 3, {}
        self._script, self._local = script, local
        self._lock = threading.Lock()

    def GetModelMetadata(self, request, context):
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        self._check_version(request, context)
        response.model_spec.version.value = self.version
        signatures = self._local._servable.signatures
        response.metadata["signature_def"].Pack(get_model_metadata_pb2.SignatureDefMap(signature_def=signatures))
        return response

    def _check_version(self, request, context):
        spec = request.model_spec
        if spec.HasField("version_label") and self.labels.get(spec.version_label) != self.version:
            text = f"Unrecognized servable version label: {spec.version_label}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        if spec.HasField("version") and spec.version.value != self.version:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no version {spec.version.value}")

    def Predict(self, request, context):
        self._check_version(request, context)
        if request.model_spec.signature_name == "manifest":
            outputs = {"manifest": np.frombuffer(self._local.manifest.to_json().encode(), np.uint8)[None]}
        else:
            with self._lock:
                self.calls += 1
                number = self.calls
            outputs = self._script(number, request, context)
        response = predict_pb2.PredictResponse()
        for alias, array in outputs.items():
            tensors.encode(array, response.outputs[alias])
        return response


def answer(number, request, context):
    return {"sentinel_ms": np.full((1, 1, 1, 4), number, np.uint16)}


def serve(servicer, host="127.0.0.1", port=0, credentials=None):
    """Starts a server; returns it and its port."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(16), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    address = f"{host}:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    return server, bound
