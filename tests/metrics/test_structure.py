import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from harmonize_tf.metrics import structure
from harmonize_tf.metrics.reference import Reference

BANDS = ("red", "nir")


def images(seed=0, shape=(40, 52, 2)):
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.uniform(0.05, 0.5, shape), (1, 1, 0))
    return truth, truth + rng.normal(0, 0.02, shape)


def reference(truth, mask=None):
    return Reference(truth, np.ones(truth.shape[:2]) if mask is None else mask, BANDS)


def uiqi(truth, guess, mask=None):
    patch = reference(truth, mask)
    found = structure.quality(patch, patch.masked(guess))
    return found["quality"] / found["quality_windows"]


def cpsnr(truth, guess, mask=None):
    patch = reference(truth, mask)
    found = structure.shifted(patch, patch.masked(guess))
    return -10 * np.log10((found["shifted_squared"] / found["shifted_pixels"]).mean())


def test_uiqi_is_ssim_without_constants(monkeypatch):
    truth, guess = images()
    monkeypatch.setattr(structure, "UIQI_SIDE", 7)  # scikit-image takes odd windows alone
    expected = structural_similarity(truth, guess, channel_axis=-1, data_range=1.0, win_size=7, K1=0, K2=0)
    assert uiqi(truth, guess) == pytest.approx(expected, rel=1e-9)


def test_uiqi_is_the_published_formula_of_every_valid_window_of_eight_pixels():
    truth, guess = images()
    mask = np.ones(truth.shape[:2], bool)
    mask[5:9, 20] = False
    found = []
    for row in range(truth.shape[0] - 7):
        for column in range(truth.shape[1] - 7):
            there = np.s_[row : row + 8, column : column + 8]
            if mask[there].all():
                for band in range(2):
                    x, y = truth[there][..., band].ravel(), guess[there][..., band].ravel()
                    (vx, c), (_, vy) = np.cov(x, y)
                    found.append(4 * c * x.mean() * y.mean() / ((vx + vy) * (x.mean() ** 2 + y.mean() ** 2)))
    spoilt = np.where(mask[..., None], guess, np.nan)
    assert uiqi(np.where(mask[..., None], truth, np.inf), spoilt, mask) == pytest.approx(np.mean(found), rel=1e-9)


def test_uiqi_of_flat_images_is_that_of_their_brightness():
    flat = np.full((16, 16, 2), 0.2)
    assert uiqi(flat, flat) == pytest.approx(1)
    assert uiqi(flat, 3 * flat) == pytest.approx(2 * 3 / (1 + 9))


def naive_cpsnr(truth, guess, mask):
    inner, best = guess[3:-3, 3:-3], np.inf
    for row in range(7):
        for column in range(7):
            there = np.s_[row : row + inner.shape[0], column : column + inner.shape[1]]
            counted = mask[there] & mask[3:-3, 3:-3]
            error = (truth[there] - inner)[counted]
            best = min(best, ((error - error.mean(0)) ** 2).mean())
    return -10 * np.log10(best)


def test_cpsnr_is_that_of_the_best_of_all_shifts_without_the_bias():
    truth, guess = images()
    everywhere = np.ones(truth.shape[:2], bool)
    assert cpsnr(truth, guess) == pytest.approx(naive_cpsnr(truth, guess, everywhere), rel=1e-9)
    mask = np.random.default_rng(1).random(truth.shape[:2]) < 0.9
    moved = np.roll(guess, (2, -1), (0, 1)) + [0.03, -0.1]
    assert cpsnr(truth, moved, mask) == pytest.approx(naive_cpsnr(truth, moved, mask), rel=1e-9)


def test_a_shift_and_a_bias_cost_no_cpsnr():
    truth, guess = images()
    moved = np.roll(guess, (-3, 2), (0, 1)) + [0.05, 0.02]
    inner = (guess - truth)[6:-6, 6:-6]
    assert cpsnr(truth, moved) == pytest.approx(-10 * np.log10(inner.var((0, 1)).mean()), abs=0.3)


def test_an_output_that_is_no_number_gives_none():
    truth, _ = images()
    assert np.isnan(cpsnr(truth, np.full_like(truth, np.nan)))


@pytest.mark.parametrize("size", [4, 7])
def test_patches_smaller_than_the_windows_have_none(size):
    truth = np.full((size, size, 2), 0.2)
    patch = reference(truth)
    assert structure.quality(patch, truth)["quality_windows"] == 0
    assert structure.similarity(patch, truth)["windows"] == 0
    assert structure.shifted(patch, truth)["shifted_pixels"] == max(size - 6, 0) ** 2
