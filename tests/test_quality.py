import numpy as np
import pytest

from harmonize_tf import quality


# The values of the real Tirunelveli scenes, decoded bit by bit with USGS LSDS-1619.
@pytest.mark.parametrize(
    ("value", "clear"),
    [
        (0, False),  # outside the footprint: no bit is set
        (1, False),  # fill
        (21824, True),  # clear land
        (21952, True),  # clear water
        (21762, False),  # dilated cloud over clear-ish land
        (22280, False),  # cloud, high confidence
        (23888, False),  # cloud shadow, high confidence
        (54596, False),  # cirrus, high confidence
        (30048, True),  # snow is ground
    ],
)
def test_qa_pixel_of_real_scenes(value, clear):
    assert quality.qa_pixel_clear(np.array([value], np.uint16))[0] == clear


@pytest.mark.parametrize("bit", range(5))
def test_each_bad_bit_of_qa_pixel_counts_alone(bit):
    assert not quality.qa_pixel_clear(np.array([1 << 6 | 1 << bit], np.uint16))[0]
    assert quality.qa_pixel_clear(np.array([1 << 6], np.uint16))[0]


# USGS, Landsat 8 quality band before the collections: values and their meaning as listed there.
@pytest.mark.parametrize(
    ("value", "clear"),
    [(1, False), (20480, True), (20516, True), (36864, False), (53248, False), (28672, False), (61440, False)],
)
def test_bqa_before_the_collections(value, clear):
    assert quality.bqa_clear(np.array([value], np.uint16))[0] == clear


def test_saturation_in_any_band_or_terrain_occlusion_is_not_clear_but_cirrus_saturation_is_no_matter():
    radsat = np.array([0, 1, 1 << 6, 1 << 7, 1 << 8, 1 << 11], np.uint16)
    np.testing.assert_array_equal(quality.qa_radsat_clear(radsat), [True, False, False, True, True, False])


def test_scene_classification():
    clear = quality.scl_clear(np.arange(12))
    assert set(np.flatnonzero(clear)) == {2, 4, 5, 6, 7, 11}


def test_cloud_score_threshold_and_missing_score():
    np.testing.assert_array_equal(
        quality.cloud_score_clear(np.array([0.59, 0.6, 1.0, np.nan])), [False, True, True, False]
    )


def test_masks_work_on_signed_and_wider_integers():
    for dtype in (np.int16, np.int32, np.uint32):
        np.testing.assert_array_equal(quality.qa_pixel_clear(np.array([21824, 22280, 0], dtype)), [True, False, False])
