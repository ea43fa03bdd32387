import json
import shutil

import pytest

from harmonize_tf.errors import FlagError, ModelError
from trainer import config

HERE = {"filters": 8, "bands": ["blue", "green", "red"], "schema": 1}


def test_a_folder_is_claimed_once_and_again_by_the_same_training(tmp_path):
    config.claim(tmp_path / "training", HERE, overwrite=False)
    config.claim(tmp_path / "training", HERE, overwrite=False)
    assert json.loads((tmp_path / "training" / "training.json").read_text()) == HERE


@pytest.mark.parametrize("name, value", [("filters", 16), ("bands", ["blue"]), ("schema", 2)])
def test_another_training_is_refused_with_what_differs(tmp_path, name, value):
    config.claim(tmp_path, HERE, overwrite=False)
    with pytest.raises(ModelError, match="There: .*Received: ") as caught:
        config.claim(tmp_path, HERE | {name: value}, overwrite=False)
    assert f"There: {name}={HERE[name]}. Received: {name}={value}" in str(caught.value)
    assert json.loads((tmp_path / "training.json").read_text()) == HERE


def test_overwrite_deletes_another_trainings_state_and_keeps_the_same_ones(tmp_path):
    config.claim(tmp_path, HERE, overwrite=True)
    (tmp_path / "checkpoints").mkdir()
    config.claim(tmp_path, HERE, overwrite=True)
    assert (tmp_path / "checkpoints").exists()
    config.claim(tmp_path, HERE | {"filters": 16}, overwrite=True)
    assert not (tmp_path / "checkpoints").exists()
    assert json.loads((tmp_path / "training.json").read_text())["filters"] == 16


def test_a_damaged_identity_is_that_of_another_training(tmp_path):
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(ModelError, match="There: filters=None"):
        config.claim(tmp_path, HERE, overwrite=False)


def test_overwrite_leaves_no_model_of_the_training_before(tmp_path):
    config.claim(tmp_path, HERE, overwrite=False)
    (tmp_path / "model.keras").touch()
    config.claim(tmp_path, HERE | {"filters": 16}, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"training.json"}


@pytest.mark.parametrize("deleted", [0, 1])
def test_an_overwriting_that_was_killed_is_continued_by_neither_training(tmp_path, monkeypatch, deleted):
    other = HERE | {"filters": 16}
    config.claim(tmp_path, HERE, overwrite=False)
    for name in config.STATE:
        (tmp_path / name).mkdir()
    real, done = shutil.rmtree, []

    def killed(folder):
        if len(done) == deleted:
            raise KeyboardInterrupt
        done.append(real(folder))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        config.claim(tmp_path, other, overwrite=True)
    for identity in (HERE, other):
        with pytest.raises(ModelError, match="--overwrite"):
            config.claim(tmp_path, identity, overwrite=False)
    config.claim(tmp_path, other, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"training.json"}


def test_checkpoints_without_an_identity_are_another_trainings(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ModelError, match="--overwrite"):
        config.claim(tmp_path, HERE, overwrite=False)
    config.claim(tmp_path, HERE, overwrite=True)
    assert not (tmp_path / "checkpoints").exists()


def test_what_cannot_be_deleted_is_told_and_not_taken_over(tmp_path, monkeypatch):
    def refuses(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    config.claim(tmp_path, HERE, overwrite=False)
    (tmp_path / "checkpoints").mkdir()
    with monkeypatch.context() as patch, pytest.raises(FlagError, match="Permission denied.*checkpoints"):
        patch.setattr(shutil, "rmtree", refuses)
        config.claim(tmp_path, HERE | {"filters": 16}, overwrite=True)
    with pytest.raises(ModelError):
        config.claim(tmp_path, HERE | {"filters": 16}, overwrite=False)


def test_a_place_where_no_folder_can_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/x"):
        with pytest.raises(FlagError, match=f"give another --model_dir .*Received: model_dir={place}$"):
            config.claim(place, HERE, overwrite=False)
    (tmp_path / "training.json").mkdir()
    with pytest.raises(FlagError, match="Is a directory"):
        config.claim(tmp_path, HERE, overwrite=True)
