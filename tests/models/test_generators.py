import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf.models.subpixel import Subpixel


def make_generator(scale=3, uses_pan=True, blocks=2, seed=1):
    generator = Subpixel(2, uses_pan, scale, blocks, filters=8)
    generator.build()
    rng = np.random.default_rng(seed)
    for weight in generator.weights:
        weight.assign(rng.normal(0.02, 0.3, weight.shape))
    return generator


def make_inputs(height, width, seed=0):
    rng = np.random.default_rng(seed)
    ms, pan = rng.normal(size=(1, height, width, 2)), rng.normal(size=(1, 2 * height, 2 * width, 1))
    return [tf.constant(a.astype(np.float32)) for a in (ms, pan, np.ones((1, height, width, 1)))]


@pytest.mark.parametrize("scale", [3, 2])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 4), (12, 9)])
def test_every_shape_comes_out_three_times_as_large(scale, shape):
    assert make_generator(scale)(*make_inputs(*shape)).shape == (1, 3 * shape[0], 3 * shape[1], 2)


@pytest.mark.parametrize("scale", [3, 2])
def test_nothing_beyond_the_halo_changes_a_pixel(scale):
    generator, (ms, pan, valid) = make_generator(scale), make_inputs(41, 41)
    before = generator(ms, pan, valid).numpy()
    reach = 0
    for row in (20, 21):  # both places that a 30 m pixel can have among those of 20 m
        beside = ms.numpy()
        beside[:, row, 20] += 50.0
        changed = np.argwhere(generator(tf.constant(beside), pan, valid).numpy() != before)[:, 1] // 3
        reach = max(reach, np.abs(changed - row).max())
    assert reach <= generator.halo
    assert reach >= generator.halo - (0 if scale == 3 else 3)


@pytest.mark.parametrize("scale", [3, 2])
def test_the_panchromatic_band_reaches_no_farther_than_the_halo(scale):
    generator, (ms, pan, valid) = make_generator(scale), make_inputs(41, 41)
    beside = pan.numpy()
    beside[:, 40:42, 40:42] += 50.0
    changed = np.argwhere(generator(ms, tf.constant(beside), valid).numpy() != generator(ms, pan, valid).numpy())
    assert 0 < np.abs(changed[:, 1:3] // 3 - 20).max() <= generator.halo


@pytest.mark.parametrize("scale", [3, 2])
def test_a_fresh_network_shows_no_checkerboard(scale):
    generator = Subpixel(2, True, scale, 2, 8)
    generator.build()
    detail = generator(*make_inputs(16, 16))[0].numpy()
    cells = detail.reshape(48 // scale, scale, 48 // scale, scale, 2)
    assert detail.std() > 1e-3
    assert cells.std((1, 3)).max() < 1e-6


@pytest.mark.parametrize("scale", [3, 2])
def test_detail_is_unbounded(scale):
    generator, (ms, pan, valid) = make_generator(scale), make_inputs(16, 16)
    generator.head.kernel.assign(generator.head.kernel * 1e3)
    assert np.abs(generator(ms, pan, valid)).max() > 100


@pytest.mark.parametrize("scale", [3, 2])
def test_an_image_without_gaps_takes_a_shorter_way_to_the_same_detail_and_gradients(scale):
    """A single gap, far beyond the halo of the first image, sends a batch the long way."""
    generator = make_generator(scale)
    inputs = [tf.concat([x, x], 0) for x in make_inputs(24, 20)]
    gap = np.ones((2, 24, 20, 1), np.float32)
    gap[1, 5, 5] = 0

    @tf.function(autograph=False)
    def run(ms, pan, valid):
        with tf.GradientTape() as tape:
            detail = generator(ms, pan, valid)
            loss = tf.reduce_sum(detail[0] ** 2)
        return [detail[0], *tape.gradient(loss, generator.trainable_variables)]

    short, long = run(*inputs), run(*inputs[:2], tf.constant(gap))
    for a, b in zip(short, long, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
