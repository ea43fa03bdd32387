import math

import numpy as np
import pytest

from harmonize_tf import sensors
from harmonize_tf.errors import FlagError


@pytest.mark.parametrize("band", [*sensors.OLI.values(), sensors.OLI_PAN, *sensors.MSI.values()])
def test_the_gaussian_of_a_band_has_the_stated_mtf_at_nyquist(band):
    nyquist = 1 / (2 * band.gsd)
    assert math.exp(-2 * (math.pi * band.sigma * nyquist) ** 2) == pytest.approx(band.mtf, rel=1e-12)


def test_blurring_sentinel_by_blur_sigma_gives_landsats_mtf():
    for frequency in (1 / 200, 1 / 60):
        for band, sigma in zip(sensors.BANDS, sensors.blur_sigma(sensors.BANDS), strict=True):
            response = [math.exp(-2 * (math.pi * s * frequency) ** 2) for s in (sensors.MSI[band].sigma, 10 * sigma)]
            expected = math.exp(-2 * (math.pi * sensors.OLI[band].sigma * frequency) ** 2)
            assert response[0] * response[1] == pytest.approx(expected, rel=1e-12)


def test_the_published_ten_metre_blur_is_about_one_pixel():
    np.testing.assert_allclose(sensors.blur_sigma(("blue", "green", "red", "nir")), 1.02, atol=0.02)


def test_the_narrow_near_infrared_needs_less_blur_as_its_own_pixels_are_larger():
    assert sensors.blur_sigma(["nir"], "B8A")[0] < sensors.blur_sigma(["nir"], "B8")[0]


def test_panchromatic_weights_sum_to_one_and_integrate_a_linear_spectrum_exactly():
    weights = sensors.pan_weights()
    assert sum(weights.values()) == pytest.approx(1.0)
    assert min(weights.values()) > 0
    # Independent: fine quadrature of the piecewise linear spectrum between the bands' centres.
    centres = [sensors.MSI[band].wavelength for band in sensors.BANDS[:3]]
    reflectance = np.array([0.03, 0.11, 0.07])
    wavelengths = np.linspace(*sensors.OLI_PAN_RANGE, 200_001)
    expected = np.interp(wavelengths, centres, reflectance).mean()
    assert sum(weights[b] * r for b, r in zip(sensors.BANDS, reflectance, strict=False)) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_pixel_of_the_alabama_scene_gets_the_reflectance_that_usgs_formula_gives():
    encoding = sensors.landsat_toa(64.74360932)
    assert 10_000 * encoding.scale + encoding.offset == pytest.approx(0.1 / math.sin(math.radians(64.74360932)))


def test_band_sets_keep_the_order_of_wavelength_and_unknown_ones_are_named():
    for bands in sensors.BAND_SETS.values():
        assert [sensors.OLI[b].wavelength for b in bands] == sorted(sensors.OLI[b].wavelength for b in bands)
    assert sensors.band_set("rgbn") == ("blue", "green", "red", "nir")
    with pytest.raises(FlagError, match="rgb, rgbn, all6.*bands='bgr'"):
        sensors.band_set("bgr")
