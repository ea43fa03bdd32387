import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
import trustme
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from harmonize_tf import artifacts
from harmonize_tf.errors import FlagError, ModelError, ServerError
from serving import metrics, server_config, services, tensors
from serving import server as server_module
from serving.servable import RequestError, Servable
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


def test_a_taken_port_is_told(server):
    host, port = server.address.split(":")
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        with pytest.raises(ServerError, match="cannot be bound.*--port=0"):
            DevelopmentServer({}, host=host, port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "no model to serve"),
        (["--model=x"], "NAME=PATH. Received: model='x'"),
        (["--port=70000"], "port"),
        (["--nonsense=1"], "unknown argument.*Received: --nonsense=1"),
        (["models"], "unknown argument.*Received: models"),
        (["--model_config_file=missing"], "ModelServerConfig in protobuf's text format.*Received: missing"),
        (["--model_base_path=x", "--ssl_config_file=missing"], "SSLConfig in protobuf's text format"),
    ],
)
def test_wrong_flags_are_told(argv, text):
    with pytest.raises(FlagError, match=text):
        server_module.main(argv)


def test_a_folder_without_versions_is_told(tmp_path):
    with pytest.raises(ModelError, match=f"default={tmp_path}.*harmonize push"):
        server_module.main([f"--model_base_path={tmp_path}", "--port=0"])


def test_flags_of_the_real_server_that_have_no_counterpart_are_accepted(tmp_path, caplog):
    flags = [
        "--num_load_threads=2",
        "--enable_batching=true",
        "--enable_grpc_healthcheck_service",
        "--noenable_profiler",
    ]
    with pytest.raises(ModelError, match="harmonize push"):
        server_module.main([f"--model_base_path={tmp_path}", "--port=0", *flags])
    assert "--num_load_threads has no effect" in caplog.text


def test_what_is_left_out_says_so(stub):
    code, text = refused(stub.MultiInference, inference_pb2.MultiInferenceRequest())
    assert code is Code.UNIMPLEMENTED and "tensorflow_model_server" in text


def test_bytes_that_are_no_request_are_told_apart_from_failures(channel):
    for service, method in (("PredictionService", "Predict"), ("ModelService", "HandleReloadConfigRequest")):
        call = channel.unary_unary(f"/tensorflow.serving.{service}/{method}")
        assert refused(call, b"\xff\x00junk") == (
            Code.INVALID_ARGUMENT,
            f"The bytes received are no request of {method}",
        )


def test_a_few_bytes_cannot_ask_for_all_the_memory(stub, windows):
    request = request_of(inputs_of(windows))
    tensor = request.inputs["landsat_ms"]
    tensor.ClearField("tensor_content")
    tensor.int_val.append(7)
    for dim in tensor.tensor_shape.dim:
        dim.size = 2**20
    code, text = refused(stub.Predict, request)
    assert code is Code.INVALID_ARGUMENT and text.startswith("tensor parsing error: landsat_ms")


def test_a_damaged_example_is_refused_though_it_is_no_text(stub):
    request = request_of({"examples": np.array([b"\n\xda\x02junk"], object)}, signature="tf_example")
    code, text = refused(stub.Predict, request)
    assert code is Code.INVALID_ARGUMENT and "Could not parse example" in text


def tiny_request():
    return request_of({"x": np.ones(3, np.float32)}, model="tiny")


def test_an_unforeseen_error_is_logged_and_not_shown(tiny_path, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("secret")

    with DevelopmentServer({"tiny": tiny_path}) as server, grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        monkeypatch.setattr(Servable, "predict", fail)
        code, text = refused(stub.Predict, tiny_request())
    assert code is Code.INTERNAL and "secret" not in text
    assert "secret" in caplog.text


class Waiting:
    """Servable.predict that does not answer before it is told to."""

    def __init__(self, monkeypatch):
        self.calls, self.go, self.truth = [], threading.Event(), Servable.predict
        monkeypatch.setattr(Servable, "predict", lambda *args: self(*args))

    def __call__(self, *args):
        self.calls.append(args)
        assert self.go.wait(30)
        return self.truth(*args)

    def wait_for(self, count):
        end = time.monotonic() + 20
        while len(self.calls) < count:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_only_so_many_calls_run_at_a_time_and_health_is_still_told(tiny_path, monkeypatch):
    with DevelopmentServer({"tiny": tiny_path}, max_calls=2) as server:
        waiting = Waiting(monkeypatch)
        with grpc.insecure_channel(server.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            request = tiny_request()
            running = [stub.Predict.future(request) for _ in range(2)]
            waiting.wait_for(2)
            for _ in range(5):
                assert refused(stub.Predict, request) == (Code.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            waiting.go.set()
            assert all(call.result().outputs for call in running)
            assert stub.Predict(request).outputs
    assert len(waiting.calls) == 3


def test_a_request_whose_time_is_up_before_its_turn_does_not_run():
    class Late:
        def is_active(self):
            return True

        def time_remaining(self):
            return 0.0

    ran = []
    request = request_of({})
    with pytest.raises(RequestError, match="Deadline Exceeded") as raised:
        services._answer(lambda *args: ran.append(args), "Predict", request, Late(), knows=lambda name: True)
    assert raised.value.code is Code.DEADLINE_EXCEEDED and not ran


def test_stopping_lets_requests_under_way_end(tiny_path, monkeypatch):
    server = DevelopmentServer({"tiny": tiny_path})
    waiting = Waiting(monkeypatch)
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = tiny_request()
        under_way = stub.Predict.future(request)
        waiting.wait_for(1)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        time.sleep(0.2)
        assert refused(stub.Predict, request, timeout=5)[0] is Code.UNAVAILABLE
        waiting.go.set()
        assert under_way.result().outputs
        stopping.join(20)
    assert not stopping.is_alive() and len(waiting.calls) == 1


def write_tls(folder, authority, **fields):
    certificate = authority.issue_cert("127.0.0.1")
    config = {
        "server_key": certificate.private_key_pem.bytes().decode(),
        "server_cert": certificate.cert_chain_pems[0].bytes().decode(),
        **fields,
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in config.items()]
    (folder / "ssl.pbtxt").write_text("\n".join(lines))
    return folder / "ssl.pbtxt"


def answers(address, credentials):
    with grpc.secure_channel(address, credentials) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            return check(health_pb2.HealthCheckRequest(), timeout=3).status == health_pb2.HealthCheckResponse.SERVING
        except grpc.RpcError as error:
            assert error.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
            return False


@pytest.mark.parametrize("damage", ["unquoted", "a quote is missing", "misspelt"])
def test_a_damaged_file_of_keys_is_told_without_what_it_holds(tmp_path, damage):
    path = write_tls(tmp_path, trustme.CA())
    text = path.read_text()
    secret = text.partition("-----\\n")[2][:40]
    path.write_text(
        {
            "unquoted": text.replace('"', "", 1),
            "a quote is missing": text.replace('\\n"', "\\n", 1),
            "misspelt": text.replace("server_key", "key"),
        }[damage]
    )
    with pytest.raises(FlagError, match=r"SSLConfig in protobuf's text format \(line 1, column \d+\)") as raised:
        server_config.read_credentials(path)
    assert len(secret) == 40 and secret not in "".join(traceback.format_exception(raised.value))


def test_tls_and_mutual_tls_let_in_whom_they_should(tmp_path, tiny_path):
    authority, other = trustme.CA(), trustme.CA()
    root = authority.cert_pem.bytes()
    mine, forged = (ca.issue_cert("client.example") for ca in (authority, other))

    def client(certificate=None, root=root):
        if certificate is None:
            return grpc.ssl_channel_credentials(root)
        chain = certificate.cert_chain_pems[0].bytes()
        return grpc.ssl_channel_credentials(root, certificate.private_key_pem.bytes(), chain)

    plain = server_config.read_credentials(write_tls(tmp_path, authority))
    with DevelopmentServer({"tiny": tiny_path}, credentials=plain) as server:
        assert answers(server.address, client())
        assert not answers(server.address, client(root=other.cert_pem.bytes()))
    path = write_tls(tmp_path, authority, custom_ca=root.decode(), client_verify=True)
    with DevelopmentServer({"tiny": tiny_path}, credentials=server_config.read_credentials(path)) as server:
        assert answers(server.address, client(mine))
        assert not answers(server.address, client())
        assert not answers(server.address, client(forged))


def test_the_command_serves_over_tls_tells_metrics_takes_up_its_file_and_stops_on_sigterm(
    tiny_path, tmp_path, free_port
):
    authority = trustme.CA()
    config = server_config.models_config({"tiny": tiny_path})
    (tmp_path / "models.config").write_text(str(config))
    (tmp_path / "monitoring.pbtxt").write_text("prometheus_config { enable: true }")
    flags = [
        f"--model_config_file={tmp_path / 'models.config'}",
        "--model_config_file_poll_wait_seconds=0.1",
        f"--ssl_config_file={write_tls(tmp_path, authority)}",
        f"--monitoring_config_file={tmp_path / 'monitoring.pbtxt'}",
        f"--rest_api_port={free_port}",
        "--port=0",
    ]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "serving.server", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        address = re.fullmatch(r"serving tiny at (127\.0\.0\.1:\d+)\n", process.stdout.readline())[1]
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(address, credentials) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(tiny_request()).outputs
            url = f"http://127.0.0.1:{free_port}/monitoring/prometheus/metrics"
            assert ':tensorflow:serving:request_count{model_name="tiny",status="OK"} 1.0' in fetch(url)
            config.model_config_list.config[0].name = "renamed"
            artifacts.write(tmp_path / "models.config", str(config))
            end = time.monotonic() + 30
            request = request_of({"x": np.ones(3, np.float32)}, model="renamed")
            while time.monotonic() < end:
                with contextlib.suppress(grpc.RpcError):
                    if stub.Predict(request).outputs:
                        break
                time.sleep(0.1)
            assert stub.Predict(request).outputs
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def test_metrics_have_tensorflow_servings_names_and_only_their_path(stub, windows, exported):
    assert stub.Predict(request_of(inputs_of(windows))).outputs
    for name in ("nobody", "nobody else"):
        assert refused(stub.Predict, request_of({}, model=name))[0] is Code.NOT_FOUND
    server = metrics.MetricsServer("127.0.0.1", 0, "/metrics")
    try:
        url = f"http://127.0.0.1:{server.port}"
        families = list(text_string_to_metric_families(fetch(f"{url}/metrics")))
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(f"{url}/v1/models/subpixel")
    finally:
        server.stop()
    samples = {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}

    def value(metric, *labels):
        return samples[f":tensorflow:serving:{metric}", *sorted(labels)]

    # The parser gives counters the suffix that TensorFlow Serving leaves out; the command's test reads the text itself.
    served = value("request_count_total", "subpixel", "OK")
    assert served >= 1
    assert value("request_count_total", "(unknown)", "NOT_FOUND") >= 2
    assert not any("nobody" in label for _, *labels in samples for label in labels)
    assert value("request_latency_count", "subpixel", "Predict", "GRPC") == served
    assert value("runtime_latency_count", "subpixel", "Predict", "TF1") == served
    assert value("model_warmup_latency_count", str(exported.version), "OK") >= 1
    request = value("request_latency_sum", "subpixel", "Predict", "GRPC")
    assert request > value("runtime_latency_sum", "subpixel", "Predict", "TF1") > 100 * served  # microseconds
    (latency,) = (family for family in families if family.name == ":tensorflow:serving:request_latency")
    bounds = {float(s.labels["le"]) for s in latency.samples if "le" in s.labels}
    np.testing.assert_allclose(sorted(bounds)[:-1], [10 * 1.8**power for power in range(33)])


def test_the_metrics_port_does_not_wait_for_ever_for_a_client_that_says_nothing(monkeypatch):
    monkeypatch.setattr(metrics, "_TIMEOUT", 0.2)
    server = metrics.MetricsServer("127.0.0.1", 0, "/metrics")
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as silent:
            assert silent.recv(1) == b""
    finally:
        server.stop()
