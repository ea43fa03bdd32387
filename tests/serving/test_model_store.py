import contextlib
import os
import pathlib
import shutil
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_log_pb2

from harmonize_tf.errors import ModelError
from serving import server_config
from serving.model_store import ModelStore, State
from serving.servable import WARMUP_FILE, RequestError, Servable

POLL = 0.05
INPUTS = {"x": np.ones(3, np.float32)}


@pytest.fixture
def base_path(tiny_path):
    return tiny_path


@pytest.fixture
def store(base_path):
    opened = ModelStore({"m": base_path}, POLL)
    yield opened
    opened.close()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def add_version(base_path, number, change=lambda path: None):
    """Puts a copy of version 1 beside it, as export does: complete before it has its name."""
    aside = shutil.copytree(base_path / "1", base_path / f"exporting-{number}")
    change(aside)
    os.rename(aside, base_path / str(number))


def states(store):
    return [(number, state) for number, state, _ in store.status("m")]


def test_the_newest_version_is_served_and_the_older_left_alone(base_path):
    add_version(base_path, 3)
    store = ModelStore({"m": base_path}, POLL)
    assert states(store) == [(3, State.AVAILABLE)]
    with store.servable("m") as (number, servable):
        assert number == 3 and servable.path == base_path / "3"
    with pytest.raises(RequestError, match=r"Specific\(m, 1\)"), store.servable("m", 1):
        pass
    store.close()


def config_of(base_path, policy="", labels=(), name="m"):
    config = server_config.models_config({name: base_path})
    text_format.Parse(policy, config.model_config_list.config[0].model_version_policy)
    config.model_config_list.config[0].version_labels.update(labels)
    return config


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [4]),
        ("latest {}", [4]),
        ("latest { num_versions: 2 }", [4, 3]),
        ("all {}", [4, 3, 2, 1]),
        ("specific { versions: 1 versions: 3 versions: 9 }", [3, 1]),
    ],
)
def test_the_policy_says_which_versions_are_served(base_path, policy, expected):
    for number in (2, 3, 4):
        add_version(base_path, number)
    store = ModelStore(config_of(base_path, policy), POLL)
    assert states(store) == [(number, State.AVAILABLE) for number in expected]
    store.close()


def test_the_last_two_versions_stay_while_a_third_arrives(base_path):
    add_version(base_path, 2)
    store = ModelStore(config_of(base_path, "latest { num_versions: 2 }"), POLL)
    add_version(base_path, 3)
    wait_until(lambda: states(store) == [(3, State.AVAILABLE), (2, State.AVAILABLE), (1, State.END)])
    store.close()


def test_another_policy_takes_effect_while_serving(store, base_path):
    add_version(base_path, 2)
    wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.END)])
    store.reload(config_of(base_path, "specific { versions: 1 }"))
    wait_until(lambda: states(store) == [(2, State.END), (1, State.AVAILABLE)])


def test_labels_lead_to_versions_that_are_loaded_only(base_path):
    add_version(base_path, 2)
    store = ModelStore(config_of(base_path, "all {}"), POLL)
    store.reload(config_of(base_path, "all {}", {"stable": 1, "canary": 2}))
    for label, expected in (("stable", 1), ("canary", 2)):
        with store.servable("m", label=label) as (number, _):
            assert number == expected
    with (
        pytest.raises(RequestError, match="Unrecognized servable version label: beta"),
        store.servable("m", label="beta"),
    ):
        pass
    with pytest.raises(RequestError, match="assign label to version 3 of model m, which is not") as raised:
        store.reload(config_of(base_path, "all {}", {"stable": 3}))
    assert raised.value.code is grpc.StatusCode.FAILED_PRECONDITION
    with store.servable("m", label="stable") as (number, _):
        assert number == 1
    store.close()


def test_labels_in_the_first_configuration_must_be_allowed(base_path):
    config = config_of(base_path, labels={"stable": 1})
    with pytest.raises(ModelError, match="assign label to version 1 of model m"):
        ModelStore(config)
    store = ModelStore(config, POLL, allow_labels_for_unavailable=True)
    with store.servable("m", label="stable") as (number, _):
        assert number == 1
    # A new label may be ahead of its version; a label in use may not.
    store.reload(config_of(base_path, labels={"stable": 1, "canary": 2}))
    with pytest.raises(RequestError, match=r"Specific\(m, 2\)"), store.servable("m", label="canary"):
        pass
    with pytest.raises(RequestError, match="assign label to version 2"):
        store.reload(config_of(base_path, labels={"stable": 2}))
    store.close()


def test_a_configuration_brings_models_and_takes_them_away_and_back(store, base_path):
    store.reload(config_of(base_path, name="other"))
    with store.servable("other") as (number, _):
        assert number == 1
    wait_until(lambda: states(store) == [(1, State.END)])
    with pytest.raises(RequestError, match=r"Latest\(m\)"), store.servable("m"):
        pass
    store.reload(config_of(base_path))
    assert states(store) == [(1, State.AVAILABLE)]


def test_a_new_model_that_cannot_be_loaded_is_told_and_harms_no_other(store, base_path, tmp_path):
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "saved_model.pb").write_bytes(b"junk")
    both = server_config.models_config({"m": base_path, "bad": tmp_path / "bad", "none": tmp_path / "none"})
    with pytest.raises(
        RequestError, match=r"2 model\(s\) did not become available: .*bad.*cannot be loaded.*none"
    ) as raised:
        store.reload(both)
    assert raised.value.code is grpc.StatusCode.UNKNOWN
    assert states(store) == [(1, State.AVAILABLE)]
    shutil.copytree(base_path / "1", tmp_path / "none" / "1")
    wait_until(lambda: store.status("none") == [(1, State.AVAILABLE, "")])


def test_a_model_that_takes_long_to_load_keeps_no_other_waiting(base_path, tmp_path, monkeypatch):
    shutil.copytree(base_path, tmp_path / "slow")
    store = ModelStore({"m": base_path, "slow": tmp_path / "slow"}, POLL)
    truth, go = tf.compat.v1.saved_model.load, threading.Event()

    def load(session, tags, path):
        if "slow" in path:
            assert go.wait(30)
        return truth(session, tags, path)

    monkeypatch.setattr(tf.compat.v1.saved_model, "load", load)
    add_version(tmp_path / "slow", 2)
    wait_until(lambda: store.status("slow")[0][:2] == (2, State.LOADING))
    add_version(base_path, 2)
    wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.END)])
    assert [state for _, state, _ in store.status("slow")] == [State.LOADING, State.AVAILABLE]
    go.set()
    store.close()


@pytest.fixture
def held_load(monkeypatch):
    """Makes the loading of the folders given, once it has begun, wait until it is let go."""
    truth = tf.compat.v1.saved_model.load

    def hold(*held):
        begun, go = threading.Event(), threading.Event()

        def load(session, tags, path):
            if pathlib.Path(path) in held:
                begun.set()
                assert go.wait(30)
            return truth(session, tags, path)

        monkeypatch.setattr(tf.compat.v1.saved_model, "load", load)
        return begun, go

    return hold


def in_thread(call, *args):
    def run():
        with contextlib.suppress(RequestError):
            call(*args)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_closing_ends_a_reload_whose_models_wait_for_a_thread(base_path, tmp_path, held_load):
    names = ("a", "b", "c", "d")  # more than there are threads
    for name in names:
        shutil.copytree(base_path, tmp_path / name)
    store = ModelStore({"m": base_path}, 0)
    begun, go = held_load(*(tmp_path / name / "1" for name in names))
    reloading = in_thread(store.reload, server_config.models_config({name: tmp_path / name for name in names}))
    assert begun.wait(20)
    closing = in_thread(store.close)
    time.sleep(0.2)
    go.set()
    for thread in (closing, reloading):
        thread.join(20)
        assert not thread.is_alive()
    assert store.status("d") == []


def test_a_reload_while_an_earlier_one_loads_is_taken_up_without_polling(base_path, held_load):
    for number in (2, 3):
        add_version(base_path, number)
    store = ModelStore(config_of(base_path, "specific { versions: 1 }"), 0)
    begun, go = held_load(base_path / "2")
    store.reload(config_of(base_path, "specific { versions: 2 }"))
    assert begun.wait(20)
    store.reload(config_of(base_path, "specific { versions: 3 }"))
    go.set()
    wait_until(lambda: states(store) == [(3, State.AVAILABLE), (2, State.END), (1, State.END)])
    store.close()


def test_long_requests_on_old_versions_keep_no_other_model_waiting(base_path, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copytree(base_path, tmp_path / name)
    store = ModelStore({name: tmp_path / name for name in ("a", "b")}, POLL)
    with store.servable("a"), store.servable("b"):
        for name in ("a", "b"):
            add_version(tmp_path / name, 2)
        wait_until(lambda: all(store.status(name)[1:] == [(1, State.UNLOADING, "")] for name in ("a", "b")))
        config = server_config.models_config({name: tmp_path / name for name in ("a", "b", "c")})
        reloading = in_thread(store.reload, config)
        reloading.join(10)
        assert not reloading.is_alive()
        assert store.status("c") == [(1, State.AVAILABLE, "")]
    assert all(store.status(name)[1:] == [(1, State.END, "")] for name in ("a", "b"))
    store.close()


def test_a_version_wanted_back_before_its_last_request_has_ended_goes_on_unless_its_files_changed(base_path):
    add_version(base_path, 2)
    store = ModelStore(config_of(base_path, "specific { versions: 1 }"), 0)
    with store.servable("m") as (_, before):
        store.reload(config_of(base_path, "specific { versions: 2 }"))
        wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.UNLOADING)])
        store.reload(config_of(base_path, "specific { versions: 1 }"))
        wait_until(lambda: states(store) == [(2, State.END), (1, State.AVAILABLE)])
        with store.servable("m") as (_, back):
            assert back is before
        store.reload(config_of(base_path, "specific { versions: 2 }"))
        wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.UNLOADING)])
        (base_path / "1" / "assets.extra" / "harmonize.json").write_text("{}")
        store.reload(config_of(base_path, "specific { versions: 1 }"))
        wait_until(lambda: states(store) == [(2, State.END), (1, State.AVAILABLE)])
        with store.servable("m") as (_, another):
            assert another is not before
            another.predict(INPUTS)
        before.predict(INPUTS)
    with pytest.raises(RuntimeError, match="closed"):
        before.predict(INPUTS)
    assert states(store) == [(2, State.END), (1, State.AVAILABLE)]
    store.close()


def test_several_models_are_served_side_by_side(base_path):
    store = ModelStore({"a": base_path, "b": base_path}, POLL)
    for name in ("a", "b"):
        with store.servable(name, 1) as (number, _):
            assert number == 1
    with pytest.raises(RequestError, match=r"Latest\(c\)") as raised, store.servable("c"):
        pass
    assert raised.value.code is grpc.StatusCode.NOT_FOUND
    assert store.status("c") == []
    store.close()


def test_a_new_version_takes_over_without_a_failed_request(store, base_path):
    answered, failed, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                with store.servable("m") as (number, servable):
                    servable.predict(INPUTS)
                answered.append(number)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: answered)
    add_version(base_path, 2)
    wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.END)])
    before = len(answered)
    wait_until(lambda: len(answered) > before + 5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert answered[0] == 1 and answered[-1] == 2


def test_an_old_version_lives_until_its_last_request_ends(store, base_path):
    with store.servable("m") as (number, servable):
        add_version(base_path, 2)
        wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.UNLOADING)])
        assert number == 1
        servable.predict(INPUTS)
        with store.servable("m") as (newest, _):
            assert newest == 2
    wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.END)])


def test_a_version_being_copied_is_passed_over_until_it_is_whole(store, base_path):
    (base_path / "2").mkdir()
    shutil.copytree(base_path / "1" / "variables", base_path / "2" / "variables")
    time.sleep(4 * POLL)
    assert states(store) == [(1, State.AVAILABLE)]
    shutil.copytree(base_path / "1", base_path / "2", dirs_exist_ok=True)
    wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.END)])


def test_a_version_that_fails_is_told_and_tried_again_when_its_files_change(store, base_path):
    def remove_variables(path):
        shutil.move(path / "variables", base_path / "kept")

    add_version(base_path, 2, remove_variables)
    wait_until(lambda: states(store) == [(2, State.END), (1, State.AVAILABLE)])
    assert "cannot be loaded" in store.status("m")[0][2]
    shutil.move(base_path / "kept", base_path / "2" / "variables")
    wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.END)])
    assert store.status("m")[0][2] == ""


def test_a_newer_version_does_not_wait_for_a_broken_one(store, base_path):
    add_version(base_path, 2, lambda path: (path / "saved_model.pb").write_bytes(b"junk"))
    wait_until(lambda: states(store) == [(2, State.END), (1, State.AVAILABLE)])
    add_version(base_path, 3)
    wait_until(lambda: (3, State.AVAILABLE) in states(store))


def test_a_loader_that_fails_without_a_message_does_not_end_reloading(store, base_path, monkeypatch):
    truth = tf.compat.v1.saved_model.load

    def load(session, tags, path):
        if path.endswith("/2"):
            raise MemoryError
        return truth(session, tags, path)

    monkeypatch.setattr(tf.compat.v1.saved_model, "load", load)
    add_version(base_path, 2)
    wait_until(lambda: states(store) == [(2, State.END), (1, State.AVAILABLE)])
    assert "MemoryError()" in store.status("m")[0][2]
    add_version(base_path, 3)
    wait_until(lambda: (3, State.AVAILABLE) in states(store))


def test_an_unforeseen_error_while_looking_for_versions_does_not_end_reloading(store, base_path, monkeypatch, caplog):
    truth = ModelStore._load

    def load(self, name, number, path):
        if number == 2:
            raise RuntimeError("unforeseen")
        truth(self, name, number, path)

    monkeypatch.setattr(ModelStore, "_load", load)
    add_version(base_path, 2)
    wait_until(lambda: "unforeseen" in caplog.text)
    add_version(base_path, 3)
    wait_until(lambda: (3, State.AVAILABLE) in states(store))


def test_removing_the_newest_version_brings_back_the_one_before(store, base_path):
    add_version(base_path, 2)
    wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.END)])
    os.rename(base_path / "2", base_path / "withdrawn")
    wait_until(lambda: states(store) == [(2, State.END), (1, State.AVAILABLE)])


def test_a_folder_that_goes_away_unloads_nothing(store, base_path):
    os.rename(base_path, base_path.with_name("away"))
    time.sleep(4 * POLL)
    assert states(store) == [(1, State.AVAILABLE)]


def test_a_folder_that_is_emptied_unloads_its_model_and_one_with_half_a_version_does_not(store, base_path):
    (base_path / "2").mkdir()
    os.rename(base_path / "1", base_path.with_name("kept"))
    time.sleep(4 * POLL)
    assert states(store) == [(1, State.AVAILABLE)]
    (base_path / "2").rmdir()
    wait_until(lambda: states(store) == [(1, State.END)])
    os.rename(base_path.with_name("kept"), base_path / "1")
    wait_until(lambda: states(store) == [(1, State.AVAILABLE)])


def test_a_store_without_a_version_or_with_a_broken_one_does_not_start(tmp_path, base_path):
    with pytest.raises(ModelError, match=f"m={tmp_path / 'none'}.*harmonize push"):
        ModelStore({"m": tmp_path / "none"})
    add_version(base_path, 2, lambda path: (path / "saved_model.pb").write_bytes(b"junk"))
    with pytest.raises(ModelError, match=f"cannot be loaded.*{base_path / '2'}"):
        ModelStore({"m": base_path})


def test_a_failing_warm_up_record_keeps_a_version_from_being_served(base_path):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "nope"
    with tf.io.TFRecordWriter(str(base_path / "1" / WARMUP_FILE)) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(ModelError, match='Serving signature key "nope" not found'):
        Servable(base_path / "1")


def test_a_model_whose_variables_a_server_would_not_find_is_refused(tmp_path):
    """tf.Module around a Keras model: loads by tf.saved_model.load, not in TensorFlow Serving (keras #19274)."""
    import keras

    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    module = tf.Module()
    module.model = model
    specs = [tf.TensorSpec([None, 4], tf.float32, "x")]
    run = tf.function(lambda x: {"y": model(x)}, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": run})
    assert tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"](tf.ones([1, 4]))["y"].shape == (1, 2)
    servable = Servable(tmp_path / "1")
    with pytest.raises(RequestError) as raised:
        servable.predict({"x": np.ones((1, 4), np.float32)})
    assert raised.value.code is grpc.StatusCode.FAILED_PRECONDITION
