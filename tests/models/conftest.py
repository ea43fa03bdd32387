import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.radiometry import Bandpass

BANDS = ("green", "red", "nir")


@pytest.fixture
def bandpass():
    return Bandpass((1.02, 0.98, 1.0), (0.002, -0.001, 0.0), "of these tests")


@pytest.fixture
def make_harmonizer(bandpass):
    """Makes a small Harmonizer whose weights are drawn at random and are large, so that its detail is wild."""

    def make(wild=True, **arguments):
        defaults = {"bands": BANDS, "level": "sr", "uses_pan": True, "bandpass": bandpass, "sigma": (1.02, 1.2, 0.5)}
        defaults |= {"mean": (0.1, 0.12, 0.3), "std": (0.05, 0.06, 0.1), "pan_mean": 0.11, "pan_std": 0.05}
        model = Harmonizer(**{**defaults, "blocks": 2, "filters": 8, **arguments})
        rng = np.random.default_rng(1)
        for weight in model.weights if wild else ():
            fan_in = max(np.prod(weight.shape[:-1]), 1)
            weight.assign(rng.normal(0, 1.5 / np.sqrt(fan_in), weight.shape))
        return model

    return make


@pytest.fixture
def make_inputs():
    """Draws the inputs of a Harmonizer; `gaps` is the share of invalid pixels beside one invalid block."""

    def make(height, width, gaps=0.0, batch=1, seed=0):
        rng = np.random.default_rng(seed)
        valid = rng.random((batch, height, width, 1)) >= gaps
        if gaps:
            valid[:, height // 2 : height // 2 + 6, 3:9] = False
        ms = rng.uniform(-0.02, 0.6, (batch, height, width, len(BANDS)))
        pan = rng.uniform(0, 0.5, (batch, 2 * height, 2 * width, 1))
        arrays = {"landsat_ms": ms, "landsat_pan": pan, "landsat_valid": valid}
        return {name: tf.constant(array.astype(np.float32)) for name, array in arrays.items()}

    return make
