import json
import math

import numpy as np
import pytest
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics.fidelity import FidelityMeter

BANDS = ("green", "red", "nir")


def random_pair(seed=0, shape=(40, 48, 3)):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0.05, 0.5, shape).astype(np.float32)
    return reference, reference + rng.normal(0, 0.03, shape).astype(np.float32)


def measure(*patches, bands=BANDS):
    meter = FidelityMeter(bands)
    for patch in patches:
        meter.update(*patch)
    return meter.result()


def all_valid(image):
    return np.ones(image.shape[:2], bool)


def test_a_constant_offset_gives_the_closed_forms():
    reference = np.broadcast_to(np.float32([0.1, 0.2, 0.4]), (24, 24, 3))
    figures = measure((reference, reference + np.float32(0.02), all_valid(reference)))
    np.testing.assert_allclose(figures.rmse, 0.02, rtol=1e-5)
    np.testing.assert_allclose(figures.bias, 0.02, rtol=1e-5)
    assert figures.psnr == pytest.approx(-20 * math.log10(0.02), rel=1e-5)
    assert figures.ergas == pytest.approx(100 / 3 * math.sqrt((0.2**2 + 0.1**2 + 0.05**2) / 3), rel=1e-5)
    a, b = np.array([0.1, 0.2, 0.4]), np.array([0.12, 0.22, 0.42])
    angle = math.degrees(math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert figures.sam == pytest.approx(angle, rel=1e-4)


def test_orthogonal_spectra_are_ninety_degrees_apart_and_brighter_ones_zero():
    shape = (16, 16, 3)
    red, blue = np.broadcast_to(np.float32([0, 0, 1]), shape), np.broadcast_to(np.float32([1, 0, 0]), shape)
    assert measure((red, blue, all_valid(red))).sam == pytest.approx(90)
    assert measure((red, red * np.float32(0.3), all_valid(red))).sam == pytest.approx(0, abs=1e-5)


def test_an_equal_image_is_perfect():
    reference, _ = random_pair()
    figures = measure((reference, reference.copy(), all_valid(reference)))
    assert figures.rmse_all == 0 and figures.ergas == 0 and figures.psnr == math.inf
    assert figures.ssim == pytest.approx(1) and figures.sam == pytest.approx(0, abs=1e-5)


def test_rmse_psnr_and_ssim_equal_scikit_images():
    reference, prediction = random_pair()
    figures = measure((reference, prediction, all_valid(reference)))
    a, b = reference.astype(np.float64), prediction.astype(np.float64)
    assert figures.rmse_all == pytest.approx(math.sqrt(mean_squared_error(a, b)), rel=1e-9)
    assert figures.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), rel=1e-9)
    # scikit-image leaves the same border of half a window out of its mean.
    ssim = structural_similarity(
        a, b, channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert figures.ssim == pytest.approx(ssim, rel=1e-9)


def test_masked_pixels_have_no_part_whatever_they_hold():
    reference, prediction = random_pair()
    mask = all_valid(reference)
    mask[10:14, 20:30] = False
    expected = measure((reference, prediction, mask))
    for rubbish in (np.nan, np.inf, -9999.0):
        spoilt_reference, spoilt = reference.copy(), prediction.copy()
        spoilt_reference[~mask], spoilt[~mask] = rubbish, -rubbish
        assert measure((spoilt_reference, spoilt, mask)) == expected
    assert expected.pixels == mask.sum()


def test_ssim_counts_only_pixels_whose_window_is_valid():
    reference, prediction = random_pair(shape=(40, 80, 3))
    mask = all_valid(reference)
    mask[:, 40:] = False
    left = measure((reference[:, :40], prediction[:, :40], mask[:, :40]))
    assert measure((reference, prediction, mask)).ssim == pytest.approx(left.ssim, rel=1e-9)


def test_patches_add_up_to_the_whole_set():
    patches = [
        (*random_pair(seed, (20, 20, 3)), np.random.default_rng(seed).random((20, 20)) < 0.8) for seed in range(4)
    ]
    streamed = measure(*patches)
    truth = np.concatenate([reference[mask] for reference, _, mask in patches]).astype(np.float64)
    guess = np.concatenate([prediction[mask] for _, prediction, mask in patches]).astype(np.float64)
    rmse = np.sqrt(((guess - truth) ** 2).mean(axis=0))
    cosine = (truth * guess).sum(-1) / np.linalg.norm(truth, axis=-1) / np.linalg.norm(guess, axis=-1)
    np.testing.assert_allclose(streamed.rmse, rmse, rtol=1e-9)
    np.testing.assert_allclose(streamed.bias, (guess - truth).mean(axis=0), rtol=1e-6)
    assert streamed.sam == pytest.approx(np.degrees(np.arccos(cosine)).mean(), rel=1e-9)
    assert streamed.ergas == pytest.approx(100 / 3 * np.sqrt((rmse**2 / truth.mean(axis=0) ** 2).mean()), rel=1e-9)


def test_black_pixels_have_no_angle_but_an_error():
    reference = np.full((4, 4, 3), 0.2, np.float32)
    prediction = reference.copy()
    prediction[:2] = 0
    figures = measure((reference, prediction, all_valid(reference)))
    assert figures.sam == pytest.approx(0, abs=1e-5)
    assert figures.rmse_all == pytest.approx(0.2 / math.sqrt(2), rel=1e-6)
    assert math.isnan(figures.ssim)  # smaller than the window


def test_nothing_to_compare_is_an_error():
    reference, prediction = random_pair()
    with pytest.raises(DatasetError, match="no pixel is valid"):
        measure((reference, prediction, np.zeros(reference.shape[:2], bool)))


def test_shapes_that_disagree_are_named():
    reference, prediction = random_pair()
    with pytest.raises(DatasetError, match=r"Received: reference=\(40, 48, 3\)"):
        measure((reference, prediction[:20], all_valid(reference)))


def test_figures_go_into_json_by_band():
    reference, prediction = random_pair()
    values = measure((reference, prediction, all_valid(reference))).to_dict()
    assert set(json.loads(json.dumps(values))["rmse"]) == set(BANDS)
