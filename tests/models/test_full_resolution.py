"""The Harmonizer whose network works at 10 m: the contract that tests/models/test_harmonizer.py has for the others."""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf import radiometry
from harmonize_tf.degradation import degrade
from harmonize_tf.errors import ModelError
from harmonize_tf.models.baselines import build_baseline
from harmonize_tf.models.harmonizer import Harmonizer, load, prepare
from harmonize_tf.models.resnet import ResNet
from serving import export
from serving.local import LocalPredictor

GOLDEN = pathlib.Path(__file__).parent / "golden"
DN = 1e-4


@pytest.fixture
def make(make_harmonizer):
    return lambda **arguments: make_harmonizer(**{"generator": "resnet", "filters": 4, "blocks": 1, **arguments})


def worst(model, inputs, output=None):
    """How far the output, degraded by the numpy formula, is from the adjusted measurement where there is data."""
    valid = inputs["landsat_valid"].numpy()[0, ..., 0] > 0
    output = model(inputs) if output is None else output
    low, _ = degrade(output[0].numpy(), valid.repeat(3, 0).repeat(3, 1), model.sigma)
    return np.abs(low - model.bandpass.apply(inputs["landsat_ms"][0].numpy()))[valid].max()


def wedge(inputs):
    """The inputs with a wedge of no data across them, as at the edge of a scene."""
    height, width = inputs["landsat_valid"].shape[1:3]
    rows, columns = np.mgrid[:height, :width]
    inside = (rows > 0.5 * columns - 0.25 * height).astype(np.float32)[None, ..., None]
    return inputs | {"landsat_valid": inputs["landsat_valid"] * inside}


def window_of(inputs, row, column, rows, columns):
    """A window of all inputs, in 30 m pixels; where it reaches out there is no data."""
    height, width = inputs["landsat_valid"].shape[1:3]
    top, left, bottom, right = (max(n, 0) for n in (-row, -column, row + rows - height, column + columns - width))

    def window(x):
        f = x.shape[1] // height
        x = tf.pad(x, [(0, 0), (top * f, bottom * f), (left * f, right * f), (0, 0)])
        row_, column_ = (row + top) * f, (column + left) * f
        return x[:, row_ : row_ + rows * f, column_ : column_ + columns * f]

    return {name: window(x) for name, x in inputs.items()}


@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize("gaps", [0.0, 0.15])
def test_output_is_consistent_with_the_measurement_for_any_weights(make, make_inputs, norm, gaps):
    inputs = make_inputs(31, 28, gaps)
    assert worst(make(norm=norm, consistency="none", blocks=2), inputs) > 0.05
    assert worst(make(norm=norm, blocks=2), inputs) < 1e-3


@pytest.mark.parametrize(
    ("row", "column", "rows", "columns"), [(0, 0, 12, 20), (8, 40, 12, 16), (20, 24, 8, 4), (44, 48, 16, 16)]
)
@pytest.mark.parametrize("uses_pan", [True, False])
def test_a_window_with_its_halo_equals_the_whole_scene(make, make_inputs, row, column, rows, columns, uses_pan):
    model, inputs = make(uses_pan=uses_pan), wedge(make_inputs(58, 61, 0.1))
    whole, halo = model(inputs).numpy(), model.halo
    assert model.multiple == 4 and halo % 4 == 0
    padded = model(window_of(inputs, row - halo, column - halo, rows + 2 * halo, columns + 2 * halo)).numpy()
    there = whole[:, 3 * row : 3 * (row + rows), 3 * column : 3 * (column + columns)]
    here = padded[:, 3 * halo :, 3 * halo :][:, : there.shape[1], : there.shape[2]]
    np.testing.assert_allclose(here, there, atol=1e-5 * np.abs(whole).max())
    if row:  # nor would less context do: what is compared here does depend on it
        less = model(window_of(inputs, row - 4, column - 4, rows + 8, columns + 8)).numpy()[:, 12:, 12:]
        assert np.abs(less[:, : there.shape[1], : there.shape[2]] - there).max() > 1e-3


@pytest.mark.parametrize("uses_pan", [True, False])
@pytest.mark.parametrize("consistency", ["exact", "none"])
def test_pixels_beyond_the_halo_have_no_influence_at_all(make, make_inputs, uses_pan, consistency):
    model = make(uses_pan=uses_pan, consistency=consistency)
    for weight in model.generator.weights:
        weight.assign(tf.abs(weight) + 1e-3)  # so that no ReLU is in the way
    size = 4 * (model.halo // 2 + 2)
    inputs, reach = make_inputs(size, size), 0
    before = model(inputs).numpy()
    for place in range(4):
        beside = {name: x.numpy() for name, x in inputs.items()}
        beside["landsat_ms"][:, place, place] = 50.0
        beside["landsat_pan"][:, 2 * place : 2 * place + 2, 2 * place : 2 * place + 2] = 50.0
        changed = np.argwhere(model({k: tf.constant(v) for k, v in beside.items()}).numpy() != before)
        reach = max(reach, changed[:, 1:3].max() // 3 - place)
    # Float32 rounds the faintest influence away, and the halo is a multiple of 4.
    assert model.halo - 10 <= reach <= model.halo


def test_what_invalid_pixels_hold_changes_nothing_even_nan(make, make_inputs):
    model, inputs = make(), wedge(make_inputs(20, 22, 0.2))
    gaps = inputs["landsat_valid"] == 0
    poisoned = inputs | {
        "landsat_ms": tf.where(gaps, np.nan, inputs["landsat_ms"]),
        "landsat_pan": tf.where(tf.repeat(tf.repeat(gaps, 2, 1), 2, 2), np.nan, inputs["landsat_pan"]),
    }
    output = model(poisoned)
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(output, model(inputs))


@pytest.mark.parametrize("uses_pan", [True, False])
def test_without_a_network_worth_speaking_of_it_is_the_baseline(make, make_inputs, bandpass, uses_pan):
    model, inputs = make(uses_pan=uses_pan, consistency="none"), make_inputs(13, 10, 0.1)
    model.generator.head.kernel.assign(tf.zeros_like(model.generator.head.kernel))
    model.generator.head.bias.assign(tf.zeros_like(model.generator.head.bias))
    baseline = build_baseline("pansharpen" if uses_pan else "bandpass", model.bands, "sr", uses_pan, bandpass)
    np.testing.assert_allclose(model(inputs), baseline(inputs), atol=1e-6)


def test_the_network_refines_images_at_10_m_as_it_does_landsat(make, make_inputs):
    model, inputs = make(), make_inputs(12, 16, 0.1)
    landsat = prepare(inputs, model.bands, True)
    valid = tf.repeat(tf.repeat(landsat.valid, 3, 1), 3, 2)
    image = tf.where(valid > 0, model.base(landsat), np.nan)
    np.testing.assert_array_equal(model.refine(image, valid), model.detail(landsat))
    assert model.refine(image[:, :17, :9], valid[:, :17, :9]).shape == (1, 17, 9, 3)


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_a_false_cloud_in_the_detail_is_removed(make, make_inputs, monkeypatch, norm):
    model, inputs = make(norm=norm), make_inputs(36, 36, 0.1)
    cloud = np.zeros((1, 108, 108, 3), np.float32)
    cloud[:, 30:75, 40:80] = 0.7
    honest = Harmonizer.detail
    monkeypatch.setattr(Harmonizer, "detail", lambda self, landsat: honest(self, landsat) + cloud)
    assert worst(model, inputs) < 1e-3
    free = make(norm=norm, consistency="none")
    assert worst(free, inputs) > 0.5


def test_a_cloud_changes_no_clear_sky_beyond_the_halo_and_nothing_is_clipped(make, make_inputs):
    model = make()
    size = 4 * (model.halo // 4 + 8)
    inputs = make_inputs(size, size)
    clouded = {name: x.numpy() for name, x in inputs.items()}
    for name, side in (("landsat_ms", 12), ("landsat_pan", 24)):
        clouded[name][:, :side, :side] = 1.2
    clouded = {name: tf.constant(x) for name, x in clouded.items()}
    output = model(clouded)
    beyond = 3 * (12 + model.halo)
    for part in (np.s_[:, beyond:], np.s_[:, :, beyond:]):
        assert np.abs(output[part] - model(inputs)[part]).max() <= DN
    assert worst(model, clouded) < 1e-3
    below = degrade(output[0].numpy(), np.ones((3 * size, 3 * size), bool), model.sigma)[0][2:10, 2:10]
    np.testing.assert_allclose(below, model.bandpass.apply(np.full((8, 8, 3), 1.2, np.float32)), atol=1e-3)


def test_an_untrained_network_leaves_a_uniform_cloud_as_bright_as_it_is(make, make_inputs):
    keras.utils.set_random_seed(1)
    model, inputs = make(wild=False, consistency="none"), make_inputs(36, 36)
    inputs |= {name: tf.ones_like(inputs[name]) * 1.2 for name in ("landsat_ms", "landsat_pan")}
    cloud = model.base(prepare(inputs, model.bands, True))[:, 30:-30, 30:-30]
    np.testing.assert_allclose(cloud, model.bandpass.apply(np.full(cloud.shape, 1.2, np.float32)), atol=1e-4)
    assert model(inputs).numpy().max() > 1.0  # detail is added to it, and nothing is clipped


@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize("uses_pan", [True, False])
def test_a_saved_model_comes_back_whole(make, make_inputs, tmp_path, norm, uses_pan):
    model, inputs = make(norm=norm, uses_pan=uses_pan), make_inputs(9, 7, 0.1)
    model.save(tmp_path / "model.keras")
    again = load(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    assert isinstance(again.generator, ResNet) and again.generator.norm == norm
    assert (again.halo, again.multiple) == (model.halo, 4)
    np.testing.assert_array_equal(again(inputs), model(inputs))


def test_a_model_that_was_saved_before_there_were_other_networks_still_answers_the_same():
    model = load(GOLDEN / "subpixel_0.keras")
    with zipfile.ZipFile(GOLDEN / "subpixel_0.keras") as archive:
        config = json.loads(archive.read("config.json"))["config"]
    assert not {"generator", "norm"} & set(config)
    assert (model.kind, model.norm, model.halo, model.multiple) == ("subpixel", "none", 21, 1)
    answers = np.load(GOLDEN / "subpixel_0.npz")
    inputs = {name: tf.constant(answers[name]) for name in ("landsat_ms", "landsat_pan", "landsat_valid")}
    np.testing.assert_allclose(model(inputs), answers["output"], atol=1e-5)


def test_shapes_may_be_unknown_until_it_runs(make, make_inputs):
    model = make()
    names = {"landsat_ms": 3, "landsat_pan": 1, "landsat_valid": 1}
    signature = {name: tf.TensorSpec((None, None, None, channels), tf.float32) for name, channels in names.items()}
    function = tf.function(model, input_signature=[signature])
    for batch, height, width in ((1, 1, 1), (2, 1, 6), (1, 9, 4)):
        inputs = make_inputs(height, width, batch=batch)
        output = function(inputs)
        assert output.shape == (batch, 3 * height, 3 * width, 3)
        np.testing.assert_allclose(output, model(inputs), atol=1e-5)


def test_mixed_precision_keeps_output_and_consistency_in_float32(make, make_inputs):
    model, inputs = make(dtype="mixed_bfloat16"), make_inputs(20, 20, 0.1)
    assert model.generator.first[0].compute_dtype == "bfloat16"
    assert model.generator.entry.compute_dtype == "float32"
    assert model(inputs).dtype == tf.float32
    assert worst(model, inputs) < 1e-3


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_gradients_reach_every_weight_that_normalization_does_not_cancel(make, make_inputs, norm):
    model, inputs = make(norm=norm), make_inputs(16, 16, 0.1)
    truth = tf.random.stateless_normal((1, 48, 48, 3), (1, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(inputs) - truth) ** 2)
    for weight, gradient in zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True):
        assert np.isfinite(gradient).all(), weight.path
        cancelled = norm == "instance" and weight.name == "bias"  # subtracted with the mean
        assert cancelled or np.abs(gradient).max() > 0, weight.path


@pytest.mark.parametrize(
    "wrong", [{"generator": "unet"}, {"norm": "batch"}, {"scale": 2}, {"generator": "subpixel", "norm": "instance"}]
)
def test_wrong_arguments_are_named(make, wrong):
    name = list(wrong)[-1]
    with pytest.raises(ModelError, match=f"{name} must be one of .* Received: {name}={wrong[name]}"):
        make(**wrong)


def test_a_served_model_answers_as_the_trained_one(make, tmp_path):
    bands = ("green", "red", "nir")
    keras.utils.set_random_seed(1)
    model = make(wild=False)
    export.export_harmonizer(model, tmp_path / "resnet", warmup_size=12)
    predictor = LocalPredictor(tmp_path / "resnet")
    assert (predictor.manifest.bands, predictor.manifest.halo, predictor.manifest.multiple) == (bands, model.halo, 4)
    draw = np.random.default_rng(0)
    ms, pan = draw.integers(1000, 5000, (1, 14, 9, 3), np.uint16), draw.integers(1000, 5000, (1, 28, 18, 1), np.uint16)
    ms[:, :3, :2] = 0
    valid = (ms != 0).all(-1, keepdims=True)
    inputs = {"landsat_ms": radiometry.decode(ms), "landsat_valid": valid, "landsat_pan": radiometry.decode(pan)}
    direct = model({name: tf.constant(x.astype(np.float32)) for name, x in inputs.items()})
    expected = radiometry.encode(direct.numpy(), valid.repeat(3, 1).repeat(3, 2))
    served = predictor.predict(ms, pan)["sentinel_ms"]
    assert np.abs(served.astype(int) - expected).max() <= 1 and len(np.unique(served)) > 100
