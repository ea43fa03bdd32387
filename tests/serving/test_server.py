import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from harmonize_tf.errors import FlagError, ModelError, ServerError
from serving import server as server_module
from serving import tensors
from serving.server import DevelopmentServer

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request_of(inputs, model="subpixel", signature="", version=None, outputs=()):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for alias, array in inputs.items():
        tensors.encode(array, request.inputs[alias])
    return request


def inputs_of(windows, **changes):
    return dict(zip(("landsat_ms", "landsat_pan"), windows(**changes), strict=True))


def refused(call, request, **options):
    with pytest.raises(grpc.RpcError) as raised:
        call(request, **options)
    return raised.value.code(), raised.value.details()


def test_predict_answers_with_model_version_and_signature(stub, exported, local, windows):
    inputs = inputs_of(windows)
    response = stub.Predict(request_of(inputs))
    assert json_format.MessageToDict(response.model_spec) == {
        "name": "subpixel",
        "version": exported.version.name,
        "signatureName": "serving_default",
    }
    codes = tf.make_ndarray(response.outputs["sentinel_ms"])
    np.testing.assert_array_equal(codes, local.predict(*inputs.values())["sentinel_ms"])


def test_tensorflows_own_way_of_sending_is_understood(stub, local, windows):
    inputs = inputs_of(windows)
    request = request_of({})
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    codes = tf.make_ndarray(stub.Predict(request).outputs["sentinel_ms"])
    np.testing.assert_array_equal(codes, local.predict(*inputs.values())["sentinel_ms"])


def test_every_wrong_predict_request_gets_the_code_and_words_of_the_real_server(stub, windows):
    good = inputs_of(windows)
    ms, pan = good.values()
    cases = [
        (predict_pb2.PredictRequest(), Code.INVALID_ARGUMENT, "Missing ModelSpec"),
        (request_of(good, model=""), Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (request_of(good, model="nope"), Code.NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (request_of(good, version=77), Code.NOT_FOUND, "Servable not found for request: Specific(subpixel, 77)"),
        (request_of(good, signature="nope"), Code.FAILED_PRECONDITION, 'Serving signature key "nope" not found.'),
        (
            request_of({**good, "foo": ms}),
            Code.INVALID_ARGUMENT,
            "input size does not match signature: 3!=2 len({foo,landsat_ms,landsat_pan}) != "
            "len({landsat_ms,landsat_pan}). Sent extra: {foo}. Missing but required: {}.",
        ),
        (
            request_of({"landsat_ms": ms}),
            Code.INVALID_ARGUMENT,
            "input size does not match signature: 1!=2 len({landsat_ms}) != len({landsat_ms,landsat_pan}). "
            "Sent extra: {}. Missing but required: {landsat_pan}.",
        ),
        (
            request_of({"landsat_ms": ms, "foo": pan}),
            Code.INVALID_ARGUMENT,
            "Signature input alias: landsat_pan(feed name: serving_default_landsat_pan:0) not found in request and no "
            "default value provided. Inputs expected to be in the set {landsat_ms,landsat_pan}.",
        ),
        (
            request_of({**good, "landsat_ms": ms.astype(np.float32)}),
            Code.INVALID_ARGUMENT,
            "Expects arg[0] to be uint16 but float is provided",
        ),
        (
            request_of({**good, "landsat_pan": pan.astype(np.float64)}),
            Code.INVALID_ARGUMENT,
            "Expects arg[1] to be uint16 but double is provided",
        ),
        (
            request_of({**good, "landsat_ms": ms[0]}),
            Code.INVALID_ARGUMENT,
            "Shape of tensor serving_default_landsat_ms:0 [12,10,4] is not compatible with expected shape [?,?,?,4].",
        ),
        (
            request_of({**good, "landsat_ms": ms[..., :3]}),
            Code.INVALID_ARGUMENT,
            "Shape of tensor serving_default_landsat_ms:0 [1,12,10,3] is not compatible with expected shape [?,?,?,4].",
        ),
        (
            request_of(good, outputs=["zzz"]),
            Code.INVALID_ARGUMENT,
            "output tensor alias not found in signature: zzz Outputs expected to be in the set {quality,sentinel_ms}.",
        ),
        (
            request_of(good, outputs=["sentinel_ms"] * 2),
            Code.INVALID_ARGUMENT,
            "duplicate output tensor alias: sentinel_ms",
        ),
    ]
    for request, code, text in cases:
        assert refused(stub.Predict, request) == (code, text)
    assert stub.Predict(request_of(good, outputs=["sentinel_ms"])).outputs


def test_labels_and_damaged_tensors_are_refused(stub, windows):
    request = request_of(inputs_of(windows))
    request.model_spec.version_label = "stable"
    expected = (Code.INVALID_ARGUMENT, "Unrecognized servable version label: stable")
    assert refused(stub.Predict, request) == expected
    request = request_of(inputs_of(windows))
    request.inputs["landsat_ms"].tensor_content = b"short"
    code, text = refused(stub.Predict, request)
    assert code is Code.INVALID_ARGUMENT and text.startswith("tensor parsing error: landsat_ms")


def test_long_messages_are_cut_as_the_real_server_cuts_them(stub, windows):
    _, text = refused(stub.Predict, request_of({**inputs_of(windows), "x" * 2000: np.zeros(1)}))
    assert len(text) == 1024 + len("...TRUNCATED") and text.endswith("...TRUNCATED")


def test_a_deadline_ends_the_request_and_not_the_server(stub, windows):
    inputs = inputs_of(windows, n=4, h=256, w=256, nodata=False)
    assert refused(stub.Predict, request_of(inputs), timeout=0.05)[0] is Code.DEADLINE_EXCEEDED
    assert stub.Predict(request_of(inputs_of(windows)), timeout=60).outputs


def test_a_run_that_takes_too_long_is_given_up_in_the_graph(local, windows):
    from serving.servable import RequestError

    inputs = inputs_of(windows, n=4, h=256, w=256, nodata=False)
    with pytest.raises(RequestError) as raised:
        local._servable.predict(inputs, timeout=0.02)
    assert raised.value.code is Code.DEADLINE_EXCEEDED


def test_metadata_shows_names_types_and_shapes(stub, exported):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "subpixel"
    response = stub.GetModelMetadata(request)
    assert response.model_spec.version.value == int(exported.version.name)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "reflectance", "tf_example", "manifest"}
    ms = signatures.signature_def["serving_default"].inputs["landsat_ms"]
    assert tf.as_dtype(ms.dtype) == tf.uint16
    assert [dim.size for dim in ms.tensor_shape.dim] == [-1, -1, -1, 4]


def test_wrong_metadata_requests_get_the_words_of_the_real_server(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert refused(stub.GetModelMetadata, request) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")
    request.model_spec.name = "subpixel"
    text = "GetModelMetadataRequest must specify at least one metadata_field"
    assert refused(stub.GetModelMetadata, request) == (Code.INVALID_ARGUMENT, text)
    request.metadata_field.append("foo")
    assert refused(stub.GetModelMetadata, request) == (Code.INVALID_ARGUMENT, "Metadata field foo is not supported")


def test_status_lists_versions_and_refuses_unknown_ones(channel, exported):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "subpixel"
    (only,) = stub.GetModelStatus(request).model_version_status
    assert (only.version, only.state, only.status.error_code) == (int(exported.version.name), 30, 0)
    request.model_spec.version.value = 1
    text = "Could not find version 1 of model subpixel"
    assert refused(stub.GetModelStatus, request) == (Code.NOT_FOUND, text)
    request.model_spec.name = "zzz"
    text = "Could not find any versions of model zzz"
    assert refused(stub.GetModelStatus, request) == (Code.NOT_FOUND, text)


def test_health_is_answered_under_the_names_of_the_real_server(channel):
    check = health_pb2_grpc.HealthStub(channel).Check
    for name in ("", "PredictionService", "ModelService"):
        assert check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService")
    assert refused(check, unknown)[0] is Code.NOT_FOUND


def test_what_is_left_out_says_so(stub, channel):
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    calls = [
        (stub.Classify, classification_pb2.ClassificationRequest()),
        (stub.Regress, regression_pb2.RegressionRequest()),
        (stub.MultiInference, inference_pb2.MultiInferenceRequest()),
        (models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()),
    ]
    for call, request in calls:
        code, text = refused(call, request)
        assert code is Code.UNIMPLEMENTED and "tensorflow_model_server" in text


def test_a_second_version_is_loaded_under_fire_without_a_failed_request(base_path, windows):
    inputs, seen, failed, stop = inputs_of(windows), [], [], threading.Event()
    with DevelopmentServer({"subpixel": base_path}, poll_seconds=0.05) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

            def ask():
                while not stop.is_set():
                    try:
                        seen.append(stub.Predict(request_of(inputs)).model_spec.version.value)
                    except grpc.RpcError as error:
                        failed.append(error)

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            shutil.copytree(base_path / "1", base_path / "copying")
            os.rename(base_path / "copying", base_path / "2")
            end = time.monotonic() + 30
            while seen[-5:] != [2] * 5 and time.monotonic() < end:
                time.sleep(0.02)
            stop.set()
            for thread in threads:
                thread.join()
            last = stub.Predict(request_of(inputs)).model_spec.version.value
    assert not failed
    assert set(seen) == {1, 2} and last == 2


def test_a_taken_port_is_told(server):
    host, port = server.address.split(":")
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        with pytest.raises(ServerError, match="cannot be bound.*--port=0"):
            DevelopmentServer({}, host=host, port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("argv", "text"),
    [([], "no model to serve"), (["--model=x"], "NAME=PATH. Received: model='x'"), (["--port=70000"], "port")],
)
def test_wrong_flags_are_told(argv, text):
    with pytest.raises(FlagError, match=text):
        server_module.main(argv)


def test_a_folder_without_versions_is_told(tmp_path):
    with pytest.raises(ModelError, match=f"default={tmp_path}.*harmonize push"):
        server_module.main([f"--model_base_path={tmp_path}", "--port=0"])


def test_the_command_serves_survives_a_wrong_rank_and_stops_on_sigterm(exported, windows):
    command = [sys.executable, "-m", "serving.server", f"--model_base_path={exported.directory}"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    flags = ["--model_name=subpixel", "--port=0"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        address = re.fullmatch(r"serving subpixel at (127\.0\.0\.1:\d+)\n", process.stdout.readline())[1]
        with grpc.insecure_channel(address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            inputs = inputs_of(windows)
            for wrong in (inputs["landsat_ms"][0], inputs["landsat_ms"][None], np.uint16(1), np.ones(4, np.uint16)):
                code, _ = refused(stub.Predict, request_of({**inputs, "landsat_ms": wrong}))
                assert code is Code.INVALID_ARGUMENT
            assert stub.Predict(request_of(inputs)).outputs
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
