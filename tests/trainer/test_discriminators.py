import keras
import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf.errors import ModelError
from trainer import discriminators
from trainer.discriminators import LOSSES, NORMS, PatchGAN, weighted_part


def make(norm="none", channels=2, filters=4, **arguments):
    keras.utils.set_random_seed(1)
    judge = PatchGAN(channels, filters=filters, norm=norm, **arguments)
    judge.build()
    return judge


def images(height, width, batch=1, seed=0):
    image = np.random.default_rng(seed).normal(size=(batch, height, width, 2)).astype(np.float32)
    return tf.constant(image), tf.ones((batch, height, width, 1))


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_it_has_the_published_number_of_weights(norm):
    # junyanz's NLayerDiscriminator with instance normalization: convolutions with biases, the norm without weights.
    widths = [4, 64, 128, 256, 512, 1]
    published = sum(16 * a * b + b for a, b in zip(widths, widths[1:], strict=False))
    assert make(norm, channels=4, filters=64).count_params() == published == 2_765_761


def test_verdicts_lie_as_published():
    judge = make()
    for size, expected in ((256, 30), (192, 22), (96, 10), (24, 1)):
        assert (
            judge(*images(size, size)).shape == judge.weight(images(size, size)[1]).shape == (1, expected, expected, 1)
        )
    assert judge.smallest == 24


@pytest.mark.parametrize(("n_layers", "expected"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_verdict_sees_the_stated_patch_and_nothing_else(n_layers, expected):
    judge = make(n_layers=n_layers)
    for weight in judge.weights:
        weight.assign(tf.abs(weight) + 1e-3)
    size = 2 * expected
    image, valid = images(size, size)
    with tf.GradientTape() as tape:
        tape.watch(image)
        logits = judge(tf.abs(image), valid)
        middle = logits[0, logits.shape[1] // 2, logits.shape[2] // 2, 0]
    seen = np.argwhere(tape.gradient(middle, image).numpy()[0].any(-1))
    assert (np.ptp(seen, axis=0) + 1 == expected).all() and judge.receptive_field == expected


@pytest.mark.parametrize("norm", NORMS)
def test_what_invalid_pixels_hold_changes_no_verdict_even_nan(norm):
    judge, (image, valid) = make(norm), images(64, 50)
    valid = valid.numpy()
    valid[:, 10:30, 20:45] = 0
    logits = judge(tf.where(valid > 0, image, np.nan), valid)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits, judge(image, valid))


def test_where_everything_is_valid_instance_normalization_is_the_published_one():
    judge, (image, valid) = make("instance"), images(64, 64, batch=2)
    x = image
    for number, convolution in enumerate(judge.convolutions):
        x = convolution(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))
        if 0 < number < 4:
            x = keras.layers.GroupNormalization(groups=-1, epsilon=1e-5, center=False, scale=False)(x)
        x = tf.nn.leaky_relu(x, 0.2) if number < 4 else x
    np.testing.assert_allclose(judge(image, valid), x, atol=1e-5 * np.abs(x).max())


def test_spectral_norms_become_one_in_training_and_stay_as_they_are_otherwise():
    judge, (image, valid) = make("spectral"), images(32, 32)
    before = [w.numpy() for w in judge.weights]
    judge(image, valid, training=False)
    assert all(np.array_equal(a, b) for a, b in zip(before, judge.weights, strict=True))
    for _ in range(60):
        judge(image, valid, training=True)
    for convolution in judge.convolutions:
        kernel = convolution.layer.kernel.numpy()
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        assert largest == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_mixed_precision_computes_between_first_and_last_and_keeps_weights_and_logits_exact(norm):
    judge, (image, valid) = make(norm, dtype="mixed_bfloat16"), images(48, 48)
    inner = [getattr(c, "layer", c).compute_dtype for c in judge.convolutions]
    assert inner == ["float32", "bfloat16", "bfloat16", "bfloat16", "float32"]
    logits = judge(image, valid, training=True)
    exact = make(norm)(image, valid, training=True)
    assert logits.dtype == tf.float32 and np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()
    kernel = getattr(judge.convolutions[1], "layer", judge.convolutions[1]).kernel
    assert np.any(kernel.numpy() != tf.cast(tf.cast(kernel, tf.bfloat16), tf.float32).numpy())


def test_the_weight_of_a_verdict_is_the_share_of_paths_from_clear_pixels():
    judge = make(channels=1)
    for convolution in judge.convolutions:  # with equal weights the gradient counts paths (Luo et al. 2016)
        convolution.kernel.assign(tf.ones_like(convolution.kernel) / (16 * convolution.kernel.shape[2]))
        convolution.bias.assign(tf.zeros_like(convolution.bias))
    clear = (np.random.default_rng(0).random((1, 80, 96, 1)) > 0.4).astype(np.float32)
    reference = judge(tf.constant(clear), tf.ones_like(clear))
    np.testing.assert_allclose(judge.weight(tf.constant(clear)), reference, rtol=1e-5)


def test_what_is_clear_has_full_weight_and_what_is_clouded_none():
    judge, clear = make(), np.ones((1, 256, 256, 1), np.float32)
    weight = judge.weight(tf.constant(clear))[0, ..., 0].numpy()
    np.testing.assert_allclose(weight[3:-3, 3:-3], 1.0, rtol=1e-6)
    assert 0 < weight[0, 0] < weight[0, 15] < 1  # outside is as cloud
    clear[:, :, 128:] = 0
    weight = judge.weight(tf.constant(clear))[0, 15, :, 0].numpy()
    assert not weight[20:].any() and (np.diff(weight[3:20]) <= 0).all() and 0.3 < weight[15] < 0.7


def test_clouded_verdicts_change_no_loss():
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(size=(2, 5, 5, 1)).astype(np.float32) for _ in range(2))
    weights = [(rng.random((2, 5, 5, 1)) > 0.4).astype(np.float32) for _ in range(2)]
    wild = [np.where(w > 0, x, np.float32(1e3)) for x, w in zip((real, fake), weights, strict=True)]
    for losses in LOSSES.values():
        for loss in losses:
            assert float(loss(*wild, *weights)) == pytest.approx(float(loss(real, fake, *weights)), rel=1e-6)


def logistic(x):
    return 1 / (1 + np.exp(-x))


CLOSED_FORMS = {
    "lsgan": (
        lambda r, f: 0.5 * (np.mean((r - 1) ** 2) + np.mean(f**2)),
        lambda r, f: np.mean((f - 1) ** 2),
    ),
    "relativistic": (
        lambda r, f: -np.mean(np.log(logistic(r - f.mean()))) - np.mean(np.log(1 - logistic(f - r.mean()))),
        lambda r, f: -np.mean(np.log(1 - logistic(r - f.mean()))) - np.mean(np.log(logistic(f - r.mean()))),
    ),
    "hinge": (
        lambda r, f: np.mean(np.maximum(0, 1 - r)) + np.mean(np.maximum(0, 1 + f)),
        lambda r, f: -np.mean(f),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_closed_forms_over_clear_verdicts(name):
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(0, 2, (3, 6, 6, 1)) for _ in range(2))
    masks = [rng.random((3, 6, 6, 1)) > 0.3 for _ in range(2)]
    clear = real[masks[0]], fake[masks[1]]
    tensors = [tf.constant(x.astype(np.float32)) for x in (real, fake, *masks)]
    for loss, closed in zip(LOSSES[name], CLOSED_FORMS[name], strict=True):
        assert float(loss(*tensors)) == pytest.approx(closed(*clear), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "undecided"), [("lsgan", (0.25, 0.25)), ("relativistic", (2 * np.log(2),) * 2), ("hinge", (2.0, -0.0))]
)
def test_losses_of_a_judge_who_cannot_tell(name, undecided):
    middle = tf.fill((1, 4, 4, 1), 0.5 if name == "lsgan" else 0.0)
    for loss, expected in zip(LOSSES[name], undecided, strict=True):
        assert float(loss(middle, middle, tf.ones_like(middle), tf.ones_like(middle))) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_following_its_loss_each_gets_better(name):
    real, fake, all_clear = tf.fill((1, 3, 3, 1), -0.2), tf.fill((1, 3, 3, 1), 0.3), tf.ones((1, 3, 3, 1))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([real, fake])
        judge, generator = (loss(real, fake, all_clear, all_clear) for loss in LOSSES[name])
    assert (tape.gradient(judge, real) < 0).numpy().all() and (tape.gradient(judge, fake) > 0).numpy().all()
    assert (tape.gradient(generator, fake) < 0).numpy().all()


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_clear_pixel_losses_and_gradients_are_zero_and_large_logits_do_not_overflow(name):
    logits, none = tf.fill((1, 3, 3, 1), 1e4), tf.zeros((1, 3, 3, 1))
    for loss in LOSSES[name]:
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(logits, logits, none, none)
        gradient = tape.gradient(value, logits)
        assert float(value) == 0 and not np.any(gradient)
        assert np.isfinite(loss(logits, -logits, none + 1, none + 1))


def test_weights_between_none_and_all_count_in_proportion():
    assert float(weighted_part(tf.constant([1.0, 5.0, 9.0]), tf.constant([1.0, 0.5, 0.0]))) == pytest.approx(3.5 / 1.5)


@pytest.mark.parametrize("norm", NORMS)
def test_it_learns_to_tell_sharp_from_blurred(norm):
    judge, optimizer = make(norm, filters=8), keras.optimizers.Adam(2e-3)
    optimizer.build(judge.trainable_variables)

    @tf.function
    def step(real, fake, valid):
        both, weight = tf.concat([real, fake], 0), judge.weight(valid)
        with tf.GradientTape() as tape:
            verdicts = tf.split(judge(both, tf.concat([valid, valid], 0), training=True), 2)
            loss = discriminators.hinge_discriminator(*verdicts, weight, weight)
        optimizer.apply(tape.gradient(loss, judge.trainable_variables), judge.trainable_variables)
        return loss

    losses = []
    for seed in range(60):
        image, valid = images(48, 48, batch=2, seed=seed)
        losses.append(float(step(image, tf.nn.avg_pool2d(image, 3, 1, "SAME"), valid)))
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_a_judge_is_made_again_from_its_config():
    judge = make("spectral", n_layers=2)
    again = PatchGAN.from_config(judge.get_config())
    assert (again.receptive_field, again.norm, again.n_layers, again.filters) == (34, "spectral", 2, 4)


def test_what_cannot_be_judged_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match=r"at least 24 pixels.*Received: shape=\(1, 20, 64, 2\).*larger crops"):
        make()(*images(20, 64))
    with pytest.raises(ModelError, match="Received: norm='batch'"):
        PatchGAN(4, norm="batch")
