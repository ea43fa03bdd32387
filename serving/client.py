"""A model on servers - tensorflow_model_server's or the development server - as a predictor; needs no TensorFlow.

    with Client("localhost:8500", "subpixel") as client:
        sentinel = client.predict(ms, pan)["sentinel_ms"]

    Client("gpu1:8500,gpu2:8500", "subpixel")  # take turns
    Client("gpu1:8500", "subpixel", label="stable")  # the version that the server calls so
    Client("gpu1:8500", "subpixel", credentials=tls("ca.pem"))

The version found when the client connects is asked for in every request, so that one client never mixes the answers of
two: a scene cannot have a seam where a server went over to the next version, or a label to another.
"""

import logging
import os
import pathlib
import random
import threading
import time
import types
from concurrent import futures
from typing import Any

import grpc
import numpy as np

from harmonize_tf.errors import FlagError, HarmonizeError, ServerError
from harmonize_tf.manifest import Manifest
from serving import messages, tensors
from serving.fleet import Fleet

_UINT16, _UINT8 = 17, 4
_log = logging.getLogger("harmonize.serving")
# A server that is away, and one whose grace has ended for what was under way; nobody cancels a request here.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# Seconds between attempts: doubled each time, up to the last.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
# Of a window's time, what one server gets while there are others: two may be silent before a third is asked.
_SHARE = 1 / 3


def _is_transient(error: grpc.RpcError) -> bool:
    """Whether to ask again: the server was away or had no thread free. Nothing else gets better by waiting."""
    no_thread = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "Server Threadpool Exhausted" in error.details()
    return error.code() in _AWAY or no_thread


def _lacks(error: grpc.RpcError) -> bool:
    """Whether the server lacks the model, version or label; while a fleet goes over to it, others may have it."""
    unknown_label = error.code() is grpc.StatusCode.INVALID_ARGUMENT and "version label" in error.details()
    return error.code() is grpc.StatusCode.NOT_FOUND or unknown_label


def tls(
    ca: str | os.PathLike | None, certificate: str | os.PathLike | None = None, key: str | os.PathLike | None = None
) -> grpc.ChannelCredentials:
    """Credentials for servers that speak TLS (tensorflow_model_server's --ssl_config_file).

    Args:
      ca: file with the PEM certificates of those whose signature on a server's certificate is trusted; None: the
        public ones that gRPC knows.
      certificate: file with the PEM certificate by which the client shows who it is, where servers want to know.
      key: file with its private key, PEM.

    Raises:
      FlagError: a file cannot be read, or one of certificate and key is missing.
    """
    if (certificate is None) != (key is None):
        raise FlagError(
            "a client shows who it is by a certificate and its key; give both files or none. "
            f"Received: certificate={certificate}, key={key}"
        )
    try:
        pem = [None if path is None else pathlib.Path(path).read_bytes() for path in (ca, key, certificate)]
    except OSError as error:
        raise FlagError(
            f"expected a PEM file that can be read ({error.strerror}). Received: {error.filename}. Give another."
        ) from error
    return grpc.ssl_channel_credentials(*pem)


class Client:
    """One version of one model on one server or several. Safe to use from several threads; a context manager.

    Attributes:
      target: "host:port" of the server, or several separated by commas.
      model: the model's name there.
      label: the label by which the version was chosen, or None.
      version: the version that this client asks for.
      manifest: what the model is.
    """

    def __init__(
        self,
        target: str,
        model: str = "default",
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 120.0,
        connect_timeout: float = 10.0,
        in_flight: int | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Connects and learns what the model is.

        Args:
          target: "host:port", or any other gRPC name; several separated by commas take turns, as do the addresses
            that a name has.
          model: the model's name on the server; "default" is tensorflow_model_server's own default.
          version: None takes the newest there is now on any of the servers.
          label: takes the version that has this label, such as "stable", on the first server that answers.
          timeout: seconds for one window, repetitions included; one of several servers is given up after a third.
          connect_timeout: seconds to wait for the server.
          in_flight: windows sent before the first is answered; None: 2 for each core here, at most 8. (A server that
            is not told otherwise takes 4 for each of its cores.)
          credentials: for servers that speak TLS, see `tls`.

        Raises:
          ServerError: no server answers, it has no such model, or the model is no Harmonizer.
          FlagError: the target cannot be one, or both a version and a label are given.
        """
        if version is not None and label is not None:
            raise FlagError(f"give a version or a label, not both. Received: version={version}, label={label}")
        self.target, self.model, self.label, self.version = target, model, label, version
        self._timeout = connect_timeout
        in_flight = in_flight or min(8, 2 * (os.cpu_count() or 1))
        self._slots = threading.BoundedSemaphore(in_flight)
        self._threads = futures.ThreadPoolExecutor(in_flight, thread_name_prefix="predict")
        self._fleet = Fleet(target, credentials, longest=max(timeout, connect_timeout))
        try:
            signatures = self._connect()
            self.manifest = self._fetch_manifest(signatures)
            self._check_signature(signatures["serving_default"])
        except HarmonizeError:
            self.close()
            raise
        self._timeout = timeout

    def predict(self, ms: np.ndarray, pan: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Harmonises windows.

        Args:
          ms: uint16 codes [N, h, w, B], 0 = no data.
          pan: uint16 codes [N, 2h, 2w, 1] where the model uses the panchromatic band.

        Returns:
          "sentinel_ms", uint16 codes [N, 3h, 3w, B], 0 = no data; "quality", uint8 [N, 3h, 3w, 1], bits of
          `harmonize_tf.quality`; where the model tells it, "uncertainty", codes too. The arrays may be read-only.

        Raises:
          ModelError: the windows do not fit the model; nothing was sent.
          ServerError: the server cannot be reached, or refuses.
        """
        return self.predict_async(ms, pan).result()

    def predict_async(self, ms: np.ndarray, pan: np.ndarray | None = None) -> futures.Future[dict[str, np.ndarray]]:
        """As `predict`, but only waits for one of the `in_flight` places to be free."""
        inputs = self.manifest.inputs(ms, pan)
        self._slots.acquire()
        try:
            future = self._threads.submit(self.ask, inputs, "serving_default")
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        return future

    def ask(self, inputs: dict[str, np.ndarray], signature_name: str) -> dict[str, np.ndarray]:
        """Runs any signature of the model: arrays by alias in and out.

        Raises:
          ServerError: the server cannot be reached, or refuses.
        """
        response = self._response(inputs, signature_name)
        return {alias: tensors.decode(proto) for alias, proto in response.outputs.items()}

    def close(self) -> None:
        """Waits for what is under way and closes the connection."""
        self._threads.shutdown()
        self._fleet.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        self.close()

    def _response(self, inputs: dict[str, np.ndarray], signature_name: str) -> Any:
        request = self._addressed(messages.PredictRequest())
        request.model_spec.signature_name = signature_name
        for alias, array in inputs.items():
            tensors.encode(array, request.inputs[alias])
        return self._call("predict", request)

    def _connect(self) -> Any:
        """The model's signatures; fixes the version."""
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        response = self._call("metadata", self._addressed(request))
        if self.version is None and self.label is None and len(self._fleet.servers) > 1:
            # While servers go over to a new version, that is the one which stays.
            others = self._fleet.all_metadata(self._addressed(request), _SHARE * self._timeout)
            response = max([response, *others], key=lambda answer: answer.model_spec.version.value)
        self.version = response.model_spec.version.value
        return messages.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def

    def _fetch_manifest(self, signatures: Any) -> Manifest:
        missing = {"serving_default", "manifest"} - set(signatures)
        if missing:
            raise ServerError(
                f"the model {self.model!r} at {self.target} is not one that `harmonize push` exported; it has no "
                f"signature {' and no '.join(sorted(missing))}. Received: signatures={','.join(sorted(signatures))}. "
                "Name another model."
            )
        response = self._response({"query": np.zeros(1, np.uint8)}, "manifest")
        if not response.outputs["manifest"].tensor_content:
            _log.warning(
                "%s answers value by value, which takes twenty times as long to read: start tensorflow_model_server "
                "with --enable_serialization_as_tensor_content=true",
                self.target,
            )
        return Manifest.from_json(tensors.decode(response.outputs["manifest"])[0].tobytes())

    def _check_signature(self, signature: Any) -> None:
        """Compares what the graph takes and gives with what the manifest says, before the first pixel is read."""
        bands = (_UINT16, (-1, -1, -1, len(self.manifest.bands)))
        inputs, outputs = {"landsat_ms": bands}, {"sentinel_ms": bands, "quality": (_UINT8, (-1, -1, -1, 1))}
        if self.manifest.uses_pan:
            inputs["landsat_pan"] = (_UINT16, (-1, -1, -1, 1))
        if self.manifest.uncertainty:
            outputs["uncertainty"] = bands
        for kind, expected, infos in (("takes", inputs, signature.inputs), ("gives", outputs, signature.outputs)):
            served = {
                alias: (info.dtype, tuple(dim.size for dim in info.tensor_shape.dim)) for alias, info in infos.items()
            }
            if served != expected:
                raise ServerError(
                    f"the model {self.model!r} at {self.target} {kind} something else than its manifest says (bands "
                    f"{', '.join(self.manifest.bands)}, uses_pan={self.manifest.uses_pan}): expected {expected}. "
                    f"Received: {served}. Export it again with `harmonize push`."
                )

    def _addressed(self, request: Any) -> Any:
        request.model_spec.name = self.model
        if self.version is not None:
            request.model_spec.version.value = self.version
        elif self.label is not None:
            request.model_spec.version_label = self.label
        return request

    def _call(self, method: str, request: Any) -> Any:
        """Sends a request, again and again while the trouble may pass and there is time.

        Another server is asked at once, one that has failed before after a pause. One that lacks the version, or has
        not answered in its share of the time, is not asked again while there are others.
        """
        deadline, wait, unfit = time.monotonic() + self._timeout, _FIRST_WAIT, set()
        while True:
            server = self._fleet.turn(without=unfit)
            others = set(self._fleet.servers) - unfit - {server}
            asked = time.monotonic()
            left = max(0.0, deadline - asked)
            try:
                return getattr(server, method)(request, timeout=min(left, _SHARE * self._timeout) if others else left)
            except grpc.RpcError as error:
                if _lacks(error) or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    unfit.add(server)
                if not _is_transient(error) and not (server in unfit and others):
                    raise self._explained(error) from error
                server.rest(time.monotonic() - asked)
                awake = self._fleet.awake(without=unfit)
                pause = 0.0 if awake else wait * random.uniform(0.5, 1.0)  # spreads threads; no result depends on it
                if time.monotonic() + pause >= deadline:
                    raise self._explained(error) from error
            if awake:
                continue
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _explained(self, error: grpc.RpcError) -> ServerError:
        code, details = error.code(), error.details()
        where = f"Received: target={self.target}, model={self.model}"
        if code in (*_AWAY, grpc.StatusCode.DEADLINE_EXCEEDED):
            if not hasattr(self, "manifest"):
                return ServerError(
                    f"no model server answers within {self._timeout:g} s ({details}). {where}. Start one with "
                    "`harmonize serve`, or check host, port, firewall, and whether it speaks TLS."
                )
            return ServerError(
                f"the model server gave no answer within {self._timeout:g} s ({code.name}: {details}). {where}. Take "
                "smaller windows, fewer at once, or a longer timeout."
            )
        if _lacks(error) and hasattr(self, "manifest"):
            return ServerError(
                f"the server has replaced version {self.version} by another while it was in use. {where}. Begin again "
                "with the new version, or let the server keep both (its model_version_policy)."
            )
        if _lacks(error):
            asked = {"version": self.version, "label": self.label}
            where += "".join(f", {key}={value}" for key, value in asked.items() if value is not None)
            return ServerError(
                f"the server has no such model ({details}). {where}. Give the name that the server was started with "
                "(--model_name), and a label that its configuration has (version_labels)."
            )
        return ServerError(f"the model server refuses the request: {code.name}: {details}. {where}.")
