import collections
import dataclasses
import json

import numpy as np
import pytest
import rasterio.warp
from export_settings import SETTINGS, change

from beam_jobs import plan
from beam_jobs.squares import Square
from harmonize_tf import sensors
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.sources import region
from harmonize_tf.sources.simulated import SimulatedSource


class Both(SimulatedSource):
    """A source of scenes of two levels."""

    def pairs(self):
        return [*dataclasses.replace(SimulatedSource(), level="sr").pairs(), *super().pairs()]


class Given(SimulatedSource):
    """A source with the pairs it is given."""

    def having(self, **attributes):
        for name, value in attributes.items():
            object.__setattr__(self, name, value)
        return self

    def pairs(self):
        return self.given


def ids(source, settings=SETTINGS):
    return {patch.id for patch in plan.make(source, settings).patches}


def test_levels_are_never_mixed():
    with pytest.raises(FlagError, match="never mixed.*--level.*sr, toa"):
        plan.make(Both(), SETTINGS)
    for level in ("sr", "toa"):
        planned = plan.make(Both(), change(level=level))
        assert planned.level == level
        assert {scene.level for square in planned.squares for scene in square.scenes} == {level}
        assert len(list(planned.patches)) == len(ids(SimulatedSource()))
    with pytest.raises(FlagError, match="level=sr"):
        plan.make(SimulatedSource(), change(level="sr"))


def test_the_panchromatic_band_comes_along_where_every_scene_has_one():
    toa, sr = SimulatedSource(level="toa"), SimulatedSource(level="sr")
    assert plan.make(toa, SETTINGS).pan and not plan.make(sr, SETTINGS).pan
    assert not plan.make(toa, change(pan=False)).pan
    with pytest.raises(FlagError, match="--nopan"):
        plan.make(sr, change(pan=True))


def test_scenes_without_a_partner_are_planned_only_when_there_is_no_pair():
    landsat, sentinel = SimulatedSource().pairs()[0]
    mixed = plan.make(Given().having(given=[(None, sentinel), (landsat, sentinel)]), SETTINGS)
    assert all(patch.landsat and patch.sentinel for patch in mixed.patches)
    alone = plan.make(Given().having(given=[(None, sentinel), (landsat, None)]), SETTINGS)
    sides = {(patch.landsat is None, patch.sentinel is None) for patch in alone.patches}
    assert sides == {(True, False), (False, True)}
    assert all(square.scenes in ((None, sentinel), (landsat, None)) for square in alone.squares)
    assert alone.pan
    assert not plan.make(Given().having(given=[(None, sentinel)]), SETTINGS).pan
    with pytest.raises(SceneError, match="no scenes"):
        plan.make(Given().having(given=[]), SETTINGS)


def test_bands_that_a_scene_lacks_are_named():
    with pytest.raises(SceneError, match="has no nir; .*blue, green, red"):
        plan.make(SimulatedSource(bands=("blue", "green", "red")), SETTINGS)


def test_a_near_infrared_of_20_m_has_to_be_declared_as_b8a():
    landsat, sentinel = SimulatedSource().pairs()[0]
    coarse = dataclasses.replace(sentinel, grids=sentinel.grids | {"nir": sentinel.grids["swir1"]})
    source = Given().having(given=[(landsat, coarse)])
    with pytest.raises(FlagError, match="pixels of 20 m, which makes it B8A; say so by --nir=B8A"):
        plan.make(source, SETTINGS)
    assert plan.make(source, change(nir="B8A")).shards


def test_shards_hold_whole_squares_and_never_more_patches_than_was_asked_for():
    source = SimulatedSource(size=15_360)
    for size, side in ((7, 4), (16, 4), (256, 3), (1, 16)):
        planned = plan.make(source, change(split=(0.6, 0.2, 0.2), shard_examples=size, request_side=side))
        counts = [sum(len(square.patches) for square in shard) for shard in planned.shards]
        assert max(counts) <= size
        assert sum(counts) == len(ids(source))
        # No shard could have taken in the next one's first square.
        following = [len(shard[0].patches) for shard in planned.shards[1:]]
        assert all(now + then > size for now, then in zip(counts[:-1], following, strict=True))
        largest = max(len(square.patches) for square in planned.squares)
        assert largest <= min(side**2, size)


def test_all_splits_are_in_one_shard_and_each_shard_is_a_sample_of_all_the_ground():
    planned = plan.make(SimulatedSource(size=30_720), change(split=(0.5, 0.25, 0.25), shard_examples=64))
    assert len(planned.shards) >= 4
    for shard in planned.shards[:-1]:
        patches = [patch for square in shard for patch in square.patches]
        assert {patch.split for patch in patches} == {"train", "val", "test"}
        # A quarter or less of the patches, but spread over more than half of the scene's 30 km.
        assert np.ptp([patch.left for patch in patches]) > 15_360 and np.ptp([patch.top for patch in patches]) > 15_360
    names = [square.id for square in planned.squares]
    assert names == sorted(names)


def test_the_written_plan_gives_back_each_shards_squares_by_its_range_of_bytes():
    planned = plan.make(SimulatedSource(), change(split=(0.5, 0.25, 0.25), shard_examples=6, request_side=2))
    content, tasks = planned.written()
    count = len(planned.shards)
    assert count > 2 and [task.shard for task in tasks] == [f"{i:05}-of-{count:05}" for i in range(count)]
    for task, shard in zip(tasks, planned.shards, strict=True):
        assert content[task.start : task.stop].endswith(b"\n")
        assert [Square.parse(line).line() for line in content[task.start : task.stop].splitlines()] == [
            square.line() for square in shard
        ]
        assert task.patches == sum(len(square.patches) for square in shard)
    assert (tasks[0].start, tasks[-1].stop) == (0, len(content))


def test_a_line_of_the_plan_names_what_other_programs_look_for():
    content, _ = plan.make(SimulatedSource(), SETTINGS).written()
    for line in map(json.loads, content.splitlines()):
        assert set(line) == {"landsat", "sentinel", "patches"}
        assert line["landsat"]["id"] == "simulated_landsat_seed0_day0"
        assert all(set(patch) == {"id", "split", "block", "crs", "left", "top"} for patch in line["patches"])


def test_a_place_seen_twice_is_in_one_split():
    planned = plan.make(SimulatedSource(days=(0, 16, 32)), change(split=(0.5, 0.25, 0.25)))
    places, blocks = collections.defaultdict(list), collections.defaultdict(set)
    for patch in planned.patches:
        places[patch.left, patch.top].append(patch.split)
        blocks[patch.block].add(patch.split)
    assert all(len(found) == 3 and len(set(found)) == 1 for found in places.values())
    assert all(len(found) == 1 for found in blocks.values())


def test_an_area_holds_the_centres_of_all_patches_and_no_more_are_planned():
    source = SimulatedSource()
    everywhere = list(plan.make(source, SETTINGS).patches)
    # About the western half of the scene, in degrees.
    area = region.parse("12.10,51.30,12.18,51.45")
    inside = list(plan.make(Given().having(given=source.pairs(), region=area), SETTINGS).patches)
    assert 0 < len(inside) < len(everywhere)
    assert max(patch.left for patch in inside) < max(patch.left for patch in everywhere)
    assert {patch.id for patch in inside} < {patch.id for patch in everywhere}


def test_a_split_that_gets_nothing_is_refused_with_what_helps():
    with pytest.raises(FlagError, match="fell into .*--split_block.*--seed"):
        plan.make(SimulatedSource(), change(split=(0.8, 0.1, 0.1), split_block=19_200))


def test_scenes_smaller_than_a_patch_are_refused():
    with pytest.raises(FlagError, match="no patch of 1920 m"):
        plan.make(SimulatedSource(size=1200), SETTINGS)


def test_plans_differ_where_the_content_does():
    def written(settings):
        return plan.make(SimulatedSource(), settings).written()[0]

    others = [change(seed=1), change(bands=sensors.BAND_SETS["rgb"]), change(pan=False), change(split=(1, 1, 1))]
    assert written(SETTINGS) == written(SETTINGS)
    assert len({written(other) for other in [SETTINGS, *others]}) == 5


def test_patches_keep_their_names_however_they_are_fetched_and_wherever_from():
    names = ids(SimulatedSource())
    for other in (
        change(source="earthengine"),
        change(request_side=1),
        change(shard_examples=3),
        change(split=(0.5, 0.25, 0.25)),
        change(split_block=3840),
        change(min_valid=0.2, max_shift=5, min_correlation=0.9),
    ):
        assert names <= ids(SimulatedSource(), other)
    for other in (change(seed=1), change(bands=sensors.BAND_SETS["rgb"]), change(pan=False), change(nir="B8A")):
        assert not names & ids(SimulatedSource(), other)


@dataclasses.dataclass(frozen=True)
class Region:
    """Pairs of an area, as Earth Engine's source gives them: nearest in time first."""

    region: str
    found: tuple

    def pairs(self):
        return self.found


def test_where_the_nearest_scene_shows_a_strip_only_the_next_one_shows_the_rest():
    landsat, sentinel = SimulatedSource(size=19_200).pairs()[0]
    west, south, east, north = rasterio.warp.transform_bounds(sentinel.grid.crs, "EPSG:4326", *sentinel.grid.bounds)
    middle = (west + east) / 2
    strip = {"type": "Polygon", "coordinates": [[[west, south], [middle, south], [middle, north], [west, north],
                                                 [west, south]]]}  # fmt: skip
    near = dataclasses.replace(sentinel, id="near", footprint=strip)
    far = dataclasses.replace(sentinel, id="far", time_ms=sentinel.time_ms + 2 * 86_400_000)
    area = region.parse(f"{west - 1},{south - 1},{east + 1},{north + 1}")
    patches = list(plan.make(Region(area, ((landsat, near), (landsat, far))), SETTINGS).patches)
    alone = list(plan.make(Region(area, ((landsat, far),)), SETTINGS).patches)
    places = {(p.left, p.top): p.sentinel for p in patches}
    assert len(places) == len(patches) == len(alone), "every place once"
    (border,), _ = rasterio.warp.transform("EPSG:4326", sentinel.grid.crs, [middle], [(south + north) / 2])
    assert {name for (left, _), name in places.items() if left + 1920 < border - 500} == {"near"}
    assert {name for (left, _), name in places.items() if left > border + 500} == {"far"}
