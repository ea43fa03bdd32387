import collections
import gzip
import hashlib
import json
import random

import pytest
from test_summary import SCENES, record

from beam_jobs import shards, summary, tally
from beam_jobs.folder import Folder
from beam_jobs.plan import Task
from beam_jobs.shards import Harvest, Manifest
from beam_jobs.squares import Square
from harmonize_tf import records
from harmonize_tf.patches import Patch

NAME = "00000-of-00002"
TASKS = [Task(NAME, 0, 10, 4), Task("00001-of-00002", 10, 20, 4)]
SPLITS = ("train", "val")


def square(number):
    """A square of two patches, the ids of which begin with a number."""
    names = (f"{number:04}", f"{number:04}b")
    return Square(SCENES, tuple(Patch(n, "train", "b", "EPSG:32633", 10.0, 1930.0, "L", "S") for n in names))


def dead(number, kind):
    return square(number).plain() | {"kind": kind, "error": "it is gone"}


def rejected(number):
    return {"id": f"{number:04}", "reason": "valid", "shift_m": None}


def harvest(numbers, *, split="train", more=()):
    made = Harvest(**dict(more))
    for number in numbers:
        kept = record(number, split)
        made.add(Harvest([(split, kept.id, records.encode(kept))], summary.of(kept, SCENES)))
    return made


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "examples")


def read(folder, split="train"):
    path = f"{folder}/{split}/{NAME}.tfrecord.gz"
    return [records.decode(serialized).id for serialized in records.read_shard(path)]


def test_a_shard_is_in_the_order_of_ids_and_its_bytes_do_not_depend_on_arrival(tmp_path):
    written = []
    for seed in range(4):
        numbers, lines = list(range(9)), [rejected(n) for n in range(20, 24)]
        letters = [dead(n, "permanent") for n in range(30, 34)]
        for each in (numbers, lines, letters):
            random.Random(seed).shuffle(each)
        folder = Folder(tmp_path / str(seed))
        whole = harvest(numbers, more={"rejected": lines, "dead": letters})
        manifest = shards.write(folder, NAME, SPLITS, whole)
        written.append(folder.read_many(folder.sizes()))
        assert read(folder) == [f"{n:04}" for n in range(9)]
        assert [line["id"] for line in manifest.rejected] == [f"{n:04}" for n in range(20, 24)]
        assert [line["patches"][0]["id"] for line in manifest.dead] == [f"{n:04}" for n in range(30, 34)]
    assert all(each == written[0] for each in written)


def test_every_split_gets_its_own_records_and_an_empty_file_where_nothing_is_left(folder):
    whole = harvest([1, 3])
    whole.add(harvest([2], split="test"))
    shards.write(folder, NAME, ("train", "val", "test"), whole)
    assert (read(folder), read(folder, "val"), read(folder, "test")) == (["0001", "0003"], [], ["0002"])
    assert gzip.decompress(folder.read(f"val/{NAME}.tfrecord.gz")) == b""
    assert list(folder.sizes()) == [f"shards/{NAME}.json"] + [
        f"{s}/{NAME}.tfrecord.gz" for s in ("test", "train", "val")
    ]


def test_a_manifest_says_what_the_files_are_and_gives_itself_back(folder):
    asked = tally.merged([])
    asked |= {"requests": 3, "bytes": 5, "outcomes": {"ok": 3}}
    more = {"rejected": [rejected(9)], "dead": [dead(8, "transient")], "requests": [asked, asked]}
    manifest = shards.write(folder, NAME, SPLITS, harvest([1, 2], more=more))
    again = Manifest.parse(folder.read(f"shards/{NAME}.json"))
    assert again.serialized() == manifest.serialized()
    assert (again.files, again.rejected, again.sums) == (manifest.files, manifest.rejected, manifest.sums)
    assert [(Square.parse(json.dumps(line)).id, line["kind"]) for line in again.dead] == [("0008", "transient")]
    assert again.sums == summary.of(record(1), SCENES) + summary.of(record(2), SCENES)
    assert again.requests["requests"] == 6
    for split, entry in again.files.items():
        content = folder.read(f"{split}/{NAME}.tfrecord.gz")
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert {split: entry["records"] for split, entry in again.files.items()} == {"train": 2, "val": 0}


def test_the_manifest_comes_last_so_that_a_shard_without_one_was_not_made(folder, monkeypatch):
    order = []
    write = Folder.write
    monkeypatch.setattr(Folder, "write", lambda self, name, content: (order.append(name), write(self, name, content)))
    shards.write(folder, NAME, SPLITS, harvest([1]))
    assert order[-1] == f"shards/{NAME}.json" and len(order) == 3


def test_only_shards_that_are_whole_count_as_made(folder):
    assert shards.manifests(folder, TASKS) == {}
    manifest = shards.write(folder, NAME, SPLITS, harvest([1]))
    shards.write(folder, TASKS[1].shard, SPLITS, harvest([2]))
    assert set(shards.manifests(folder, TASKS)) == {task.shard for task in TASKS}
    folder.delete([f"shards/{TASKS[1].shard}.json"])
    assert shards.manifests(folder, TASKS) == {NAME: manifest}
    assert shards.manifests(folder, TASKS[1:]) == {}, "only those that are asked for"


@pytest.mark.parametrize("name", [f"train/{NAME}.tfrecord.gz", f"val/{NAME}.tfrecord.gz", f"shards/{NAME}.json"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied"])
def test_a_shard_of_which_a_file_is_missing_or_cut_off_was_not_made(folder, name, damage):
    shards.write(folder, NAME, SPLITS, harvest([1]))
    content = folder.read(name)
    folder.delete([name])
    if damage != "deleted":
        folder.write(name, content[: len(content) // 2] if damage == "truncated" else b"")
    assert shards.manifests(folder, TASKS) == {}
    squares = [square(1), square(2)]
    assert shards.kept(folder, NAME, squares, retry_dead=False) == (Harvest(), squares)


def test_what_has_the_right_size_and_is_something_else_is_not_kept(folder):
    shards.write(folder, NAME, SPLITS, harvest([1], more={"dead": [dead(2, "transient")]}))
    name = f"train/{NAME}.tfrecord.gz"
    content = bytearray(folder.read(name))
    content[len(content) // 2] ^= 1
    folder.write(name, bytes(content))
    squares = [square(1), square(2)]
    assert shards.kept(folder, NAME, squares, retry_dead=False) == (Harvest(), squares)


def test_of_a_partial_shard_all_is_kept_but_the_squares_to_be_fetched_again(folder):
    letters = [dead(2, "transient"), dead(3, "permanent")]
    more = {"rejected": [rejected(9)], "dead": letters, "requests": [tally.merged([])]}
    whole = harvest([1, 5], more=more)
    manifest = shards.write(folder, NAME, SPLITS, whole)
    squares = [square(n) for n in (1, 2, 3, 5)]
    for retry_dead, again in ((False, [2]), (True, [2, 3])):
        assert [line["patches"][0]["id"] for line in manifest.missing(retry_dead)] == [f"{n:04}" for n in again]
        there, missing = shards.kept(folder, NAME, squares, retry_dead=retry_dead)
        assert [each.id for each in missing] == [f"{n:04}" for n in again]
        assert sorted(there.encoded) == sorted(whole.encoded)
        assert there.sums == whole.sums and there.rejected == [rejected(9)]
        assert there.dead == [] if retry_dead else there.dead == json.loads(json.dumps(letters[1:]))


def test_a_shard_that_is_made_in_two_parts_is_the_shard_that_is_made_in_one(tmp_path):
    one, two = Folder(tmp_path / "one"), Folder(tmp_path / "two")
    shards.write(one, NAME, SPLITS, harvest([1, 2, 3]))
    shards.write(two, NAME, SPLITS, harvest([1, 3], more={"dead": [dead(2, "transient")]}))
    assert one.read_many(one.sizes()) != two.read_many(one.sizes())
    there, missing = shards.kept(two, NAME, [square(n) for n in (1, 2, 3)], retry_dead=False)
    assert len(missing) == 1
    there.add(harvest([2]))
    shards.write(two, NAME, SPLITS, there)
    assert one.read_many(one.sizes()) == two.read_many(two.sizes())


def test_taking_in_a_harvest_adds_everything_up():
    whole = Harvest()
    for number in range(3):
        whole.add(harvest([number], more={"rejected": [rejected(number)], "dead": [dead(number, "permanent")]}))
    assert len(whole.encoded) == len(whole.rejected) == len(whole.dead) == 3
    assert whole.sums["count", "train"] == 3
    assert isinstance(whole.sums, collections.Counter)
