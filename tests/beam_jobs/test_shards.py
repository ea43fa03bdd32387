import gzip
import json
import random

import numpy as np
import pytest

from beam_jobs import shards
from harmonize_tf import radiometry, records
from harmonize_tf.errors import FlagError
from harmonize_tf.records import Capture, Record


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


def summary(items, parts: int = 1) -> dict:
    """As a runner would: added up in parts, then merged."""
    combine = shards.Summarise()
    accumulators = [combine.create_accumulator() for _ in range(parts)]
    for number, item in enumerate(items):
        accumulators[number % parts] = combine.add_input(accumulators[number % parts], item)
    return combine.extract_output(combine.merge_accumulators(accumulators))


def test_statistics_are_those_of_numpy_over_the_train_splits_clear_pixels():
    items = [record(n, "train" if n % 3 else "test") for n in range(9)]
    found = summary(items)["statistics"]
    train = [item for item in items if item.split == "train"]
    clear = np.concatenate([radiometry.decode(r.landsat.ms[r.landsat.valid > 0]).astype(float) for r in train])
    np.testing.assert_allclose(found["landsat"]["mean"], clear.mean(0), atol=1e-7)
    np.testing.assert_allclose(found["landsat"]["std"], clear.std(0), atol=1e-7)
    pan = np.concatenate(
        [r.landsat.pan[(r.landsat.pan[..., 0] > 0) & (np.kron(r.landsat.valid, np.ones((2, 2))) > 0)] for r in train]
    )
    np.testing.assert_allclose(found["pan"]["mean"], radiometry.decode(pan).mean(dtype=float), atol=1e-7)
    assert len(found["sentinel"]["std"]) == 2 and len(found["pan"]["std"]) == 1


def test_without_a_train_split_statistics_are_over_everything():
    items = [record(n, "test") for n in range(3)]
    codes = np.concatenate([radiometry.decode(r.sentinel.ms).reshape(-1, 2).astype(float) for r in items])
    np.testing.assert_allclose(summary(items)["statistics"]["sentinel"]["mean"], codes.mean(0), atol=1e-7)


def test_the_summary_does_not_depend_on_the_order_in_which_a_runner_adds():
    items = [record(n, ("train", "val")[n % 2], (n * 0.5, -n * 1.5)) for n in range(12)]
    expected = json.dumps(summary(items))
    for seed in range(5):
        random.Random(seed).shuffle(items)
        assert json.dumps(summary(items, parts=seed + 1)) == expected


def test_shifts_are_told_by_median_and_ninetieth_percentile():
    nan = float("nan")
    shifts = [(1.0, 2.0), (3.0, -2.0), (-8.5, 0.5), (nan, nan)]
    found = summary([record(n, shift=shift) for n, shift in enumerate(shifts)])["shift_m"]
    assert found["median"] == [1.0, 0.5] and found["patches"] == 3
    assert found["p90"] == pytest.approx(np.percentile(np.hypot(*np.array(shifts[:3]).T), 90), abs=1e-3)
    assert summary([record(0, shift=(nan, nan))])["shift_m"] is None


def test_counts_and_spacecraft_are_counted():
    found = summary([record(0), record(1, "val"), record(2)])
    assert found["counts"] == {"train": 2, "val": 1, "test": 0}
    assert found["spacecraft"] == {"landsat": {"LANDSAT_8": 3}, "sentinel": {"SENTINEL_2B": 3}}


def test_a_shard_is_in_the_order_of_ids_and_its_bytes_do_not_depend_on_arrival(tmp_path):
    items = [(f"{n}", bytes([n]) * 50) for n in range(9)] + [("99", None)]
    for folder in ("one", "another"):
        random.Random(folder).shuffle(items)
        shards.write_shard(("train/00000-of-00001", items), str(tmp_path / folder))
    paths = [tmp_path / folder / "train" / "00000-of-00001.tfrecord.gz" for folder in ("one", "another")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert list(records.read_shard(paths[0])) == [bytes([n]) * 50 for n in range(9)]


def test_a_shard_of_which_everything_was_rejected_is_still_there(tmp_path):
    shards.write_shard(("val/00000-of-00001", [("a", None)]), str(tmp_path))
    path = tmp_path / "val" / "00000-of-00001.tfrecord.gz"
    assert list(records.read_shard(path)) == [] and gzip.decompress(path.read_bytes()) == b""


def test_a_folder_takes_its_place_only_when_all_went_well(tmp_path):
    out = tmp_path / "examples"
    with pytest.raises(ZeroDivisionError), shards.written_aside(out) as folder:
        (folder / "a").write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    with shards.written_aside(out) as folder:
        (folder / "a").write_text("whole")
    with pytest.raises(ZeroDivisionError), shards.written_aside(out) as folder:
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["examples"] and (out / "a").read_text() == "whole"


def test_what_is_not_an_export_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        for check in (shards.check_ours, lambda path: shards.is_finished(path, {})):
            with pytest.raises(FlagError, match="choose another --out"):
                check(out)
    (tmp_path / "empty").mkdir()
    assert not shards.is_finished(tmp_path / "empty", {})
    assert not shards.is_finished(tmp_path / "new", {})


def test_a_folder_beside_the_export_is_left_alone(tmp_path):
    (tmp_path / "examples.tmp").mkdir()
    with shards.written_aside(tmp_path / "examples") as folder:
        (folder / "new").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples", "examples.tmp"]


def test_an_export_behind_a_link_is_replaced_where_it_is(tmp_path):
    (tmp_path / "disk" / "examples").mkdir(parents=True)
    (tmp_path / "disk" / "examples" / "old").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "examples")
    with shards.written_aside(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "link").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["examples"]


def test_a_job_that_fails_leaves_the_earlier_export(tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "old").touch()
    with pytest.raises(ZeroDivisionError), shards.written_aside(tmp_path / "examples"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["examples", "old"]
