import json

import keras
import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny_examples

from harmonize_tf import precision
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import ModelError
from harmonize_tf.models.harmonizer import load
from trainer import loss_scaling
from trainer.config import Config
from trainer.objectives import pixelwise, subpixel

TWO_REPLICAS = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "examples"
    tiny_examples.write(directory)
    return directory


def test_auto_is_recorded_and_goes_on_in_the_precision_that_the_training_began_with(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "fastest", lambda: ("bfloat16", "a test"))
    runs.train(examples, tmp_path, "--precision=auto", steps=1, every=1)
    assert json.loads((tmp_path / "training.json").read_text())["precision"] == "bfloat16"
    assert json.loads((tmp_path / "summary.json").read_text())["precision"] == "bfloat16"
    assert "--precision=bfloat16" in (tmp_path / "flags.txt").read_text().splitlines()
    monkeypatch.setattr(precision, "fastest", lambda: ("float32", "a test"))
    runs.train(examples, tmp_path, "--precision=auto", steps=2, every=1)
    assert json.loads((tmp_path / "summary.json").read_text())["precision"] == "bfloat16"
    with pytest.raises(ModelError, match=r"There: precision=bfloat16\. Received: precision=float32"):
        runs.train(examples, tmp_path, steps=2, every=1)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_the_network_computes_in_the_type_and_all_else_in_float32(examples, name):
    info = DatasetInfo.load(examples)
    config = Config(
        "subpixel", examples, examples, scale=3, blocks=1, filters=4, pan=True, consistency="exact", batch=2, crop=8,
        steps=2, learning_rate=1e-3, validate_every=1, seed=0, precision=name,
    )  # fmt: skip
    harmonizer = subpixel.build(config, info)
    assert harmonizer.generator.body[0].first.compute_dtype == name
    assert {w.dtype for w in harmonizer.weights} == {"float32"}
    inputs, targets = next(iter(config.batches(info)))
    output = harmonizer(inputs)
    assert output.dtype == tf.float32 and pixelwise.Pixelwise(harmonizer).penalty(output, targets).dtype == tf.float32
    seen = harmonizer.degrade(output, inputs["landsat_valid"]).numpy()
    expected = info.bandpass.apply(inputs["landsat_ms"].numpy())
    assert np.abs(seen - expected).max() < 1e-3  # consistency holds as in float32


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_the_exported_model_computes_in_float32(examples, tmp_path, name):
    runs.train(examples, tmp_path, f"--precision={name}", steps=1, every=1)
    model = load(tmp_path / "model.keras")
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_faster_type_trains_as_well_as_float32_within_what_the_seed_changes(examples, tmp_path, name):
    def best(label, *flags):
        runs.train(examples, tmp_path / label, *flags, steps=60, every=60)
        return json.loads((tmp_path / label / "summary.json").read_text())["best_rmse"]

    seeds = [best(f"seed{seed}", f"--seed={seed}") for seed in (0, 1, 2)]
    fast = best(name, f"--precision={name}")
    assert abs(fast - seeds[0]) < max(seeds) - min(seeds)


def test_a_float16_step_whose_scaled_gradients_overflow_is_left_out_and_the_scale_halves(examples):
    inner = keras.optimizers.SGD(1.0)
    weight = keras.Variable([1.0, 2.0])
    optimizer = loss_scaling.guarded(inner, "float16")
    optimizer.build([weight])
    optimizer.apply([tf.constant([np.inf, 1.0])], [weight])
    assert float(optimizer.dynamic_scale) == loss_scaling.INITIAL_SCALE / 2 and int(optimizer.iterations) == 0
    np.testing.assert_array_equal(weight.numpy(), [1.0, 2.0])
    optimizer.apply([tf.constant([0.25, 0.5]) * loss_scaling.INITIAL_SCALE / 2], [weight])
    np.testing.assert_array_equal(weight.numpy(), [0.75, 1.5])


# float32: what the order of a sum makes. The others round the gradient of each replica's half of the batch by itself,
# to 8 and 11 bits, where one device rounds that of the whole; Adam's first steps are of the learning rate's size, 5e-3.
@pytest.mark.parametrize(
    "name, loss, weight", [("float32", 1e-5, 1e-5), ("bfloat16", 1e-4, 1e-3), ("float16", 1e-5, 3e-4)]
)
def test_two_replicas_with_an_average_equal_one_device(examples, tmp_path, name, loss, weight):
    more = (f"--precision={name}", "--ema=0.9")
    runs.train(examples, tmp_path / "1", *more, steps=4, every=2)
    done = runs.elsewhere(TWO_REPLICAS, runs.flags(examples, tmp_path / "2", *more, steps=4, every=2))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "2" / "summary.json").read_text())["replicas"] == 2
    one, two = (runs.scalars(tmp_path / label) for label in "12")
    for tag in ("loss/train", "loss/validation", "rmse/train", "rmse/validation"):
        np.testing.assert_allclose(two[tag], one[tag], atol=loss)
    for a, b in zip(runs.weights(tmp_path / "1"), runs.weights(tmp_path / "2"), strict=True):
        np.testing.assert_allclose(a, b, atol=weight)
