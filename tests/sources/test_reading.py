import dataclasses

import numpy as np
import pytest
import rasterio.warp

from harmonize_tf import geometry, sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.sources import native_windows, read_all_onto, read_onto
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


class Counting(SimulatedSource):
    """Notes what is read."""

    def read(self, scene, bands, window):
        READS.append((tuple(bands), window))
        return super().read(scene, bands, window)


READS = []


def patches_of(scene, pixel):
    """Windows of the pair grid: neighbours, one apart from them, one over the scene's edge, two that overlap."""
    whole = geometry.pair_grid(scene.grid)
    places = [(90, 90), (90, 150), (180, 90), (285, 300), (-30, 60), (120, 120)]
    return [whole.window(row, column, 60, 60).at(pixel) for row, column in places]


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32723"])
@pytest.mark.parametrize("level", ["toa", "sr"])
def test_grids_read_together_are_to_the_last_bit_those_read_one_by_one(crs, level):
    source = Counting(seed=8, size=3840, crs=crs, level=level, clouds=0.8, clouds_move=True, nodata=True)
    landsat, sentinel = source.pairs()[0]
    cases = [
        (landsat, ["red", "swir1"], 30), (sentinel, ["swir2", "red", "swir1", "nir"], 10), (sentinel, ["swir1"], 10),
    ]  # fmt: skip
    if level == "toa":
        cases.append((landsat, ["pan"], 15))
        cases.append((landsat, ["pan", "blue"], 15))
    for scene, bands, pixel in cases:
        grids = patches_of(sentinel, pixel)
        READS.clear()
        together = read_all_onto(source, scene, bands, grids)
        natives = {scene.grids[band] for band in bands}
        assert len(READS) == len(natives)
        assert READS == [(tuple(group), window) for group, window in native_windows(scene, bands, grids)]
        for grid, raster in zip(grids, together, strict=True):
            alone = read_onto(source, scene, bands, grid)
            assert raster.grid == alone.grid == grid
            for part in ("values", "valid", "clear"):
                one, other = getattr(raster, part), getattr(alone, part)
                assert one.dtype == other.dtype and one.shape == other.shape
                np.testing.assert_array_equal(one, other)
            assert raster.values.shape == (*grid.shape, len(bands))
        clear = [raster.clear.mean() for raster in together]
        assert 0 < min(clear) < max(clear) <= 1


def test_grids_of_a_neighbouring_zone_are_read_together_as_one_by_one():
    source = SimulatedSource(seed=8, size=3840)
    landsat, sentinel = source.pairs()[0]
    grids = patches_of(sentinel, 30)
    left, _, _, top = rasterio.warp.transform_bounds("EPSG:32633", "EPSG:32632", *sentinel.grid.bounds)
    there = geometry.Grid("EPSG:32632", left, top, (30.0, 30.0), (140, 140))
    scene = dataclasses.replace(landsat, grids={"red": there, "green": there})
    together = read_all_onto(source, scene, ["green", "red"], grids)
    for grid, raster in zip(grids, together, strict=True):
        alone = read_onto(source, scene, ["green", "red"], grid)
        np.testing.assert_array_equal(raster.values, alone.values)
        np.testing.assert_array_equal(raster.clear, alone.clear)
    assert together[0].valid.all()


def test_the_windows_that_are_read_hold_what_every_grid_needs_and_are_no_larger():
    source = SimulatedSource(seed=8, size=3840)
    landsat, sentinel = source.pairs()[0]
    for scene, bands, pixel in ((landsat, ["red"], 30), (landsat, ["pan"], 15), (sentinel, ["swir1", "red"], 10)):
        grids = patches_of(sentinel, pixel)
        together = native_windows(scene, bands, grids)
        assert [group for group, _ in together] == [["swir1"], ["red"]] or len(together) == 1
        for number, (group, around) in enumerate(together):
            native = scene.grids[group[0]]
            assert around.offset_in(native) is not None
            alone = [native_windows(scene, bands, [grid])[number][1] for grid in grids]
            bounds = np.array([window.bounds for window in alone])
            assert around.bounds == (*bounds[:, :2].min(0), *bounds[:, 2:].max(0))
            for window, grid in zip(alone, grids, strict=True):
                left, bottom, right, top = window.bounds
                margin = 2 * max(native.pixel[0], pixel)  # the cubic kernel's reach
                assert left + margin <= grid.bounds[0] and bottom + margin <= grid.bounds[1]
                assert right - margin >= grid.bounds[2] and top - margin >= grid.bounds[3]
                assert window.shape[0] * native.pixel[0] < 600 + 8 * max(native.pixel[0], pixel)


def test_what_is_read_together_lacks_bands_all_the_same():
    source = SimulatedSource(bands=("blue", "green", "red"), size=1920)
    scene = source.scenes()[1]
    with pytest.raises(SceneError, match="no band nir; .*blue, green, red. Received: bands=red,nir"):
        read_all_onto(source, scene, ["red", "nir"], [scene.grid, scene.grid])
