import collections
import dataclasses
import json
import random

import numpy as np
import pytest

from beam_jobs import summary
from harmonize_tf import radiometry
from harmonize_tf.records import Capture, Record
from harmonize_tf.sources.simulated import SimulatedSource

SCENES = SimulatedSource(size=1920).pairs()[0]
NAN = float("nan")


def record(number: int, split: str = "train", shift=(0.5, -1.0)) -> Record:
    rng = np.random.default_rng(number)
    landsat = Capture(
        rng.integers(900, 4000, (8, 8, 2), np.uint16), rng.integers(0, 2, (8, 8), np.uint8), "L", "p", "LANDSAT_8",
        pan=rng.integers(0, 3, (16, 16, 1), np.uint16) * 700,
    )  # fmt: skip
    sentinel = Capture(
        rng.integers(900, 4000, (24, 24, 2), np.uint16), np.ones((24, 24), np.uint8), "S", "p", "SENTINEL_2B"
    )
    transform = (10.0, 0.0, 0.0, 0.0, -10.0, 0.0)
    return Record(
        f"{number:04}", split, "b", "s", "toa", ("red", "nir"), "EPSG:32633", transform, landsat, sentinel,
        shift_m=shift,
    )  # fmt: skip


def described(items, parts: int = 1, scenes=SCENES) -> dict:
    """As a job would: added up shard by shard, through their manifests."""
    shards = [collections.Counter() for _ in range(parts)]
    for number, item in enumerate(items):
        shards[number % parts].update(summary.of(item, scenes))
    total = collections.Counter()
    for shard in shards:
        total.update(summary.from_json(json.loads(json.dumps(summary.to_json(shard)))))
    return summary.described(total)


def test_statistics_are_those_of_numpy_over_the_train_splits_clear_pixels():
    items = [record(n, "train" if n % 3 else "test") for n in range(9)]
    found = described(items)["statistics"]
    train = [item for item in items if item.split == "train"]
    clear = np.concatenate([radiometry.decode(r.landsat.ms[r.landsat.valid > 0]).astype(float) for r in train])
    np.testing.assert_allclose(found["landsat"]["mean"], clear.mean(0), atol=1e-7)
    np.testing.assert_allclose(found["landsat"]["std"], clear.std(0), atol=1e-7)
    pan = np.concatenate(
        [r.landsat.pan[(r.landsat.pan[..., 0] > 0) & (np.kron(r.landsat.valid, np.ones((2, 2))) > 0)] for r in train]
    )
    np.testing.assert_allclose(found["pan"]["mean"], radiometry.decode(pan).mean(dtype=float), atol=1e-7)
    np.testing.assert_allclose(found["pan"]["std"], radiometry.decode(pan).std(dtype=float), atol=1e-7)
    assert len(found["sentinel"]["std"]) == 2 and len(found["pan"]["std"]) == 1


def test_without_a_train_split_statistics_are_over_everything():
    items = [record(n, ("val", "test")[n % 2]) for n in range(3)]
    codes = np.concatenate([radiometry.decode(r.sentinel.ms).reshape(-1, 2).astype(float) for r in items])
    np.testing.assert_allclose(described(items)["statistics"]["sentinel"]["mean"], codes.mean(0), atol=1e-7)


def test_the_summary_does_not_depend_on_the_order_in_which_shards_are_made():
    items = [record(n, ("train", "val")[n % 2], (n * 0.5, -n * 1.5)) for n in range(12)]
    expected = json.dumps(described(items))
    for seed in range(5):
        random.Random(seed).shuffle(items)
        assert json.dumps(described(items, parts=seed + 1)) == expected


def test_sums_as_a_manifest_holds_them_do_not_depend_on_the_order_either():
    items = [record(n, ("train", "val")[n % 2], (n * 0.5, -n)) for n in range(6)]
    texts = set()
    for order in (items, items[::-1]):
        total = collections.Counter()
        for item in order:
            total.update(summary.of(item, SCENES))
        texts.add(json.dumps(summary.to_json(total)))
        assert summary.from_json(json.loads(json.dumps(summary.to_json(total)))) == total
    assert len(texts) == 1


def test_shifts_are_told_by_median_and_ninetieth_percentile():
    shifts = [(1.0, 2.0), (3.0, -2.0), (-8.5, 0.5), (NAN, NAN)]
    found = described([record(n, shift=shift) for n, shift in enumerate(shifts)])["shift_m"]
    assert found["median"] == [1.0, 0.5] and found["patches"] == 3
    assert found["p90"] == pytest.approx(np.percentile(np.hypot(*np.array(shifts[:3]).T), 90), abs=1e-3)
    assert described([record(0, shift=(NAN, NAN))])["shift_m"] is None


def test_equal_shifts_count_as_often_as_they_are():
    shifts = [(0.0, 0.0)] * 8 + [(6.0, 8.0)] * 3
    found = described([record(n, shift=shift) for n, shift in enumerate(shifts)])["shift_m"]
    assert found == {"median": [0.0, 0.0], "p90": 10.0, "patches": 11}


def test_counts_and_spacecraft_are_counted():
    found = described([record(0), record(1, "val"), record(2)])
    assert found["counts"] == {"train": 2, "val": 1, "test": 0}
    assert found["spacecraft"] == {"landsat": {"LANDSAT_8": 3}, "sentinel": {"SENTINEL_2B": 3}}
    assert found["masks"] == {"landsat": {}, "sentinel": {}}, "the scenes do not tell"


def test_what_masks_are_made_of_is_counted_by_sensor():
    masks = ({"masks": ("QA_PIXEL",)}, {"masks": ("SCL", "Cloud Score+")})
    scenes = tuple(dataclasses.replace(scene, **more) for scene, more in zip(SCENES, masks, strict=True))
    found = described([record(0), record(1)], scenes=scenes)["masks"]
    assert found == {"landsat": {"QA_PIXEL": 2}, "sentinel": {"SCL and Cloud Score+": 2}}


def test_a_record_of_one_side_tells_of_that_side_only():
    alone = dataclasses.replace(record(0), landsat=None, shift_m=(NAN, NAN))
    found = described([alone], scenes=(None, SCENES[1]))
    assert found["spacecraft"] == {"landsat": {}, "sentinel": {"SENTINEL_2B": 1}}
    assert set(found["statistics"]) == {"sentinel"}


def test_nothing_at_all_is_described_too():
    assert described([])["counts"] == {"train": 0, "val": 0, "test": 0}
    assert described([])["statistics"] == {} and described([])["shift_m"] is None
