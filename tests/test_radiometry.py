import numpy as np
import pytest
import tensorflow as tf

from harmonize_tf import radiometry, sensors

ALL_CODES = np.arange(65536, dtype=np.uint16)
ENCODINGS = [sensors.CODE, sensors.SENTINEL_BEFORE_BASELINE_0400, sensors.LANDSAT_C2_L2, sensors.landsat_toa(41.3)]


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "tf.function"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=["code", "sentinel", "landsat_l2", "landsat_toa"])
def test_numpy_and_tensorflow_decode_all_codes_alike(encoding, wrap):
    decoded = wrap(lambda dn: radiometry.decode(dn, encoding))(tf.constant(ALL_CODES))
    # XLA or a fused multiply-add may differ in the last bit; 1e-7 is a thousandth of a code.
    np.testing.assert_allclose(decoded.numpy(), radiometry.decode(ALL_CODES, encoding), rtol=0, atol=2.4e-7)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "tf.function"])
def test_numpy_and_tensorflow_encode_alike_and_every_code_returns(wrap):
    reflectance = radiometry.decode(ALL_CODES)
    expected = np.maximum(ALL_CODES, 1)  # code 0 is no data, which no reflectance is given
    np.testing.assert_array_equal(radiometry.encode(reflectance), expected)
    np.testing.assert_array_equal(wrap(radiometry.encode)(tf.constant(reflectance)).numpy(), expected)


def test_numpy_and_tensorflow_encode_what_lies_between_and_beyond_the_codes_alike():
    rng = np.random.default_rng(0)
    reflectance = rng.uniform(-0.3, 7.0, 200_000).astype(np.float32)
    valid = rng.random(reflectance.shape) < 0.9
    codes = radiometry.encode(reflectance, valid)
    np.testing.assert_array_equal(radiometry.encode(tf.constant(reflectance), tf.constant(valid)).numpy(), codes)
    assert (codes[~valid] == 0).all()
    assert (codes[valid] > 0).all()
    exact = np.clip(np.rint((reflectance.astype(np.float64) + 0.1) * 1e4), 1, 65535)
    assert np.abs(codes[valid] - exact[valid]).max() <= 1  # ties in float32 may fall to either side
    assert (codes[valid] != exact[valid]).mean() < 0.01


def test_decoding_follows_the_formula_in_double_precision():
    for encoding in ENCODINGS:
        exact = ALL_CODES.astype(np.float64) * encoding.scale + encoding.offset
        np.testing.assert_allclose(radiometry.decode(ALL_CODES, encoding), exact, rtol=3e-7, atol=1e-7)


def test_negative_reflectance_survives():
    dark = np.float32([-0.05, -0.0999])
    np.testing.assert_allclose(radiometry.decode(radiometry.encode(dark)), dark, atol=5.1e-5)


@pytest.mark.parametrize("spacecraft", sensors.SENTINEL_SPACECRAFT)
def test_the_band_pass_there_and_back_is_the_identity(spacecraft):
    values = np.random.default_rng(1).uniform(-0.1, 1.2, (50, 6))
    there = radiometry.sentinel_to_landsat(sensors.BANDS, "sr", spacecraft, nir="B8A")
    back = radiometry.landsat_to_sentinel(sensors.BANDS, "sr", spacecraft, nir="B8A")
    np.testing.assert_allclose(back.apply(there.apply(values)), values, atol=1e-6)
    np.testing.assert_allclose(there.apply(back.apply(values)), values, atol=1e-6)
    # And it is the published one: rho_OLI = slope * rho_MSI + offset.
    slope, offset = zip(*(sensors.HLS_BANDPASS[spacecraft][band] for band in sensors.BANDS), strict=True)
    np.testing.assert_allclose(there.apply(values), values * slope + offset, atol=1e-6)


def test_the_inverse_for_sentinel_2a_is_the_one_sen2like_uses():
    bandpass = radiometry.landsat_to_sentinel(sensors.BANDS, "sr", "SENTINEL_2A", nir="B8A")
    np.testing.assert_allclose(bandpass.slope, [1.0227, 0.9947, 1.0241, 1.0017, 1.0013, 0.9970], atol=5e-5)
    np.testing.assert_allclose(bandpass.offset, [0.00409, 0.00090, -0.00092, 0.00010, 0.00110, 0.00120], atol=5e-6)


@pytest.mark.parametrize(("level", "changed"), [("toa", 0), ("uncalibrated", 0), ("sr", 5)])
def test_nothing_is_guessed_where_nothing_is_published(level, changed):
    bandpass = radiometry.sentinel_to_landsat(sensors.BANDS, level, "SENTINEL_2B", nir="B8")
    identity = [(s, o) == (1.0, 0.0) for s, o in zip(bandpass.slope, bandpass.offset, strict=True)]
    assert identity.count(False) == changed
    assert identity[sensors.BANDS.index("nir")]
    assert "identity" in bandpass.source
