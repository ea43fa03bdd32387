import numpy as np
import pytest
from scipy import ndimage

from harmonize_tf import geometry, sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.radiometry import sentinel_to_landsat
from harmonize_tf.sources import read_onto
from harmonize_tf.sources.simulated import CLOUD, TOP_LEFT, SimulatedSource

SIZE = 3840


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32723"])
def test_the_grids_have_the_real_offsets_and_do_not_nest(crs):
    landsat, sentinel = SimulatedSource(crs=crs, size=SIZE).pairs()[0]
    for band in sensors.BANDS:
        assert landsat.grids[band].left % 30 == landsat.grids[band].top % 30 == 15
    assert landsat.grids["pan"].left % 15 == landsat.grids["pan"].top % 15 == 7.5
    assert sentinel.grids["red"].left % 10 == sentinel.grids["red"].top % 10 == 0
    assert sentinel.grids["swir1"].pixel == (20.0, 20.0)
    assert landsat.grids["red"].crs == ("EPSG:32633" if crs == "EPSG:32633" else "EPSG:32623")
    assert geometry.pair_grid(landsat.grid).crs == crs == sentinel.grid.crs


def test_panchromatic_comes_with_top_of_atmosphere_only():
    assert "pan" in SimulatedSource(level="toa").pairs()[0][0].grids
    assert "pan" not in SimulatedSource(level="sr").pairs()[0][0].grids


def test_blurred_truth_is_the_numerical_convolution_of_the_sharp_truth():
    source, step = SimulatedSource(seed=5), 2.0
    axis = np.arange(300) * step
    for band, sigma in (("red", 15.0), ("nir", 5.0), ("pan", 8.0)):
        east, north = TOP_LEFT[0] + 700 + axis[None], TOP_LEFT[1] - 900 - axis[:, None]
        expected = ndimage.gaussian_filter(source.truth(east, north, band), sigma / step, truncate=6)
        inside = np.s_[60:-60, 60:-60]
        found = source.truth(east, north, band, sigma)
        # The sharp edges were sampled every 2 m: that is all that is left.
        np.testing.assert_allclose(found[inside], expected[inside], atol=0.01)
        assert np.sqrt(np.mean((found - expected)[inside] ** 2)) < 0.1 * np.std(source.truth(east, north, band) - found)


@pytest.mark.parametrize("level", ["toa", "sr"])
def test_what_the_sensors_see_is_the_truth_at_their_own_pixel_centres(level):
    source = SimulatedSource(seed=2, level=level, size=SIZE, crs="EPSG:32723", shift_m=(4.0, -7.0))
    landsat, sentinel = source.pairs()[0]
    grid = sentinel.grids["swir1"].window(3, 5, 30, 40)
    east, north = grid.left + 20 * (np.arange(40) + 0.5), grid.top - 20 * (np.arange(30) + 0.5)
    truth = source.truth(east, north[:, None], "swir1", sensors.MSI["swir1"].sigma)
    np.testing.assert_allclose(source.read(sentinel, ["swir1"], grid).values[..., 0], truth, atol=5.01e-5)

    grid = landsat.grids["blue"].window(20, 30, 25, 35)
    east, north = grid.left + 30 * (np.arange(35) + 0.5), grid.top - 30 * (np.arange(25) + 0.5) + 1e7
    truth = source.truth(east + 4, north[:, None] - 7, "blue", sensors.OLI["blue"].sigma)[..., None]
    truth = sentinel_to_landsat(["blue"], level, "SENTINEL_2A").apply(truth)
    half_a_step = {"toa": 1e-6, "sr": 1.38e-5}[level]
    np.testing.assert_allclose(source.read(landsat, ["blue"], grid).values, truth, atol=half_a_step)


def test_values_come_in_the_steps_of_the_products_digital_numbers():
    landsat, sentinel = SimulatedSource(level="sr").pairs()[0]
    for scene, scale, offset in ((landsat, 2.75e-5, -0.2), (sentinel, 1e-4, 0.0)):
        grid = scene.grids["red"].window(9, 9, 40, 40)
        dn = (SimulatedSource(level="sr").read(scene, ["red"], grid).values.astype(float) - offset) / scale
        np.testing.assert_allclose(dn, np.rint(dn), atol=2e-3)


def test_a_20_m_pixel_is_cloud_where_one_of_its_10_m_pixels_is():
    source = SimulatedSource(clouds=0.6, size=SIZE)
    scene = source.pairs()[0][1]
    fine, coarse = (source.read(scene, [band], scene.grids[band]) for band in ("red", "swir1"))
    height, width = coarse.clear.shape
    assert not coarse.clear.all()
    np.testing.assert_array_equal(coarse.clear, fine.clear.reshape(height, 2, width, 2).all(axis=(1, 3)))


def test_content_does_not_depend_on_the_window():
    source = SimulatedSource(seed=1, size=SIZE, clouds=0.5, nodata=True)
    for scene in source.scenes():
        grid = scene.grids["red"]
        whole = source.read(scene, ["red", "green"], grid)
        part = source.read(scene, ["red", "green"], grid.window(-5, 31, 60, 50))
        np.testing.assert_array_equal(part.values[5:], whole.values[:55, 31:81])
        np.testing.assert_array_equal(part.valid[5:], whole.valid[:55, 31:81])
        np.testing.assert_array_equal(part.clear[5:], whole.clear[:55, 31:81])
        assert not part.valid[:5].any()


def test_the_planted_shift_is_found_on_the_pair_grid():
    source = SimulatedSource(seed=3, size=SIZE, shift_m=(6.0, -4.0))
    landsat, sentinel = source.pairs()[0]
    grid = geometry.pair_grid(sentinel.grid).window(60, 60, 240, 240)
    seen = [read_onto(source, scene, ["red"], grid) for scene in (landsat, sentinel)]
    assert all(raster.valid.all() for raster in seen)
    shift = geometry.estimate_shift(*(r.values[..., 0] for r in seen), seen[0].valid)
    assert (10 * shift.dx, -10 * shift.dy) == pytest.approx((6.0, -4.0), abs=1.0)


def test_clouds_are_bright_masked_and_stay_or_move():
    for moves in (False, True):
        source = SimulatedSource(seed=4, size=SIZE, clouds=0.6, clouds_move=moves)
        landsat, sentinel = source.pairs()[0]
        grid = geometry.pair_grid(sentinel.grid).at(30).window(5, 5, 110, 110)
        rasters = [read_onto(source, scene, ["red"], grid) for scene in (landsat, sentinel)]
        clear = [raster.clear for raster in rasters]
        assert all(0.02 < 1 - c.mean() < 0.6 for c in clear)
        disagreement = (clear[0] != clear[1]).mean()
        assert (disagreement > 0.05) if moves else (disagreement < 0.03)
    raster = source.read(sentinel, ["red"], sentinel.grids["red"])
    np.testing.assert_allclose(raster.values[raster.valid & ~raster.clear], CLOUD, atol=1e-6)
    assert raster.values[raster.clear].max() < 0.4


def test_no_data_is_a_wedge_and_single_pixels_of_landsat():
    source = SimulatedSource(size=7680, nodata=True)
    landsat, sentinel = source.pairs()[0]
    raster = source.read(landsat, ["red"], landsat.grids["red"])
    assert not raster.valid[:200, 0].any()
    assert (np.diff(raster.valid[:200].argmax(axis=1)) <= 0).mean() > 0.97  # narrowing to the south
    assert raster.valid[:, -1].mean() > 0.98
    missing = ~raster.valid[:, 100:]
    assert 1 <= ndimage.label(missing)[1] == missing.sum() < 40
    assert (raster.values[~raster.valid] == 0).all()
    assert source.read(sentinel, ["red"], sentinel.grids["red"]).valid.all()


def test_days_and_seeds_make_other_scenes():
    source = SimulatedSource(days=(0, 16), clouds=0.5, size=SIZE)
    (first, _), (second, _) = source.pairs()
    assert second.time_ms - first.time_ms == 16 * 86_400_000
    reads = [source.read(scene, ["red"], first.grids["red"]).clear for scene in (first, second)]
    assert (reads[0] != reads[1]).any()
    grid = first.grids["red"].window(0, 0, 30, 30)
    assert not np.allclose(
        source.read(first, ["red"], grid).values, SimulatedSource(seed=9, size=SIZE).read(first, ["red"], grid).values
    )
    assert len({scene.id for scene in source.scenes()}) == 4


def test_a_window_off_the_lattice_is_refused():
    source = SimulatedSource(size=SIZE)
    landsat, sentinel = source.pairs()[0]
    with pytest.raises(SceneError, match="native grid"):
        source.read(landsat, ["red"], sentinel.grids["red"])
