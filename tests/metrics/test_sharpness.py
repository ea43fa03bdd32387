import json
import math

import numpy as np
import pytest
from scipy import ndimage

from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics.sharpness import STRIDE, TILE, SharpnessMeter

BANDS = ("red", "nir")
SIZE = 192


def texture(seed=0, size=SIZE, slope=1.5):
    """Random fields [size, size, 2] whose amplitude falls with frequency as natural imagery's does."""
    y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    falling = np.maximum(np.hypot(x, y), 1 / size)[..., None] ** -slope
    noise = np.random.default_rng(seed).standard_normal((size, size, len(BANDS)))
    field = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * falling, axes=(0, 1)).real
    return 0.3 + 0.05 * field / field.std((0, 1)) * [1, 2]


def noise(seed=0, size=SIZE, std=0.01):
    return 0.3 + std * np.random.default_rng(seed).standard_normal((size, size, len(BANDS)))


def measure(*pairs, **settings):
    meter = SharpnessMeter(BANDS, **settings)
    for reference, prediction, *mask in pairs:
        meter.update(reference, prediction, *(mask or [np.ones(reference.shape[:2], bool)]))
    return meter.result()


def wave(cycles, axis=0, size=SIZE):
    """sin along one axis, cycles per pixel, in both bands."""
    line = np.sin(2 * np.pi * cycles * np.arange(size))
    return np.broadcast_to((line[:, None] if axis == 0 else line)[..., None], (size, size, len(BANDS)))


def pattern(period, seed=0, size=SIZE):
    """A block of random numbers of mean 0, repeated."""
    block = np.random.default_rng(seed).standard_normal((period, period, len(BANDS)))
    block -= block.mean((0, 1))
    return block, np.tile(block, (size // period, size // period, 1))


def test_an_equal_image_is_as_sharp_and_coherent_and_has_no_checkerboard():
    image = texture()
    figures = measure((image, image.copy()))
    assert figures.tiles == ((SIZE - TILE) // STRIDE + 1) ** 2
    np.testing.assert_allclose([*figures.ratio, figures.ratio_all, *figures.coherence, figures.coherence_all], 1)
    np.testing.assert_allclose(figures.comb, 1)
    assert figures.checkerboard == (0, 0)


def test_a_gain_is_the_ratio_and_leaves_the_coherence():
    image = texture()
    figures = measure((image, 0.1 + image * [0.5, 2.0]))
    np.testing.assert_allclose(figures.ratio, [0.5, 2.0])
    np.testing.assert_allclose(figures.coherence, 1)
    weights = np.square(figures.detail)
    assert figures.ratio_all == pytest.approx(math.sqrt(weights @ [0.25, 4.0] / weights.sum()))
    assert figures.coherence_all == pytest.approx(weights @ [0.5, 2.0] / weights.sum() / figures.ratio_all)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("cycles", "gain"), [(3 / TILE, 1), (6 / TILE, 1), (10 / TILE, 0.25), (20 / TILE, 0.25)])
def test_only_frequencies_that_30_m_cannot_carry_count_as_detail(cycles, gain, axis):
    reference = noise(std=0.003)
    change = wave(cycles, axis)
    quiet, loud = reference + 0.1 * change, reference + 0.1 * gain * change
    ratio = measure((quiet, loud)).ratio_all
    assert ratio == pytest.approx(gain, abs=0.02)


def test_the_detail_of_noise_has_the_share_of_its_variance_that_lies_beyond():
    beyond = 1 - (2 * 8 + 1) ** 2 / TILE**2  # 8 bins to each side of 0 are no more than 1/6 cycles per pixel
    figures = measure(*((noise(i), noise(i)) for i in range(4)))
    np.testing.assert_allclose(figures.detail, 0.01 * math.sqrt(beyond), rtol=0.01)


def test_invented_detail_has_no_coherence_and_half_of_it_the_closed_form():
    truth, other = noise(1), noise(2)
    invented = measure((truth, other))
    assert invented.ratio_all == pytest.approx(1, abs=0.02) and abs(invented.coherence_all) < 0.03
    mixed = measure((truth, truth + other - 0.3))
    assert mixed.ratio_all == pytest.approx(math.sqrt(2), abs=0.02)
    assert mixed.coherence_all == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert measure((truth, 0.6 - truth)).coherence_all == pytest.approx(-1)


def test_blur_has_the_ratio_of_its_response_and_more_blur_less():
    sigma = 0.8
    reference = noise()
    blurred = ndimage.gaussian_filter(reference, (sigma, sigma, 0), mode="wrap", truncate=6)
    f = np.fft.fftfreq(TILE)
    response = np.exp(-2 * (np.pi * sigma * f) ** 2)
    beyond = np.abs(f) > 1 / 6 + 1e-9
    power = np.square(response[:, None] * response)[beyond[:, None] | beyond]
    assert measure((reference, blurred)).ratio_all == pytest.approx(math.sqrt(power.mean()), rel=0.03)
    image = texture()
    ratios = [measure((image, ndimage.gaussian_filter(image, (s, s, 0)))).ratio_all for s in (0.3, 0.6, 1.2, 2.4)]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] < 0.1


@pytest.mark.parametrize("period", [3, 2])
def test_a_planted_checkerboard_is_measured_in_closed_form(period):
    reference = texture()
    block, planted = pattern(period)
    figures = measure((reference, reference + 1e-4 * planted), periods=(period,))
    energy = 1e-8 * np.square(block).mean((0, 1)).sum()
    assert figures.checkerboard[0] == pytest.approx(energy / np.square(figures.detail).sum(), rel=1e-9)


def test_a_checkerboard_of_a_tenth_of_the_details_deviation_is_one_per_cent_whatever_else_differs():
    plain = [(noise(seed), noise(seed + 10)) for seed in range(8)]
    detail = np.sqrt(np.square(measure(*plain).detail).mean())
    line = 0.1 * detail * math.sqrt(2) * np.cos(2 * np.pi * np.arange(SIZE) / 3)[:, None, None]
    found = measure(*((reference, prediction + line) for reference, prediction in plain)).checkerboard
    assert found[0] == pytest.approx(0.01, rel=0.1) and found[1] < 1e-4
    assert max(measure(*plain).checkerboard) < 1e-4


def test_natural_texture_slopes_and_bright_halves_are_no_checkerboard():
    predictions = [texture(1), ndimage.gaussian_filter(texture(1), (1, 1, 0))]
    ramp = np.linspace(0, 0.5, SIZE)[:, None, None]
    predictions += [texture(0) + ramp, texture(0) + 0.03 * (ramp > 0.2), texture(0) * 1.3 + 0.1]
    for prediction in predictions:
        assert max(measure((texture(0), prediction)).checkerboard) < 2e-3


def test_a_pattern_whose_sign_changes_with_the_image_shows_in_the_comb_only():
    reference = noise(std=0.01)
    sign = np.where(np.arange(SIZE) // TILE % 2, 1.0, -1.0)[:, None, None]
    changing = reference + 0.02 * sign * np.cos(2 * np.pi * np.arange(SIZE) / 3)[:, None]
    figures = measure((reference, changing))
    assert figures.checkerboard[0] < 0.01
    assert figures.comb[0] > 2 * figures.ratio_all and figures.comb[1] == pytest.approx(1, abs=0.05)


def test_the_comb_of_a_wave_over_noise_is_the_closed_form():
    # Hann: a bin of noise has variance times the sum of w^2, 18^2; a wave of amplitude c has in two groups of nine bins
    # (c / 2)^2 (24^2 + 2 12^2)^2 each; the teeth of period 3 are eight such groups.
    amplitude, std = 0.01, 0.01
    expected = 1 + 2 * (amplitude / 2) ** 2 * 864**2 / (72 * 324 * std**2)
    pairs = [(noise(i), noise(i) + amplitude * np.cos(2 * np.pi * np.arange(SIZE) / 3)[:, None]) for i in range(4)]
    assert measure(*pairs).comb[0] ** 2 == pytest.approx(expected, rel=0.05)


def test_masked_pixels_and_tiles_that_touch_them_have_no_part():
    reference, prediction = texture(0), texture(1)
    mask = np.ones(reference.shape[:2], bool)
    mask[60:70, 100:130] = False
    expected = measure((reference, prediction, mask))
    assert 0 < expected.tiles < 49
    for rubbish in (np.nan, np.inf, -9999.0):
        spoilt_reference, spoilt = reference.copy(), prediction.copy()
        spoilt_reference[~mask], spoilt[~mask] = rubbish, -rubbish
        assert measure((spoilt_reference, spoilt, mask)) == expected


def test_a_mask_does_not_make_a_checkerboard():
    reference = texture(0)
    block, planted = pattern(3)
    mask = np.random.default_rng(0).random(reference.shape[:2]) < 0.995
    mask[:30, :50] = False
    figures = measure((reference, texture(1), mask), (reference, reference.copy()))
    assert figures.checkerboard[0] < 2e-3
    figures = measure((reference, reference + 0.001 * planted, mask), (reference, reference + 0.001 * planted))
    energy = 1e-6 * np.square(block).mean((0, 1)).sum()
    assert figures.checkerboard[0] == pytest.approx(energy / np.square(figures.detail).sum(), rel=1e-9)


def test_patches_add_up_to_the_powers_of_the_whole_set():
    pairs = [(texture(i), texture(i) + noise(i + 10, std=0.02) - 0.3) for i in range(3)]
    single = [measure(pair) for pair in pairs]
    power = np.mean([np.square(f.detail) for f in single], axis=0)
    guess = np.mean([np.square(f.detail) * np.square(f.ratio) for f in single], axis=0)
    together = measure(*pairs)
    np.testing.assert_allclose(together.detail, np.sqrt(power))
    np.testing.assert_allclose(together.ratio, np.sqrt(guess / power))


def test_without_a_valid_tile_there_are_no_figures():
    small = texture()[: TILE - 1]
    figures = measure((small, small))
    assert figures.tiles == 0 and math.isnan(figures.ratio_all) and math.isnan(figures.checkerboard[0])


def test_what_does_not_fit_is_named():
    image = texture()
    with pytest.raises(DatasetError, match=r"Received: reference=\(192, 192, 2\)"):
        measure((image, image[:20]))
    with pytest.raises(DatasetError, match=r"divisors of 24.*Received: periods=\(5,\)"):
        SharpnessMeter(BANDS, (5,))


def test_figures_go_into_json_by_band_and_period():
    values = json.loads(json.dumps(measure((texture(0), texture(1))).to_dict()))
    assert set(values["ratio"]) == set(values["coherence"]) == set(BANDS)
    assert set(values["checkerboard"]) == set(values["comb"]) == {"3", "2"}
