import math

import numpy as np
import pytest
from scipy.special import erf

from harmonize_tf.metrics import edges
from harmonize_tf.metrics.reference import Reference

BANDS = ("red", "nir")


def step(sigma, axis=0, height=0.2, size=48):
    """Bright and dark stripes of 12 pixels, their sides blurred by a Gaussian."""
    x = np.arange(size) + 0.5
    line = sum((-1) ** n * (1 + erf((x - edge) / (sigma * math.sqrt(2)))) / 2 for n, edge in enumerate((12, 24, 36)))
    image = np.broadcast_to(0.1 + height * (line[:, None] if axis == 0 else line), (size, size))
    return np.stack([image, image + 0.1], -1)


def measure(truth, guess, mask=None):
    reference = Reference(truth, np.ones(truth.shape[:2]) if mask is None else mask, BANDS)
    return edges.figures(edges.sums(reference, reference.masked(guess)))


def closed_form(sigma):
    return erf(0.5 / (sigma * math.sqrt(2))) / erf((edges.REACH + 0.5) / (sigma * math.sqrt(2)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.5])
def test_a_blurred_step_has_the_closed_form(sigma, axis):
    found = measure(step(0.5, axis), step(sigma, axis))
    np.testing.assert_allclose(found["edge"], closed_form(sigma), rtol=1e-3)
    np.testing.assert_allclose(found["edge_reference"], closed_form(0.5), rtol=1e-3)


def test_contrast_and_noise_change_nothing_but_blur_does():
    truth, noise = step(0.6), np.random.default_rng(0).normal(0, 0.01, (48, 48, 2))
    own = closed_form(0.6)
    np.testing.assert_allclose(measure(truth, 0.3 + 0.5 * truth)["edge"], own, rtol=1e-3)
    np.testing.assert_allclose(measure(truth, truth + noise)["edge"], own, rtol=0.03)
    assert (measure(truth, step(1.5))["edge"] < 0.6 * own).all()


def test_an_image_that_changes_nothing_where_edges_are_has_no_response():
    found = measure(step(0.6), np.full((48, 48, 2), 0.2))
    assert np.isnan(found["edge"]).all()


def test_edges_beside_invalid_pixels_do_not_count():
    truth, mask = step(0.6), np.ones((48, 48), bool)
    mask[11:13] = False
    spoilt = np.where(mask[..., None], step(1.0), np.nan)
    np.testing.assert_allclose(measure(truth, spoilt, mask)["edge"], closed_form(1.0), rtol=1e-3)
    assert np.isnan(measure(truth, truth, np.zeros((48, 48)))["edge"]).all()


def test_flat_images_and_small_ones_have_no_edges():
    for size in (3, 16):
        flat = np.full((size, size, 2), 0.2)
        assert np.isnan(measure(flat, flat)["edge"]).all()
