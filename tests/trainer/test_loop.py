"""The guard against numbers that are not finite, and the names of the records that it gives."""

import dataclasses

import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny_examples

from harmonize_tf import augmentation, dataset, radiometry
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import ModelError
from trainer import config as config_lib
from trainer.config import Config
from trainer.objectives.pixelwise import Pixelwise


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "examples"
    return directory, tiny_examples.write(directory)


def config(directory, tmp_path, **more):
    base = Config(
        "subpixel", directory, tmp_path, scale=3, blocks=0, filters=4, pan=False, consistency="none", batch=4,
        crop=tiny_examples.CELLS, steps=9, learning_rate=1e-3, validate_every=3, seed=5,
    )  # fmt: skip
    return dataclasses.replace(base, **more)


def test_the_ids_of_a_step_are_those_of_the_patches_in_its_batch(examples, tmp_path, monkeypatch):
    directory, by_split = examples
    info, run = DatasetInfo.load(directory), config(directory, tmp_path)
    monkeypatch.setattr(augmentation, "turned", lambda pair, seed: pair)
    monkeypatch.setattr(augmentation, "relit", lambda pair, bands, bandpass, seed: pair)
    truth = {record.id: radiometry.decode(record.sentinel.ms) for record in by_split["train"]}
    for step, (_, targets) in zip(range(1, 6), run.batches(info), strict=False):  # over several passes
        ids = run.ids(info, step)
        assert len(ids) == 4
        for name, image in zip(ids, targets["sentinel_ms"].numpy(), strict=True):
            np.testing.assert_array_equal(image, truth[name])


def spoil(monkeypatch, step, what):
    """Makes the loss, with finite gradients, or only the gradients of one step NaN."""
    penalty = Pixelwise.penalty

    def spoilt(self, output, targets):
        now = self.optimizer.inner_optimizer.iterations
        rubbish = tf.where(tf.equal(now, step - 1), float("nan"), 0.0)

        @tf.custom_gradient
        def passed(x):
            return tf.identity(x), lambda upstream: upstream + rubbish

        value = penalty(self, output, targets)
        return value + rubbish if what == "loss" else passed(value)

    monkeypatch.setattr(Pixelwise, "penalty", spoilt)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_applied_and_named_with_its_records(examples, tmp_path, monkeypatch, what):
    directory, _ = examples
    after = []
    update = runs.task.Average.update

    def kept(self, step):
        after.append([trained.numpy() for _, trained in self._pairs])
        update(self, step)

    monkeypatch.setattr(runs.task.Average, "update", kept)
    spoil(monkeypatch, 5, what)
    value = "loss nan, gradient_norm nan" if what == "loss" else "gradient_norm nan"
    with pytest.raises(ModelError) as caught:
        runs.train(directory, tmp_path / "bad", steps=8, every=8)
    message = str(caught.value)
    info = DatasetInfo.load(directory)
    ids = dataset.training_ids(info, batch=2, seed=0, number=4)
    assert "diverged by step 5;" in message and message.endswith(f"{value}, records {','.join(ids)}")
    assert "\n" not in message and len(ids) == 2
    for fourth, fifth in zip(after[3], after[4], strict=True):
        np.testing.assert_array_equal(fourth, fifth)
        assert np.isfinite(fifth).all()
    assert not (tmp_path / "bad" / "model.keras").exists()


def test_a_float16_step_that_only_the_scale_spoilt_is_left_out_and_the_training_goes_on(
    examples, tmp_path, monkeypatch
):
    directory, _ = examples
    monkeypatch.setattr("trainer.loss_scaling.INITIAL_SCALE", 2.0**60)  # far beyond float16's 65504
    runs.train(directory, tmp_path, "--precision=float16", steps=75, every=15)
    found = runs.scalars(tmp_path)
    assert all(np.isfinite(value) for tag in found for _, value in found[tag])
    assert found["train/gradient_norm"][0][0] > 15  # in the first rounds every step was left out
    errors = [value for _, value in found["rmse/validation"]]
    assert errors[0] == errors[1] > errors[-1]


def test_a_decay_of_one_is_refused(examples, tmp_path):
    with pytest.raises(config_lib.FlagError, match=r"such as 0\.999.*ema=1\.0"):
        runs.train(examples[0], tmp_path, "--ema=1")
    assert not list(tmp_path.iterdir())
