import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import trustme
from scripted_server import Scripted, answer, serve
from tensorflow_serving.apis import predict_pb2

from harmonize_tf import command, predictors
from harmonize_tf.errors import FlagError, ServerError
from serving import fleet, scene
from serving.client import Client, tls


@pytest.fixture
def start(local):
    """Starts scripted servers; gives the servicer and the address of each."""
    running = []

    def begin(script=answer, **place):
        servicer = Scripted(local, script)
        server, port = serve(servicer, **place)
        servicer.stop = lambda: server.stop(None).wait()
        running.append(server)
        return servicer, f"{place.get('host', '127.0.0.1')}:{port}"

    yield begin
    for server in running:
        server.stop(None)


def ask(client, windows, times):
    """Predicts, several at once; the answers."""
    ms, pan = windows()
    return [future.result() for future in [client.predict_async(ms, pan) for _ in range(times)]]


def test_servers_take_turns(start, windows):
    servers = [start() for _ in range(3)]
    with Client(", ".join(address for _, address in servers)) as client:
        ask(client, windows, 30)
    assert [servicer.calls for servicer, _ in servers] == [10, 10, 10]


def test_what_a_stopped_server_was_asked_the_others_answer_at_once(start, windows):
    reached = threading.Semaphore(0)

    def slow(*call):
        reached.release()
        time.sleep(0.05)
        return answer(*call)

    (first, one), (second, two) = start(slow), start(slow)
    with Client(f"{one},{two}", in_flight=4) as client:
        ms, pan = windows()
        waiting = futures.ThreadPoolExecutor(1).submit(ask, client, windows, 40)
        for _ in range(6):
            reached.acquire()
        first.stop()
        assert len(waiting.result()) == 40
        before, started = first.calls, time.monotonic()
        client.predict(ms, pan)
        assert time.monotonic() - started < 1
    assert first.calls == before < 20 and second.calls >= 40 - before + 1


def test_a_server_that_comes_back_is_asked_again(start, windows):
    (_, one), (second, two) = start(), start()
    with Client(f"{one},{two}") as client:
        second.stop()
        ask(client, windows, 4)
        again, _ = start(port=int(two.rpartition(":")[2]))
        deadline = time.monotonic() + 15
        while not again.calls:
            assert time.monotonic() < deadline
            ask(client, windows, 2)
            time.sleep(0.1)


def test_a_busy_server_leaves_its_turn_to_the_others(start, windows):
    def busy(number, request, context):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")

    (first, one), (second, two) = start(busy), start()
    with Client(f"{one},{two}", in_flight=1) as client:
        started = time.monotonic()
        ask(client, windows, 20)
        assert time.monotonic() - started < 1
    assert second.calls == 20 and first.calls <= 2


def test_a_client_takes_the_newest_version_and_asks_those_who_have_it(start, windows):
    """As in a rolling update: the servers go over one after the other."""
    (first, one), (second, two) = start(), start()
    second.version = 4
    with Client(f"{one},{two}") as client:
        assert client.version == 4
        ask(client, windows, 10)
        assert (first.calls, second.calls) == (0, 10)
        first.version = 4
        time.sleep(1.1)  # it rests for a second
        ask(client, windows, 10)
        assert first.calls == second.calls - 10 == 5


def test_a_version_that_the_user_names_is_asked_of_those_who_still_have_it(start, windows):
    (first, one), (second, two) = start(), start()
    second.version = 4
    with Client(f"{two},{one}", version=3) as client:
        assert client.version == 3
        ask(client, windows, 6)
        assert (first.calls, second.calls) == (6, 0)
        first.version = 4
        with pytest.raises(ServerError, match="replaced version 3 by another"):
            client.predict(*windows())
    with pytest.raises(ServerError, match="no such model.*version=3"):
        Client(f"{two},{one}", version=3)


def test_a_label_is_asked_of_those_who_know_it(start, windows):
    """As while the servers of a fleet take up a new configuration."""
    (first, one), (second, two) = start(), start()
    second.version, second.labels = 4, {"canary": 4}
    with Client(f"{one},{two}", label="canary") as client:
        assert client.version == 4
        ask(client, windows, 4)
    assert (first.calls, second.calls) == (0, 4)


def test_a_silent_server_costs_a_part_of_the_time_and_no_window(start, windows):
    over = threading.Event()
    (silent, one), (second, two) = start(lambda *call: over.wait(10) and answer(*call)), start()
    with Client(f"{one},{two}", timeout=3.0, in_flight=8) as client:
        started = time.monotonic()
        ask(client, windows, 8)
        assert time.monotonic() - started < 2.5
        assert second.calls == 8 and silent.calls == 4
        ask(client, windows, 4)  # it rests
        assert silent.calls == 4
        over.set()


def test_a_label_goes_with_the_command(start):
    servicer, address = start()
    servicer.labels = {"stable": 3}
    for label in ("stable", "canary"):
        command.parse(scene.FLAGS, [f"--target={address}", f"--model_label={label}"])
        told = contextlib.nullcontext() if label == "stable" else pytest.raises(ServerError, match="label=canary")
        with told, predictors.served(**predictors.server_of(scene.FLAGS)) as predictor:
            assert predictor.version == 3


def named(monkeypatch, addresses):
    """Has the name fleet.test several addresses."""

    def look_up(host, port, **_):
        assert host == "fleet.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port))) for address in addresses]

    monkeypatch.setattr(fleet.socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("scheme", ["", "dns:///"])
def test_a_name_with_several_addresses_is_as_many_servers(start, windows, monkeypatch, scheme):
    first, one = start()
    port = int(one.rpartition(":")[2])
    addresses = ["127.0.0.1", "127.0.0.2"]
    named(monkeypatch, addresses)
    second, _ = start(host="127.0.0.2", port=port)
    with Client(f"{scheme}fleet.test:{port}") as client:
        ask(client, windows, 10)
        assert (first.calls, second.calls) == (5, 5)
        # Another takes the place of one, as when a pod is replaced.
        monkeypatch.setattr(fleet, "_LOOK_UP", 0.0)
        third, _ = start(host="127.0.0.3", port=port)
        addresses[0] = "127.0.0.3"
        ask(client, windows, 10)
        assert (first.calls, second.calls, third.calls) == (5, 10, 5)


def test_connections_to_those_gone_are_closed_once_nothing_can_be_under_way(monkeypatch):
    addresses = ["127.0.0.1", "127.0.0.2"]
    named(monkeypatch, addresses)
    monkeypatch.setattr(fleet, "_LOOK_UP", 0.0)
    servers = fleet.Fleet("fleet.test:9", None, longest=0.2)
    gone = servers.servers[0]
    for number in range(3, 9):
        addresses[0] = f"127.0.0.{number}"
        servers.turn()
    gone.channel.subscribe(lambda _: None)  # still open
    time.sleep(0.25)
    addresses[0] = "127.0.0.8"
    servers.turn()
    assert {server.address for server in servers._made.values()} == {"127.0.0.2:9", "127.0.0.8:9"}
    with pytest.raises(ValueError, match="closed channel"):
        gone.predict(predict_pb2.PredictRequest())
    servers.close()


@pytest.mark.parametrize("target", ["gpu1..local:8500", f"{'a' * 70}:8500", "a:1,", ",", ""])
def test_a_target_that_cannot_be_one_is_told_in_one_line(target):
    with pytest.raises(FlagError, match=f"Received: target={target}$") as error:
        Client(target)
    assert "\n" not in str(error.value)


def test_both_kinds_of_address_of_one_host_are_one_server(monkeypatch):
    infos = [(socket.AF_INET6, 1, 6, "", ("::1", 1, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 1))]
    monkeypatch.setattr(fleet.socket, "getaddrinfo", lambda *_, **__: infos)
    assert fleet._addresses("localhost:1") == ["localhost:1"]
    infos.append((socket.AF_INET6, 1, 6, "", ("::2", 1, 0, 0)))
    assert fleet._addresses("localhost:1") == ["[::1]:1", "[::2]:1"]


@pytest.mark.parametrize("name", ["unix:/tmp/socket", "ipv4:10.0.0.1:8500", "xds:///service"])
def test_other_grpc_names_are_left_to_grpc(name):
    assert fleet._addresses(name) == [name]


def test_a_server_that_hangs_while_connecting_holds_nobody_up_for_long(start, windows):
    good, address = start()
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        hanging = f"127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        with Client(f"{hanging},{address}") as client:
            ask(client, windows, 4)
        assert time.monotonic() - started < 9
    assert good.calls == 4


def test_a_killed_server_costs_no_window(exported, server, local, windows):
    """The real thing: kill -9 of a process while it computes."""
    command = [sys.executable, "-m", "serving.server", f"--model_base_path={exported.directory}", "--port=0"]
    process = subprocess.Popen([*command, "--model_name=subpixel"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r" at (\S+)", process.stdout.readline())[1]
        ms, pan = windows(h=96, w=96)
        expected = local.predict(ms, pan)["sentinel_ms"]
        with Client(f"{address},{server.address}", "subpixel") as client:
            waiting = [client.predict_async(ms, pan) for _ in range(4)]
            process.send_signal(signal.SIGKILL)
            waiting += [client.predict_async(ms, pan) for _ in range(8)]
            for future in waiting:
                np.testing.assert_array_equal(future.result()["sentinel_ms"], expected)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Who signs, and the PEM files of a client."""
    signer, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    signer.cert_pem.write_to_path(folder / "ca.pem")
    client = signer.issue_cert("client@example.org")
    client.private_key_pem.write_to_path(folder / "key.pem")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    return signer, folder


def secured(authority, *names):
    """Credentials of a server that wants to know who asks."""
    signer, _ = authority
    certificate = signer.issue_cert(*names)
    pair = certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes()
    return grpc.ssl_server_credentials([pair], signer.cert_pem.bytes(), require_client_auth=True)


def test_both_sides_show_who_they_are_over_tls(start, authority, windows, monkeypatch):
    _, folder = authority
    own = folder / "client.pem", folder / "key.pem"
    servicer, address = start(credentials=secured(authority, "fleet.test"))
    port = int(address.rpartition(":")[2])
    start(host="127.0.0.2", port=port, credentials=secured(authority, "fleet.test"))
    named(monkeypatch, ["127.0.0.1", "127.0.0.2"])
    with Client(f"fleet.test:{port}", credentials=tls(folder / "ca.pem", *own)) as client:
        ask(client, windows, 4)
    assert servicer.calls == 2
    # Nobody else gets in, and nobody talks to a server of another name.
    for target, credentials in (
        (f"fleet.test:{port}", None),
        (f"fleet.test:{port}", tls(folder / "ca.pem")),
        (f"127.0.0.1:{port}", tls(folder / "ca.pem", *own)),
    ):
        if target.startswith("127"):
            monkeypatch.undo()
        with pytest.raises(ServerError, match="no model server answers.*whether it speaks TLS"):
            Client(target, credentials=credentials, connect_timeout=1.0)
    assert servicer.calls == 2


def test_a_scene_goes_over_tls_with_the_files_that_its_flags_name(start, authority):
    _, folder = authority
    _, address = start(credentials=secured(authority, "localhost"))
    target = address.replace("127.0.0.1", "localhost")
    files = {"ca": "ca.pem", "certificate": "client.pem", "key": "key.pem"}
    command.parse(scene.FLAGS, [f"--target={target}", *(f"--tls_{k}={folder / v}" for k, v in files.items())])
    with predictors.served(**predictors.server_of(scene.FLAGS)) as predictor:
        assert predictor.version == 3


def test_pem_files_that_are_missing_are_told(authority):
    _, folder = authority
    with pytest.raises(FlagError, match="Received: .*nowhere.pem"):
        tls(folder / "nowhere.pem")
    with pytest.raises(FlagError, match="both files or none"):
        tls(folder / "ca.pem", folder / "client.pem")
