import numpy as np
import pytest

from harmonize_tf import geometry, sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.sources import read_onto
from harmonize_tf.sources.simulated import SimulatedSource


def truth(source, grid, band, sigma):
    east = grid.left + (np.arange(grid.shape[1]) + 0.5) * grid.pixel[0]
    north = grid.top - (np.arange(grid.shape[0]) + 0.5) * grid.pixel[1]
    return source.truth(east, north[:, None], band, sigma)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32723"])
def test_every_band_lands_where_it_belongs_from_its_own_grid(crs):
    source = SimulatedSource(seed=8, crs=crs, size=3840)
    landsat, sentinel = source.pairs()[0]
    grid = geometry.pair_grid(sentinel.grid).window(90, 90, 180, 180)
    fine = read_onto(source, sentinel, ["swir1", "red"], grid)
    coarse = read_onto(source, landsat, ["red", "swir1"], grid.at(30))
    pan = read_onto(source, landsat, ["pan"], grid.at(15))
    seen = [
        (fine.values[..., 0], grid, "swir1", sensors.MSI),
        (fine.values[..., 1], grid, "red", sensors.MSI),
        (coarse.values[..., 0], grid.at(30), "red", sensors.OLI),
        (coarse.values[..., 1], grid.at(30), "swir1", sensors.OLI),
        (pan.values[..., 0], grid.at(15), "pan", {"pan": sensors.OLI_PAN}),
    ]
    for values, where, band, bands in seen:
        expected = truth(source, where, band, bands[band].sigma)
        error = np.sqrt(np.mean((values - expected) ** 2))
        displaced = truth(source, where.window(0, 1, *where.shape), band, bands[band].sigma)
        # 20 m pixels alias the roads; half a pixel of displacement would give 0.5.
        assert error < 0.25 * np.sqrt(np.mean((displaced - expected) ** 2)), band
    assert fine.valid.all()
    assert coarse.valid.all()


def test_ten_metre_bands_of_sentinel_are_copied_not_resampled():
    source = SimulatedSource(seed=8, size=3840)
    sentinel = source.pairs()[0][1]
    grid = sentinel.grid.window(-10, 20, 50, 60)
    raster = read_onto(source, sentinel, ["red"], grid)
    np.testing.assert_array_equal(raster.values[10:], source.read(sentinel, ["red"], grid).values[10:])
    assert not raster.valid[:10].any()


def test_a_pixel_is_clear_only_where_all_that_it_is_made_of_is():
    source = SimulatedSource(seed=8, size=3840, clouds=0.8, nodata=True)
    landsat, sentinel = source.pairs()[0]
    grid = geometry.pair_grid(sentinel.grid)
    raster = read_onto(source, landsat, ["red"], grid)
    assert not (raster.clear & ~raster.valid).any()
    assert (raster.values[~raster.valid] == 0).all()
    native = source.read(landsat, ["red"], landsat.grids["red"])
    row = ((landsat.grid.top - (grid.top - (np.arange(grid.shape[0]) + 0.5) * 10)) / 30).astype(int)
    column = ((grid.left + (np.arange(grid.shape[1]) + 0.5) * 10 - landsat.grid.left) / 30).astype(int)
    nearest = np.ix_(row, column)
    assert not (raster.clear & ~native.clear[nearest]).any()
    assert not (raster.valid & ~native.valid[nearest]).any()
    assert (native.clear[nearest] & ~raster.clear).mean() < 0.1


def test_a_band_that_the_scene_lacks_is_named():
    source = SimulatedSource(bands=("blue", "green", "red"), size=1920)
    scene = source.scenes()[0]
    with pytest.raises(SceneError, match="no band nir, swir1; .*blue, green, red, pan. Received: bands=red,nir,swir1"):
        read_onto(source, scene, ["red", "nir", "swir1"], scene.grid)


def test_a_patch_is_what_the_whole_scene_would_show_there():
    source = SimulatedSource(seed=8, size=3840, clouds=0.5, nodata=True)
    for scene in source.scenes():
        grid = geometry.pair_grid(source.scenes()[1].grid)
        for pixel, bands in ((10, ["swir1"]), (30, ["red"])):
            whole = read_onto(source, scene, bands, grid.at(pixel))
            part = read_onto(source, scene, bands, grid.at(pixel).window(20, 30, 48, 48))
            np.testing.assert_array_equal(part.valid, whole.valid[20:68, 30:78])
            np.testing.assert_array_equal(part.clear, whole.clear[20:68, 30:78])
            np.testing.assert_allclose(part.values, whole.values[20:68, 30:78], atol=2e-6)
