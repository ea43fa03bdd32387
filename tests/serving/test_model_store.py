import os
import shutil
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from harmonize_tf.errors import ModelError
from serving.model_store import ModelStore, State, versions
from serving.servable import WARMUP_FILE, RequestError, Servable

POLL = 0.05


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


def test_only_numbered_folders_with_a_saved_model_are_versions(tmp_path):
    for name in ("2", "00010", "exporting-11", "x", "-3", "12"):
        (tmp_path / name).mkdir()
        if name != "12":
            (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "7").touch()
    assert list(versions(tmp_path)) == [2, 10]
    assert versions(tmp_path / "missing") == {}


def test_the_newest_version_is_served_and_the_older_left_alone(base_path):
    add_version(base_path, 3)
    store = ModelStore({"m": base_path}, POLL)
    assert states(store) == [(3, State.AVAILABLE)]
    with store.servable("m") as (number, servable):
        assert number == 3 and servable.path == base_path / "3"
    with pytest.raises(RequestError, match=r"Specific\(m, 1\)"), store.servable("m", 1):
        pass
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


def test_a_new_version_takes_over_without_a_failed_request(store, base_path, windows):
    ms, pan = windows()
    answered, failed, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                with store.servable("m") as (number, servable):
                    servable.predict({"landsat_ms": ms, "landsat_pan": pan})
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


def test_an_old_version_lives_until_its_last_request_ends(store, base_path, windows):
    ms, pan = windows()
    with store.servable("m") as (number, servable):
        add_version(base_path, 2)
        wait_until(lambda: states(store) == [(2, State.AVAILABLE), (1, State.UNLOADING)])
        assert number == 1
        servable.predict({"landsat_ms": ms, "landsat_pan": pan})
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
