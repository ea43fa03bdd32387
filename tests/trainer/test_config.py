import json

import pytest

from harmonize_tf.errors import ModelError
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
