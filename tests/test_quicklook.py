import dataclasses

import numpy as np
import pytest
import skimage.io

from harmonize_tf import cog, geometry, quality, quicklook, radiometry, sources
from harmonize_tf.errors import HarmonizeError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources.simulated import SimulatedSource

BANDS = ("blue", "green", "red")


def write_product(path, grid, values, valid, clear=True):
    """A product of the given reflectance and, beside it, its quality."""
    dn = radiometry.encode(values.astype(np.float32), valid[..., None])
    bits = (valid * quality.DATA | (valid & clear) * quality.CLEAR_SKY).astype(np.uint8)
    rgb = cog.Image(grid, BANDS, {})
    judged = cog.Image(grid, ("quality",), {}, "uint8", None, "NEAREST")
    for name, image, pixels in (("a", rgb, dn), ("a_quality", judged, bits[..., None])):
        raster = cog.Pixels(path.with_name(f"{name}.raw.tif"), image)
        raster.write(pixels, slice(0, grid.shape[0]), slice(0, grid.shape[1]))
        raster.close()
        cog.publish(raster.path, path.with_name(f"{name}.tif"), image.overviews)
        raster.path.unlink()


def colours(values, clear):
    """What the stretch of 2 to 98 % makes of reflectance [n, m, 3], in order red, green, blue."""
    low, high = np.percentile(values[clear], (2, 98), axis=0)
    return np.clip((values - low) / (high - low), 0, 1)[..., ::-1]


@pytest.mark.parametrize("nothing", [False, True])
def test_the_quick_look_shows_the_2_to_98_percent_of_clear_ground_or_of_all_where_nothing_is_clear(nothing, tmp_path):
    draw = np.random.default_rng(0)
    ground = draw.normal((0.1, 0.2, 0.3), (0.02, 0.03, 0.04), (200, 300, 3))
    cloud = draw.random((200, 300)) < 0.4
    ground[cloud] = 0.9
    clear = np.zeros_like(cloud) if nothing else ~cloud
    grid = Grid("EPSG:32633", 300000, 5000000, (10.0, 10.0), (200, 300))
    write_product(tmp_path / "a.tif", grid, ground, np.ones((200, 300), bool), clear)
    quicklook.write(tmp_path / "a.tif", tmp_path / "a_quality.tif", tmp_path / "a.png")
    picture = skimage.io.imread(tmp_path / "a.png")
    expected = colours(ground, np.ones_like(cloud) if nothing else clear)
    np.testing.assert_allclose(picture[..., :3], 255 * expected, atol=2)


def test_the_quick_look_is_transparent_without_data(tmp_path):
    valid = np.ones((60, 90), bool)
    valid[:20] = False
    grid = Grid("EPSG:32633", 300000, 5000000, (10.0, 10.0), (60, 90))
    write_product(tmp_path / "a.tif", grid, np.full((60, 90, 3), 0.2), valid)
    quicklook.write(tmp_path / "a.tif", tmp_path / "a_quality.tif", tmp_path / "a.png")
    picture = skimage.io.imread(tmp_path / "a.png")
    assert picture.shape == (60, 90, 4)
    np.testing.assert_array_equal(picture[..., 3] == 255, valid)


def test_a_large_product_gets_a_quick_look_of_bounded_size(tmp_path):
    shape = (400, 3200)
    grid = Grid("EPSG:32633", 300000, 5000000, (10.0, 10.0), shape)
    write_product(tmp_path / "a.tif", grid, np.full((*shape, 3), 0.2), np.ones(shape, bool))
    quicklook.write(tmp_path / "a.tif", tmp_path / "a_quality.tif", tmp_path / "a.png")
    assert skimage.io.imread(tmp_path / "a.png").shape == (128, 1024, 4)


class Patchy(SimulatedSource):
    """Clear only in the south-east, and flat in the north-east."""

    def read(self, scene, bands, window):
        raster = super().read(scene, bands, window)
        east = window.left + np.arange(window.shape[1]) * window.pixel[0] > 303_900
        south = window.top - np.arange(window.shape[0]) * window.pixel[1] < 5_696_100
        values = raster.values.copy()
        values[~south] = 0.2
        return dataclasses.replace(raster, values=values, clear=raster.valid & east[None, :])


def test_the_comparison_shows_the_crop_with_most_clear_detail():
    source = Patchy(bands=BANDS)
    scene = source.scenes()[0]
    grid = geometry.pair_grid(scene.grid)
    crop = quicklook._crop(source, scene, grid)
    assert max(crop.rows, crop.columns) <= quicklook.CROP
    middle = grid.left + (crop.column + crop.columns / 2) * 30, grid.top - (crop.row + crop.rows / 2) * 30
    assert middle[0] > 303_900 and middle[1] < 5_696_100


@pytest.mark.parametrize("clouds", [0.0, 1.0])
def test_the_comparison_is_drawn_for_clear_and_cloudy_scenes(clouds, tmp_path):
    source = SimulatedSource(bands=BANDS, size=3000, clouds=clouds, nodata=True)
    scene = source.scenes()[0]
    grid = geometry.pair_grid(scene.grid)
    raster = sources.read_onto(source, scene, BANDS, grid)
    write_product(tmp_path / "a.tif", grid, raster.values + 0.01, raster.valid)
    quicklook.compare(source, scene, tmp_path / "a.tif", tmp_path / "compared.png")
    picture = skimage.io.imread(tmp_path / "compared.png")
    assert picture.shape[1] > 2 * picture.shape[0] and picture[..., :3].std() > 10


def test_a_picture_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path):
    shape = (30, 30)
    grid = Grid("EPSG:32633", 300000, 5000000, (10.0, 10.0), shape)
    write_product(tmp_path / "a.tif", grid, np.full((*shape, 3), 0.2), np.ones(shape, bool))
    with pytest.raises(HarmonizeError, match="picture cannot be written"):
        quicklook.write(tmp_path / "a.tif", tmp_path / "a_quality.tif", tmp_path / "none" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "a_quality.tif"]
