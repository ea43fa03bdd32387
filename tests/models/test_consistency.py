import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf.degradation import degrade
from harmonize_tf.models.consistency import Consistency

SIZE = 40


def random_case(gaps, bands=2, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.2, noise, (1, 3 * SIZE, 3 * SIZE, bands)).astype(np.float32)
    target = rng.uniform(0, 0.8, (1, SIZE, SIZE, bands)).astype(np.float32)
    valid = (rng.random((1, SIZE, SIZE, 1)) >= gaps).astype(np.float32)
    if gaps:
        valid[:, 20:32, 10:20] = 0
    return tf.constant(x), tf.constant(target), tf.constant(valid)


def worst(x, target, valid, sigma):
    """Measured with the numpy degradation, which shares no operator with the correction."""
    at_10m = valid.numpy()[0, ..., 0].repeat(3, 0).repeat(3, 1) > 0
    low, _ = degrade(x.numpy()[0], at_10m, sigma)
    return np.abs(low - target.numpy()[0])[valid.numpy()[0, ..., 0] > 0].max()


@pytest.mark.parametrize("gaps", [0.0, 0.15, 0.6])
@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.02, 1.2, 1.4, 1.6])
def test_the_degraded_output_equals_the_target_up_to_borders_and_gaps(sigma, gaps):
    x, target, valid = random_case(gaps)
    blurs = (sigma, sigma)
    assert worst(x, target, valid, blurs) > 0.3
    assert worst(Consistency(blurs)(x, target, valid), target, valid, blurs) < 2e-4


def test_bands_of_different_blur_are_each_right():
    x, target, valid = random_case(0.1, bands=3)
    blurs = (1.4, 0.42, 1.02)
    assert worst(Consistency(blurs)(x, target, valid), target, valid, blurs) < 2e-4


def test_wild_detail_is_still_corrected():
    x, target, valid = random_case(0.15, noise=3.0)
    assert worst(Consistency((1.02, 1.4))(x, target, valid), target, valid, (1.02, 1.4)) < 1e-3


def test_its_own_degradation_is_the_one_for_arrays():
    x, _, valid = random_case(0.2)
    consistency = Consistency((1.02, 1.4))
    assert worst(x, consistency.degrade(x, valid), valid, (1.02, 1.4)) < 1e-5


def test_what_is_consistent_already_is_left_alone():
    x, target, valid = random_case(0.15)
    consistency = Consistency((1.02, 1.02))
    once = consistency(x, target, valid)
    assert np.abs(consistency(once, target, valid) - once).max() < 2e-4


def test_the_correction_of_a_constant_is_constant_away_from_borders():
    target, valid = tf.fill((1, SIZE, SIZE, 1), 0.3), tf.ones((1, SIZE, SIZE, 1))
    corrected = Consistency((1.02,))(tf.zeros((1, 3 * SIZE, 3 * SIZE, 1)), target, valid)
    np.testing.assert_allclose(corrected[:, 45:-45, 45:-45], 0.3, atol=1e-4)


def test_invalid_pixels_influence_nothing_and_their_output_is_zero():
    x, target, valid = random_case(0.2)
    consistency = Consistency((1.02, 1.2))
    poisoned = consistency(
        tf.where(tf.repeat(tf.repeat(valid, 3, 1), 3, 2) > 0, x, np.nan), tf.where(valid > 0, target, np.nan), valid
    )
    np.testing.assert_array_equal(poisoned, consistency(x, target, valid))
    assert not np.any(poisoned.numpy()[valid.numpy().repeat(3, 1).repeat(3, 2)[..., 0] == 0])


def test_the_image_border_is_the_same_as_invalid_pixels():
    x, target, valid = random_case(0.1)
    consistency = Consistency((1.02, 1.4))
    padded = consistency(*(tf.pad(a, [[0, 0], [p, p], [p, p], [0, 0]]) for a, p in ((x, 15), (target, 5), (valid, 5))))
    np.testing.assert_allclose(padded[:, 15:-15, 15:-15], consistency(x, target, valid), atol=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 1.02, 1.2])
def test_the_halo_is_as_far_as_the_correction_reaches_and_no_farther(sigma):
    consistency = Consistency((sigma,))
    reach, size = consistency.halo, 2 * consistency.halo + 5
    target, valid = tf.zeros((1, size, size, 1)), tf.ones((1, size, size, 1))
    middle = 3 * (size // 2)
    impulse = np.zeros((1, 3 * size, 3 * size, 1), np.float32)
    impulse[:, middle : middle + 3, middle : middle + 3] = 1e6
    changed = np.argwhere(consistency(tf.constant(impulse), target, valid).numpy()[0, ..., 0])
    assert np.abs(changed // 3 - size // 2).max() <= reach
    assert np.abs(changed // 3 - size // 2).max() >= reach - 2
