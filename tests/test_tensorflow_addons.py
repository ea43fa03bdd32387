"""What docs/tensorflow_addons.md promises a user of TensorFlow Addons, compared with TFA itself.

The functions whose first argument is `tfa` run in TFA's process, where `tf.keras` is Keras 2; all else runs in this
one. Beside each tolerance stands the difference that was measured, about a tenth of it: rounding differs by machine.
"""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons_shim
from keras import ops

from harmonize_tf.degradation import gaussian, gaussian_weights, sample_blurred
from harmonize_tf.models.layers import Polyphase

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="tensorflow-addons has no wheels above Python 3.11")


@pytest.fixture(scope="module")
def addons():
    with tensorflow_addons_shim.process() as run:
        yield run


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def difference(a, b):
    assert np.shape(a) == np.shape(b)
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()


# --- the process ---


def whose_keras(tfa):
    return tfa.__version__, tf.keras.layers.Layer.__module__.split(".")[0], keras.__version__


def test_addons_run_on_keras_2_in_a_process_of_their_own_and_leave_this_one_alone(addons):
    assert addons(whose_keras) == ("0.23.0", "tf_keras", keras.__version__)
    assert not {"tensorflow_addons", "tf_keras", "keras.src.engine"} & sys.modules.keys()
    assert tf.keras.layers.Layer is keras.layers.Layer


# --- normalizations ---


def instance_normalized(tfa, x, gamma, beta):
    layer = tfa.layers.InstanceNormalization()
    layer.build(x.shape)
    layer.set_weights([gamma, beta])
    return layer(x).numpy()


def test_group_normalization_of_single_channels_is_instance_normalization(addons):
    x, gamma, beta = 3 * random(2, 9, 7, 5) + 1, random(5, seed=1), random(5, seed=2)
    layer = keras.layers.GroupNormalization(groups=-1, epsilon=1e-3)
    layer.build(x.shape)
    layer.set_weights([gamma, beta])
    assert difference(layer(x), addons(instance_normalized, x, gamma, beta)) <= 1e-6  # 0


def spectrally_normalized(tfa, x, kernel, bias, u):
    layer = tfa.layers.SpectralNormalization(tf.keras.layers.Conv2D(5, 3))
    layer.build(x.shape)
    layer.layer.set_weights([kernel, bias])
    layer.u.assign(u)
    outputs = [layer(x, training=training).numpy() for training in (False, True, True, False)]
    return outputs, layer.layer.get_weights()[0]


def test_spectral_normalization_is_the_same_call_after_call_in_training_and_outside(addons):
    x, kernel, bias, u = random(2, 9, 7, 4), random(3, 3, 4, 5, seed=1), random(5, seed=2), random(1, 5, seed=3)
    layer = keras.layers.SpectralNormalization(keras.layers.Conv2D(5, 3))
    layer.build(x.shape)
    layer.layer.set_weights([kernel, bias])
    layer.vector_u.assign(u)
    outputs = [layer(x, training=training) for training in (False, True, True, False)]
    expected, expected_kernel = addons(spectrally_normalized, x, kernel, bias, u)
    assert difference(outputs, expected) <= 1e-5  # 0; with 64 channels 3e-6
    assert difference(layer.layer.kernel, expected_kernel) <= 1e-6  # 0


# --- images ---


def on_image(tfa, function, *args, **kwargs):
    return getattr(tfa.image, function)(*args, **kwargs).numpy()


def reflected(image, margin):
    return np.pad(image, [(0, 0)] * (image.ndim - 3) + [(margin, margin)] * 2 + [(0, 0)], "reflect")


@pytest.mark.parametrize("sigma", [0.45, 1.02, 1.25])
def test_sample_blurred_on_whole_pixels_is_gaussian_filter2d_up_to_the_border(addons, sigma):
    image, margin = random(24, 21, 3), int(gaussian(sigma)[1])
    wide = reflected(image, margin)
    ours, _ = sample_blurred(
        wide, np.ones(wide.shape[:2], bool), margin + np.arange(24), margin + np.arange(21), (sigma,) * 3
    )
    assert difference(ours, addons(on_image, "gaussian_filter2d", image, 2 * margin + 1, sigma)) <= 5e-6  # 7e-7


@pytest.mark.parametrize("sigma", [0.45, 1.02, 1.25])
def test_the_models_degradation_to_30_m_is_every_third_pixel_of_gaussian_filter2d(addons, sigma):
    image = random(1, 24, 21, 3)
    degrade = Polyphase([gaussian_weights(sigma)] * 3)
    ours = degrade(reflected(image, 6))[:, 2:-2, 2:-2]
    theirs = addons(on_image, "gaussian_filter2d", image, 2 * int(gaussian(sigma)[1]) + 1, sigma)
    assert difference(ours, theirs[:, 1::3, 1::3]) <= 5e-6  # 5e-7


@pytest.mark.parametrize(("size", "sigma"), [(3, 1.0), (7, 1.6)])
def test_keras_gaussian_blur_of_the_reflected_image_is_gaussian_filter2d(addons, size, sigma):
    image, margin = random(2, 12, 17, 3), size // 2
    wide = ops.pad(image, [(0, 0), (margin, margin), (margin, margin), (0, 0)], mode="reflect")
    blurred = ops.image.gaussian_blur(wide, (size, size), (sigma, sigma))[:, margin:-margin, margin:-margin]
    expected = addons(on_image, "gaussian_filter2d", image, size, sigma)
    assert difference(blurred, expected) <= 3e-6  # 2e-7
    unpadded = ops.image.gaussian_blur(image, (size, size), (sigma, sigma))
    assert difference(unpadded, expected) > 0.1  # 0.5: why the padding
    assert difference(unpadded, addons(on_image, "gaussian_filter2d", image, size, sigma, "CONSTANT")) <= 3e-6  # 1e-7


def test_map_coordinates_against_the_flow_is_dense_image_warp_beyond_the_border_too(addons):
    image, flow = random(2, 12, 17, 3), 3 * random(2, 12, 17, 2, seed=1)
    n, y, x, c = ops.meshgrid(*(ops.arange(size, dtype="float32") for size in image.shape), indexing="ij")
    places = [n, y - flow[..., :1], x - flow[..., 1:], c]
    warped = ops.image.map_coordinates(image, places, order=1, fill_mode="nearest")
    assert difference(warped, addons(on_image, "dense_image_warp", image, flow)) <= 3e-6  # 3e-7


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine_transform_back_by_the_shift_is_translate(addons, interpolation):
    image, (dx, dy) = random(2, 12, 17, 3), (2.3, -1.6)
    moved = ops.image.affine_transform(image, np.float32([1, 0, -dx, 0, 1, -dy, 0, 0]), interpolation, "constant")
    assert difference(moved, addons(on_image, "translate", image, [dx, dy], interpolation)) <= 1e-6  # 0


# --- optimizers ---

START = [random(6, 8), random(8, seed=1), random(8, 3, seed=2), random(3, seed=3)]


def trained(api, optimizer, steps, scale=1.0):
    """A small network of Keras 2 or 3 after some steps from `START` on the same batches, the loss scaled."""
    dense = api.layers.Dense
    model = api.Sequential([api.Input((6,)), dense(8, activation="tanh"), dense(3)])
    model.set_weights(START)
    model.compile(optimizer, "mse", loss_weights=[scale], jit_compile=False)
    for step in range(steps):
        model.train_on_batch(random(16, 6, seed=step), random(16, 3, seed=step + 1000))
    return model


def trained_by_addons(tfa, name, steps, scale=1.0, **settings):
    optimizer = getattr(tfa.optimizers, name)(**settings)
    model = trained(tf.keras, optimizer, steps, scale)
    if name == "MovingAverage":
        optimizer.assign_average_vars(model.trainable_variables)
    return model.get_weights()


def greatest(weights, expected):
    return max(map(difference, weights, expected))


SCALES = pytest.mark.parametrize("scale", [1.0, 1e-5], ids=["gradients", "gradients as small as epsilon"])


@SCALES
def test_adamw_with_the_decay_divided_by_the_learning_rate_trains_as_adamw_did(addons, scale):
    expected = addons(trained_by_addons, "AdamW", 20, scale, weight_decay=3e-3, learning_rate=1e-2)
    model = trained(keras, keras.optimizers.AdamW(1e-2, weight_decay=3e-3 / 1e-2, epsilon=1e-7), 20, scale)
    assert greatest(model.get_weights(), expected) <= 2e-5  # 1.4e-6
    model = trained(keras, keras.optimizers.AdamW(1e-2, weight_decay=3e-3), 20, scale)
    assert greatest(model.get_weights(), expected) > 0.05  # 0.14: why the division


@SCALES
def test_lamb_with_a_greater_epsilon_trains_as_lamb_did(addons, scale):
    expected = addons(trained_by_addons, "LAMB", 20, scale, learning_rate=1e-2)
    model = trained(keras, keras.optimizers.Lamb(1e-2, epsilon=1e-6), 20, scale)
    assert greatest(model.get_weights(), expected) <= 5e-6  # 5e-7


def test_lambs_weight_decay_has_no_equal_in_keras_which_leaves_it_out_of_the_trust_ratio(addons):
    expected = addons(trained_by_addons, "LAMB", 20, learning_rate=1e-2, weight_decay=0.1)
    for decay in (0.1, 0.1 / 1e-2):
        model = trained(keras, keras.optimizers.Lamb(1e-2, epsilon=1e-6, weight_decay=decay), 20)
        assert greatest(model.get_weights(), expected) > 1e-2  # 0.03 and 2


def test_use_ema_is_moving_average_but_for_starting_one_step_later(addons):
    decay, steps = 0.9, 20
    expected = addons(trained_by_addons, "MovingAverage", steps, optimizer="sgd", average_decay=decay)
    model = trained(keras, keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=decay), steps)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    first = trained(keras, keras.optimizers.SGD(0.01), 1).get_weights()
    late = [decay**steps * (start - one) for start, one in zip(START, first, strict=True)]
    assert greatest(late, [0 * w for w in late]) > 1e-3  # 2e-3
    assert greatest([w + d for w, d in zip(model.get_weights(), late, strict=True)], expected) <= 3e-6  # 2e-7


# --- what the import does not mend ---


def failures(tfa):
    """The exceptions of what TFA offers and this TensorFlow cannot run, by name."""
    image, flags = tf.ones((1, 8, 8, 2)), tf.ones((4, 4), tf.bool)
    dense = tf.keras.layers.Dense(2)
    model = tf.keras.Sequential([tf.keras.Input((3,)), dense])

    def multi_optimizer():
        sgd = tf.keras.optimizers.legacy.SGD()
        model.compile(tfa.optimizers.MultiOptimizer([(sgd, dense)]), "mse")
        model.train_on_batch(tf.ones((2, 3)), tf.ones((2, 2)))

    attempts = {
        "image.resampler": lambda: tfa.image.resampler(image, tf.zeros((1, 4, 2))),
        "image.connected_components": lambda: tfa.image.connected_components(flags),
        "image.euclidean_dist_transform": lambda: tfa.image.euclidean_dist_transform(tf.ones((4, 4, 1), tf.uint8)),
        "layers.CorrelationCost": lambda: tfa.layers.CorrelationCost(1, 1, 1, 1, 1, "channels_last")([image, image]),
        "layers.EmbeddingBag": lambda: tfa.layers.EmbeddingBag(3, 2)(tf.zeros((1, 2), tf.int32)),
        "text.skip_gram_sample": lambda: tfa.text.skip_gram_sample(tf.constant(["a", "b"])),
        "text.parse_time": lambda: tfa.text.parse_time("2019-05-17", "%Y-%m-%d", "SECOND"),
        "register_all()": tfa.register_all,
        "optimizers.MultiOptimizer": multi_optimizer,
        "a layer in a Keras 3 model": lambda: keras.Sequential([tfa.layers.InstanceNormalization()]),
        "an optimizer in a Keras 3 model": lambda: keras.Sequential().compile(tfa.optimizers.LAMB(), "mse"),
    }
    raised = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            raised[name] = type(error).__name__
    return raised


def test_what_the_document_calls_broken_is(addons):
    assert addons(failures) == {
        "image.resampler": "NotFoundError",
        "image.connected_components": "NotFoundError",
        "image.euclidean_dist_transform": "NotFoundError",
        "layers.CorrelationCost": "NotFoundError",
        "layers.EmbeddingBag": "NotFoundError",
        "text.skip_gram_sample": "NotFoundError",
        "text.parse_time": "NotFoundError",
        "register_all()": "RuntimeError",
        "optimizers.MultiOptimizer": "AttributeError",
        "a layer in a Keras 3 model": "ValueError",
        "an optimizer in a Keras 3 model": "ValueError",
    }


def blurred_in_keras_3(tfa, image):
    lambda_layer = keras.layers.Lambda(tfa.image.gaussian_filter2d)
    data = tf.data.Dataset.from_tensors(image).map(tfa.image.gaussian_filter2d)
    return keras.Sequential([keras.Input(image.shape[1:]), lambda_layer])(image).numpy(), next(iter(data)).numpy()


def test_its_image_functions_work_in_keras_3_layers_and_in_tf_data(addons):
    image = random(2, 12, 17, 3)
    expected = addons(on_image, "gaussian_filter2d", image)
    for blurred in addons(blurred_in_keras_3, image):
        assert difference(blurred, expected) <= 1e-6
