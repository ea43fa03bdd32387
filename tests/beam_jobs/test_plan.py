import collections
import dataclasses

import pytest

from beam_jobs import plan
from beam_jobs.plan import Settings
from harmonize_tf import sensors
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.sources.simulated import SimulatedSource

SETTINGS = Settings(
    source="simulated", scenes=(), bands=sensors.BAND_SETS["rgbn"], level=None, nir="B8", pan=None, split=(1, 0, 0),
    split_block=1920, seed=0, max_days=5, min_valid=0.5, max_shift=20, min_correlation=0.5, shard_examples=256,
)  # fmt: skip


class Both(SimulatedSource):
    """A source of scenes of two levels."""

    def pairs(self):
        return [*dataclasses.replace(SimulatedSource(), level="sr").pairs(), *super().pairs()]


class Given(SimulatedSource):
    """A source with the pairs it is given."""

    def with_pairs(self, pairs):
        object.__setattr__(self, "given", pairs)
        return self

    def pairs(self):
        return self.given


def change(**settings) -> Settings:
    return dataclasses.replace(SETTINGS, **settings)


def test_levels_are_never_mixed():
    with pytest.raises(FlagError, match="never mixed.*--level.*sr, toa"):
        plan.make(Both(), SETTINGS)
    for level in ("sr", "toa"):
        planned = plan.make(Both(), change(level=level))
        assert planned.level == level
        assert len(planned.patches) == len(plan.make(SimulatedSource(), SETTINGS).patches)
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
    mixed = plan.make(Given().with_pairs([(None, sentinel), (landsat, sentinel)]), SETTINGS)
    assert all(patch.landsat and patch.sentinel for patch in mixed.patches)
    alone = plan.make(Given().with_pairs([(None, sentinel), (landsat, None)]), SETTINGS)
    assert {(patch.landsat is None, patch.sentinel is None) for patch in alone.patches} == {
        (True, False),
        (False, True),
    }
    assert alone.pan
    assert not plan.make(Given().with_pairs([(None, sentinel)]), SETTINGS).pan
    with pytest.raises(SceneError, match="no scenes"):
        plan.make(Given().with_pairs([]), SETTINGS)


def test_bands_that_a_scene_lacks_are_named():
    with pytest.raises(SceneError, match="has no nir; .*blue, green, red"):
        plan.make(SimulatedSource(bands=("blue", "green", "red")), SETTINGS)


def test_shards_are_filled_evenly_and_hold_one_split_each():
    planned = plan.make(SimulatedSource(size=15_360), change(split=(0.6, 0.2, 0.2), shard_examples=7))
    counts = collections.Counter(planned.shards.values())
    for split in ("train", "val", "test"):
        sizes = [n for shard, n in counts.items() if shard.startswith(split)]
        assert max(sizes) <= 7 and max(sizes) - min(sizes) <= 1
        names = sorted(shard for shard in counts if shard.startswith(split))
        assert names == [f"{split}/{i:05}-of-{len(names):05}" for i in range(len(names))]
    assert all(planned.shards[patch.id].startswith(patch.split) for patch in planned.patches)
    assert sum(counts.values()) == len(planned.patches)


def test_a_place_seen_twice_is_in_one_split():
    planned = plan.make(SimulatedSource(days=(0, 16, 32)), change(split=(0.5, 0.25, 0.25)))
    places, blocks = collections.defaultdict(list), collections.defaultdict(set)
    for patch in planned.patches:
        places[patch.left, patch.top].append(patch.split)
        blocks[patch.block].add(patch.split)
    assert all(len(found) == 3 and len(set(found)) == 1 for found in places.values())
    assert all(len(found) == 1 for found in blocks.values())


def test_a_split_that_gets_nothing_is_refused_with_what_helps():
    with pytest.raises(FlagError, match="fell into .*--split_block.*--seed"):
        plan.make(SimulatedSource(), change(split=(0.8, 0.1, 0.1), split_block=19_200))


def test_scenes_smaller_than_a_patch_are_refused():
    with pytest.raises(FlagError, match="no patch of 1920 m"):
        plan.make(SimulatedSource(size=1200), SETTINGS)


def test_the_fingerprint_tells_plans_apart():
    first = plan.make(SimulatedSource(), SETTINGS)
    assert first.sha256() == plan.make(SimulatedSource(), SETTINGS).sha256()
    others = [change(seed=1), change(bands=sensors.BAND_SETS["rgb"]), change(pan=False), change(split=(1, 1, 1))]
    assert len({plan.make(SimulatedSource(), other).sha256() for other in others} | {first.sha256()}) == 5


def test_attributes_of_simulated_scenes_come_from_a_file(tmp_path):
    path = tmp_path / "scenes.json"
    path.write_text('{"clouds": 0.5, "days": [0, 16]}')
    source = plan.open_source(change(scenes=(str(path),), seed=5))
    assert source == SimulatedSource(seed=5, clouds=0.5, days=(0, 16))
    for text in ("{", '{"cloudz": 1}', "[1]"):
        path.write_text(text)
        with pytest.raises(FlagError, match="JSON object with any of seed, bands"):
            plan.open_source(change(scenes=(str(path),)))


def test_sources_of_files_need_paths_that_exist():
    with pytest.raises(FlagError, match="needs --scenes"):
        plan.open_source(change(source="geotiff"))
    with pytest.raises(FlagError, match="no such file or folder.*nowhere"):
        plan.open_source(change(source="degraded", scenes=("nowhere",)))
