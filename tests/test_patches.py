import collections
import dataclasses
import hashlib
import json

import numpy as np
import pytest

from harmonize_tf import geometry, patches
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Scene
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
