import keras
import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf.degradation import degrade
from harmonize_tf.errors import ModelError
from harmonize_tf.models.consistency import Consistency
from harmonize_tf.models.harmonizer import Harmonizer, load, prepare
from harmonize_tf.radiometry import Bandpass


def worst(model, inputs):
    """How far the output, degraded by the numpy formula, is from the adjusted measurement where there is data."""
    valid = inputs["landsat_valid"].numpy()[0, ..., 0] > 0
    low, _ = degrade(model(inputs)[0].numpy(), valid.repeat(3, 0).repeat(3, 1), model.sigma)
    return np.abs(low - model.bandpass.apply(inputs["landsat_ms"][0].numpy()))[valid].max()


def cut(inputs, rows, columns):
    """A window of all inputs, in 30 m pixels; where it reaches out there is no data."""
    height, width = inputs["landsat_valid"].shape[1:3]
    margin = [(max(-s.start, 0), max(s.stop - n, 0)) for s, n in ((rows, height), (columns, width))]

    def window(x):
        f = x.shape[1] // height
        x = x[:, max(rows.start, 0) * f : rows.stop * f, max(columns.start, 0) * f : columns.stop * f]
        return tf.pad(x, [(0, 0), *((a * f, b * f) for a, b in margin), (0, 0)])

    return {name: window(x) for name, x in inputs.items()}


@pytest.mark.parametrize("scale", [3, 2])
@pytest.mark.parametrize("gaps", [0.0, 0.15])
def test_output_is_consistent_with_the_measurement_for_any_weights(make_harmonizer, make_inputs, scale, gaps):
    inputs = make_inputs(31, 28, gaps)
    assert worst(make_harmonizer(scale=scale, consistency="none"), inputs) > 0.05
    assert worst(make_harmonizer(scale=scale), inputs) < 1e-3


def test_without_a_network_worth_speaking_of_the_output_is_base(make_harmonizer, make_inputs):
    model, inputs = make_harmonizer(wild=False, consistency="none"), make_inputs(12, 12)
    model.generator.head.kernel.assign(tf.zeros_like(model.generator.head.kernel))
    bicubic = tf.image.resize(model.bandpass.apply(inputs["landsat_ms"]), (36, 36), "bicubic")
    np.testing.assert_allclose(model(inputs)[:, 6:-6, 6:-6], bicubic[:, 6:-6, 6:-6], atol=1e-3)


@pytest.mark.parametrize("scale", [3, 2])
def test_a_window_with_its_halo_equals_the_whole_scene(make_harmonizer, make_inputs, scale):
    model, inputs = make_harmonizer(scale=scale), make_inputs(58, 61, 0.1)
    whole = model(inputs).numpy()
    for row, column, size in ((0, 0, 12), (22, 24, 10), (46, 50, 12)):
        side = slice(row - model.halo, row + size + model.halo), slice(column - model.halo, column + size + model.halo)
        assert all(s.start % model.multiple == 0 for s in side)
        inner = slice(3 * model.halo, 3 * (model.halo + size))
        there = whole[:, 3 * row : 3 * (row + size), 3 * column : 3 * (column + size)]
        here = model(cut(inputs, *side)).numpy()[:, inner, inner][:, : there.shape[1], : there.shape[2]]
        np.testing.assert_allclose(here, there, atol=1e-5 * np.abs(whole).max())


def test_pixels_beyond_the_halo_have_no_influence_at_all(make_harmonizer, make_inputs):
    model = make_harmonizer(blocks=1)
    size = 2 * model.halo + 7
    inputs = make_inputs(size, size)
    beside = {name: x.numpy() for name, x in inputs.items()}
    beside["landsat_ms"][:, 0, 0] = 5.0
    beside["landsat_pan"][:, :2, :2] = 5.0
    difference = np.argwhere(model({k: tf.constant(v) for k, v in beside.items()}).numpy() != model(inputs).numpy())
    assert 0 < difference[:, 1:3].max() // 3 <= model.halo


@pytest.mark.parametrize("scale", [3, 2])
def test_what_invalid_pixels_hold_changes_nothing_even_nan(make_harmonizer, make_inputs, scale):
    model, inputs = make_harmonizer(scale=scale), make_inputs(20, 22, 0.2)
    gaps = inputs["landsat_valid"] == 0
    pan_gaps = tf.repeat(tf.repeat(gaps, 2, 1), 2, 2)
    poisoned = inputs | {
        "landsat_ms": tf.where(gaps, np.nan, inputs["landsat_ms"]),
        "landsat_pan": tf.where(pan_gaps, np.nan, inputs["landsat_pan"]),
    }
    output = model(poisoned)
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(output, model(inputs))


def test_a_gap_in_the_panchromatic_band_is_filled_from_green_and_red(make_inputs):
    inputs = make_inputs(6, 6)
    mask = np.ones((1, 12, 12, 1), np.float32)
    mask[:, 3, 4] = 0
    poisoned = tf.where(mask > 0, inputs["landsat_pan"], np.nan)
    pan = prepare(
        inputs | {"landsat_pan": poisoned, "landsat_pan_valid": tf.constant(mask)}, ("green", "red", "nir"), True
    ).pan.numpy()
    assert pan[0, 3, 4, 0] == pytest.approx(inputs["landsat_ms"][0, 1, 2, :2].numpy().mean(), rel=1e-6)
    np.testing.assert_array_equal(pan[mask > 0], inputs["landsat_pan"].numpy()[mask > 0])


@pytest.mark.parametrize("scale", [3, 2])
@pytest.mark.parametrize("uses_pan", [True, False])
def test_a_saved_model_comes_back_whole(make_harmonizer, make_inputs, tmp_path, scale, uses_pan):
    model, inputs = make_harmonizer(scale=scale, uses_pan=uses_pan, nir="B8A"), make_inputs(9, 7, 0.1)
    model.save(tmp_path / "model.keras")
    again = load(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    assert again.nir == "B8A"
    assert (again.bandpass, again.sigma, again.halo) == (model.bandpass, model.sigma, model.halo)
    np.testing.assert_array_equal(again(inputs), model(inputs))


def test_a_file_that_holds_no_harmonizer_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "damaged.keras").write_bytes(b"not a zip")
    for name in ("damaged", "absent"):
        with pytest.raises(ModelError, match=f"cannot be read .*model={tmp_path}/{name}.keras.*harmonize train"):
            load(tmp_path / f"{name}.keras")
    keras.Sequential([keras.Input([4]), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(ModelError, match="expected a Harmonizer, found a Sequential.*harmonize train"):
        load(tmp_path / "other.keras")


@pytest.mark.parametrize("scale", [3, 2])
def test_shapes_may_be_unknown_until_it_runs(make_harmonizer, make_inputs, scale):
    model = make_harmonizer(scale=scale)
    names = {"landsat_ms": 3, "landsat_pan": 1, "landsat_valid": 1}
    signature = {name: tf.TensorSpec((None, None, None, channels), tf.float32) for name, channels in names.items()}
    function = tf.function(model, input_signature=[signature])
    for batch, height, width in ((1, 1, 1), (2, 1, 6), (1, 9, 4)):
        inputs = make_inputs(height, width, batch=batch)
        output = function(inputs)
        assert output.shape == (batch, 3 * height, 3 * width, 3)
        np.testing.assert_allclose(output, model(inputs), atol=1e-5)


def test_mixed_precision_keeps_output_and_consistency_in_float32(make_harmonizer, make_inputs):
    model, inputs = make_harmonizer(dtype="mixed_bfloat16"), make_inputs(20, 20, 0.1)
    assert model.generator.body[0].first.compute_dtype == "bfloat16"
    assert model(inputs).dtype == tf.float32
    assert worst(model, inputs) < 1e-3


@pytest.mark.parametrize("scale", [3, 2])
def test_gradients_reach_every_weight(make_harmonizer, make_inputs, scale):
    model, inputs = make_harmonizer(scale=scale), make_inputs(12, 12, 0.1)
    truth = tf.random.stateless_normal((1, 36, 36, 3), (1, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(inputs) - truth) ** 2)
    for weight, gradient in zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, weight.path


def test_it_learns_to_take_detail_from_the_panchromatic_band(make_harmonizer, make_inputs):
    keras.utils.set_random_seed(1)
    model = make_harmonizer(wild=False, mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2), pan_mean=0.25, pan_std=0.2)
    inputs = make_inputs(16, 16, batch=4)
    pan = tf.image.resize(inputs["landsat_pan"], (48, 48)) - 0.25
    target = model.bandpass.apply(inputs["landsat_ms"])
    truth = Consistency(model.sigma)(model(inputs) + 0.3 * pan, target, inputs["landsat_valid"])
    model.compile(keras.optimizers.Adam(3e-3), loss="mse")
    history = model.fit(inputs, truth, epochs=60, batch_size=4, verbose=0).history["loss"]
    assert history[-1] < 0.4 * history[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma": (1.0, 1.0)},
        {"sigma": (1.0, 0.1, 1.0)},
        {"std": (0.1, 0.0, 0.1)},
        {"mean": (0.1, float("nan"), 0.1)},
        {"scale": 4},
        {"consistency": "some"},
        {"bandpass": Bandpass((1.0,), (0.0,), "one band")},
    ],
)
def test_wrong_arguments_are_named(make_harmonizer, wrong):
    with pytest.raises(ModelError, match=f"Received: {next(iter(wrong))}"):
        make_harmonizer(**wrong)


def test_inputs_of_other_bands_are_refused(make_harmonizer, make_inputs):
    model, inputs = make_harmonizer(), make_inputs(6, 6)
    with pytest.raises(ModelError, match="landsat_ms.*green, red, nir"):
        model(inputs | {"landsat_ms": inputs["landsat_ms"][..., :2]})
    del inputs["landsat_pan"]
    with pytest.raises(ModelError, match="landsat_pan"):
        model(inputs)


def test_the_article_can_be_reproduced(make_harmonizer):
    model = make_harmonizer(scale=2, consistency="none")
    assert isinstance(model, Harmonizer) and model.multiple == 2 and model.halo % 2 == 0
