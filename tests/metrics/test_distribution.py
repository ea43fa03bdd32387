import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import wasserstein_distance
from skimage.transform import pyramid_laplacian

from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics import distribution
from harmonize_tf.metrics.distribution import DistributionMeter, finest_level, sliced_wasserstein

BANDS = ("red", "nir")


def image(seed=0, size=96, bands=2):
    noise = np.random.default_rng(seed).standard_normal((size, size, bands))
    return (0.3 + 0.05 * ndimage.gaussian_filter(noise, (0.7, 0.7, 0)) * (1 + np.arange(bands))).astype(np.float32)


def everywhere(patch):
    return np.ones(patch.shape[:2], bool)


def measure(reference, prediction, bands=BANDS, masks=None):
    """Of two lists of patches."""
    meter = DistributionMeter(bands)
    for patch in reference:
        meter.update_reference(patch, everywhere(patch))
    for number, patch in enumerate(prediction):
        meter.update_prediction(patch, masks[number] if masks else everywhere(patch))
    return meter.result()


def test_a_shift_and_a_scale_of_one_band_are_the_closed_forms():
    patch = np.random.default_rng(0).normal(0.3, 0.05, (96, 96, 1)).astype(np.float32)
    assert measure([patch], [patch + 0.02], ("red",)).spectra == pytest.approx(0.02, rel=1e-4)
    # The mean of |x| of a Gaussian is sqrt(2 / pi) of its standard deviation.
    wider = 0.3 + (patch - 0.3) * 1.5
    assert measure([patch], [wider], ("red",)).spectra == pytest.approx(0.025 * math.sqrt(2 / math.pi), rel=0.05)


def test_a_shift_of_all_bands_is_its_mean_length_along_a_random_direction():
    patch = image()
    shifted = patch + np.float32([0.03, 0.04])
    # In the plane the mean of |cos| is 2 / pi.
    assert measure([patch], [shifted]).spectra == pytest.approx(0.05 * 2 / math.pi, rel=0.1)
    assert measure([patch], [shifted]).texture == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("count", [500, 700])
def test_each_projection_has_scipys_distance(count):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (500, 5)), rng.normal(0.3, 2, (count, 5))
    axes = np.random.default_rng(7).standard_normal((5, 32))
    axes /= np.linalg.norm(axes, axis=0)
    expected = np.mean([wasserstein_distance(a @ axis, b @ axis) for axis in axes.T])
    assert sliced_wasserstein(a, b, directions=32, seed=7) == pytest.approx(expected, rel=1e-9)


def test_a_set_in_another_order_is_no_distance_away():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 6))
    assert sliced_wasserstein(vectors, rng.permutation(vectors)) == 0
    patches = [image(seed) for seed in range(4)]
    figures = measure(patches, patches[::-1])
    assert figures.spectra == figures.texture == 0 and figures.descriptors == (4096, 4096)


def test_other_places_of_the_same_kind_are_near_and_other_kinds_far():
    same = measure([image(i) for i in range(4)], [image(i) for i in range(4, 8)])
    other = measure([image(i) for i in range(4)], [0.3 + 2 * (image(i) - 0.3) for i in range(4, 8)])
    assert same.spectra < 0.1 * other.spectra and same.texture < 0.1 * other.texture


def test_the_more_blur_the_farther_the_texture():
    patches = [image(i) for i in range(2)]
    blurred = [[ndimage.gaussian_filter(p, (s, s, 0)) for p in patches] for s in (0.3, 0.5, 0.8, 1.2, 2.0)]
    found = [measure(patches, b).texture for b in blurred]
    assert found == sorted(found) and found[0] > 0
    # Nothing but zeros is left: the mean of |x| of the reference, near a Gaussian of deviation 1 along each direction.
    flat = [np.full_like(p, 0.3) for p in patches]
    assert found[-1] < measure(patches, flat).texture == pytest.approx(math.sqrt(2 / math.pi), rel=0.1)


def test_texture_does_not_depend_on_the_bands_own_contrast():
    a, b = [image(0)], [ndimage.gaussian_filter(image(1), (1, 1, 0))]
    gain = np.float32([1, 7])
    expected = measure(a, b).texture
    assert measure([a[0] * gain], [b[0] * gain]).texture == pytest.approx(expected, rel=1e-3)


def test_the_finest_level_holds_what_the_pyramid_of_the_literature_does():
    patch = image(size=64).astype(float)
    y = np.arange(64.0)
    np.testing.assert_allclose(finest_level(np.full((64, 64, 1), 0.3)), 0, atol=1e-12)
    ramp = np.broadcast_to(y[:, None, None], (64, 64, 1))
    np.testing.assert_allclose(finest_level(ramp)[8:-8, 8:-8], 0, atol=1e-9)
    # The finest wave there is passes whole.
    finest = np.broadcast_to(((-1.0) ** y)[:, None, None], (64, 64, 1))
    np.testing.assert_allclose(finest_level(finest)[8:-8, 8:-8], finest[8:-8, 8:-8], atol=1e-9)
    # scikit-image's is the image without its Gaussian blur: near, not equal.
    other = next(iter(pyramid_laplacian(patch, max_layer=1, sigma=1.4, channel_axis=-1)))
    inside = np.s_[8:-8, 8:-8]
    assert np.corrcoef(finest_level(patch)[inside].ravel(), other[inside].ravel())[0, 1] > 0.95


def test_masked_pixels_have_no_part_whatever_they_hold():
    reference, patch = image(0), image(1)
    mask = everywhere(patch)
    mask[40:44, 50:70] = False
    expected = measure([reference], [patch], masks=[mask])
    for rubbish in (np.nan, np.inf, -9999.0):
        spoilt = patch.copy()
        spoilt[~mask] = rubbish
        assert measure([reference], [spoilt], masks=[mask]) == expected


def test_sets_may_have_other_sizes_shapes_and_masks():
    mask = everywhere(image())
    mask[:, 50:] = False
    figures = measure([image(0), image(1, 60)], [image(2)], masks=[mask])
    assert figures.descriptors == (2048, 1024) and figures.texture < 0.2


def test_a_large_set_keeps_a_fixed_number_of_all_with_the_same_chance(monkeypatch):
    monkeypatch.setattr(distribution, "KEPT", 2000)
    patches = [np.full((64, 64, 1), value, np.float32) for value in range(8)]
    zeros = [np.zeros_like(patch) for patch in patches]
    figures = measure(patches, zeros, ("red",))
    assert figures.descriptors == (2000, 2000)
    assert figures.spectra == pytest.approx(3.5, abs=0.2)  # the mean of 0 to 7
    assert measure(patches, zeros, ("red",)).spectra == figures.spectra
    assert measure(patches, patches, ("red",)).spectra == 0


def test_small_patches_have_spectra_and_no_texture():
    figures = measure([image(size=12)], [image(1, size=12)])
    assert figures.spectra > 0 and math.isnan(figures.texture)
    assert math.isnan(measure([np.full((64, 64, 2), 0.3, np.float32)], [image()]).texture)


def test_nothing_to_compare_and_shapes_that_disagree_are_errors():
    with pytest.raises(DatasetError, match="no valid pixel"):
        measure([image()], [])
    with pytest.raises(DatasetError, match=r"Received: image=\(96, 96, 3\), mask=\(96, 96\)"):
        measure([image(bands=3)], [image()])
