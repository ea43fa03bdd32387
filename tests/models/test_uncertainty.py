import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from harmonize_tf.errors import ModelError
from harmonize_tf.models.harmonizer import load
from harmonize_tf.models.uncertainty import half_width


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_half_widths_are_those_of_a_laplace_distribution(level):
    unit = stats.laplace(scale=np.sqrt(0.5))
    assert unit.std() == pytest.approx(1)
    assert half_width(level) == pytest.approx(unit.ppf((1 + level) / 2))


@pytest.mark.parametrize("generator", [{}, {"generator": "resnet", "blocks": 1, "filters": 4}])
def test_what_a_model_says_of_its_error_changes_nothing_in_its_output(make_harmonizer, make_inputs, generator):
    inputs = make_inputs(16, 20, 0.1)
    plain, model = make_harmonizer(**generator), make_harmonizer(uncertainty=True, **generator)
    model.generator.set_weights(plain.generator.get_weights())
    model.spread.calibration.assign([1.0, 2.0, 0.5])
    output, sigma = model.judged(inputs)
    np.testing.assert_array_equal(output, plain(inputs))
    assert sigma.shape == output.shape and np.isfinite(sigma).all() and (sigma.numpy() > 0).all()
    with pytest.raises(ModelError, match="--uncertainty"):
        plain.judged(inputs)


@pytest.mark.parametrize("generator", [{}, {"scale": 2}, {"generator": "resnet", "blocks": 1, "filters": 4}])
def test_windows_tell_the_uncertainty_of_the_whole(make_harmonizer, make_inputs, generator):
    model, inputs = make_harmonizer(uncertainty=True, **generator), make_inputs(96, 96, 0.02)
    whole = model.judged(inputs)[1]
    halo, start, size = model.halo, 36, 12
    cut = slice(start - min(halo, start), start + size + halo)
    window = {n: x[:, (p := 2 if n == "landsat_pan" else 1) * cut.start : p * cut.stop] for n, x in inputs.items()}
    at = 3 * (start - cut.start)
    ours = model.judged(window)[1][:, at : at + 3 * size]
    np.testing.assert_allclose(ours, whole[:, 3 * start : 3 * (start + size)], rtol=1e-3)


def test_what_invalid_pixels_hold_does_not_show(make_harmonizer, make_inputs):
    model, inputs = make_harmonizer(uncertainty=True), make_inputs(16, 16, 0.2)
    rubbish = inputs | {"landsat_ms": tf.where(inputs["landsat_valid"] > 0, inputs["landsat_ms"], np.nan)}
    np.testing.assert_array_equal(model.judged(rubbish)[1], model.judged(inputs)[1])


def test_the_calibration_is_saved_with_the_model_and_scales_each_band(make_harmonizer, make_inputs, tmp_path):
    model, inputs = make_harmonizer(uncertainty=True), make_inputs(12, 12)
    model.spread.calibration.assign([1.0, 1.0, 1.0])
    before = model.judged(inputs)[1].numpy()
    model.spread.calibration.assign([2.0, 1.0, 0.5])
    model.save(tmp_path / "model.keras")
    after = load(tmp_path / "model.keras").judged(inputs)[1]
    np.testing.assert_allclose(after, before * [2.0, 1.0, 0.5], rtol=1e-6)
