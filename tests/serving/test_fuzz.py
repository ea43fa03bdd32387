"""Malformed requests by the thousand: each gets a clear answer, and the server goes on answering."""

import os
import random
import socket
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from server_commands import DEVELOPMENT, running
from tensorflow.core.example import example_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving import server_config, tensors

Code = grpc.StatusCode
DRILLS = "HARMONIZE_DRILLS" in os.environ
CLEAR = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
    Code.DEADLINE_EXCEEDED,
}
EXTREMES = (0, 1, -1, 2, 3, 7, 255, 65535, 2**20, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
TEXTS = (
    "",
    "subpixel",
    "tf_example",
    "reflectance",
    "signature_def",
    "nope",
    "/",
    "..",
    "x" * 3000,
    "é\0\n",
    "{}",
    "%s",
)


@pytest.fixture(scope="module")
def channel(exported, tmp_path_factory):
    """A server in a process of its own, so that its death would show."""
    folder = tmp_path_factory.mktemp("fuzz")
    flags = [f"--model_base_path={exported.directory}", "--model_name=subpixel"]
    with running(DEVELOPMENT, folder / "log", *flags) as opened:
        yield opened


def valid_requests(exported):
    """A good request by the method that takes it."""
    predict = predict_pb2.PredictRequest(output_filter=["sentinel_ms"])
    tensors.encode(np.full((1, 12, 10, 4), 2000, np.uint16), predict.inputs["landsat_ms"])
    tensors.encode(np.full((1, 24, 20, 1), 2000, np.uint16), predict.inputs["landsat_pan"])
    by_value = predict_pb2.PredictRequest()
    by_value.model_spec.signature_name = "reflectance"
    tensors.encode(np.full((1, 4, 4, 4), 0.1, np.float32), by_value.inputs["landsat_ms"], as_content=False)
    tensors.encode(np.full((1, 8, 8, 1), 0.1, np.float32), by_value.inputs["landsat_pan"], as_content=False)
    example = predict_pb2.PredictRequest()
    example.model_spec.signature_name = "tf_example"
    record = example_pb2.Example()
    record.features.feature["landsat/ms"].bytes_list.value.append(b"\0" * 32)
    tensors.encode(np.array([record.SerializeToString()], object), example.inputs["examples"])
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    config = server_config.models_config({"subpixel": exported.directory})
    reload = model_management_pb2.ReloadConfigRequest(config=config)
    named = [
        *(("PredictionService/Predict", request) for request in (predict, by_value, example)),
        ("PredictionService/GetModelMetadata", metadata),
        ("ModelService/GetModelStatus", get_model_status_pb2.GetModelStatusRequest()),
        ("PredictionService/Classify", classification_pb2.ClassificationRequest()),
        ("PredictionService/Regress", regression_pb2.RegressionRequest()),
    ]
    for _, request in named:
        request.model_spec.name = "subpixel"
    return [
        *((f"/tensorflow.serving.{method}", request) for method, request in named),
        ("/tensorflow.serving.PredictionService/MultiInference", inference_pb2.MultiInferenceRequest()),
        ("/tensorflow.serving.ModelService/HandleReloadConfigRequest", reload),
        ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="PredictionService")),
    ]


def any_value(field, draw):
    kind = field.cpp_type
    if kind in (field.CPPTYPE_STRING,):
        text = draw.choice(TEXTS)
        return text.encode() + draw.randbytes(draw.randrange(40)) if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw.choice((0.0, -1.0, 1e30, float("inf"), float("nan")))
    if kind == field.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if kind == field.CPPTYPE_ENUM:
        return draw.choice((*(value.number for value in field.enum_type.values), 77))
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    least = 0 if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else -(2 ** (bits - 1))
    return draw.choice([value for value in EXTREMES if least <= value < 2 ** (bits - 1)])


def is_map(field):
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def mutate(message, draw):
    """Changes one thing somewhere in a message: a value, a part, the number of entries."""
    message.SetInParent()
    if not message.DESCRIPTOR.fields:
        return
    field = draw.choice(message.DESCRIPTOR.fields)
    if draw.random() < 0.15:
        message.ClearField(field.name)
    elif is_map(field):
        entries = getattr(message, field.name)
        key_field, value_field = field.message_type.fields
        key = draw.choice([*entries, any_value(key_field, draw)])
        if value_field.message_type is None:
            entries[key] = any_value(value_field, draw)
        elif key in entries and draw.random() < 0.1:
            del entries[key]
        else:
            mutate(entries[key], draw)
    elif field.is_repeated:
        entries = getattr(message, field.name)
        if field.message_type is not None:
            mutate(draw.choice(entries) if entries and draw.random() < 0.8 else entries.add(), draw)
        elif entries and draw.random() < 0.3:
            del entries[draw.randrange(len(entries)) :]
        else:
            entries.extend([any_value(field, draw)] * draw.choice((1, 1, 2, 50)))
    elif field.message_type is not None:
        mutate(getattr(message, field.name), draw)
    else:
        setattr(message, field.name, any_value(field, draw))


def mutate_bytes(data, draw):
    data = bytearray(data)
    match draw.randrange(4):
        case 0:
            return draw.randbytes(draw.randrange(200))
        case 1:
            return bytes(data[: draw.randrange(len(data) + 1)])
        case 2:
            for _ in range(draw.randrange(1, 8)):
                data[draw.randrange(min(len(data), 200))] = draw.randrange(256)
        case 3:
            at = draw.randrange(min(len(data), 200))
            data[at:at] = draw.randbytes(draw.randrange(1, 30))
    return bytes(data)


def malformed(valid, draw):
    method, request = draw.choice(valid)
    if draw.random() < 0.3:
        return method, mutate_bytes(request.SerializeToString() or b"\x0a\x00", draw)
    request = type(request).FromString(request.SerializeToString())
    for _ in range(draw.choice((1, 1, 2, 5))):
        mutate(request, draw)
    return method, request.SerializeToString()


def wait_until_served(stub, request):
    """A reload does not wait for models that were configured before, whatever became of their versions."""
    end = time.monotonic() + 60
    while True:
        try:
            return stub.Predict(request, timeout=60)
        except grpc.RpcError as error:
            assert error.code() is Code.NOT_FOUND and time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.parametrize(
    "count", [600, pytest.param(10_000, marks=pytest.mark.skipif(not DRILLS, reason="set HARMONIZE_DRILLS=1"))]
)
def test_malformed_requests_get_a_clear_answer_and_leave_the_server_answering(channel, exported, count):
    draw = random.Random(20 + count)
    valid = valid_requests(exported)
    predict, reload = valid[0][1], valid[-2]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    seen = {}
    for number in range(count):
        method, data = malformed(valid, draw)
        try:
            channel.unary_unary(method)(data, timeout=60)
            code, text = Code.OK, ""
        except grpc.RpcError as error:
            code, text = error.code(), error.details()
        seen[method, code] = seen.get((method, code), 0) + 1
        unloadable = code is Code.UNKNOWN and "did not become available" in text
        assert code in CLEAR or unloadable, (number, method, data[:300], code, text)
        assert "Traceback" not in text and "Exception" not in text, (number, method, text)
        if (method, code) == (reload[0], Code.OK) or unloadable:
            channel.unary_unary(method)(reload[1].SerializeToString(), timeout=60)
            wait_until_served(stub, predict)
        if number % 50 == 0:
            assert stub.Predict(predict, timeout=60).outputs
    assert stub.Predict(predict, timeout=60).outputs
    for (method, code), times in sorted(seen.items(), key=str):
        print(f"{times:6d} {method} {code.name}")
    assert {code for _, code in seen} >= {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND}


def test_bytes_that_are_no_http2_leave_the_server_answering(server):
    draw = random.Random(1)
    host, port = server.address.split(":")
    for start in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        for _ in range(10):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(start + draw.randbytes(draw.randrange(500)))
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health_pb2.HealthCheckResponse.FromString(check(b"", timeout=10)).status == 1
