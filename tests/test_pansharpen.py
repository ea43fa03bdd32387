import numpy as np
import tensorflow as tf

from harmonize_tf.pansharpen import FLOOR, sharpen

BANDS = ("blue", "green", "red", "nir")


def random_bands(seed=0):
    rng = np.random.default_rng(seed)
    ms, pan = rng.uniform(0.05, 0.4, (8, 8, 4)), rng.uniform(0.05, 0.4, (8, 8, 1))
    return ms.astype(np.float32), pan.astype(np.float32)


def test_without_detail_nothing_changes():
    ms, pan = random_bands()
    np.testing.assert_array_equal(sharpen(ms, pan, pan, BANDS), ms)


def test_visible_bands_follow_the_ratio_and_infrared_does_not():
    ms, pan = random_bands()
    low = np.full_like(pan, 0.2)
    sharpened = sharpen(ms, pan, low, BANDS)
    np.testing.assert_allclose(sharpened[..., :3], ms[..., :3] * pan / low, rtol=1e-5)
    np.testing.assert_array_equal(sharpened[..., 3], ms[..., 3])


def test_arrays_and_tensors_give_the_same():
    ms, pan = random_bands()
    low = np.roll(pan, 1, 0)
    tensors = sharpen(tf.constant(ms), tf.constant(pan), tf.constant(low), BANDS)
    np.testing.assert_allclose(sharpen(ms, pan, low, BANDS), tensors, rtol=1e-6)


def test_dark_and_negative_surroundings_do_not_blow_detail_up():
    ms = np.full((1, 3, 4), 0.01, np.float32)
    low = np.float32([-0.02, 0.0, 1e-9])[None, :, None]
    sharpened = sharpen(ms, low + np.float32(0.01), low, BANDS)
    np.testing.assert_allclose(sharpened[..., :3], 0.01 * (1 + 0.01 / FLOOR), rtol=1e-5)
