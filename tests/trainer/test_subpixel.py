import dataclasses

import pytest
import tiny_examples

from harmonize_tf.dataset import DatasetInfo
from trainer.config import Config
from trainer.objectives import subpixel


@pytest.mark.parametrize("nir", ["B8", "B8A"])
def test_a_new_model_says_which_near_infrared_it_learns(tmp_path, nir):
    tiny_examples.write(tmp_path / "examples")
    info = dataclasses.replace(DatasetInfo.load(tmp_path / "examples"), nir=nir)
    config = Config(
        "subpixel", info.directory, tmp_path / "training", scale=3, blocks=0, filters=4, pan=True, consistency="exact",
        batch=1, crop=12, steps=1, learning_rate=1e-3, validate_every=1, seed=0,
    )  # fmt: skip
    model = subpixel.build(config, info)
    assert model.nir == nir and model.bandpass == info.bandpass
