import dataclasses

import numpy as np
import pytest
import rasterio.warp

from harmonize_tf import geometry, pairing, sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Raster, Scene, read_onto
from harmonize_tf.sources.simulated import SimulatedSource

DAY = 86_400_000


def scene(name, sensor, day=100.0, *, left=300_000.0, top=5_700_000.0, crs="EPSG:32633", level="toa", size=100):
    grid = Grid(crs, left, top, (30.0, 30.0), (size, size))
    return Scene(name, sensor, level, "P", "X", round(day * DAY), {"red": grid})


def ids(pairs):
    return [(a.id, b.id) for a, b in pairs]


def test_the_nearest_in_time_is_chosen_and_equal_distances_go_by_id():
    landsat = [scene("L", "landsat", 100)]
    assert ids(pairing.pair(landsat, [scene("A", "sentinel", 97), scene("B", "sentinel", 101)])) == [("L", "B")]
    assert ids(pairing.pair(landsat, [scene("B", "sentinel", 99), scene("A", "sentinel", 101)])) == [("L", "A")]


def test_a_landsat_scene_is_paired_with_every_tile_that_shares_its_ground():
    tiles = [scene("west", "sentinel", 101), scene("west later", "sentinel", 103)]
    tiles += [scene("east", "sentinel", 102, left=301_500.0)]
    assert ids(pairing.pair([scene("L", "landsat")], tiles)) == [("L", "west"), ("L", "east")]


@pytest.mark.parametrize(
    "other",
    [
        {"day": 106},
        {"left": 303_000.0},
        {"crs": "EPSG:32634"},  # elsewhere: 300 km west of its zone's centre as well
        {"level": "sr"},
        {"day": 0},  # not known
    ],
)
def test_what_does_not_belong_together_is_not_paired(other):
    assert pairing.pair([scene("L", "landsat")], [scene("S", "sentinel", **other)]) == []
    assert ids(pairing.pair([scene("L", "landsat")], [scene("S", "sentinel")])) == [("L", "S")]


def test_the_limit_in_days_is_inclusive():
    landsat, sentinel = [scene("L", "landsat", 100)], [scene("S", "sentinel", 102)]
    assert pairing.pair(landsat, sentinel, max_days=2)
    assert not pairing.pair(landsat, sentinel, max_days=1.99)


def test_one_sentinel_scene_may_serve_several_landsat_scenes_in_their_order():
    landsat = [scene("L2", "landsat", 101), scene("L1", "landsat", 100)]
    assert ids(pairing.pair(landsat, [scene("S", "sentinel", 100)])) == [("L2", "S"), ("L1", "S")]


def test_landsats_northern_coordinates_meet_sentinels_southern_ones():
    landsat = scene("L", "landsat", crs="EPSG:32623", top=-2_222_685.0, left=584_385.0)
    sentinel = scene("S", "sentinel", crs="EPSG:32723", top=7_777_300.0, left=584_400.0)
    assert ids(pairing.pair([landsat], [sentinel])) == [("L", "S")]
    assert pairing.check_pair(landsat, sentinel) is None


def lies_at(crs, longitude, latitude, size):
    """Left and top of a rectangle of `size` m around a place, rounded to 30 m."""
    (east,), (north,) = rasterio.warp.transform("EPSG:4326", crs, [longitude], [latitude])
    return {"crs": crs, "left": 30 * round((east - size / 2) / 30) + 15.0, "top": 30 * round((north + size / 2) / 30)}


@pytest.mark.parametrize(("longitude", "crs"), [(12.01, "EPSG:32632"), (12.01, "EPSG:32633"), (179.99, "EPSG:32601")])
def test_scenes_of_neighbouring_zones_are_paired_where_they_show_the_same_ground(longitude, crs):
    """As far as the distance of their centres on the ground, a degree of latitude being 111.2 km, tells."""
    other = "EPSG:32632" if crs == "EPSG:32633" else "EPSG:32633" if crs == "EPSG:32632" else "EPSG:32660"
    sentinel = scene("S", "sentinel", **lies_at(other, longitude, 50, 9_000), size=300)
    for north in range(-30, 31, 3):  # km
        landsat = scene("L", "landsat", **lies_at(crs, longitude, 50 + north / 111.2, 30_000), size=1000)
        found = pairing.pair([landsat], [sentinel])
        # 19.5 km and what the rectangles' turn of 5 degrees adds: 15 km * tan(5 degrees).
        if abs(north) < 19.5:
            assert ids(found) == [("L", "S")] and pairing.check_pair(landsat, sentinel) is None
        elif abs(north) > 19.5 + 1.4:
            assert found == []


@pytest.mark.parametrize(
    "grid",
    [
        Grid("EPSG:32632", 700_005.0, 7_000_005.0, (30.0, 30.0), (6000, 6000)),
        Grid("EPSG:4326", 12.0, 61.0, (0.001, 0.001), (1000, 6000)),  # its edges bend by 2 km
    ],
)
def test_what_scenes_have_in_common_is_bounded_by_the_edges_as_they_bend(grid):
    first = dataclasses.replace(scene("L", "landsat"), grids={"red": grid})
    left, bottom, right, top = grid.bounds
    along, none = np.linspace(0, 1, 3001), np.zeros(3001)
    x = left + (right - left) * np.concatenate([along, along, none, none + 1])
    y = bottom + (top - bottom) * np.concatenate([none, none + 1, along, along])
    x, y = np.array(rasterio.warp.transform(grid.crs, "EPSG:32633", x, y))
    expected = x.min(), y.min(), x.max(), y.max()
    np.testing.assert_allclose(pairing.common_bounds("EPSG:32633", [first]), expected, rtol=0, atol=2)
    second = scene("S", "sentinel", left=x.min() + 30_000, top=y.max() + 1_000, size=1000)
    common = x.min() + 30_000, y.max() - 29_000, x.min() + 60_000, y.max()
    np.testing.assert_allclose(pairing.common_bounds("EPSG:32633", [first, second]), common, rtol=0, atol=2)


def test_a_scene_of_the_same_day_is_preferred_to_all_others():
    others = [scene(f"{days}", "sentinel", 100.4 + days) for days in (-2, -1, 0, 1, 2)]
    for hour in range(7, 13):
        assert ids(pairing.pair([scene("L", "landsat", 100 + hour / 24)], others)) == [("L", "0")]


def test_pairs_are_those_that_a_look_at_each_two_scenes_finds():
    random = np.random.default_rng(0)

    def some(sensor, count):
        corners = random.integers(0, 4, (count, 2)) * 1800
        days = random.choice([0, *np.arange(100, 120, 0.5)], count)  # equal distances, too
        return [
            scene(f"{i}", sensor, day, left=300_000.0 + x, top=5_700_000.0 - y, level=("sr", "toa")[i % 2])
            for i, ((x, y), day) in enumerate(zip(corners, days, strict=True))
        ]

    landsat, sentinel = some("landsat", 40), some("sentinel", 80)
    expected = set()
    for first in landsat:
        for tile in {other.grid for other in sentinel}:
            near = [
                (abs(first.time_ms - s.time_ms), s.id)
                for s in sentinel
                if s.grid == tile and s.level == first.level and s.time_ms * first.time_ms
                and abs(first.time_ms - s.time_ms) <= 3 * DAY
                and abs(tile.left - first.grid.left) < 3000 and abs(tile.top - first.grid.top) < 3000
            ]  # fmt: skip
            expected |= {(first.id, min(near)[1])} if near else set()
    found = ids(pairing.pair(landsat, sentinel, 3))
    assert set(found) == expected and len(found) == len(expected) > 50
    assert [int(name) for name, _ in found] == sorted(int(name) for name, _ in found)


@dataclasses.dataclass(frozen=True)
class NeighbouringZone:
    """A simulated source whose Landsat scenes come on a lattice of another UTM zone."""

    simulated: SimulatedSource
    crs: str

    def pairs(self):
        landsat, sentinel = self.simulated.pairs()[0]
        bounds = rasterio.warp.transform_bounds(sentinel.grid.crs, self.crs, *sentinel.grid.bounds)
        left, bottom, right, top = (30.0 * round(bound / 30) for bound in bounds)
        shape = round((top - bottom) / 30) + 4, round((right - left) / 30) + 4
        grid = Grid(self.crs, left - 45, top + 45, (30.0, 30.0), shape)
        return [(dataclasses.replace(landsat, grids=dict.fromkeys(self.simulated.bands, grid)), sentinel)]

    def read(self, scene, bands, window):
        if scene.sensor == "sentinel":
            return self.simulated.read(scene, bands, window)
        rows, columns = np.indices(window.shape)
        east, north = window.left + (columns + 0.5) * 30, window.top - (rows + 0.5) * 30
        east, north = rasterio.warp.transform(window.crs, self.simulated.crs, east.ravel(), north.ravel())
        values = [self.simulated.truth(east, north, band, sensors.OLI[band].sigma) for band in bands]
        values = np.stack(values, axis=-1).reshape(*window.shape, -1).astype(np.float32)
        return Raster(values, np.ones(window.shape, bool), np.ones(window.shape, bool), window)


@pytest.mark.parametrize("neighbour", ["EPSG:32632", "EPSG:32634"])
def test_a_landsat_scene_of_the_neighbouring_zone_shows_the_truth_on_sentinels_grid(neighbour):
    simulated = SimulatedSource(seed=8, size=3840)
    source = NeighbouringZone(simulated, neighbour)
    ((landsat, sentinel),) = pairing.pair(*([scene] for scene in source.pairs()[0]))
    grid = geometry.pair_grid(sentinel.grid).window(6, 6, 360, 360).at(30)
    raster = read_onto(source, landsat, ["red", "swir1"], grid)
    assert raster.valid.all()
    for index, band in enumerate(("red", "swir1")):
        east = grid.left + (np.arange(grid.shape[1]) + 0.5) * 30
        north = grid.top - (np.arange(grid.shape[0]) + 0.5) * 30
        truth, displaced = (
            simulated.truth(east + shift, north[:, None], band, sensors.OLI[band].sigma) for shift in (0, 30)
        )
        error = np.sqrt(np.mean((raster.values[..., index] - truth) ** 2))
        # Half a pixel of displacement would give 0.5; pixels are turned, so that some lie half a pixel off the lattice.
        assert error < 0.25 * np.sqrt(np.mean((displaced - truth) ** 2))
        found = geometry.estimate_shift(truth, raster.values[..., index], raster.valid)
        assert abs(found.dx) <= 0.05 and abs(found.dy) <= 0.05 and found.correlation > 0.99


def test_scenes_that_only_touch_have_no_common_ground():
    assert not pairing.overlap(scene("L", "landsat"), scene("S", "sentinel", left=303_000.0))
    assert pairing.overlap(scene("L", "landsat"), scene("S", "sentinel", left=302_999.0))


def test_a_pair_that_cannot_be_compared_is_told_with_its_names():
    with pytest.raises(SceneError, match="pair L, S:.*no common ground"):
        pairing.check_pair(scene("L", "landsat"), scene("S", "sentinel", left=500_000.0))
