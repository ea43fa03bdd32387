import collections
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import rasterio.warp
from skimage.measure import points_in_poly

from harmonize_tf import geometry, patches
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Scene, region
from harmonize_tf.sources.simulated import SimulatedSource

DEFAULTS = {"split_block": 3840, "fractions": (0.8, 0.1, 0.1), "seed": 0}


def scene(sensor: str, crs: str, left: float, top: float, width: float, height: float, name: str = "s") -> Scene:
    pixel = 30.0 if sensor == "landsat" else 10.0
    grid = Grid(crs, left, top, (pixel, pixel), (round(height / pixel), round(width / pixel)))
    return Scene(name, sensor, "toa", "p", "LANDSAT_8", 0, {"red": grid})


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32733"])
def test_patches_are_cells_of_a_lattice_whose_corners_are_corners_of_the_pair_grid(crs):
    landsat, sentinel = SimulatedSource(crs=crs).pairs()[0]
    cells = list(patches.cells(landsat, sentinel, 0.9))
    assert len(cells) >= 4
    grid = geometry.pair_grid(sentinel.grid)
    for cell in cells:
        patch = patches.patch_at(cell, (landsat, sentinel), {}, **DEFAULTS)
        row, column = patch.grid.offset_in(grid)
        assert row % 3 == 0 and column % 3 == 0, "30 m cells of patches and of the pair grid are the same"
        assert patch.crs == crs and patch.grid.shape == (192, 192)
        assert (patch.left - 10) % 1920 == 0


def test_enough_of_each_patch_lies_under_both_scenes_and_no_such_patch_is_left_out():
    landsat = scene("landsat", "EPSG:32633", 299_985, 5_700_015, 9_000, 8_010)
    sentinel = scene("sentinel", "EPSG:32633", 302_000, 5_699_000, 12_000, 9_000)
    left, right, bottom, top = 302_000, 308_985, 5_692_005, 5_699_000

    def inside(column: int, row: int) -> float:
        """Share of 96 x 96 sample points within the common rectangle."""
        east = 10 + 1920 * column + (np.arange(96) + 0.5) * 20
        north = 10 + 1920 * row + (np.arange(96) + 0.5) * 20
        return ((east > left) & (east < right)).mean() * ((north > bottom) & (north < top)).mean()

    for share in (0.05, 0.5, 0.9):
        found = {(column, row) for _, column, row in patches.cells(landsat, sentinel, share)}
        everywhere = [(c, r) for c in range(150, 170) for r in range(2955, 2975)]
        sure = {cell for cell in everywhere if inside(*cell) > share + 0.02}
        possible = {cell for cell in everywhere if inside(*cell) > share - 0.02}
        assert sure <= found <= possible and sure


def test_landsat_in_the_northern_zone_of_the_south_meets_sentinel():
    sentinel = scene("sentinel", "EPSG:32733", 300_000, 9_900_000, 7_680, 7_680)
    landsat = scene("landsat", "EPSG:32633", 299_985, -99_985, 7_740, 7_740)
    together, alone = (list(patches.cells(other, sentinel, 1.0)) for other in (landsat, None))
    assert together == alone and len(together) >= 9


def test_scenes_without_common_ground_are_refused():
    first = scene("landsat", "EPSG:32633", 300_000, 5_700_000, 6_000, 6_000, "north")
    second = scene("sentinel", "EPSG:32633", 300_000, 5_600_000, 6_000, 6_000, "south")
    with pytest.raises(SceneError, match="landsat=north, sentinel=south"):
        list(patches.cells(first, second, 0.5))


def centre(cell):
    """Longitude and latitude [1, 2]."""
    crs, *place = cell
    east, north = ([o + 1920 * (i + 0.5)] for o, i in zip(geometry.lattice_origin(crs), place, strict=True))
    return np.stack(rasterio.warp.transform(crs, "EPSG:4326", east, north), axis=1)


@pytest.mark.parametrize(("crs", "sensor"), [("EPSG:32633", "landsat"), ("EPSG:32733", "sentinel")])
def test_a_patch_of_which_a_footprint_covers_too_little_is_left_out_and_no_other(crs, sensor):
    # 5 degrees of longitude at 70 degrees of latitude: straight in degrees, the long edge bends by 2 km in UTM.
    sign = 1 if crs == "EPSG:32633" else -1
    ring = [[12.5, sign * 70.0], [18.0, sign * 69.9], [17.0, sign * 70.4], [15.5, sign * 70.1], [12.5, sign * 70.0]]
    (east,), (north,) = rasterio.warp.transform("EPSG:4326", crs, [15.25], [sign * 70.1])
    left, top = 60 * round(east / 60) - 120_000, 60 * round(north / 60) + 45_000
    large = {name: scene(name, crs, left, top, 240_000, 90_000) for name in ("landsat", "sentinel")}
    everywhere = set(patches.cells(large["landsat"], large["sentinel"], 0.5))
    large[sensor] = dataclasses.replace(large[sensor], footprint={"type": "Polygon", "coordinates": [ring]})
    found = set(patches.cells(large["landsat"], large["sentinel"], 0.5))
    points = (np.indices((24, 24)).reshape(2, -1).T + 0.5) / 24  # within a patch
    origin = geometry.lattice_origin(crs)
    for cell in everywhere:
        at = (np.array(cell[1:]) + points) * 1920 + origin
        share = points_in_poly(np.stack(rasterio.warp.transform(crs, "EPSG:4326", *at.T), axis=1), ring).mean()
        if abs(share - 0.25) > 0.13:  # of the half that is asked for, half; quarters of a side are looked at
            assert (cell in found) == (share > 0.25)
    assert 10 < len(found) < len(everywhere) / 3


def test_both_footprints_and_all_their_polygons_count():
    pair = [scene(name, "EPSG:32633", 300_000, 5_700_000, 60_000, 60_000) for name in ("landsat", "sentinel")]
    rings = [[[12.2, 51], [12.4, 51], [12.4, 51.3], [12.2, 51]], [[12.5, 51], [12.8, 51], [12.8, 51.3], [12.5, 51]]]
    both = {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}
    first, second = ({"type": "Polygon", "coordinates": [ring]} for ring in rings)

    def found(landsat, sentinel):
        scenes = (dataclasses.replace(s, footprint=f) for s, f in zip(pair, (landsat, sentinel), strict=True))
        return set(patches.cells(*scenes, 0.5))

    assert found(both, None) == found(first, None) | found(None, second)
    assert found(both, second) == found(second, None) and found(first, None)
    assert not found(first, second)


def test_a_patch_belongs_to_an_area_when_its_centre_does():
    crs = "EPSG:32633"
    pair = [scene(name, crs, 300_000, 5_700_000, 60_000, 60_000) for name in ("landsat", "sentinel")]
    triangle = [[12.2, 50.95], [12.9, 51.0], [12.5, 51.4], [12.2, 50.95]]
    area = json.dumps({"type": "MultiPolygon", "coordinates": [[triangle], [[[0, 0], [1, 0], [1, 1], [0, 0]]]]})
    everywhere = set(patches.cells(*pair, 0.9))
    inside = {cell for cell in everywhere if points_in_poly(centre(cell), triangle)[0]}
    assert set(patches.cells(*pair, 0.9, area)) == inside and 50 < len(inside) < len(everywhere) / 2
    tiny = region.parse("12.5,51.1,12.501,51.101")
    assert not list(patches.cells(*pair, 0.9, tiny))


def test_of_two_rows_the_one_whose_footprint_shows_the_place_stays():
    def row(name, south):
        """A Landsat row: a large rectangle, the footprint a part of it."""
        made = scene("landsat", "EPSG:32633", 300_000, 5_700_000, 60_000, 60_000, name)
        corners = [(300_000, south), (360_000, south), (360_000, south + 25_000), (300_000, south + 25_000)]
        ring = np.stack(rasterio.warp.transform("EPSG:32633", "EPSG:4326", *np.array([*corners, corners[0]]).T), axis=1)
        return dataclasses.replace(
            made, footprint={"type": "Polygon", "coordinates": [ring.tolist()]}, time_ms=1_654_596_000_000
        )

    first, second = row("a", 5_670_000), row("b", 5_650_000)
    sentinel = dataclasses.replace(
        scene("sentinel", "EPSG:32633", 300_000, 5_700_000, 60_000, 60_000, "s"), time_ms=1_654_596_000_000
    )
    found = [
        patches.patch_at(cell, (landsat, sentinel), {}, **DEFAULTS)
        for landsat in (first, second)
        for cell in patches.cells(landsat, sentinel, 0.5)
    ]
    kept = patches.once(found, {(s.sensor, s.id): s for s in (first, second, sentinel)})
    assert len(kept) < len(found)
    for patch in kept:
        centre = patch.top - 960
        inside = {"a": 5_670_000 < centre < 5_695_000, "b": 5_650_000 < centre < 5_675_000}
        assert inside[patch.landsat] or not any(inside.values())


@pytest.mark.parametrize(
    ("lower", "upper", "axis", "longitude", "latitude"),
    [
        ("EPSG:32632", "EPSG:32633", 0, 12.0, 51.0),
        ("EPSG:32760", "EPSG:32701", 0, 180.0, -17.0),
        ("EPSG:32733", "EPSG:32633", 1, 15.0, 0.0),
        ("EPSG:32631", "EPSG:32632", 0, 3.0, 60.0),  # Norway: 32V begins three degrees further west
        ("EPSG:32633", "EPSG:32635", 0, 21.0, 78.0),  # Svalbard: there is no 34X
    ],
)
def test_where_zones_meet_each_place_comes_once_and_in_its_own_zone(lower, upper, axis, longitude, latitude):
    random = np.random.default_rng(0)
    km = random.uniform(-10, 10, (300, 2))  # east and north of a place on the border
    km = km[np.abs(km[:, axis]) > 1.5]  # nearer than half a cell's diagonal both zones' cells may reach
    places = np.array([longitude, latitude]) + km / 111.2 / [np.cos(np.radians(latitude)), 1]
    places[:, 0] = (places[:, 0] + 180) % 360 - 180

    def covered(crs, area):
        """Whether each place lies in a cell of a tile that reaches over the border."""
        (east,), (north,) = rasterio.warp.transform("EPSG:4326", crs, [longitude], [latitude])
        middle = north + (5_000 if crs == upper else -5_000)
        tile = scene("sentinel", crs, 10 * round(east / 10) - 20e3, 10 * round(middle / 10) + 20e3, 40e3, 40e3)
        cells = {cell[1:] for cell in patches.cells(None, tile, 0.9, area)}
        at = np.stack(rasterio.warp.transform("EPSG:4326", crs, *places.T), axis=1) - geometry.lattice_origin(crs)
        return np.array([tuple(cell) in cells for cell in (at // 1920).astype(int).tolist()])

    world = region.parse("-180,-80,180,84")
    assert covered(lower, None).all() and covered(upper, None).all()
    np.testing.assert_array_equal(covered(lower, world), km[:, axis] < 0)
    np.testing.assert_array_equal(covered(upper, world), km[:, axis] > 0)


@pytest.mark.parametrize(("crs", "neighbour"), [("EPSG:32633", "EPSG:32632"), ("EPSG:32733", "EPSG:32632")])
def test_a_landsat_scene_of_the_neighbouring_zone_covers_what_lies_within_its_rectangle_there(crs, neighbour):
    sentinel = scene("sentinel", crs, 300_000, 5_700_000 if crs == "EPSG:32633" else 8_300_000, 40_020, 40_020)
    corner = sentinel.grid.left, sentinel.grid.top
    (east,), (north,) = rasterio.warp.transform(crs, neighbour, *([axis] for axis in corner))
    left, top = 30 * round(east / 30) + 15, 30 * round(north / 30) + 15
    around = scene("landsat", neighbour, left - 30_000, top + 30_000, 99_990, 99_990)
    assert set(patches.cells(around, sentinel, 0.9)) == set(patches.cells(None, sentinel, 0.9))
    part = scene("landsat", neighbour, left + 9_000, top - 9_000, 12_000, 15_000)
    edge = np.linspace(0, 1, 400)
    x = left + 9_000 + 12_000 * np.concatenate([edge, edge, 0 * edge, 0 * edge + 1])
    y = top - 9_000 - 15_000 * np.concatenate([0 * edge, 0 * edge + 1, edge, edge])
    x, y = np.array(rasterio.warp.transform(neighbour, crs, x, y))
    same = scene("landsat", crs, x.min(), y.max(), round(np.ptp(x), -1), round(np.ptp(y), -1))
    assert list(patches.cells(part, sentinel, 0.7)) == list(patches.cells(same, sentinel, 0.7)) != []


def test_a_place_is_in_one_block_and_split_whatever_looks_at_it():
    crs = "EPSG:32633"
    pairs = [
        (scene("landsat", crs, 299_985, 5_700_015, 9_000, 9_000, "a"), None),
        (None, scene("sentinel", crs, 300_000, 5_700_000, 12_000, 12_000, "b")),
        (
            scene("landsat", crs, 300_015, 5_699_985, 9_000, 9_000, "c"),
            scene("sentinel", crs, 300_000, 5_700_000, 9_000, 9_000, "d"),
        ),
    ]
    seen = collections.defaultdict(set)
    ids = []
    for pair in pairs:
        for cell in patches.cells(*pair, 0.9):
            patch = patches.patch_at(cell, pair, {"source": "x"}, **DEFAULTS)
            seen[patch.left, patch.top].add((patch.block, patch.split))
            ids.append(patch.id)
    assert all(len(names) == 1 for names in seen.values())
    assert len(ids) == len(set(ids)) > len(seen)


@pytest.mark.parametrize("split_block", [1920, 3840, 19_200])
def test_blocks_are_squares_of_the_size_asked_for_and_never_in_two_splits(split_block):
    members, splits = collections.defaultdict(set), collections.defaultdict(set)
    pair = (None, scene("sentinel", "EPSG:32633", 0, 0, 10, 10))
    for column in range(-20, 20):
        for row in range(-20, 20):
            settings = DEFAULTS | {"split_block": split_block}
            patch = patches.patch_at(("EPSG:32633", column, row), pair, {}, **settings)
            members[patch.block].add((column, row))
            splits[patch.block].add(patch.split)
    side = split_block // 1920
    assert {len(cells) for cells in members.values()} == {side**2}
    assert all(max(c) - min(c) == side - 1 for cells in members.values() for c in zip(*cells, strict=True))
    assert all(len(found) == 1 for found in splits.values())


def test_splits_follow_the_shares_and_the_seed():
    blocks = [f"EPSG:32633/{i}/{i // 7}" for i in range(4000)]
    counts = collections.Counter(patches.split_of(block, (0.7, 0.2, 0.1), 3) for block in blocks)
    expected = {"train": 2800, "val": 800, "test": 400}
    # Five standard deviations of a binomial count.
    assert all(abs(counts[s] - n) < 5 * (n * (1 - n / 4000)) ** 0.5 for s, n in expected.items())
    assert {patches.split_of(block, (0, 0, 2), 0) for block in blocks[:50]} == {"test"}
    other = [patches.split_of(block, (0.7, 0.2, 0.1), 4) for block in blocks]
    assert other != [patches.split_of(block, (0.7, 0.2, 0.1), 3) for block in blocks]


def test_the_id_is_the_hash_of_place_scenes_and_content_and_not_of_the_split():
    pair = (scene("landsat", "EPSG:32633", 0, 0, 30, 30, "L"), None)
    first, second = (
        patches.patch_at(("EPSG:32633", 157, 2968), pair, {"bands": ("red",)}, **DEFAULTS | {"seed": seed})
        for seed in (1, 2)
    )
    spec = {"bands": ["red"], "crs": "EPSG:32633", "landsat": "L", "left": 301450.0, "sentinel": None}
    text = json.dumps(spec | {"top": 5700490.0}, sort_keys=True, separators=(",", ":"))
    assert first.id == second.id == hashlib.sha256(text.encode()).hexdigest()[:20]
    assert (first.left, first.top) == (10 + 157 * 1920, 10 + 2969 * 1920)
    other = patches.patch_at(("EPSG:32633", 157, 2968), pair, {"bands": ("blue",)}, **DEFAULTS)
    assert other.id != first.id
    assert dataclasses.replace(first, split="val").grid == first.grid


@pytest.mark.parametrize("split", [(0.8, 0.2), (0.5, 0.6, -0.1), (0, 0, 0), (1, 0, 0, 0)])
def test_shares_that_make_no_sense_are_refused(split):
    with pytest.raises(FlagError, match="three shares"):
        patches.check_split(split, 1920)


@pytest.mark.parametrize("split_block", [0, -1920, 1000, 2000])
def test_blocks_that_patches_do_not_fill_are_refused(split_block):
    with pytest.raises(FlagError, match="multiple of a patch's 1920 m"):
        patches.check_split((1, 0, 0), split_block)


def test_an_empty_split_is_refused_only_when_it_should_have_a_share():
    patches.check_all_splits_filled({"train": 3}, (1, 0, 0), "")
    with pytest.raises(FlagError, match=r"fell into val and test \(3 train, 0 val, 0 test\)\. Do this\."):
        patches.check_all_splits_filled({"train": 3}, (0.8, 0.1, 0.1), "Do this.")


MINUTE = 60_000


def observation(name, sensor, left, minutes, spacecraft):
    """A scene of 9,000 m at some time after the first."""
    found = scene(sensor, "EPSG:32633", left, 5_700_000, 9_000, 9_000, name)
    time = 0 if minutes is None else 19_000 * 1440 * MINUTE + round(minutes * MINUTE)
    return dataclasses.replace(found, time_ms=time, spacecraft=spacecraft)


def patches_of(pairs, min_inside=0.5):
    return [patches.patch_at(cell, pair, {}, **DEFAULTS) for pair in pairs for cell in patches.cells(*pair, min_inside)]


def by_name(scenes):
    return {(scene.sensor, scene.id): scene for scene in scenes if scene is not None}


def chosen(pairs, min_inside=0.5):
    """Scenes that are left at each place, west to east, of one row."""
    scenes = by_name(scene for pair in pairs for scene in pair)
    kept = patches.once(patches_of(pairs, min_inside), scenes)
    assert [patch.id for patch in kept] == sorted(patch.id for patch in kept)
    row = max(patch.top for patch in kept)
    return sorted((patch.left, patch.landsat, patch.sentinel) for patch in kept if patch.top == row)


def test_of_overlapping_tiles_of_one_pass_each_place_comes_from_the_one_that_it_lies_most_inside():
    landsat = observation("L", "landsat", 299_530, 0, "LANDSAT_8")
    west = observation("b", "sentinel", 297_610, 30, "SENTINEL_2A")  # to 306,610: has the cell at 305,290 by 0.69
    east = observation("z", "sentinel", 302_000, 30.2, "SENTINEL_2A")  # has the cell at 301,450 by 0.71
    kept = chosen([(landsat, east), (landsat, west)])
    assert [left for left, *_ in kept] == [299_530, 301_450, 303_370, 305_290, 307_210]
    assert [sentinel for *_, sentinel in kept] == ["b", "b", "b", "z", "z"]  # 303,370 in both: the smaller id
    assert [sentinel for *_, sentinel in chosen([(landsat, west)])] == ["b"] * 4
    rows = [observation(name, "landsat", left, i / 2, "LANDSAT_8")
            for i, (name, left) in enumerate((("north", 302_000), ("south", 297_610)))]  # fmt: skip
    assert [name for _, name, _ in chosen([(row, None) for row in rows])] == ["south"] * 3 + ["north"] * 4


@pytest.mark.parametrize(
    ("spacecraft", "minutes", "count"),
    [
        ("SENTINEL_2A", 9.9, 1),
        ("SENTINEL_2A", 10.1, 2),
        ("SENTINEL_2A", 1440, 2),
        ("SENTINEL_2B", 1, 2),
        ("SENTINEL_2A", None, 2),  # not known
    ],
)
def test_one_pass_is_one_spacecraft_and_less_than_ten_minutes(spacecraft, minutes, count):
    landsat = observation("L", "landsat", 300_000, 0, "LANDSAT_8")
    first = observation("S", "sentinel", 300_000, 0, "SENTINEL_2A")
    second = observation("T", "sentinel", 300_000, minutes, spacecraft)
    places = {left for left, *_ in chosen([(landsat, first)])}
    for pairs in ([(landsat, first), (landsat, second)], [(None, first), (None, second)]):
        found = collections.Counter(left for left, *_ in chosen(pairs))
        assert found == dict.fromkeys(places, count)


def test_scenes_of_unknown_time_are_never_the_same_observation():
    scenes = [observation(name, "landsat", 300_000, None, "LANDSAT_8") for name in "abc"]
    assert len(patches.once(patches_of([(s, None) for s in scenes]), by_name(scenes))) == 3 * len(
        patches_of([(scenes[0], None)])
    )


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_is_what_comparing_each_two_patches_leaves_in_any_order(seed):
    random = np.random.default_rng(seed)

    def some(sensor, crafts):
        return [
            observation(f"{sensor[0]}{i}", sensor, 300_000 + 10 * int(random.integers(-300, 300)),
                        random.choice([0, 4, 8, 1440, 1448, None]), str(random.choice(crafts)))
            for i in range(6)
        ]  # fmt: skip

    landsat, sentinel = some("landsat", ["LANDSAT_8", "LANDSAT_9"]), some("sentinel", ["SENTINEL_2A", "SENTINEL_2B"])
    pairs = [(a, b) for a in landsat for b in sentinel] + [(a, None) for a in landsat] + [(None, b) for b in sentinel]
    found, scenes = patches_of(pairs, 0.1), by_name(landsat + sentinel)

    def day(sensor, name):
        """Of the days above, all passes are within 8 minutes of one another."""
        scene = scenes.get((sensor, name))
        return scene and (scene.spacecraft, scene.time_ms // (1440 * MINUTE) if scene.time_ms else name)

    def inside(patch):
        grids = [scenes[k].grid for k in (("landsat", patch.landsat), ("sentinel", patch.sentinel)) if k[1]]
        low, high = max(g.bounds[0] for g in grids), min(g.bounds[2] for g in grids)
        bottom, top = max(g.bounds[1] for g in grids), min(g.bounds[3] for g in grids)
        wide = min(patch.left + 1920, high) - max(patch.left, low)
        return wide * (min(patch.top, top) - max(patch.top - 1920, bottom))

    def better(a, b):
        """Whether `a` takes the place of `b`."""
        same = (a.left, a.top, day("landsat", a.landsat), day("sentinel", a.sentinel)) == (
            b.left, b.top, day("landsat", b.landsat), day("sentinel", b.sentinel))  # fmt: skip
        first, second = ((-inside(p), p.landsat or "", p.sentinel or "") for p in (a, b))
        return same and first < second

    places = collections.defaultdict(list)
    for patch in found:
        places[patch.left, patch.top].append(patch)
    expected = [b for group in places.values() for b in group if not any(better(a, b) for a in group)]
    assert len(expected) < 0.9 * len(found)
    for _ in range(3):
        shuffled = [found[i] for i in random.permutation(len(found))]
        names = [list(scenes)[i] for i in random.permutation(len(scenes))]
        assert patches.once(iter(shuffled), {name: scenes[name] for name in names}) == sorted(expected)
