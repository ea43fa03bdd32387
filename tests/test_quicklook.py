import dataclasses

import numpy as np
import pytest
import rasterio
import skimage.io

from harmonize_tf import cog, geometry, quicklook, radiometry, sources
from harmonize_tf.errors import HarmonizeError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources.simulated import SimulatedSource

BANDS = ("blue", "green", "red")


def write_product(path, grid, values, valid):
    dn = radiometry.encode(values.astype(np.float32), valid[..., None])
    with cog.create(path, grid, BANDS, {}) as out:
        out.write(dn, slice(0, dn.shape[0]), slice(0, dn.shape[1]))


def test_the_histogram_gives_the_percentiles_of_clear_ground_over_many_windows():
    draw = np.random.default_rng(0)
    ground = draw.normal((0.1, 0.2, 0.3), (0.02, 0.03, 0.04), (200, 300, 3)).astype(np.float32)
    cloud = draw.random((200, 300)) < 0.4
    ground[cloud] = 0.9
    histogram = quicklook.Histogram()
    for rows in range(0, 200, 50):
        part = slice(rows, rows + 50)
        histogram.add(radiometry.encode(ground[part]), ~cloud[part])
    low, high = np.percentile(ground[~cloud], (2, 98), axis=0)
    np.testing.assert_allclose(histogram.stretch().low, low, atol=2e-4)
    np.testing.assert_allclose(histogram.stretch().high, high, atol=2e-4)


def test_where_nothing_is_clear_the_stretch_is_that_of_all_data():
    values = np.linspace(0.2, 0.8, 300, dtype=np.float32).reshape(10, 10, 3)
    dn = radiometry.encode(values)
    dn[0] = 0
    histogram = quicklook.Histogram()
    histogram.add(dn, np.zeros((10, 10), bool))
    low, high = np.percentile(values[1:].reshape(-1, 3), (2, 98), axis=0)
    np.testing.assert_allclose(histogram.stretch().low, low, atol=0.007)
    np.testing.assert_allclose(histogram.stretch().high, high, atol=0.007)


def test_the_quick_look_is_stretched_red_green_blue_and_transparent_without_data(tmp_path):
    values = np.tile(np.array([0.1, 0.2, 0.3]), (60, 90, 1))  # blue, green, red
    valid = np.ones((60, 90), bool)
    valid[:20] = False
    write_product(tmp_path / "a.tif", Grid("EPSG:32633", 300000, 5000000, (10.0, 10.0), (60, 90)), values, valid)
    stretch = quicklook.Stretch(np.float32([0.1, 0.1, 0.1]), np.float32([0.5, 0.3, 0.3]))
    quicklook.write(tmp_path / "a.tif", stretch, tmp_path / "a.png")
    picture = skimage.io.imread(tmp_path / "a.png")
    assert picture.shape == (60, 90, 4)
    np.testing.assert_array_equal(picture[..., 3] == 255, valid)
    np.testing.assert_allclose(picture[40, 40, :3], [127.5, 127.5, 0], atol=1)


def test_a_large_product_gets_a_quick_look_of_bounded_size(tmp_path):
    shape = (400, 3200)
    grid = Grid("EPSG:32633", 300000, 5000000, (10.0, 10.0), shape)
    write_product(tmp_path / "a.tif", grid, np.full((*shape, 3), 0.2), np.ones(shape, bool))
    quicklook.write(tmp_path / "a.tif", quicklook.Stretch(np.zeros(3), np.ones(3)), tmp_path / "a.png")
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
        quicklook.write(tmp_path / "a.tif", quicklook.Stretch(np.zeros(3), np.ones(3)), tmp_path / "none" / "a.png")
    with rasterio.open(tmp_path / "a.tif") as image:
        assert image.count == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
