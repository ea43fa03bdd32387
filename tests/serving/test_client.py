import dataclasses
import os
import shutil
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from scripted_server import Scripted, answer, serve
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from harmonize_tf import predictors
from harmonize_tf.errors import FlagError, ModelError, ServerError
from serving.client import Client
from serving.server import DevelopmentServer


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address, "subpixel") as connected:
        yield connected


@pytest.fixture
def scripted(local):
    """Starts a server with a script and gives the servicer and a client of it."""
    running = []

    def start(script, **options):
        servicer = Scripted(local, script)
        server, port = serve(servicer)
        client = Client(f"127.0.0.1:{port}", **options)
        running.append((server, client))
        return servicer, client

    yield start
    for server, client in running:
        client.close()
        server.stop(None)


def failing_first(times, code, details):
    def script(number, request, context):
        if number <= times:
            context.abort(code, details)
        return answer(number, request, context)

    return script


def assert_same(answer, expected):
    assert answer.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(answer[name], array)


def test_client_gives_what_the_model_gives_in_this_process(client, local, windows):
    ms, pan = windows(n=2, h=12, w=10)
    through_server = client.predict(ms, pan)
    assert_same(through_server, local.predict(ms, pan))
    codes, quality = through_server["sentinel_ms"], through_server["quality"]
    assert codes.shape == (2, 36, 30, 4) and codes.dtype == np.uint16
    assert quality.shape == (2, 36, 30, 1) and quality.dtype == np.uint8


def test_client_reads_servers_that_answer_value_by_value_and_tells_what_it_costs(exported, local, windows, caplog):
    ms, pan = windows()
    with DevelopmentServer({"default": exported.directory}, as_content=False) as server:
        with Client(server.address) as client:
            assert_same(client.predict(ms, pan), local.predict(ms, pan))
            assert client.manifest == local.manifest
    assert "--enable_serialization_as_tensor_content=true" in caplog.text


def test_client_learns_manifest_and_version_from_the_server(client, exported):
    assert client.manifest.bands == ("blue", "green", "red", "nir")
    assert client.manifest.halo == exported.harmonizer.halo
    assert client.manifest.provenance == {"flags": "--model=subpixel"}
    assert client.version == int(exported.version.name)


def test_many_windows_are_under_way_at_once_and_no_more_than_allowed(scripted, windows):
    running, most = [], []

    def script(number, request, context):
        running.append(number)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(number)
        return answer(number, request, context)

    servicer, client = scripted(script, in_flight=3)
    ms, pan = windows()
    for future in [client.predict_async(ms, pan) for _ in range(12)]:
        future.result()
    assert servicer.calls == 12
    assert max(most) == 3


def test_answers_belong_to_their_windows_when_several_are_under_way(client, local, windows):
    inputs = [windows(seed=seed, h=9 + 3 * (seed % 3)) for seed in range(6)]
    for (ms, pan), future in zip(inputs, [client.predict_async(*pair) for pair in inputs], strict=True):
        assert_same(future.result(), local.predict(ms, pan))


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted"),
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
    ],
)
def test_what_passes_by_waiting_is_asked_again(scripted, code, details, windows):
    servicer, client = scripted(failing_first(2, code, details))
    assert client.predict(*windows())["sentinel_ms"][0, 0, 0, 0] == 3
    assert servicer.calls == 3


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "no"),
        (grpc.StatusCode.FAILED_PRECONDITION, "no"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (6291540 vs. 4194304)"),
    ],
)
def test_what_waiting_does_not_mend_is_not_asked_again(scripted, code, details, windows):
    servicer, client = scripted(failing_first(1, code, details))
    with pytest.raises(ServerError, match=f"{code.name}: "):
        client.predict(*windows())
    assert servicer.calls == 1


def test_repetitions_end_with_the_timeout(scripted, windows):
    servicer, client = scripted(failing_first(1000, grpc.StatusCode.UNAVAILABLE, "away"), timeout=1.0)
    start = time.monotonic()
    with pytest.raises(ServerError, match="no answer within 1 s .UNAVAILABLE: away."):
        client.predict(*windows())
    assert time.monotonic() - start < 3
    assert 2 <= servicer.calls < 12


def test_a_slow_server_is_given_up_at_the_timeout(scripted, windows):
    servicer, client = scripted(lambda *call: time.sleep(1.5) or answer(*call), timeout=0.3)
    with pytest.raises(ServerError, match="no answer within 0.3 s .DEADLINE_EXCEEDED"):
        client.predict(*windows())
    assert servicer.calls == 1


def test_large_requests_and_answers_pass(scripted, windows):
    big = np.zeros((1, 1500, 1500, 4), np.uint16)  # 18 MB; gRPC's default limit is 4 MiB
    servicer, client = scripted(lambda *call: {"sentinel_ms": big})
    ms, pan = windows(h=900, w=800, nodata=False)
    assert client.predict(ms, pan)["sentinel_ms"].shape == big.shape


def test_a_window_that_does_not_fit_is_refused_before_it_is_sent(scripted, windows):
    servicer, client = scripted(answer)
    ms, pan = windows()
    with pytest.raises(ModelError, match="bands blue, green, red, nir"):
        client.predict(ms[..., :3], pan)
    with pytest.raises(ModelError, match="pan=None"):
        client.predict(ms)
    assert servicer.calls == 0
    assert client.predict(ms, pan)["sentinel_ms"].shape == (1, 1, 1, 4)


def test_an_unreachable_server_is_told_in_time_with_the_remedy():
    start = time.monotonic()
    with pytest.raises(ServerError, match="harmonize serve"):
        Client("127.0.0.1:1", connect_timeout=0.5)
    assert time.monotonic() - start < 5


def test_an_unknown_model_or_version_is_told_with_the_name(server):
    with pytest.raises(ServerError, match=r"Latest\(nope\).*model=nope"):
        Client(server.address, "nope")
    with pytest.raises(ServerError, match="version=77"):
        Client(server.address, "subpixel", version=77)


@pytest.mark.parametrize("label", ["stable", "canary"])
def test_a_label_chooses_the_version_that_the_client_keeps(label, base_path, windows):
    shutil.copytree(base_path / "1", base_path / "2")
    names = {"stable": 1, "canary": 2}

    def configured(labels):
        config = model_server_config_pb2.ModelServerConfig()
        model = config.model_config_list.config.add(name="m", base_path=str(base_path), model_platform="tensorflow")
        model.model_version_policy.all.SetInParent()
        model.version_labels.update(labels)
        return config

    with DevelopmentServer(configured(names), allow_labels_for_unavailable=True) as server:
        with predictors.served(server.address, "m", label=label) as client:
            assert (client.label, client.version) == (label, names[label])
            request = model_management_pb2.ReloadConfigRequest(config=configured({"stable": 2, "canary": 1}))
            with grpc.insecure_channel(server.address) as channel:
                model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request)
            client.predict(*windows())
            assert client.version == names[label]
        with Client(server.address, "m", label=label) as client:
            assert client.version == 3 - names[label]
        with pytest.raises(ServerError, match="version label: none.*label=none.*version_labels"):
            Client(server.address, "m", label="none")
        with pytest.raises(FlagError, match="not both"):
            Client(server.address, "m", label="stable", version=1)


def test_a_model_that_is_no_harmonizer_is_refused(scripted, monkeypatch):
    def other(self, request, context):
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        signatures.signature_def["serving_default"].method_name = "x"
        response.metadata["signature_def"].Pack(signatures)
        return response

    monkeypatch.setattr(Scripted, "GetModelMetadata", other)
    with pytest.raises(ServerError, match="no signature manifest.*signatures=serving_default"):
        scripted(answer)


def test_a_graph_with_other_bands_than_its_manifest_is_refused(scripted, monkeypatch):
    truth = Scripted.GetModelMetadata

    def other(self, request, context):
        response = truth(self, request, context)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        signatures.signature_def["serving_default"].inputs["landsat_ms"].tensor_shape.dim[3].size = 6
        response.metadata["signature_def"].Pack(signatures)
        return response

    monkeypatch.setattr(Scripted, "GetModelMetadata", other)
    with pytest.raises(ServerError, match="takes something else than its manifest says"):
        scripted(answer)


@pytest.mark.parametrize("change", ["dtype", "missing"])
def test_a_graph_with_other_outputs_than_its_manifest_says_is_refused(scripted, monkeypatch, change):
    truth = Scripted.GetModelMetadata

    def other(self, request, context):
        response = truth(self, request, context)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        outputs = signatures.signature_def["serving_default"].outputs
        if change == "dtype":
            outputs["sentinel_ms"].dtype = 1
        else:
            del outputs["quality"]
        response.metadata["signature_def"].Pack(signatures)
        return response

    monkeypatch.setattr(Scripted, "GetModelMetadata", other)
    with pytest.raises(ServerError, match="gives something else than its manifest says"):
        scripted(answer)


def test_a_model_of_other_codes_is_refused_before_the_first_pixel(scripted, local, monkeypatch):
    monkeypatch.setattr(local, "manifest", dataclasses.replace(local.manifest, offset=0.0))
    with pytest.raises(ModelError, match="Received: scale=0.0001, offset=0.0"):
        scripted(answer)


def test_a_request_larger_than_grpcs_own_retries_take_is_asked_again(scripted, windows):
    """Above 256 KiB those silently do nothing."""
    servicer, client = scripted(failing_first(2, grpc.StatusCode.UNAVAILABLE, "away"))
    ms, pan = windows(h=600, w=500, nodata=False)
    assert ms.nbytes > 2e6
    assert client.predict(ms, pan)["sentinel_ms"][0, 0, 0, 0] == 3


def test_one_client_never_mixes_two_versions(base_path, windows):
    ms, pan = windows()
    with DevelopmentServer({"default": base_path}, poll_seconds=0.05) as server:
        with Client(server.address) as client:
            client.predict(ms, pan)
            shutil.copytree(base_path / "1", base_path / "copying")
            os.rename(base_path / "copying", base_path / "2")
            wait_until(lambda: server_status(server) == [(2, 30), (1, 50)])
            with pytest.raises(ServerError, match="replaced version 1"):
                client.predict(ms, pan)


def test_a_server_that_is_restarted_is_waited_for(exported, local, windows):
    ms, pan = windows()
    models = {"default": exported.directory}
    with DevelopmentServer(models) as first:
        client = Client(first.address)
        client.predict(ms, pan)
    port = int(first.address.split(":")[1])
    future = client.predict_async(ms, pan)
    time.sleep(0.2)
    assert not future.done()
    with DevelopmentServer(models, port=port), client:
        assert_same(future.result(), local.predict(ms, pan))


def server_status(server, model="default"):
    from tensorflow_serving.apis import get_model_status_pb2

    with grpc.insecure_channel(server.address) as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    return [(v.version, v.state) for v in response.model_version_status]


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_codec_and_client_import_no_tensorflow():
    code = "import sys, serving.tensors, serving.client; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_client_is_closed_when_connecting_failed(monkeypatch):
    made, connect = [], Client._connect

    def remembered(self):
        made.append(self)
        return connect(self)

    monkeypatch.setattr(Client, "_connect", remembered)
    with pytest.raises(ServerError):
        Client("127.0.0.1:1", connect_timeout=0.2)
    with pytest.raises(ValueError, match="closed channel"):
        made[0]._fleet.turn().predict(predict_pb2.PredictRequest())
    with pytest.raises(RuntimeError, match="after shutdown"):
        made[0]._threads.submit(print)
