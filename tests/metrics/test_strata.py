import numpy as np
import pytest

from harmonize_tf.metrics import strata
from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.strata import GROUND, Kind

BANDS = ("green", "red", "nir")
SPECTRA = {
    "water": (0.06, 0.05, 0.02),
    "bare": (0.15, 0.2, 0.25),
    "sparse vegetation": (0.08, 0.1, 0.2),
    "dense vegetation": (0.05, 0.04, 0.4),
    "bright": (0.6, 0.6, 0.65),
}


def patch(mask=None):
    """Five stripes, one of each kind of ground."""
    truth = np.repeat(np.array([SPECTRA[kind] for kind in GROUND])[:, None], 10, 1)
    return Reference(truth, np.ones(truth.shape[:2]) if mask is None else mask, BANDS)


def test_every_kind_of_ground_has_its_own_error():
    errors = np.arange(1, 6)[:, None, None] * np.array([0.01, -0.01, 0.02])
    found = strata.figures(strata.sums(patch(), patch().image + errors))
    np.testing.assert_allclose(found["ground_rmse"], 0.01 * np.arange(1, 6) * np.sqrt(2))
    np.testing.assert_allclose(found["ground_bias"], 0.01 * np.arange(1, 6) * 2 / 3)


def test_ground_is_told_by_the_reference_where_it_is_valid():
    mask = np.ones((5, 10), bool)
    mask[0] = False
    guess = np.where(mask[..., None], 0.9, np.nan) * np.ones(3)
    total = strata.sums(patch(mask), guess)
    np.testing.assert_array_equal(total["ground_pixels"], [0, 10, 10, 10, 10])
    assert np.isnan(strata.figures(total)["ground_rmse"][0])


def test_without_near_infrared_ground_is_bare_or_bright():
    truth = np.array([[[0.1, 0.1], [0.5, 0.5]]])
    total = strata.sums(Reference(truth, np.ones((1, 2)), ("green", "red")), truth)
    assert total["ground_pixels"][GROUND.index("bare")] == total["ground_pixels"][GROUND.index("bright")] == 1


@pytest.mark.parametrize(
    "clear, days, cloud, gap",
    [
        (1.0, 0.01, "clear", "same day"),
        (0.9, -1.0, "to 20 %", "1 day"),
        (0.6, 3.0, "to 50 %", "2 to 3 days"),
        (0.2, -9.0, "above 50 %", "4 days and more"),
        (1.0, float("nan"), "clear", "not known"),
    ],
)
def test_pairs_are_told_apart_by_cloud_days_and_spacecraft(clear, days, cloud, gap):
    kind = Kind.of(clear, days * 86400, "LANDSAT_9", "SENTINEL_2B")
    assert kind == Kind(cloud, gap, "LANDSAT_9, SENTINEL_2B")
