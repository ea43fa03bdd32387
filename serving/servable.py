"""One version of an exported model, loaded and run the way TensorFlow Serving does.

A SavedModel is loaded by the V1 loader into a session, the route TensorFlow Serving takes, and not by
`tf.saved_model.load`: the latter accepts models whose variables a server then cannot find, and dies of a wrong rank.
"""

import contextlib
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from harmonize_tf.errors import ModelError
from serving import metrics, tensors

WARMUP_FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
DEFAULT_SIGNATURE = "serving_default"
# gRPC gives the time until the end of its calendar where a request has no deadline.
_NO_TIMEOUT = 1e6
_CPP_NAMES = {"float16": "half", "float32": "float", "float64": "double"}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """A request that does not fit the model, in TensorFlow Serving's words.

    Attributes:
      code: canonical status code.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> RequestError:
    """A request that can never be answered, whatever the model's state."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


class Servable:
    """One version of a model, loaded and ready to run its signatures from any thread.

    Attributes:
      path: folder of the SavedModel.
      signatures: SignatureDef by name.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Loads and warms a version.

        Raises:
          ModelError: it is no SavedModel, is damaged, or one of its warm-up records fails.
        """
        self.path = path
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with _without_warnings():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
            self.signatures = {k: v for k, v in meta_graph.signature_def.items() if not k.startswith("__")}
            self._warm_up()
        except Exception as error:  # OSError, RuntimeError, tf.errors, protobuf's: the loader's errors share no base
            self._session.close()
            reason = (str(error) or repr(error)).splitlines()[0]
            raise ModelError(
                f"the SavedModel cannot be loaded ({reason}). Received: {path}. Export it again with `harmonize push`."
            ) from error

    def predict(
        self,
        inputs: Mapping[str, Any],
        signature_name: str = DEFAULT_SIGNATURE,
        output_filter: Sequence[str] = (),
        timeout: float | None = None,
        decode: Callable[[str, Any], np.ndarray] = lambda alias, array: array,
    ) -> dict[str, np.ndarray]:
        """Runs one signature; what is wrong is found in TensorFlow Serving's order.

        Args:
          inputs: array by alias.
          signature_name: empty means `serving_default`.
          output_filter: aliases wanted; empty: all.
          timeout: seconds after which the run is given up.
          decode: makes arrays of the inputs, given alias and input, once their aliases are known to be right.

        Raises:
          RequestError: unknown signature, aliases, types or shapes that do not fit, the graph refuses the values, or
            the timeout has passed.
        """
        signature_name = signature_name or DEFAULT_SIGNATURE
        if signature_name not in self.signatures:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.'
            )
        signature = self.signatures[signature_name]
        _check_aliases(signature, inputs)
        arrays = {alias: decode(alias, inputs[alias]) for alias in sorted(signature.inputs)}
        fetches = _fetches(signature, output_filter)
        feeds = _feeds(signature, arrays)
        options = None
        if timeout is not None and timeout < _NO_TIMEOUT:
            options = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(timeout * 1000)))
        try:
            return self._session.run(fetches, feeds, options)
        except tf.errors.OpError as error:
            raise RequestError(_CODES[error.error_code], error.message) from error
        except UnicodeDecodeError as error:  # the graph's message quotes a damaged Example, and Python cannot take it
            raise invalid(error.object.decode(errors="replace")) from error

    def predict_unchecked(self, inputs: Mapping[str, np.ndarray], signature_name: str) -> dict[str, np.ndarray]:
        """As `predict`, but whatever the shapes: the graph sees what it would see in TensorFlow Serving.

        `Session.run` compares shapes with the placeholders' before the graph runs; the C++ session of a server, which
        this private method of Session leads to, does not.

        Raises:
          RequestError: the graph refuses the values.
        """
        signature = self.signatures[signature_name]
        aliases = sorted(inputs)
        options = config_pb2.CallableOptions(
            feed=[signature.inputs[alias].name for alias in aliases],
            fetch=[info.name for info in signature.outputs.values()],
        )
        run = self._session._make_callable_from_options(options)
        try:
            return dict(zip(signature.outputs, run(*(inputs[alias] for alias in aliases)), strict=True))
        except tf.errors.OpError as error:
            raise RequestError(_CODES[error.error_code], error.message) from error

    def check_examples_signature(self, api: str, signature_name: str) -> None:
        """Looks whether "Classify" or "Regress" may ask a signature (classifier.cc and regressor.cc).

        Raises:
          RequestError: the signature is unknown, or made for Predict.
        """
        signature_name = signature_name or DEFAULT_SIGNATURE
        if signature_name not in self.signatures:
            raise invalid(f"No signature was found with the name: {signature_name}")
        signature = self.signatures[signature_name]
        kind = {"Classify": "classification", "Regress": "regression"}[api]
        if len(signature.inputs) != 1:
            raise invalid("Expected one input Tensor.")
        if api == "Classify" and len(signature.outputs) not in (1, 2):
            raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
        if api == "Regress" and len(signature.outputs) != 1:
            raise invalid("Expected one output Tensor.")
        if "inputs" not in signature.inputs:
            raise invalid(f"No {kind} inputs found in SignatureDef: {signature}")
        if api == "Classify" and not {"classes", "scores"} & set(signature.outputs):
            raise invalid(
                'Expected classification signature outputs to contain at least one of "classes" or "scores". '
                f"Signature was: {signature}"
            )
        if api == "Regress" and "outputs" not in signature.outputs:
            raise invalid(f"No regression outputs found in SignatureDef: {signature}")

    def close(self) -> None:
        """Frees the model; no run may be under way."""
        self._session.close()

    def _warm_up(self) -> None:
        start = time.perf_counter()
        for log in warmup_logs(self.path):
            inputs = {alias: tensors.decode(proto) for alias, proto in log.request.inputs.items()}
            self.predict(inputs, log.request.model_spec.signature_name, log.request.output_filter)
        metrics.MODEL_WARMUP_LATENCY.labels(self.path, "OK").observe((time.perf_counter() - start) * 1e6)


def warmup_logs(path: pathlib.Path) -> Iterator[prediction_log_pb2.PredictLog]:
    """The warm-up records of a version; none where it has no such file."""
    if (path / WARMUP_FILE).exists():
        for record in tf.data.TFRecordDataset(str(path / WARMUP_FILE)).as_numpy_iterator():
            yield prediction_log_pb2.PredictionLog.FromString(record).predict_log


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps TensorFlow from advising this thread against the V1 loader, which is used on purpose."""
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or record.thread != thread

    tf.get_logger().addFilter(keep)
    try:
        yield
    finally:
        tf.get_logger().removeFilter(keep)


def _braces(names: Collection[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _check_aliases(signature: meta_graph_pb2.SignatureDef, inputs: Collection[str]) -> None:
    expected = signature.inputs
    if len(inputs) != len(expected):
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(expected)} len({_braces(inputs)}) != "
            f"len({_braces(expected)}). Sent extra: {_braces(set(inputs) - set(expected))}. "
            f"Missing but required: {_braces(set(expected) - set(inputs))}."
        )
    for alias, info in sorted(expected.items()):
        if alias not in inputs:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {_braces(inputs)}, or default input alias set: "
            )


def _feeds(signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    for index, (alias, info) in enumerate(sorted(signature.inputs.items())):
        _check_tensor(index, info, inputs[alias])
    return {info.name: inputs[alias] for alias, info in signature.inputs.items()}


def _check_tensor(index: int, info: meta_graph_pb2.TensorInfo, array: np.ndarray) -> None:
    sent = tf.as_dtype(array.dtype if array.dtype != np.object_ else tf.string)
    if sent != info.dtype:
        wanted, got = (_CPP_NAMES.get(d.name, d.name) for d in (tf.as_dtype(info.dtype), sent))
        raise invalid(f"Expects arg[{index}] to be {wanted} but {got} is provided")
    shape = tf.TensorShape(info.tensor_shape)
    if not shape.is_compatible_with(array.shape):
        known = ",".join("?" if size is None else str(size) for size in shape)
        received = ",".join(map(str, array.shape))
        raise invalid(f"Shape of tensor {info.name} [{received}] is not compatible with expected shape [{known}].")


def _fetches(signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]) -> dict[str, str]:
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_braces(signature.outputs)}."
            )
        if list(output_filter).count(alias) > 1:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return {alias: signature.outputs[alias].name for alias in output_filter or signature.outputs}
