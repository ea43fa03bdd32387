"""TensorFlow Serving's behaviour, asked of the development server and of a real tensorflow_model_server alike.

Both are started by the same flags and answer the same requests. In a text, `...` stands for anything: what depends on
TensorFlow's version, or what the development server adds.
"""

import dataclasses
import os
import re
import shutil
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_commands import DEVELOPMENT, REAL, WHY_NOT, running
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving import tensors
from serving.servable import WARMUP_FILE
from serving.server_config import PLATFORM

Code = grpc.StatusCode
DRILLS = "HARMONIZE_DRILLS" in os.environ
MS = np.full((1, 12, 10, 4), 2000, np.uint16)
PAN = np.full((1, 24, 20, 1), 2000, np.uint16)
GOOD = {"landsat_ms": MS, "landsat_pan": PAN}


@dataclasses.dataclass(frozen=True)
class Server:
    """Stubs of a running server, and the folders of its models."""

    channel: grpc.Channel
    folder: object

    @property
    def prediction(self):
        return prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    @property
    def models(self):
        return model_service_pb2_grpc.ModelServiceStub(self.channel)

    def config(self, **changes):
        """What is served from the start on, but for labels: versions 1 and 2 of "two", the newest of "newest"."""
        request = model_management_pb2.ReloadConfigRequest()
        models = request.config.model_config_list
        for name in ("two", "newest"):
            models.config.add(name=name, base_path=str(self.folder / name), model_platform=PLATFORM)
        models.config[0].model_version_policy.specific.versions.extend([1, 2])
        for label, version in ({"stable": 1, "canary": 2} | changes).items():
            models.config[0].version_labels[label] = version
        return request


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(DEVELOPMENT, id="development"),
        pytest.param([REAL], id="real", marks=pytest.mark.skipif(not REAL, reason=WHY_NOT)),
    ],
)
def server(request, exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("behaviour")
    for name, versions in (("two", "12"), ("newest", "1")):
        for version in versions:
            shutil.copytree(exported.version, folder / name / version)
    start = Server(None, folder).config().config
    start.model_config_list.config[0].version_labels.clear()
    (folder / "models.config").write_text(str(start))
    flags = [
        f"--model_config_file={folder / 'models.config'}",
        "--enable_grpc_healthcheck_service=true",
        "--enable_serialization_as_tensor_content=true",
        "--grpc_max_threads=8",
        "--num_load_threads=2",
        "--max_num_load_retries=0",
        "--file_system_poll_wait_seconds=1",
    ]
    with running(request.param, folder / "log", *flags) as channel:
        opened = Server(channel, folder)
        opened.models.HandleReloadConfigRequest(opened.config())
        yield opened


def refused(call, request, **options):
    with pytest.raises(grpc.RpcError) as raised:
        call(request, **options)
    return raised.value.code(), raised.value.details()


def matches(text, pattern):
    return re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), text, re.DOTALL)


def of_model(message, name="two", version=None, label=None, signature=""):
    message.model_spec.name = name
    message.model_spec.signature_name = signature
    if version is not None:
        message.model_spec.version.value = version
    if label is not None:
        message.model_spec.version_label = label
    return message


def predict(inputs=None, outputs=(), **model):
    request = of_model(predict_pb2.PredictRequest(output_filter=outputs), **model)
    for alias, array in (GOOD if inputs is None else inputs).items():
        tensors.encode(array, request.inputs[alias])
    return request


def damaged(change):
    request = predict()
    change(request.inputs["landsat_ms"])
    return request


PREDICT = {
    "no model_spec": (predict_pb2.PredictRequest(), Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    "no name": (predict(name=""), Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    "unknown model": (predict(name="nope"), Code.NOT_FOUND, "Servable not found for request: Latest(nope)"),
    "unknown version": (predict(version=77), Code.NOT_FOUND, "Servable not found for request: Specific(two, 77)"),
    "unknown label": (predict(label="beta"), Code.INVALID_ARGUMENT, "Unrecognized servable version label: beta"),
    "another model's label": (
        predict(name="newest", label="stable"),
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: stable",
    ),
    "unknown signature": (
        predict(signature="nope"),
        Code.FAILED_PRECONDITION,
        'Serving signature key "nope" not found.',
    ),
    "extra input": (
        predict({**GOOD, "foo": MS}),
        Code.INVALID_ARGUMENT,
        "input size does not match signature: 3!=2 len({foo,landsat_ms,landsat_pan}) != "
        "len({landsat_ms,landsat_pan}). Sent extra: {foo}. Missing but required: {}.",
    ),
    "missing input": (
        predict({"landsat_ms": MS}),
        Code.INVALID_ARGUMENT,
        "input size does not match signature: 1!=2 len({landsat_ms}) != len({landsat_ms,landsat_pan}). "
        "Sent extra: {}. Missing but required: {landsat_pan}.",
    ),
    "wrong alias": (
        predict({"landsat_ms": MS, "foo": PAN}),
        Code.INVALID_ARGUMENT,
        "Signature input alias: landsat_pan(feed name: serving_default_landsat_pan:0) not found in request and no "
        "default value provided. Inputs expected to be in the request {foo,landsat_ms}, or default input alias set: ",
    ),
    "float for uint16": (
        predict({**GOOD, "landsat_ms": MS.astype(np.float32)}),
        Code.INVALID_ARGUMENT,
        "Expects arg[0] to be uint16 but float is provided",
    ),
    "double for uint16": (
        predict({**GOOD, "landsat_pan": PAN.astype(np.float64)}),
        Code.INVALID_ARGUMENT,
        "Expects arg[1] to be uint16 but double is provided",
    ),
    "wrong rank": (
        predict({**GOOD, "landsat_ms": MS[0]}),
        Code.INVALID_ARGUMENT,
        "Shape of tensor ...[12,10,4] is not compatible with expected shape [?,?,?,4]....",
    ),
    "wrong number of bands": (
        predict({**GOOD, "landsat_ms": MS[..., :3]}),
        Code.INVALID_ARGUMENT,
        "Shape of tensor ...[1,12,10,3] is not compatible with expected shape [?,?,?,4]....",
    ),
    "too little content": (
        damaged(lambda tensor: setattr(tensor, "tensor_content", b"short")),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: landsat_ms...",
    ),
    "negative size": (
        damaged(lambda tensor: setattr(tensor.tensor_shape.dim[1], "size", -1)),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: landsat_ms...",
    ),
    "unknown output": (
        predict(outputs=["zzz"]),
        Code.INVALID_ARGUMENT,
        "output tensor alias not found in signature: zzz Outputs expected to be in the set {quality,sentinel_ms}.",
    ),
    "output asked for twice": (
        predict(outputs=["sentinel_ms"] * 2),
        Code.INVALID_ARGUMENT,
        "duplicate output tensor alias: sentinel_ms",
    ),
}


@pytest.mark.parametrize("case", PREDICT)
def test_a_wrong_predict_request_gets_its_code_and_words(server, case):
    request, code, text = PREDICT[case]
    actual, details = refused(server.prediction.Predict, request)
    assert actual is code
    assert matches(details, text), details


def classify(**model):
    request = of_model(classification_pb2.ClassificationRequest(), **model)
    request.input.example_list.examples.add()
    return request


def regress(**model):
    request = of_model(regression_pb2.RegressionRequest(), **model)
    request.input.example_list.examples.add()
    return request


@pytest.mark.parametrize(
    ("method", "request_", "text"),
    [
        ("Classify", classification_pb2.ClassificationRequest(), "Missing ModelSpec"),
        ("Classify", classify(signature="tf_example"), "No classification inputs found in SignatureDef: ..."),
        ("Classify", classify(), "Expected one input Tensor."),
        ("Classify", classify(signature="nope"), "No signature was found with the name: nope"),
        ("Regress", regress(signature="tf_example"), "Expected one output Tensor."),
        ("Regress", regress(), "Expected one input Tensor."),
    ],
)
def test_classify_and_regress_refuse_signatures_made_for_predict(server, method, request_, text):
    code, details = refused(getattr(server.prediction, method), request_)
    assert code is Code.INVALID_ARGUMENT
    assert matches(details, text), details


def metadata(*fields, **model):
    return of_model(get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields), **model)


METADATA = {
    "no model_spec": (
        get_model_metadata_pb2.GetModelMetadataRequest(),
        Code.INVALID_ARGUMENT,
        "Missing ModelSpec",
    ),
    "no field": (
        metadata(),
        Code.INVALID_ARGUMENT,
        "GetModelMetadataRequest must specify at least one metadata_field",
    ),
    "unknown field": (metadata("foo"), Code.INVALID_ARGUMENT, "Metadata field foo is not supported"),
    "unknown model": (
        metadata("signature_def", name="nope"),
        Code.NOT_FOUND,
        "Servable not found for request: Latest(nope)",
    ),
}


@pytest.mark.parametrize("case", METADATA)
def test_a_wrong_metadata_request_gets_its_code_and_words(server, case):
    request, code, text = METADATA[case]
    assert refused(server.prediction.GetModelMetadata, request) == (code, text)


def status(**model):
    return of_model(get_model_status_pb2.GetModelStatusRequest(), **model)


STATUS = {
    "no model_spec": (get_model_status_pb2.GetModelStatusRequest(), Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    "unknown model": (status(name="zzz"), Code.NOT_FOUND, "Could not find any versions of model zzz"),
    "unknown version": (status(version=9), Code.NOT_FOUND, "Could not find version 9 of model two"),
    "version of an unknown model": (
        status(name="zzz", version=9),
        Code.NOT_FOUND,
        "Could not find version 9 of model zzz",
    ),
}


@pytest.mark.parametrize("case", STATUS)
def test_a_wrong_status_request_gets_its_code_and_words(server, case):
    request, code, text = STATUS[case]
    assert refused(server.models.GetModelStatus, request) == (code, text)


def test_status_lists_the_versions_that_the_policy_asks_for_newest_first(server):
    listed = server.models.GetModelStatus(status()).model_version_status
    assert [(entry.version, entry.state, entry.status.error_code) for entry in listed] == [(2, 30, 0), (1, 30, 0)]


RELOAD = {
    "empty config": (
        lambda request: request.ClearField("config"),
        Code.INVALID_ARGUMENT,
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
        "supported",
    ),
    "no platform": (
        lambda request: request.config.model_config_list.config[1].ClearField("model_platform"),
        Code.INVALID_ARGUMENT,
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform....",
    ),
    "relative path": (
        lambda request: setattr(request.config.model_config_list.config[1], "base_path", "models/x"),
        Code.INVALID_ARGUMENT,
        "Expected model newest to have an absolute path or URI; got base_path()=models/x",
    ),
    "a model twice": (
        lambda request: setattr(request.config.model_config_list.config[1], "name", "two"),
        Code.INVALID_ARGUMENT,
        "Illegal to list model two multiple times in config list",
    ),
    "label to a version that is not available": (
        lambda request: request.config.model_config_list.config[0].version_labels.update({"stable": 9}),
        Code.FAILED_PRECONDITION,
        "Request to assign label to version 9 of model two, which is not currently available for inference",
    ),
}


@pytest.mark.parametrize("case", RELOAD)
def test_a_wrong_configuration_is_refused_and_changes_nothing(server, case):
    change, code, text = RELOAD[case]
    request = server.config()
    change(request)
    actual, details = refused(server.models.HandleReloadConfigRequest, request)
    assert actual is code
    assert matches(details, text), details
    assert server.prediction.Predict(predict(label="stable")).model_spec.version.value == 1
    assert server.prediction.Predict(predict(name="newest")).outputs


def test_labels_lead_to_their_versions_and_move_with_the_configuration(server):
    def answering(label):
        return server.prediction.Predict(predict(label=label)).model_spec.version.value

    assert (answering("stable"), answering("canary")) == (1, 2)
    response = server.models.HandleReloadConfigRequest(server.config(stable=2))
    assert response.status.error_code == 0
    assert (answering("stable"), answering("canary")) == (2, 2)
    server.models.HandleReloadConfigRequest(server.config())
    assert answering("stable") == 1


def test_a_version_or_the_newest_can_be_asked_for(server):
    for wanted, expected in ((None, 2), (1, 1), (2, 2)):
        spec = server.prediction.Predict(predict(version=wanted)).model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("two", expected, "serving_default")


def test_long_messages_are_cut(server):
    _, text = refused(server.prediction.Predict, predict({**GOOD, "x" * 2000: np.zeros(1)}))
    assert len(text) == 1024 + len("...TRUNCATED") and text.endswith("...TRUNCATED")


def test_health_is_answered_under_three_names(server):
    check = health_pb2_grpc.HealthStub(server.channel).Check
    for name in ("", "PredictionService", "ModelService"):
        assert check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService")
    assert refused(check, unknown)[0] is Code.NOT_FOUND


def large():
    """A request that takes a while."""
    arrays = (np.full((4, 256, 256, 4), 2000, np.uint16), np.full((4, 512, 512, 1), 2000, np.uint16))
    return predict(dict(zip(GOOD, arrays, strict=True)))


def test_a_deadline_ends_the_request_and_not_the_server(server):
    code, text = refused(server.prediction.Predict, large(), timeout=0.05)
    assert code is Code.DEADLINE_EXCEEDED
    assert matches(text, "...Deadline Exceeded...")
    assert server.prediction.Predict(predict(), timeout=60).outputs


def test_calls_beyond_the_bound_are_turned_away_in_the_words_of_the_real_server(server):
    request = large()
    with futures.ThreadPoolExecutor(40) as pool:
        calls = [pool.submit(server.prediction.Predict, request, timeout=2) for _ in range(40)]
        errors = [error for error in (call.exception() for call in calls) if error]
    exhausted = {error.details() for error in errors if error.code() is Code.RESOURCE_EXHAUSTED}
    assert exhausted == {"Server Threadpool Exhausted"}
    assert {error.code() for error in errors} <= {Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED}
    assert server.prediction.Predict(predict(), timeout=60).outputs


def add_version(folder, number, change=lambda path: None):
    aside = shutil.copytree(folder / "1", folder / f"exporting-{number}")
    change(aside)
    os.rename(aside, folder / str(number))


def fail_to_warm_up(path):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "nope"
    with tf.io.TFRecordWriter(str(path / WARMUP_FILE)) as writer:
        writer.write(log.SerializeToString())


@pytest.mark.parametrize(
    "least", [200, pytest.param(10_000, marks=pytest.mark.skipif(not DRILLS, reason="set HARMONIZE_DRILLS=1"))]
)
def test_no_request_fails_while_versions_change_one_half_written_and_one_failing(server, least):
    folder, seen, failed, stop = server.folder / "newest", [], [], threading.Event()
    first = server.prediction.Predict(predict(name="newest")).model_spec.version.value

    def ask():
        while not stop.is_set():
            try:
                seen.append(server.prediction.Predict(predict(name="newest"), timeout=60).model_spec.version.value)
            except grpc.RpcError as error:
                failed.append(error)

    def wait(requests, version):
        goal, end = len(seen) + requests, time.monotonic() + 300
        while len(seen) < goal or seen[-1] != version:
            assert time.monotonic() < end, f"{len(seen)} answers, the last by {seen[-1:]}; {failed[:1]}"
            time.sleep(0.01)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        quarter = least // 4
        wait(quarter, first)
        add_version(folder, first + 1)
        wait(quarter, first + 1)
        (folder / str(first + 2)).mkdir()
        shutil.copytree(folder / "1" / "variables", folder / str(first + 2) / "variables")
        wait(quarter // 2, first + 1)
        add_version(folder, first + 3, fail_to_warm_up)
        wait(quarter // 2, first + 1)
        add_version(folder, first + 4)
        wait(quarter, first + 4)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(f"{len(seen)} requests, {len(failed)} failed, versions {sorted(set(seen))}")
    assert not failed
    assert len(seen) >= least and set(seen) == {first, first + 1, first + 4}
