import dataclasses

import keras
import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny_examples

from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import FlagError
from harmonize_tf.models.landsat import prepare
from harmonize_tf.models.layers import masked, repeat_pixels
from trainer import task
from trainer.config import Config
from trainer.discriminators import LOSSES
from trainer.objectives import cyclegan

STEPS, EVERY = 2, 2


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "examples"
    tiny_examples.write(directory, change=tiny_examples.cloudy)
    return directory


def config(examples, **more):
    base = Config(
        "cyclegan", examples, examples, scale=3, blocks=1, filters=4, pan=True, consistency="exact", batch=2, crop=16,
        steps=STEPS, learning_rate=2e-4, validate_every=EVERY, seed=0, adversarial=True, adversarial_weight=1.0,
        streams=cyclegan.STREAMS,
    )  # fmt: skip
    return dataclasses.replace(base, **more)


def made(run):
    keras.utils.set_random_seed(run.seed)
    return cyclegan.training(run, cyclegan.build(run, DatasetInfo.load(run.data)))


def first_batch(run):
    return next(iter(run.batches(DatasetInfo.load(run.data))))


def test_the_published_settings_give_the_published_networks(examples):
    model = made(config(examples, norm="instance", consistency="none", blocks=9, filters=64))
    assert model.harmonizer.count_params() == model.backward.count_params() == 11_384_452
    assert model.judge_a.count_params() == model.judge_b.count_params() == 2_765_761
    rates = [float(cyclegan.ConstantThenLinear(2e-4, 200)(step)) for step in (0, 100, 150, 199, 200)]
    np.testing.assert_allclose(rates, [2e-4, 2e-4, 1e-4, 2e-6, 0], rtol=1e-4)


@pytest.mark.parametrize("gan_loss", ["lsgan", "relativistic"])
def test_a_steps_losses_are_those_of_each_image_on_its_own(examples, gan_loss):
    """The step shares passes between losses; here every image goes its own way through the public parts."""
    run = config(examples, gan_loss=gan_loss)
    model, (inputs, targets) = made(run), first_batch(run)
    g, std = model.harmonizer, tf.constant(model.harmonizer.std)
    valid = repeat_pixels(inputs["landsat_valid"], 3)
    clear = repeat_pixels(inputs["landsat_clear"], 3)
    a, b = g.base(prepare(inputs, g.bands, True)), targets["sentinel_ms"]
    whole = targets["mask"].numpy().reshape(2, 16, 3, 16, 3).min((2, 4))  # cells that are all clear
    mask = repeat_pixels(tf.constant(whole[..., None]), 3)

    def normal(image):
        return (image - tf.constant(g.mean)) / std

    def to_a(image, valid):
        return image + std * model.backward(masked(normal(image), valid), valid)

    def to_b(image, valid):
        return image + g.refine(image, valid)

    def distance(one, two, mask):
        return float(tf.reduce_sum(2 * tf.abs(one - two) * mask) / tf.reduce_sum(mask) / len(g.bands))

    like_a, like_b = to_a(b, mask), g(inputs)
    cycle = distance(to_a(like_b, valid), a, clear) + distance(to_b(like_a, mask), b, mask)
    identity = distance(to_a(a, valid), a, clear) + distance(to_b(b, mask), b, mask)
    judges = (model.judge_a, (a, clear), (like_a, mask)), (model.judge_b, (b, mask), (like_b, clear))
    adversarial = 0.0
    for judge, *images in judges:
        verdicts, weight = [judge(model.shown(*x), mask * clear) for x in images], judge.weight(mask * clear)
        adversarial += float(LOSSES[gan_loss][1](*verdicts, weight, weight))
    logs = {name: float(value) for name, value in model.train_step((inputs, targets)).items()}
    wanted = {"cycle_loss": cycle, "identity_loss": identity, "adversarial_loss": adversarial}
    wanted["loss"] = 10 * cycle + 5 * identity + adversarial
    assert logs == pytest.approx(logs | wanted, rel=1e-4) and min(wanted.values()) > 0.001


def test_discriminators_are_shown_what_lies_beyond_30_m_and_as_published_everything(examples):
    model, (_, targets) = made(config(examples)), first_batch(config(examples))
    image, mask = targets["sentinel_ms"], tf.ones_like(targets["mask"])
    shown, brighter = model.shown(image, mask), model.shown(image + 0.5, mask)
    np.testing.assert_allclose(brighter, shown, atol=1e-3)
    assert 0.3 < np.std(shown.numpy()[mask.numpy()[..., 0] > 0]) < 3
    fine = 0.01 * tf.cast(tf.range(48) % 2, tf.float32)[None, :, None, None]
    assert np.abs(model.shown(image + fine, mask) - shown).max() > 0.05
    plain = made(config(examples, consistency="none"))
    g = plain.harmonizer
    np.testing.assert_allclose(plain.shown(image, mask), (image - tf.constant(g.mean)) / tf.constant(g.std), atol=1e-5)


def test_cloud_and_gaps_are_in_no_loss(examples):
    run = config(examples)
    model, (inputs, targets) = made(run), first_batch(run)
    rubbish = {"sentinel_ms": tf.where(targets["mask"] > 0, targets["sentinel_ms"], 1e6)}
    one, two = made(run).train_step((inputs, targets)), made(run).train_step((inputs, targets | rubbish))
    assert one == two
    before = [variable.numpy() for variable in model.generator_variables]
    blind = inputs | {"landsat_clear": tf.zeros_like(inputs["landsat_clear"])}
    logs = model.train_step((blind, targets | {"mask": tf.zeros_like(targets["mask"])}))
    assert set(map(float, logs.values())) == {0.0}
    for was, now in zip(before, model.generator_variables, strict=True):  # the others' norms are renewed all the same
        np.testing.assert_array_equal(was, now)


def test_without_an_adversary_there_is_nothing_to_learn_from(examples, tmp_path):
    with pytest.raises(FlagError, match="leave --noadversarial out.*Received: adversarial=False"):
        task.main(argv(examples, tmp_path / "training", "--noadversarial"))
    assert not (tmp_path / "training").exists()


def argv(examples, model_dir, *more):
    flags = runs.flags(examples, model_dir, "--model=cyclegan", steps=STEPS, every=EVERY)
    return [*flags, "--crop=16", "--filters=4", *more]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_it_trains_in_fewer_bits_and_the_pools_stay_exact(examples, tmp_path, precision):
    task.main(argv(examples, tmp_path, f"--precision={precision}"))
    found = runs.scalars(tmp_path)
    assert all(np.isfinite(value) for name in found for _, value in found[name]) and "rmse/train" not in found
    state = runs.everything(tmp_path)
    assert all(state[name].dtype in (np.float32, np.int64) for name in state if name.startswith("pool_"))
