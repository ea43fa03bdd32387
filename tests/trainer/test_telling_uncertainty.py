import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny_examples
from scipy import stats

from harmonize_tf import dataset
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.models.harmonizer import load
from harmonize_tf.models.uncertainty import half_width
from trainer.uncertainty import CALIBRATED, likelihood_loss, spread_sample


def test_the_loss_is_laplaces_negative_log_likelihood_of_clear_pixels():
    rng = np.random.default_rng(0)
    output, truth = rng.normal(0.2, 0.1, (2, 2, 5, 4, 3)).astype(np.float32)
    sigma, std = rng.uniform(0.001, 0.02, output.shape).astype(np.float32), (0.02, 0.05, 0.1)
    mask = (rng.random((2, 5, 4, 1)) < 0.7).astype(np.float32)
    targets = {"sentinel_ms": tf.constant(truth), "mask": tf.constant(mask)}
    ours = likelihood_loss(tf.constant(output), tf.constant(sigma), targets, std)
    b = sigma / np.sqrt(2) / std
    expected = -stats.laplace.logpdf(output / std, truth / std, b)[mask[..., 0] > 0].mean() - np.log(2)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_patches_for_calibration_come_from_all_of_the_split(count):
    numbers = spread_sample(count, seed=3)
    assert len(numbers) == min(count, CALIBRATED) and numbers == sorted({*numbers}) and numbers[-1] < count
    assert np.diff([0, *numbers, count]).max() <= 2 * -(-count // CALIBRATED)
    assert numbers == spread_sample(count, seed=3)
    assert count < 2 * CALIBRATED or numbers != spread_sample(count, seed=4)


def test_a_model_learns_to_tell_its_error_and_its_output_stays_the_same(tmp_path):
    """The errors of the tiny scenes are even; that intervals follow what is hard is measured on real ones."""
    examples = tmp_path / "examples"
    tiny_examples.write(examples, change=tiny_examples.cloudy)
    for name, flags in (("plain", ()), ("telling", ("--uncertainty",))):
        runs.train(examples, tmp_path / name, "--crop=16", *flags, steps=4, every=4)
    plain, model = (load(tmp_path / name / "model.keras") for name in ("plain", "telling"))
    for was, now in zip(plain.get_weights(), model.get_weights(), strict=False):
        np.testing.assert_array_equal(was, now)
    assert np.abs(model.spread.head.kernel).max() > 0.01  # it begins at zero
    ratios = []
    for inputs, targets in dataset.paired(DatasetInfo.load(examples), "val", batch=1, pan=True):
        output, sigma = model.judged(inputs)
        error = np.abs(output - targets["sentinel_ms"])
        ratios.append((error / sigma.numpy())[targets["mask"].numpy()[..., 0] > 0])
    within = (np.concatenate(ratios) < half_width(0.9)).mean(0)
    np.testing.assert_allclose(within, 0.9, atol=0.005)
