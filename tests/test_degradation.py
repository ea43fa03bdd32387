import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from harmonize_tf.degradation import (
    cubic_weights,
    degrade,
    gaussian_weights,
    keys_cubic,
    pair_grid_sigma,
    sample_blurred,
)
from harmonize_tf.errors import HarmonizeError


def random_image(height=60, width=48, bands=2, seed=0):
    return np.random.default_rng(seed).uniform(0, 0.5, (height, width, bands)).astype(np.float32)


def everywhere(image):
    return np.ones(image.shape[:2], bool)


def test_degrading_equals_scipys_gaussian_filter_at_the_cells_centres():
    image = random_image()
    low, valid = degrade(image, everywhere(image), (1.02, 1.25))
    for band, sigma in enumerate((1.02, 1.25)):
        blurred = gaussian_filter(image[..., band].astype(np.float64), sigma, truncate=4.0)[1::3, 1::3]
        np.testing.assert_allclose(low[2:-2, 2:-2, band], blurred[2:-2, 2:-2], atol=1e-6)
    assert valid.all() and low.shape == (20, 16, 2) and low.dtype == np.float32


@pytest.mark.parametrize("frequency", [0.02, 0.1, 0.2])
def test_a_waves_amplitude_falls_as_the_gaussians_transfer_function_says_at_any_position(frequency):
    sigma, x = 1.2, np.arange(120)
    image = np.broadcast_to(np.sin(2 * np.pi * frequency * x)[:, None, None], (120, 40, 1)).astype(np.float32)
    rows = np.arange(30, 90, 2.7) + 0.31
    seen, _ = sample_blurred(image, everywhere(image), rows, np.array([20.4]), (sigma,))
    expected = np.exp(-2 * (np.pi * sigma * frequency) ** 2) * np.sin(2 * np.pi * frequency * rows)
    np.testing.assert_allclose(seen[:, 0, 0], expected, atol=1e-3)


def test_looking_from_a_shifted_place_equals_shifting_the_image():
    y, x = np.mgrid[:90, :90]

    def wave(dy, dx):
        return (0.3 + 0.1 * np.sin(0.2 * (y + dy)) * np.cos(0.15 * (x + dx)))[..., None]

    there, _ = degrade(wave(0, 0), np.ones((90, 90), bool), (1.0,), shift=(0.4, -0.7))
    here, _ = degrade(wave(0.4, -0.7), np.ones((90, 90), bool), (1.0,))
    np.testing.assert_allclose(there[3:-3, 3:-3], here[3:-3, 3:-3], atol=1e-5)


@pytest.mark.parametrize("sigma", [0.45, 1.02])
def test_warping_from_landsats_lattice_blurs_as_much_as_pair_grid_sigma_says(sigma):
    image = gaussian_filter(np.random.default_rng(2).normal(size=(240, 240)), 1.5)[..., None].astype(np.float32)
    landsat, _ = degrade(image, everywhere(image), (sigma,), shift=(0.5, 0.5))
    cells = np.arange(80)
    cubic = keys_cubic(1.0)[0](cells - (cells[:, None] - 1 / 6))  # 5 m back, in cells of 30 m
    warped = (cubic @ landsat[..., 0] @ cubic.T)[5:-5, 5:-5]

    def unexplained(blur):
        return (degrade(image, everywhere(image), (blur,))[0][5:-5, 5:-5, 0] - warped).std()

    (wider,) = pair_grid_sigma((sigma,))
    assert unexplained(wider) < 0.9 * unexplained(sigma)
    assert unexplained(wider) < 1.05 * min(unexplained(s) for s in np.arange(0.4, 1.6, 0.1))


def test_nothing_leaks_out_of_invalid_pixels_and_only_their_own_cell_is_lost():
    image = np.full((30, 30, 1), 0.25, np.float32)
    valid = everywhere(image)
    valid[10, 13] = valid[20:25, 3:9] = False
    image[~valid] = np.nan
    low, low_valid = degrade(image, valid, (1.02,))
    assert np.isfinite(low).all()
    np.testing.assert_allclose(low[low_valid], 0.25, rtol=1e-6)
    np.testing.assert_array_equal(low_valid, valid.reshape(10, 3, 10, 3).all((1, 3)))


def test_a_pixel_that_reaches_over_the_edge_is_invalid():
    image = random_image(30, 30, 1)
    _, valid = sample_blurred(image, everywhere(image), np.array([0.9, 1.0, 28.0, 28.1]), np.array([15.0]), (1.0,))
    assert valid[:, 0].tolist() == [False, True, True, False]


def test_weights_add_up_to_one_for_each_sub_pixel():
    for weights in (gaussian_weights(1.02), gaussian_weights(0.7, 3, 2), cubic_weights(), cubic_weights(2, 3)):
        np.testing.assert_allclose(weights.sum((0, 1)), 1.0)


@pytest.mark.parametrize("factors", [(1, 3), (2, 3), (1, 2), (3, 1)])
def test_cubic_weights_keep_a_ramp_where_it_is(factors):
    in_factor, out_factor = factors
    weights = cubic_weights(in_factor, out_factor)
    cells = np.arange(len(weights)) - len(weights) // 2
    positions = cells[:, None] + (np.arange(in_factor) + 0.5) / in_factor
    centres = np.einsum("cpq,cp->q", weights, positions)
    np.testing.assert_allclose(centres, (np.arange(out_factor) + 0.5) / out_factor, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.1, -1.0, float("nan")])
def test_a_blur_too_narrow_for_the_grid_is_refused(sigma):
    with pytest.raises(HarmonizeError, match="at least 0.3"):
        degrade(random_image(bands=1), np.ones((60, 48), bool), (sigma,))


def test_one_blur_for_each_band_is_needed():
    with pytest.raises(HarmonizeError, match="sigma="):
        degrade(random_image(bands=2), np.ones((60, 48), bool), (1.0,))
