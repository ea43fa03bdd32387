import dataclasses
import pickle

import numpy as np
import pytest

from harmonize_tf import geometry, sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.radiometry import landsat_to_sentinel
from harmonize_tf.sensors import OLI_NOISE, OLI_PAN_NOISE
from harmonize_tf.sources import read_onto
from harmonize_tf.sources.degraded import DegradedSource
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource

SIZE = 3840


def centres(grid):
    rows, columns = grid.shape
    east = grid.left + (np.arange(columns) + 0.5) * grid.pixel[0]
    return east[None, :], (grid.top - (np.arange(rows) + 0.5) * grid.pixel[1])[:, None]


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32723"])
@pytest.mark.parametrize("band", ["blue", "nir", "swir2", "pan"])
def test_the_partner_shows_what_landsat_would_have_seen(crs, band):
    inner = SimulatedSource(seed=6, crs=crs, size=SIZE)
    source = DegradedSource(inner, noise=0.0, shift_m=(4.0, -3.0))
    partner = source.pairs()[0][0]
    grid = partner.grids[band].window(8, 11, 60, 70)
    raster = source.read(partner, [band], grid)
    assert raster.valid.all()
    east, north = centres(grid)
    north = north + (1e7 if crs == "EPSG:32723" else 0)
    landsat = sensors.OLI_PAN if band == "pan" else sensors.OLI[band]
    truth = inner.truth(east + 4.0, north - 3.0, band, landsat.sigma)
    # Left over: what 10 m pixels alias of edges (20 m pixels in the short-wave infrared), and the panchromatic band's
    # one common blur for three bands.
    error = raster.values[..., 0] - truth
    assert np.sqrt(np.mean(error**2)) < {"blue": 3e-4, "nir": 5e-4, "swir2": 1e-3, "pan": 1e-3}[band]
    unshifted = inner.truth(east, north, band, landsat.sigma)
    assert np.sqrt(np.mean((unshifted - truth) ** 2)) > 1.5 * np.sqrt(np.mean(error**2))


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32723"])
def test_the_partner_lies_on_landsats_own_lattice(crs):
    source = DegradedSource(SimulatedSource(crs=crs, size=SIZE))
    partner, sentinel = source.pairs()[0]
    assert partner.grids["red"].left % 30 == partner.grids["red"].top % 30 == 15
    assert partner.grids["pan"].left % 15 == partner.grids["pan"].top % 15 == 7.5
    assert geometry.pair_grid(partner.grid).crs == sentinel.grid.crs
    assert partner.sensor == "landsat"
    assert (partner.product, partner.time_ms) == ("DEGRADED", sentinel.time_ms)
    grid = geometry.pair_grid(sentinel.grid).window(30, 30, 300, 300)
    assert read_onto(source, partner, ["red"], grid).valid.all()


def test_at_level_sr_landsats_radiometry_is_the_inverted_band_pass_and_there_is_no_panchromatic_band():
    inner = SimulatedSource(seed=6, level="sr", size=SIZE)
    source = DegradedSource(inner, noise=0.0)
    partner = source.pairs()[0][0]
    assert "pan" not in partner.grids
    grid = partner.grids["red"].window(8, 11, 60, 70)
    values = source.read(partner, ["blue", "red", "nir"], grid).values
    back = landsat_to_sentinel(["blue", "red", "nir"], "sr", "SENTINEL_2A").apply(values)
    for index, band in enumerate(["blue", "red", "nir"]):
        truth = inner.truth(*centres(grid), band, sensors.OLI[band].sigma)
        assert np.sqrt(np.mean((back[..., index] - truth) ** 2)) < 5e-4
    assert np.abs(values[..., 0] - back[..., 0]).mean() > 2e-3


def test_any_window_gives_the_same_noisy_pixels():
    source = DegradedSource(SimulatedSource(seed=1, size=SIZE, clouds=0.5), seed=5)
    partner = source.pairs()[0][0]
    for bands in (["swir1", "red"], ["pan"]):
        grid = partner.grids[bands[0]]
        whole = source.read(partner, bands, grid.window(0, 0, 90, 90))
        part = source.read(partner, bands, grid.window(-3, 20, 50, 40))
        np.testing.assert_allclose(part.values[3:], whole.values[:47, 20:60], atol=1e-6)
        np.testing.assert_array_equal(part.clear[3:], whole.clear[:47, 20:60])
        assert not part.valid[:3].any()
    swapped = source.read(partner, ["red", "swir1"], partner.grids["red"].window(0, 0, 90, 90))
    whole = source.read(partner, ["swir1", "red"], partner.grids["red"].window(0, 0, 90, 90))
    np.testing.assert_allclose(swapped.values, whole.values[..., ::-1], atol=1e-6)


def test_the_noise_is_as_strong_as_stated_and_follows_its_seed():
    inner = SimulatedSource(size=SIZE)
    noise = {}
    for seed in (0, 1):
        source, quiet = DegradedSource(inner, seed=seed), DegradedSource(inner, noise=0.0)
        for band, expected in (("red", OLI_NOISE), ("pan", OLI_PAN_NOISE)):
            scenes = [s.pairs()[0][0] for s in (source, quiet)]
            grid = scenes[0].grids[band].window(5, 5, 110, 110)
            noisy, clean = (
                s.read(scene, [band], grid).values for s, scene in zip((source, quiet), scenes, strict=True)
            )
            assert (noisy - clean).std() == pytest.approx(expected, rel=0.05)
            noise[seed, band] = (noisy - clean).ravel()
    assert abs(np.corrcoef(noise[0, "red"], noise[1, "red"])[0, 1]) < 0.05


def test_clouds_and_missing_pixels_reach_as_far_as_the_pixels_footprint():
    class Spotted(SimulatedSource):
        def read(self, scene, bands, window):
            raster = super().read(scene, bands, window)
            east, north = centres(window)
            missing = (np.abs(east - 301_005) < 5) & (np.abs(north - 5_698_995) < 5)  # one 10 m pixel
            cloud = (np.abs(east - 302_005) < 5) & (np.abs(north - 5_697_995) < 5)
            valid = raster.valid & ~missing
            return dataclasses.replace(raster, valid=valid, clear=valid & ~cloud)

    source = DegradedSource(Spotted(size=SIZE, bands=("red",)))
    partner = source.pairs()[0][0]
    grid = partner.grids["red"].window(0, 0, 120, 120)
    raster = source.read(partner, ["red"], grid)
    east, north = centres(grid)
    # The 30 m cell [left, left + 30] contains or touches the 10 m pixel.
    missing = (np.abs(east - 301_005) < 20) & (np.abs(north - 5_698_995) < 20)
    cloud = (np.abs(east - 302_005) < 20) & (np.abs(north - 5_697_995) < 20)
    np.testing.assert_array_equal(raster.valid[2:, 2:], ~missing[2:, 2:])
    np.testing.assert_array_equal(raster.clear[2:, 2:], ~(missing | cloud)[2:, 2:])
    assert (raster.values[~raster.valid] == 0).all()


def test_the_id_says_what_was_done_and_the_source_can_be_pickled():
    inner = SimulatedSource(size=SIZE)
    ids = {
        DegradedSource(inner, **changes).pairs()[0][0].id
        for changes in ({}, {"seed": 1}, {"noise": 0.0}, {"shift_m": (1.0, 0.0)}, {"sigma": (1.4,) * 6}, {"nir": "B8A"})
    }
    assert len(ids) == 6
    source = pickle.loads(pickle.dumps(DegradedSource(inner)))
    assert source.pairs()[0] == DegradedSource(inner).pairs()[0]


def test_only_sentinel_scenes_in_utm_can_be_degraded():
    class OnlyLandsat(SimulatedSource):
        def scenes(self):
            return [scene for scene in super().scenes() if scene.sensor == "landsat"]

    with pytest.raises(SceneError, match="only Sentinel-2 scenes"):
        DegradedSource(OnlyLandsat(size=SIZE)).pairs()


def test_a_real_scene_is_degraded_and_upsampled_lands_where_it_was(real_data, tmp_path):
    import real_scenes

    source = DegradedSource(GeoTiffSource(real_scenes.manifest(real_data, tmp_path, "t33uuu")), shift_m=(5.0, 5.0))
    partner, sentinel = source.pairs()[0]
    grid = geometry.pair_grid(sentinel.grid).window(150, 240, 192, 192)
    coarse = read_onto(source, partner, ["red", "swir1"], grid)
    fine = read_onto(source, sentinel, ["red", "swir1"], grid)
    assert coarse.valid.all()
    for band in range(2):
        shift = geometry.estimate_shift(coarse.values[..., band], fine.values[..., band], coarse.valid)
        assert (shift.dx, shift.dy) == pytest.approx((0.5, -0.5), abs=0.15)
        assert shift.correlation > 0.8
    np.testing.assert_allclose(coarse.values.mean((0, 1)), fine.values.mean((0, 1)), rtol=0.01)
