import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import gaussian_filter, zoom

from harmonize_tf.degradation import degrade
from harmonize_tf.errors import ModelError
from harmonize_tf.models.baselines import BASELINES, build_baseline

BANDS = ("green", "red", "nir")


def test_nearest_repeats_pixels(bandpass, make_inputs):
    inputs = make_inputs(5, 6)
    output = build_baseline("nearest", BANDS, "sr", False, bandpass)(inputs)
    np.testing.assert_array_equal(output, inputs["landsat_ms"].numpy().repeat(3, 1).repeat(3, 2))


def test_bicubic_equals_tensorflows_and_bandpass_adjusts_it(bandpass, make_inputs):
    inputs = make_inputs(12, 14)
    bicubic = build_baseline("bicubic", BANDS, "sr", False, bandpass)(inputs)
    reference = tf.image.resize(inputs["landsat_ms"], (36, 42), "bicubic")
    np.testing.assert_allclose(bicubic[:, 6:-6, 6:-6], reference[:, 6:-6, 6:-6], atol=1e-3)
    adjusted = build_baseline("bandpass", BANDS, "sr", False, bandpass)(inputs)
    np.testing.assert_allclose(adjusted, bandpass.apply(bicubic.numpy()), atol=1e-6)


def test_pansharpening_brings_detail_back_that_bicubic_lost(bandpass):
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(180, 180)), 1.2)
    truth = (0.2 + 0.15 * texture / texture.std() / 3)[..., None] * np.float32([1.0, 0.8, 1.5])
    everywhere = np.ones((180, 180), bool)
    ms, _ = degrade(truth.astype(np.float32), everywhere, (1.0, 1.0, 1.0))
    pan = zoom(gaussian_filter(truth[..., :2].mean(-1), 0.7), 2 / 3, order=3, grid_mode=True, mode="nearest")
    inputs = {
        "landsat_ms": tf.constant(ms[None]),
        "landsat_pan": tf.constant(pan[None, ..., None].astype(np.float32)),
        "landsat_valid": tf.ones((1, 60, 60, 1)),
    }
    error = {}
    for name in ("bandpass", "pansharpen"):
        output = build_baseline(name, BANDS, "sr", True, bandpass)(inputs).numpy()[0]
        difference = output - bandpass.apply(truth)
        error[name] = np.sqrt((difference[9:-9, 9:-9] ** 2).mean((0, 1)))
    assert (error["pansharpen"][:2] < 0.7 * error["bandpass"][:2]).all()
    assert error["pansharpen"][2] == pytest.approx(error["bandpass"][2], rel=1e-3)


def test_pansharpening_without_a_panchromatic_band_is_bandpass(bandpass, make_inputs):
    inputs = make_inputs(8, 8)
    without = build_baseline("pansharpen", BANDS, "sr", False, bandpass)
    assert not without.uses_pan
    np.testing.assert_array_equal(without(inputs), build_baseline("bandpass", BANDS, "sr", False, bandpass)(inputs))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_the_harmonizers_contract(name, bandpass, make_inputs):
    model, inputs = build_baseline(name, BANDS, "sr", True, bandpass), make_inputs(20, 20, 0.1)
    assert (model.bands, model.level, model.multiple) == (BANDS, "sr", 1)
    output = model(inputs)
    assert output.shape == (1, 60, 60, 3) and output.dtype == tf.float32 and np.isfinite(output).all()


@pytest.mark.parametrize("name", BASELINES)
def test_a_baselines_window_with_its_halo_equals_the_whole(name, bandpass, make_inputs):
    model, inputs = build_baseline(name, BANDS, "sr", True, bandpass), make_inputs(24, 24, 0.1)
    h = model.halo
    window = {k: x[:, 8 * (x.shape[1] // 24) : 20 * (x.shape[1] // 24)] for k, x in inputs.items()}
    inner = model(window)[:, 3 * h : 3 * (12 - h)]
    np.testing.assert_allclose(inner, model(inputs)[:, 3 * (8 + h) : 3 * (20 - h)], atol=1e-6)


def test_an_unknown_baseline_is_named(bandpass):
    with pytest.raises(ModelError, match="lanczos"):
        build_baseline("lanczos", BANDS, "sr", False, bandpass)
