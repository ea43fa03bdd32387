import keras
import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf.degradation import cubic_weights, degrade, gaussian_weights
from harmonize_tf.models.layers import ICNR, Polyphase, RepeatedConv2D, ResidualBlock, bent, repeat_pixels, resample


def random_tensor(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).uniform(0, 0.5, shape).astype(np.float32))


@pytest.mark.parametrize("factors", [(1, 3), (2, 3), (1, 2)])
def test_cubic_resampling_equals_tensorflows_bicubic_resize(factors):
    x = random_tensor(2, 12 * factors[0], 14 * factors[0], 2)
    ours = Polyphase([cubic_weights(*factors)] * 2)(x)
    reference = tf.image.resize(x, ours.shape[1:3], "bicubic")
    inside = (slice(None), slice(9, -9), slice(9, -9))
    np.testing.assert_allclose(ours[inside], reference[inside], atol=1e-3)  # TensorFlow tabulates its kernel
    assert abs(ours - reference)[inside].numpy().mean() < 1e-4


def test_masked_degradation_equals_the_one_for_arrays():
    x = random_tensor(1, 45, 60, 2)
    valid = np.random.default_rng(1).random((1, 15, 20, 1)) > 0.2
    at_10m = repeat_pixels(tf.constant(valid, tf.float32), 3)
    expected, expected_valid = degrade(x[0].numpy(), at_10m[0, ..., 0].numpy() > 0, (1.02, 1.4))
    for band, sigma in enumerate((1.02, 1.4)):
        operator = Polyphase([gaussian_weights(sigma)])
        low = resample(x[..., band, None], at_10m, operator, operator)[0, ..., 0]
        np.testing.assert_allclose(low.numpy()[valid[0, ..., 0]], expected[valid[0, ..., 0], band], atol=2e-6)
    np.testing.assert_array_equal(expected_valid, valid[0, ..., 0])


def test_each_band_keeps_its_own_weights_and_nothing_crosses_over():
    x = random_tensor(1, 18, 18, 2)
    together = Polyphase([gaussian_weights(1.4), gaussian_weights(0.5)])(x)
    for band, sigma in enumerate((1.4, 0.5)):
        alone = Polyphase([gaussian_weights(sigma)])(x[..., band, None])
        np.testing.assert_allclose(together[..., band], alone[..., 0], atol=1e-7)


def test_a_constant_stays_constant_up_to_gaps_and_borders_and_nan_stays_out():
    valid = np.random.default_rng(3).random((1, 20, 20, 1)) > 0.4
    x = np.where(valid, np.float32(0.3), np.float32(np.nan))
    operator = Polyphase([cubic_weights()])
    y = resample(tf.constant(x), tf.constant(valid, tf.float32), operator, operator).numpy()
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[valid.repeat(3, 1).repeat(3, 2)], 0.3, rtol=1e-5)


def test_icnr_starts_without_checkerboard():
    head = keras.layers.Conv2D(9 * 2, 3, padding="same", kernel_initializer=ICNR(3, seed=1))
    y = tf.nn.depth_to_space(head(random_tensor(1, 10, 12, 5)), 3).numpy()
    cells = y.reshape(10, 3, 12, 3, 2)
    assert y.std() > 0.01
    assert cells.std((1, 3)).max() < 1e-6


def test_icnr_survives_serialization():
    again = keras.initializers.deserialize(keras.initializers.serialize(ICNR(3, 0.5, seed=7)))
    np.testing.assert_array_equal(again((3, 3, 4, 18)), ICNR(3, 0.5, seed=7)((3, 3, 4, 18)))


def test_a_residual_block_lets_nothing_through_invalid_pixels():
    block, valid = ResidualBlock(4), np.ones((1, 9, 9, 1), np.float32)
    x = random_tensor(1, 9, 9, 4)
    block.build(x.shape)
    block.first.bias.assign([0.5, -0.5, 1.0, 0.2])
    block.second.bias.assign([1.0, 1.0, -1.0, 0.0])
    valid[:, :, 6:] = 0
    np.testing.assert_allclose(block(x * valid, valid)[:, :, :6], block(x[:, :, :6], valid[:, :, :6]), atol=1e-6)


def test_a_convolution_of_repeated_pixels_equals_the_one_of_the_image_they_make():
    layer, x = RepeatedConv2D(5, 3, padding="same"), random_tensor(2, 7, 6, 3)
    layer.build((None, None, None, 3))
    layer.bias.assign(random_tensor(5))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours = layer(x)
        expected = tf.nn.conv2d(repeat_pixels(x, 2), layer.kernel, 1, "SAME") + layer.bias
        weight = random_tensor(*expected.shape, seed=2)
        losses = tf.reduce_sum(weight * ours), tf.reduce_sum(weight * expected)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    unknown = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 3])]).get_concrete_function()
    assert unknown.output_shapes.as_list() == [None, None, None, 5]
    gradients = (tape.gradient(loss, [x, *layer.trainable_variables]) for loss in losses)
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("gaps", [True, False])
def test_masked_relus_and_their_gradients_are_those_of_the_plain_formula(slope, gaps):
    x, upstream = (random_tensor(2, 5, 4, 3, seed=n) - 0.25 for n in (0, 1))
    valid = tf.cast(random_tensor(2, 5, 4, 1, seed=2) > 0.2, tf.float32) if gaps else None
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours, expected = bent(x, valid, slope), tf.maximum(x, slope * x) * (1.0 if valid is None else valid)
    np.testing.assert_array_equal(ours, expected)
    gradients = [tape.gradient(y, x, output_gradients=upstream) for y in (ours, expected)]
    np.testing.assert_array_equal(*gradients)
