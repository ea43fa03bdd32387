import numpy as np
import pytest

from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics.planted_cloud import planted_cloud

SLOPE = 1.1
ARGUMENTS = {"side": 9, "halo": 4, "bandpass": lambda x: SLOPE * x}


def inputs(side=20):
    rng = np.random.default_rng(0)
    ms = rng.uniform(0.02, 0.3, (1, side, side, 2)).astype(np.float32)
    return {"landsat_ms": ms, "landsat_pan": np.full((1, 2 * side, 2 * side, 1), 0.2, np.float32)}


def nearest(given):
    return SLOPE * given["landsat_ms"].repeat(3, 1).repeat(3, 2)


def test_a_model_that_only_repeats_pixels_does_nothing_to_a_cloud():
    found = planted_cloud(nearest, inputs(), 1.2, **ARGUMENTS)
    assert found.over_cloud < 1e-6 and found.beyond == 0
    assert found.highest == pytest.approx(SLOPE * 1.2)


def test_a_model_that_saturates_is_found_out():
    found = planted_cloud(lambda x: np.minimum(nearest(x), 1.0), inputs(), 1.2, **ARGUMENTS)
    assert found.over_cloud == pytest.approx(SLOPE * 1.2 - 1.0) and found.highest == 1.0


def test_a_pattern_that_cancels_in_every_cell_counts():
    def patterned(given):
        output = nearest(given)
        output[:, ::3, ::3] += 0.08
        output[:, 1::3, 1::3] -= 0.08
        return output

    found = planted_cloud(patterned, inputs(), 0.6, **ARGUMENTS)
    assert found.over_cloud == pytest.approx(0.08, rel=1e-4)


def test_a_model_that_normalises_over_the_image_changes_the_sky_far_away():
    found = planted_cloud(lambda x: nearest(x) - x["landsat_ms"].mean(), inputs(), 0.6, **ARGUMENTS)
    assert found.beyond > 0.01


@pytest.mark.parametrize("reach, changed", [(4, False), (5, True)])
def test_sky_within_the_halo_may_change_and_beyond_it_may_not(reach, changed):
    def reaching(given):
        output = nearest(given)
        output[:, 3 * reach :] += nearest(given)[:, : -3 * reach]
        return output

    assert (planted_cloud(reaching, inputs(), 0.6, **ARGUMENTS).beyond > 0) == changed


def test_the_cloud_is_in_the_panchromatic_band_too():
    seen = []
    planted_cloud(lambda x: seen.append(x["landsat_pan"]) or nearest(x), inputs(), 0.6, **ARGUMENTS)
    assert (seen[1][:, :18, :18] == np.float32(0.6)).all() and (seen[1][:, 18:] == seen[0][:, 18:]).all()


@pytest.mark.parametrize("side, cloud", [(13, 9), (20, 8)])
def test_an_image_without_sky_or_a_cloud_without_inside_is_refused(side, cloud):
    with pytest.raises(DatasetError, match="give a larger image"):
        planted_cloud(nearest, inputs(side), 0.6, **ARGUMENTS | {"side": cloud})
