import keras
import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf.models.layers import standardized
from harmonize_tf.models.resnet import ResNet


def make_network(blocks=1, norm="none", filters=4, seed=1, **arguments):
    network = ResNet(2, blocks, filters, norm, **arguments)
    network.build()
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        weight.assign(rng.normal(0.02, 1.0 / np.sqrt(max(np.prod(weight.shape[:-1]), 1)), weight.shape))
    return network


def random_image(height, width, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=(1, height, width, 2)).astype(np.float32))


def ones(height, width):
    return tf.ones((1, height, width, 1))


def published_parameters(bands, blocks, filters):
    """Of junyanz's ResnetGenerator with instance normalization: convolutions with biases, the norm without weights."""
    f = filters
    sides = [(7, bands, f), (3, f, 2 * f), (3, 2 * f, 4 * f), (3, 4 * f, 2 * f), (3, 2 * f, f), (7, f, bands)]
    return sum(s * s * a * b + b for s, a, b in sides + 2 * blocks * [(3, 4 * f, 4 * f)])


def test_with_instance_normalization_it_has_the_published_number_of_weights():
    network = ResNet(4, norm="instance")
    network.build()
    assert network.count_params() == published_parameters(4, 9, 64) == 11_384_452
    assert published_parameters(3, 9, 64) == 11_378_179  # what junyanz's code prints for RGB, 11.378 M


def test_without_normalization_only_the_mask_comes_in_as_well():
    network = ResNet(4)
    network.build()
    assert network.count_params() == 11_384_452 + 7 * 7 * 64


@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 21), (12, 8), (17, 30)])
def test_every_size_comes_out_as_it_went_in(norm, shape):
    output = make_network(norm=norm)(random_image(*shape), ones(*shape))
    assert output.shape == (1, *shape, 2) and np.isfinite(output).all()


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_gradients_reach_as_far_as_stated_and_no_farther(blocks):
    network = make_network(blocks)
    for weight in network.weights:
        weight.assign(tf.abs(weight) + 1e-3)  # so that no ReLU is in the way
    middle = 4 * (network.reach // 4 + 2)
    size = 2 * middle + 4
    image, reach = tf.abs(random_image(size, size)), 0
    for place in range(4):  # that a pixel can have in a cell of the innermost grid
        at = middle + place
        with tf.GradientTape() as tape:
            tape.watch(image)
            value = network(image, ones(size, size))[0, at, at, 0]
        seen = np.argwhere(tape.gradient(value, image).numpy()[0].any(-1))
        reach = max(reach, np.abs(seen - at).max())
    assert reach == network.reach == 8 * blocks + 15
    assert network.halo == -(-reach // 3) and network.multiple == 4


def test_with_instance_normalization_a_pixel_depends_on_all_and_says_so():
    network, image = make_network(norm="instance"), random_image(96, 96)
    with tf.GradientTape() as tape:
        tape.watch(image)
        value = network(image, ones(96, 96))[0, 0, 0, 0]
    assert (np.abs(tape.gradient(value, image)).max(-1) > 0).mean() > 0.99
    assert network.reach is None and network.halo is None


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_what_invalid_pixels_hold_is_not_looked_at(norm):
    network, image = make_network(norm=norm), random_image(40, 40)
    valid = np.ones((1, 40, 40, 1), np.float32)
    valid[:, 10:23, 17:31] = 0
    # Its input is zero there; what the layers make of that must reach nobody either, as outside.
    cut = network(image[:, :, 20:] * valid[:, :, 20:], valid[:, :, 20:])
    valid[:, :, :20] = 0
    np.testing.assert_allclose(network(image * valid, valid)[:, :, 20:], cut, atol=2e-5 * np.abs(cut).max())


def checkerboard(detail, period=4):
    """The share of the variance that lies in a pattern repeated every `period` pixels, which no input asked for."""
    h, w, bands = detail.shape
    cells = detail.reshape(h // period, period, w // period, period, bands)
    return cells.mean((0, 2)).var((0, 1)).sum() / detail.var((0, 1)).sum()


def started(norm, seed):
    keras.utils.set_random_seed(seed)
    network = ResNet(2, 2, 16, norm)
    network.build()
    return network


@pytest.mark.parametrize("seed", range(3))
def test_a_fresh_network_shows_no_checkerboard_where_transposed_convolutions_do(seed):
    flat = tf.fill((1, 96, 96, 2), 0.7)
    inside = slice(36, 60)
    smooth = started("none", seed)(flat, ones(96, 96))[0, inside, inside].numpy()
    assert np.abs(smooth).max() > 1e-3
    assert np.ptp(smooth, (0, 1)).max() < 1e-5 * np.abs(smooth).max()
    ramp = tf.linspace(-1.0, 1.0, 96)[None, :, None, None] * tf.ones((1, 1, 96, 2))
    published = started("instance", seed)(ramp, ones(96, 96))[0].numpy()
    ours = started("none", seed)(ramp, ones(96, 96))[0].numpy()
    assert checkerboard(ours[24:72, 24:72]) < 0.2 * checkerboard(published[24:72, 24:72])


@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize("blocks", [2, 9])
def test_detail_starts_at_about_a_tenth_however_deep_it_is(norm, blocks):
    keras.utils.set_random_seed(1)
    network = ResNet(2, blocks, 32, norm)
    network.build()
    image = tf.nn.avg_pool2d(random_image(64, 64), 3, 1, "SAME")
    detail = network(image / tf.math.reduce_std(image), ones(64, 64))
    assert 0.03 < np.std(detail) < 0.3


def test_detail_is_unbounded():
    network = make_network()
    network.head.kernel.assign(network.head.kernel * 1e3)
    assert np.abs(network(random_image(16, 16), ones(16, 16))).max() > 100


def test_entry_and_output_are_float32_under_every_policy():
    network = make_network(dtype="mixed_bfloat16")
    inner = [*network.down, *network.first, *network.second, *network.up, network.head]
    assert {layer.compute_dtype for layer in inner} == {"bfloat16"}
    assert network.entry.compute_dtype == "float32"
    output, exact = (n(random_image(24, 24), ones(24, 24)) for n in (network, make_network()))
    assert output.dtype == tf.float32
    assert 0 < np.abs(output - exact).max() < 0.1 * np.abs(exact).max()


def test_standardizing_equals_keras_instance_normalization_and_passes_over_what_has_no_weight():
    x = random_image(12, 9)
    reference = keras.layers.GroupNormalization(groups=-1, epsilon=1e-5, center=False, scale=False)(x)
    np.testing.assert_allclose(standardized(x, ones(12, 9)), reference, atol=1e-5)
    weight = np.ones((1, 12, 9, 1), np.float32)
    weight[:, 8:] = 0
    np.testing.assert_allclose(
        standardized(x, tf.constant(weight))[:, :8], standardized(x[:, :8], ones(8, 9)), atol=1e-5
    )
    assert np.isfinite(standardized(x, tf.zeros((1, 12, 9, 1)))).all()
