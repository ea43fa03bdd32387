import numpy as np
import pytest
import rasterio.warp
from affine import Affine
from rasterio.enums import Resampling
from scipy import ndimage

from harmonize_tf import geometry
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid

LANDSAT = Grid("EPSG:32633", 300_015.0, 5_700_015.0, (30.0, 30.0), (64, 60))


def waves(grid, wavelength=400.0):
    """A smooth image [rows, columns, 2] as a function of the ground coordinates."""
    rows, columns = grid.shape
    east = grid.left + (np.arange(columns) + 0.5) * grid.pixel[0]
    north = grid.top - (np.arange(rows) + 0.5) * grid.pixel[1]
    angle = 2 * np.pi / wavelength
    first = 0.3 + 0.1 * np.sin(angle * east)[None] * np.cos(angle * north)[:, None]
    return np.stack([first, 0.5 - first], axis=-1).astype(np.float32)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32733"])
def test_pair_grid_cells_have_their_corners_at_10_mod_30_of_the_northern_coordinates(crs):
    south = crs == "EPSG:32733"
    grid = geometry.pair_grid(Grid(crs, 300_000.0, 7_000_000.0, (10.0, 10.0), (500, 511)))
    assert grid.crs == crs
    assert grid.left % 30 == 10
    assert (grid.top - 1e7 * south) % 30 == 10
    assert grid.top % 30 == (20 if south else 10)
    assert all(size % 3 == 0 for size in grid.shape)
    left, bottom, right, top = grid.bounds
    assert left <= 300_000 < left + 30
    assert top - 30 < 7_000_000 <= top
    assert bottom <= 7_000_000 - 5000
    assert right >= 300_000 + 5110


def test_landsats_northern_variant_in_the_south_gets_the_southern_zone_and_the_same_ground():
    northern = Grid("EPSG:32623", 584_385.0, -2_222_685.0, (30.0, 30.0), (300, 400))  # the Brumadinho scene
    grid = geometry.pair_grid(northern)
    assert grid.crs == "EPSG:32723"
    assert grid.left % 30 == 10
    assert grid.top % 30 == 20
    # Landsat's corners lie 5 m from the pair grid's on both hemispheres: a sixth of a pixel, never half of one.
    assert {(grid.left - northern.left) % 30, (grid.top - northern.top - 1e7) % 30} == {25.0}


def test_a_grid_on_the_lattice_is_its_own_pair_grid():
    grid = Grid("EPSG:32633", 300_010.0, 5_700_010.0, (10.0, 10.0), (192, 192))
    assert geometry.pair_grid(grid) == grid
    assert geometry.pair_grid(grid.at(30.0)) == grid


def test_geographic_coordinates_go_to_the_zone_of_their_centre():
    assert geometry.sentinel_crs("EPSG:4326", (117.9, 37.7, 118.0, 37.8)) == "EPSG:32650"
    assert geometry.sentinel_crs("EPSG:4326", (-60.0, -3.2, -59.9, -3.1)) == "EPSG:32721"


def test_a_scene_across_the_antimeridian_goes_to_a_zone_there():
    # Landsat's polar stereographic grid over the Ross Sea, at 180 degrees.
    zones = [
        geometry.sentinel_crs("EPSG:3031", (x - 90_000, -1_300_000, x + 90_000, -1_120_000)) for x in (-9e4, 0, 9e4)
    ]
    assert set(zones) <= {"EPSG:32701", "EPSG:32760"}


def test_at_changes_the_pixels_and_keeps_the_ground():
    grid = Grid("EPSG:32633", 10.0, 10.0, (10.0, 10.0), (192, 96))
    assert grid.at(15.0).shape == (128, 64)
    assert grid.at(30.0).bounds == grid.bounds
    with pytest.raises(SceneError, match="do not divide"):
        grid.at(70.0)


def test_rasters_that_are_not_north_up_or_lie_nowhere_are_refused():
    with pytest.raises(SceneError, match="no coordinate reference system"):
        Grid.of(None, Affine(10, 0, 0, 0, -10, 0), (5, 5))
    with pytest.raises(SceneError, match="north-up"):
        Grid.of("EPSG:32633", Affine(10, 1, 0, 0, -10, 0), (5, 5))
    with pytest.raises(SceneError, match="north-up"):
        Grid.of("EPSG:32633", Affine(10, 0, 0, 0, 10, 0), (5, 5))


def test_offset_in_finds_lattice_neighbours_only():
    grid = LANDSAT.window(-2, 7, 5, 5)
    assert grid.offset_in(LANDSAT) == (-2, 7)
    assert Grid(LANDSAT.crs, LANDSAT.left + 15, LANDSAT.top, LANDSAT.pixel, (5, 5)).offset_in(LANDSAT) is None
    assert LANDSAT.at(15.0).offset_in(LANDSAT) is None


def test_on_one_lattice_warping_is_a_copy_with_the_outside_invalid():
    values = np.random.default_rng(0).random((64, 60, 3)).astype(np.float32)
    valid = np.random.default_rng(1).random((64, 60)) < 0.9
    window = LANDSAT.window(-4, 30, 20, 40)
    warped, warped_valid = geometry.warp(values, valid, LANDSAT, window)
    np.testing.assert_array_equal(warped_valid[4:, :30], valid[:16, 30:])
    np.testing.assert_array_equal(warped[4:, :30], np.where(valid[:16, 30:, None], values[:16, 30:], 0))
    assert not warped_valid[:4].any()
    assert not warped_valid[:, 30:].any()


@pytest.mark.parametrize("pixel", [10.0, 30.0])
def test_warping_reproduces_a_closed_form_at_the_coordinates_asked_for(pixel):
    target = Grid(LANDSAT.crs, 300_310.0, 5_699_710.0, (10.0, 10.0), (90, 60)).at(pixel)
    warped, valid = geometry.warp(waves(LANDSAT), np.ones(LANDSAT.shape, bool), LANDSAT, target)
    assert valid.all()
    # A cubic kernel errs by about (pi h / wavelength)^3 / 2 of the amplitude at most: 0.6 %.
    np.testing.assert_allclose(warped, waves(target), atol=1e-3)
    misplaced = np.abs(waves(target) - waves(target.window(0, 1, *target.shape))).max()
    assert misplaced > 0.01  # so that half a pixel of displacement would be seen


def test_warping_from_10_to_20_metres_finer_agrees_with_scipys_view_of_the_centres():
    source = Grid("EPSG:32633", 0.0, 6000.0, (20.0, 20.0), (50, 50))
    target = Grid("EPSG:32633", 200.0, 5800.0, (10.0, 10.0), (40, 40))
    image = ndimage.gaussian_filter(np.random.default_rng(2).random((50, 50)), 3).astype(np.float32)
    warped, _ = geometry.warp(image[..., None], np.ones((50, 50), bool), source, target)
    positions = (np.arange(40) + 0.5) / 2 - 0.5 + 10
    expected = ndimage.map_coordinates(image, np.meshgrid(positions, positions, indexing="ij"), order=3)
    np.testing.assert_allclose(warped[..., 0], expected, atol=0.003 * np.ptp(image))


def test_warping_across_hemispheres_and_zones_shows_the_same_ground():
    northern = Grid("EPSG:32623", 584_385.0, -2_222_685.0, (30.0, 30.0), (80, 80))
    target = Grid("EPSG:32723", 584_710.0, 7_777_010.0 - 20, (30.0, 30.0), (40, 40))
    warped, valid = geometry.warp(waves(northern), np.ones((80, 80), bool), northern, target)
    assert valid.all()
    shown = Grid("EPSG:32623", target.left, target.top - 1e7, target.pixel, target.shape)
    np.testing.assert_allclose(warped, waves(shown), atol=1e-3)


def test_one_invalid_pixel_invalidates_its_neighbourhood_and_taints_no_value():
    values, valid = waves(LANDSAT), np.ones(LANDSAT.shape, bool)
    valid[30, 30] = False
    values[30, 30] = 1e6
    target = Grid(LANDSAT.crs, LANDSAT.left + 25, LANDSAT.top - 25, (10.0, 10.0), (180, 170))
    warped, warped_valid = geometry.warp(values, valid, LANDSAT, target)
    rows = (np.arange(180) + 0.5) / 3 + 25 / 30 - 0.5  # centres in source pixels
    columns = (np.arange(170) + 0.5) / 3 + 25 / 30 - 0.5
    touched = (np.abs(rows - 30) < 1)[:, None] & (np.abs(columns - 30) < 1)[None, :]
    np.testing.assert_array_equal(warped_valid, ~touched)
    assert (warped[touched] == 0).all()
    np.testing.assert_allclose(warped[~touched], waves(target)[~touched], atol=0.02)


@pytest.mark.parametrize("gaps", [0.0, 0.02, 0.3])
@pytest.mark.parametrize(("right", "down"), [(5, 25), (0, 10), (15, 15), (22.5, 0)])
def test_a_mere_shift_gives_what_gdal_gives_gaps_or_none(right, down, gaps):
    rng = np.random.default_rng(7)
    values, valid = rng.random((64, 60, 2), np.float32), rng.random((64, 60)) >= gaps
    target = Grid(LANDSAT.crs, LANDSAT.left + 60 + right, LANDSAT.top - 90 - down, LANDSAT.pixel, (50, 48))
    warped, there = geometry.warp(values, valid, LANDSAT, target)
    expected, invalid = np.zeros((2, 50, 48), np.float32), np.ones((50, 48), np.float32)
    places = {f"{name}_{kind}": getattr(grid, kind)
              for name, grid in (("src", LANDSAT), ("dst", target)) for kind in ("crs", "transform")}  # fmt: skip
    planes = np.where(valid, values.transpose(2, 0, 1), np.nan)
    nodata = {"src_nodata": np.nan, "dst_nodata": np.nan}
    rasterio.warp.reproject(planes, expected, resampling=Resampling.cubic, **nodata, **places)
    rasterio.warp.reproject((~valid).astype(np.float32), invalid, resampling=Resampling.bilinear, **places)
    np.testing.assert_array_equal(there, invalid < 1e-6)
    np.testing.assert_allclose(warped, np.where(there, expected, 0).transpose(1, 2, 0), atol=1e-6)
    assert there.mean() == 1 if not gaps else 0.05 < there.mean() < 0.99


def test_a_mask_alone_can_be_warped_and_the_outside_is_invalid():
    target = Grid(LANDSAT.crs, LANDSAT.left - 295, LANDSAT.top + 295, (10.0, 10.0), (60, 60))
    values, valid = geometry.warp(np.zeros((64, 60, 0), np.float32), np.ones(LANDSAT.shape, bool), LANDSAT, target)
    assert values.shape == (60, 60, 0)
    assert not valid[:29].any()
    assert not valid[:, :29].any()
    assert valid[31:, 31:].all()


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.6, -0.35), (-1.25, 2.4)])
def test_a_planted_shift_is_recovered(shift):
    image = ndimage.gaussian_filter(np.random.default_rng(3).random((192, 192)), 2.0)
    moved = ndimage.shift(image, (shift[1], shift[0]), order=5, mode="reflect")  # rows down, columns to the right
    found = geometry.estimate_shift(image, moved, np.ones(image.shape, bool))
    assert (found.dx, found.dy) == pytest.approx(shift, abs=0.1)
    assert found.correlation > 0.5


def test_masks_do_not_correlate_with_themselves():
    rng = np.random.default_rng(4)
    image = ndimage.gaussian_filter(rng.random((192, 192)), 2.0)
    moved = ndimage.shift(image, (0.0, 1.5), order=5, mode="reflect")
    valid = np.ones(image.shape, bool)
    valid[60:110, 20:90] = False
    image, moved = np.where(valid, image, 0.0), np.where(valid, moved, 0.0)
    found = geometry.estimate_shift(image, moved, valid)
    assert (found.dx, found.dy) == pytest.approx((1.5, 0.0), abs=0.15)


def test_where_there_is_nothing_to_correlate_no_shift_is_invented():
    flat, image = np.ones((64, 64)), np.random.default_rng(5).random((64, 64))
    everywhere = np.ones((64, 64), bool)
    assert geometry.estimate_shift(flat, image, everywhere) is None
    assert geometry.estimate_shift(image, image, np.zeros((64, 64), bool)) is None


def test_a_shift_is_found_in_spite_of_holes():
    image = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal((192, 192)), 2)
    moved = ndimage.shift(image, (-0.6, 0.9), order=3, mode="reflect")
    cells = np.random.default_rng(6).uniform(size=(64, 64)) > 0.03
    seen = cells.repeat(3, 0).repeat(3, 1)
    found = geometry.estimate_shift(np.where(seen, image, 0.0), moved, seen)
    assert abs(found.dx - 0.9) < 0.1 and abs(found.dy + 0.6) < 0.1
    assert found.correlation > 0.85


@pytest.mark.parametrize(
    ("place", "zone"),
    [
        ((-122.4, 37.8), 32610),  # San Francisco, 10S
        ((151.2, -33.9), 32756),  # Sydney, 56H
        ((-78.5, -0.2), 32717),  # Quito, 17M
        ((12.4, 51.3), 32633),  # Leipzig, 33U
        ((11.999, 51.3), 32632),
        ((5.3, 60.4), 32632),  # Bergen, 32V
        ((2.9, 60.4), 32631),
        ((5.3, 55.9), 32631),
        ((6.0, 64.1), 32632),
        ((5.3, 64.1), 32631),
        ((15.6, 78.2), 32633),  # Longyearbyen, 33X
        ((8.9, 78.9), 32631),
        ((9.0, 78.9), 32633),
        ((25.0, 80.0), 32635),
        ((21.0, 80.0), 32635),
        ((33.0, 80.0), 32637),
        ((41.9, 80.0), 32637),
        ((42.1, 80.0), 32638),
        ((-0.1, 80.0), 32630),
        ((25.8, 71.2), 32635),  # North Cape, 35W
        ((8.0, 71.9), 32632),
        ((-180.0, 10.0), 32601),
        ((180.0, 10.0), 32601),
        ((179.9, -16.0), 32760),
    ],
)
def test_the_zone_of_a_place_is_that_of_mgrs(place, zone):
    assert geometry.utm_zone(*map(np.array, place)) == zone
