import collections
import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import real_scenes

import harmonize_tf
from beam_jobs import export_pairs, settings
from beam_jobs.folder import Folder
from beam_jobs.squares import Square
from harmonize_tf import geometry, records, sensors
from harmonize_tf.errors import FlagError, PermanentError, SceneError, TransientError
from harmonize_tf.sources import native_windows
from harmonize_tf.sources.simulated import SimulatedSource

SIMULATED = ["--source=simulated", "--split_block=1920", "--split=0.5,0.25,0.25", "--shard_examples=5"]
CLOUDY = {"size": 7680, "clouds": 1.0, "nodata": True}
PATCHES = 9  # of them


def export(out, *flags) -> dict:
    export_pairs.main([f"--out={out}", *flags])
    return json.loads((out / "dataset_info.json").read_text())


def read(out) -> list[records.Record]:
    paths = sorted(out.glob("*/*.tfrecord.gz"))
    return [records.decode(serialized) for path in paths for serialized in records.read_shard(path)]


def content(out) -> dict[str, bytes]:
    """Every file but flags.txt, which names the folder and the number of threads."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert found.pop("flags.txt")
    return found


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def squares(out) -> dict[str, list[Square]]:
    """The squares of every shard."""
    job, plan = json.loads((out / "job.json").read_text()), (out / "plan.jsonl").read_bytes()
    return {shard: [Square.parse(x) for x in plan[a:b].splitlines()] for shard, a, b, _ in job["tasks"]}


@pytest.fixture(scope="module")
def cloudy(tmp_path_factory):
    """Flags for simulated scenes, some of whose patches are too cloudy."""
    path = tmp_path_factory.mktemp("scenes") / "cloudy.json"
    path.write_text(json.dumps(CLOUDY))
    return [*SIMULATED, f"--scenes={path}", "--min_valid=0.8", "--bands=rgb", "--seed=1"]


@pytest.fixture(scope="module")
def exported(cloudy, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "examples"
    return out, export(out, *cloudy, "--threads=1")


# What was read of `Watched`, and functions of scene and window that are called before it is read.
READS, TROUBLE = [], []


@dataclasses.dataclass(frozen=True)
class Watched(SimulatedSource):
    """The cloudy scenes, with trouble."""

    def read(self, scene, bands, window):
        READS.append((scene.sensor, tuple(bands), window))
        for cause in TROUBLE:
            cause(scene, window)
        return super().read(scene, bands, window)


@pytest.fixture
def watched(monkeypatch):
    """Puts `Watched` in the place of the simulated scenes."""
    READS.clear()
    TROUBLE.clear()
    monkeypatch.setitem(settings.SOURCES, "simulated", lambda wanted, _: Watched(seed=wanted.seed, **CLOUDY))
    yield
    TROUBLE.clear()


def needed(found, bands=sensors.BAND_SETS["rgb"]) -> list:
    """What is read of squares, in some order."""
    asked = []
    for square in found:
        sides = zip((*square.scenes, square.scenes[0]), (30, 10, 15), (bands, bands, ("pan",)), strict=True)
        for scene, pixel, names in sides:
            windows = native_windows(scene, names, [patch.grid.at(pixel) for patch in square.patches])
            asked += [(scene.sensor, tuple(group), window) for group, window in windows]
    return sorted(asked, key=repr)


def taken() -> list:
    """What was read since this was last asked."""
    asked = sorted(READS, key=repr)
    READS.clear()
    return asked


def in_squares(found, error):
    """Trouble with the Sentinel-2 scene in some squares."""
    windows = {window for sensor, _, window in needed(found) if sensor == "sentinel"}

    def cause(scene, window):
        if scene.sensor == "sentinel" and window in windows:
            raise error

    return cause


def test_records_show_the_simulated_truth_at_their_place(exported):
    out, info = exported
    source = SimulatedSource(seed=1, **CLOUDY)
    assert info["counts"]["train"] > 1
    for record in read(out):
        _, _, left, _, _, top = record.transform
        east, north = left + (np.arange(192) + 0.5) * 10, top - (np.arange(192) + 0.5) * 10
        clear = record.sentinel.valid.astype(bool)
        for index, band in enumerate(record.bands):
            truth = source.truth(east[None], north[:, None], band, sensors.MSI[band].sigma)
            error = record.sentinel.ms[..., index] * 1e-4 - 0.1 - truth
            assert np.abs(error[clear]).max() < 5.1e-5, "half a code"


def test_dataset_info_says_what_is_in_the_shards(exported):
    out, info = exported
    found = read(out)
    assert collections.Counter(r.split for r in found) == collections.Counter(info["counts"])
    assert all((r.level, list(r.bands)) == (info["level"], info["bands"]) for r in found)
    assert info["pan"] and all(r.landsat.pan is not None for r in found)
    assert info["spacecraft"] == {"landsat": {"LANDSAT_8": len(found)}, "sentinel": {"SENTINEL_2A": len(found)}}
    train = np.concatenate([r.sentinel.ms[r.sentinel.valid > 0] for r in found if r.split == "train"])
    np.testing.assert_allclose(info["statistics"]["sentinel"]["mean"], train.mean(0) * 1e-4 - 0.1, atol=1e-7)
    np.testing.assert_allclose(info["shift_m"]["median"], np.median([r.shift_m for r in found], axis=0))


def test_what_was_rejected_is_counted_and_listed_with_its_reason(exported):
    out, info = exported
    rejected = lines(out / "rejected.jsonl")
    planned = [patch for line in lines(out / "plan.jsonl") for patch in line["patches"]]
    assert info["rejected"] == {"valid": len(rejected)} and rejected
    assert all(line["reason"] == "valid" and line["valid_fraction"] < 0.8 for line in rejected)
    kept = [r.id for r in read(out)]
    assert sorted(kept + [line["id"] for line in rejected]) == sorted(patch["id"] for patch in planned)
    assert all(r.valid_fraction >= 0.8 for r in read(out))


def test_no_block_is_in_two_splits_and_every_record_lies_in_its_splits_folder(exported):
    out, _ = exported
    splits = collections.defaultdict(set)
    for path in out.glob("*/*.tfrecord.gz"):
        for record in map(records.decode, records.read_shard(path)):
            assert record.split == path.parent.name
            splits[record.block].add(record.split)
    assert len(splits) > 3 and all(len(found) == 1 for found in splits.values())


def test_every_split_has_a_file_for_every_shard_with_its_records_in_the_order_of_ids(exported):
    out, _ = exported
    shards = squares(out)
    count = len(shards)
    assert count == 3
    for split in ("train", "val", "test"):
        names = sorted(path.name for path in (out / split).iterdir())
        assert names == [f"{index:05}-of-{count:05}.tfrecord.gz" for index in range(count)]
    for shard, found in shards.items():
        planned = {patch.id: patch.split for square in found for patch in square.patches}
        assert len(planned) <= 5
        for split in ("train", "val", "test"):
            path = out / split / f"{shard}.tfrecord.gz"
            ids = [records.decode(serialized).id for serialized in records.read_shard(path)]
            assert ids == sorted(ids) and all(planned[name] == split for name in ids)


def test_records_of_one_place_say_where_it_is(exported):
    out, _ = exported
    planned = {patch.id: patch for found in squares(out).values() for square in found for patch in square.patches}
    for record in read(out):
        patch = planned[record.id]
        assert (record.split, record.block, record.crs) == (patch.split, patch.block, patch.crs)
        assert record.transform == (10.0, 0.0, patch.left, 0.0, -10.0, patch.top)
        assert (patch.left - 10) % geometry.PATCH == 0


def test_a_finished_folder_holds_what_is_documented_and_nothing_else(exported):
    out, _ = exported
    assert {path.name for path in out.iterdir()} == {
        "job.json", "plan.jsonl", "flags.txt", "shards", "train", "val", "test", "rejected.jsonl", "dead.jsonl",
        "dataset_info.json",
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["examples"]
    assert (out / "dead.jsonl").read_text() == ""


def test_another_run_with_other_threads_gives_the_same_bytes(exported, cloudy, tmp_path):
    out, info = exported
    assert export(tmp_path / "elsewhere", *cloudy, "--threads=3") == info
    assert content(tmp_path / "elsewhere") == content(out)


def test_a_finished_export_is_kept_and_another_one_in_its_place_is_refused(exported, cloudy, caplog):
    out, _ = exported
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with caplog.at_level("INFO", "harmonize"):
        export(out, *cloudy, "--threads=2")
    assert "holds this export already; use --overwrite if" in caplog.text
    with pytest.raises(FlagError, match="seed=1 there, 9 now.*--overwrite"):
        export(out, *cloudy, "--seed=9")
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert [path.name for path in out.parent.iterdir()] == ["examples"]


def test_an_export_of_another_version_is_refused_and_told(exported, cloudy, monkeypatch):
    out, _ = exported
    version = harmonize_tf.__version__
    monkeypatch.setattr(harmonize_tf, "__version__", "99.0")
    with pytest.raises(FlagError, match=rf"made by version {version}, now 99.0\); use --overwrite"):
        export(out, *cloudy)


def test_flags_txt_repeats_the_run(exported, tmp_path):
    out, info = exported
    again = tmp_path / "again"
    assert export(again, f"--flagfile={out / 'flags.txt'}", f"--out={again}") == info
    assert content(again) == content(out)


def test_overwrite_replaces_an_export_whole(tmp_path):
    out = tmp_path / "examples"
    (tmp_path / "scenes.json").write_text('{"size": 3840}')
    flags = [*SIMULATED, f"--scenes={tmp_path / 'scenes.json'}", "--bands=rgb"]
    export(out, *flags, "--shard_examples=1", "--split=1,0,0")
    info = export(out, *flags, "--split=0,0,1", "--overwrite", "--nopan")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["shards", "test"]
    assert info["bands"] == ["blue", "green", "red"] and set(info["statistics"]) == {"landsat", "sentinel"}
    assert len(read(out)) == info["counts"]["test"] == 4
    assert len(list((out / "shards").iterdir())) == len(squares(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples", "scenes.json"]


def copied(exported, tmp_path) -> pathlib.Path:
    """A finished export that may be spoilt."""
    out = tmp_path / "examples"
    for name, data in content(exported[0]).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    (out / "flags.txt").write_text("--of=old")
    return out


@pytest.mark.parametrize("name", ["train/{}.tfrecord.gz", "shards/{}.json", "both"])
@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_a_shard_that_was_damaged_is_made_again_and_no_other(name, damage, exported, cloudy, watched, tmp_path):
    out = copied(exported, tmp_path)
    shard = sorted(squares(out))[1]
    names = ["train/{}.tfrecord.gz", "shards/{}.json"] if name == "both" else [name]
    for path in (out / each.format(shard) for each in names):
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-7])
    info = export(out, *cloudy)
    assert taken() == needed(squares(out)[shard])
    assert content(out) == content(exported[0]) and info == exported[1]


def test_an_export_that_is_being_mended_is_no_finished_one(exported, cloudy, watched, tmp_path):
    out = copied(exported, tmp_path)
    (out / "shards" / f"{sorted(squares(out))[1]}.json").unlink()
    TROUBLE[:] = [lambda scene, window: 1 / 0 if (out / "dataset_info.json").exists() else 2]
    assert export(out, *cloudy) == exported[1]
    assert READS and content(out) == content(exported[0])


def test_an_export_without_its_information_is_finished_without_reading_anything(exported, cloudy, watched, tmp_path):
    out = copied(exported, tmp_path)
    for name in ("dataset_info.json", "rejected.jsonl", "dead.jsonl"):
        (out / name).unlink()
    assert export(out, *cloudy) == exported[1]
    assert READS == [] and content(out) == content(exported[0])


def test_a_folder_of_which_every_shard_is_gone_is_made_from_the_plan_that_is_there(
    exported, cloudy, watched, tmp_path, monkeypatch
):
    out = copied(exported, tmp_path)
    for path in out.glob("shards/*"):
        path.unlink()
    monkeypatch.setattr(export_pairs.plan, "make", lambda *_: pytest.fail("it was planned anew"))
    export(out, *cloudy)
    assert taken() == needed(square for found in squares(out).values() for square in found)
    assert content(out) == content(exported[0])


def test_a_disk_that_is_full_is_told_and_the_next_run_goes_on_where_it_was(
    exported, cloudy, watched, tmp_path, monkeypatch, caplog
):
    out, write, full = tmp_path / "examples", Folder._write, "00002-of-"

    def fail(self, name, chunks):
        if name.startswith(f"val/{full}"):
            raise OSError(28, "No space left on device")
        write(self, name, chunks)

    monkeypatch.setattr(Folder, "_write", fail)
    with pytest.raises(FlagError, match=". of . shards are not there yet; run the same command again"):
        export(out, *cloudy)
    assert "No space left on device; mend that, then run the same command again" in caplog.text
    monkeypatch.setattr(Folder, "_write", write)
    assert not (out / "dataset_info.json").exists()
    # Shards that came after the full disk was seen were not asked for.
    lost = set(squares(out)) - {path.stem for path in out.glob("shards/*.json")}
    assert any(shard.startswith(full) for shard in lost)
    rest = [square for shard in lost for square in squares(out)[shard]]
    taken()
    export(out, *cloudy)
    assert taken() == needed(rest)
    assert content(out) == content(exported[0])
    assert not (out / "_staging").exists()


def test_what_failed_for_passing_reasons_is_read_again_by_the_same_command(exported, cloudy, watched, tmp_path):
    out = tmp_path / "examples"
    lost = [found[0] for found in list(squares(exported[0]).values())[:3]]
    TROUBLE[:] = [in_squares(lost, TransientError("Earth Engine fails; run again later."))]
    count = sum(len(square.patches) for square in lost)
    with pytest.raises(FlagError) as raised:
        export(out, *cloudy)
    assert f"{count} of {PATCHES} patches could not be fetched, as dead.jsonl lists: run the same command" in str(
        raised.value
    )
    assert "The first one: Earth Engine fails; run again later. Received: max_dead_fraction=0.01" in str(raised.value)
    assert not (out / "dataset_info.json").exists()
    letters = lines(out / "dead.jsonl")
    assert {Square.parse(json.dumps(line)).line() for line in letters} == {square.line() for square in lost}
    assert {line["kind"] for line in letters} == {"transient"}
    assert {record.id for record in read(out)} < {record.id for record in read(exported[0])}
    TROUBLE.clear()
    taken()
    assert export(out, *cloudy) == exported[1]
    assert taken() == needed(lost)
    assert content(out) == content(exported[0])


def test_what_is_gone_for_good_can_be_done_without_and_nothing_is_read_again(exported, cloudy, watched, tmp_path):
    out = tmp_path / "examples"
    lost = [next(iter(squares(exported[0]).values()))[0]]
    count = len(lost[0].patches)
    TROUBLE[:] = [in_squares(lost, PermanentError("404, Image asset not found."))]
    for _ in range(2):
        with pytest.raises(FlagError, match=f"^{count} of {PATCHES} .*--retry_dead, or do without.*404, Image asset"):
            export(out, *cloudy)
    assert taken() == needed(square for found in squares(out).values() for square in found), "once"
    info = export(out, *cloudy, "--max_dead_fraction=0.3")
    assert READS == []
    assert info["dead"] == {"permanent": count, "transient": 0}
    ids = {patch.id for patch in lost[0].patches}
    everything = {record.id for record in read(exported[0])}
    assert {record.id for record in read(out)} == everything - ids
    assert sum(info["counts"].values()) == len(everything - ids)
    export(out, *cloudy)
    assert READS == [], "finished is finished"
    TROUBLE.clear()
    assert export(out, *cloudy, "--retry_dead") == exported[1]
    assert taken() == needed(lost)
    assert content(out) == content(exported[0])


def test_a_bug_costs_the_square_that_it_meets_and_leaves_its_traceback(exported, cloudy, watched, tmp_path, caplog):
    out = tmp_path / "examples"
    lost = [next(iter(squares(exported[0]).values()))[0]]
    TROUBLE[:] = [in_squares(lost, ZeroDivisionError("a bug"))]
    with caplog.at_level("INFO", "harmonize"):
        info = export(out, *cloudy, "--max_dead_fraction=0.5")
    assert info["dead"]["permanent"] == len(lost[0].patches)
    (line,) = lines(out / "dead.jsonl")
    assert line["kind"] == "permanent"
    assert line["error"].startswith("ZeroDivisionError('a bug')\nTraceback") and "in cause" in line["error"]
    assert f"{len(lost[0].patches)} dead (permanent)" in caplog.text


def test_credentials_that_end_stop_the_reading_and_are_told(exported, cloudy, watched, tmp_path):
    out = tmp_path / "examples"

    def cause(scene, window):
        raise FlagError("Earth Engine refuses the credentials; authenticate anew.")

    TROUBLE[:] = [cause]
    with pytest.raises(
        FlagError, match=f"{PATCHES} of {PATCHES} .*run the same command again.*authenticate anew"
    ) as raised:
        export(out, *cloudy, "--threads=1")
    assert "--retry_dead" not in str(raised.value)
    assert len(taken()) <= export_pairs.SHARDS_AT_ONCE, "one for each of the shards in work"
    TROUBLE.clear()
    assert export(out, *cloudy) == exported[1]
    assert content(out) == content(exported[0])


def test_a_scene_that_breaks_while_reading_is_told_in_one_line_without_a_trace(
    cloudy, watched, tmp_path, caplog, capfd
):
    def cause(scene, window):
        if scene.sensor == "sentinel":
            raise SceneError(f"scene {scene.id}: ms.tif is truncated; fetch it again. Received: rows 0 to 192")

    TROUBLE[:] = [cause]
    with pytest.raises(FlagError, match=f"^{PATCHES} of .*scene simulated_sentinel.*ms.tif is truncated") as caught:
        export(tmp_path / "examples", *cloudy)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_an_overwriting_job_that_fails_leaves_the_earlier_export_and_goes_on_beside_it(
    exported, cloudy, watched, tmp_path
):
    out, beside = copied(exported, tmp_path), tmp_path / "examples.new"
    flags = [*cloudy, "--seed=4", "--overwrite"]
    TROUBLE[:] = [lambda scene, window: broken(scene, window)]
    before = content(out)
    with pytest.raises(FlagError, match="could not be fetched"):
        export(out, *flags)
    assert content(out) == before and (out / "flags.txt").read_text() == "--of=old"
    assert (beside / "dead.jsonl").read_text() and not (beside / "dataset_info.json").exists()
    rest = [Square.parse(json.dumps(line)) for line in lines(beside / "dead.jsonl")]
    everything = needed(square for found in squares(beside).values() for square in found)
    TROUBLE.clear()
    taken()
    info = export(out, *flags)
    assert taken() == needed(rest) and len(needed(rest)) < len(everything)
    assert info["flags"]["seed"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]
    undisturbed = tmp_path / "undisturbed"
    export(undisturbed, *cloudy, "--seed=4")
    assert content(out) == content(undisturbed)


def broken(scene, window):
    if scene.sensor == "sentinel" and window.left > 302_000:
        raise TransientError("503")


def test_an_export_behind_a_link_is_replaced_where_it_is(exported, cloudy, tmp_path):
    (tmp_path / "disk").mkdir()
    copied(exported, tmp_path / "disk")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "examples")
    info = export(link, *cloudy, "--bands=rgb", "--overwrite")
    assert link.is_symlink() and info["bands"] == ["blue", "green", "red"]
    assert json.loads((tmp_path / "disk" / "examples" / "dataset_info.json").read_text()) == info
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["examples"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_an_export_that_was_finished_beside_but_not_moved_is_moved_by_the_same_command(
    exported, cloudy, watched, tmp_path, monkeypatch
):
    out, flags = copied(exported, tmp_path), [*cloudy, "--seed=4", "--overwrite"]
    monkeypatch.setattr(Folder, "take_over", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(out, *flags)
    monkeypatch.undo()
    monkeypatch.setitem(settings.SOURCES, "simulated", lambda wanted, _: Watched(seed=wanted.seed, **CLOUDY))
    taken()
    assert export(out, *flags)["flags"]["seed"] == 4
    assert READS == []
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]


def test_an_unfinished_export_goes_on_even_with_overwrite_and_another_gives_way_to_it(
    exported, cloudy, watched, tmp_path
):
    out = copied(exported, tmp_path)
    (out / "dataset_info.json").unlink()
    shard = sorted(squares(out))[0]
    (out / "shards" / f"{shard}.json").unlink()
    with pytest.raises(FlagError, match="seed=1 there, 4 now"):
        export(out, *cloudy, "--seed=4")
    assert READS == []
    export(out, *cloudy, "--overwrite")
    assert taken() == needed(squares(out)[shard])
    assert content(out) == content(exported[0])
    (out / "dataset_info.json").unlink()
    assert export(out, *cloudy, "--seed=4", "--overwrite")["flags"]["seed"] == 4
    assert taken() == needed(square for found in squares(out).values() for square in found)
    assert {record.id for record in read(out)}.isdisjoint(record.id for record in read(exported[0]))
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]


def test_a_plan_that_was_changed_is_refused(exported, cloudy, tmp_path):
    out = copied(exported, tmp_path)
    (out / "plan.jsonl").write_text("".join((out / "plan.jsonl").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(FlagError, match="the plan was changed after the export had begun; use --overwrite"):
        export(out, *cloudy)
    assert export(out, *cloudy, "--overwrite") == exported[1]
    assert content(out) == content(exported[0])


def test_somebody_elses_folder_is_refused_and_left_as_it_is(cloudy, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for flags in ([], ["--overwrite"]):
        with pytest.raises(FlagError, match="choose another --out. Received: out=.*notes.txt"):
            export(tmp_path, *cloudy, *flags)
        with pytest.raises(FlagError, match="choose another --out"):
            export(tmp_path / "notes.txt", *cloudy, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_when_all_is_rejected_the_reasons_are_told_and_listed_and_nothing_is_finished(tmp_path):
    out = tmp_path / "examples"
    (tmp_path / "scenes.json").write_text('{"shift_m": [12, 9], "size": 3840}')
    flags = [*SIMULATED, f"--scenes={tmp_path / 'scenes.json'}", "--bands=rgb", "--split=1,0,0"]
    with pytest.raises(FlagError, match="no patch fell into train.*4 by shift.*--max_shift.*--overwrite"):
        export(out, *flags, "--max_shift=10")
    assert not (out / "dataset_info.json").exists()
    rejected = lines(out / "rejected.jsonl")
    assert len(rejected) == 4
    for line in rejected:
        assert line["reason"] == "shift" and np.hypot(*line["shift_m"]) > 10
    assert len(list(out.glob("shards/*.json"))) == len(squares(out)) and read(out) == []
    info = export(out, *flags, "--max_shift=20", "--overwrite")
    assert info["counts"]["train"] == 4


def test_a_dry_run_tells_how_much_there_is_and_needs_no_folder(cloudy, watched, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export_pairs.main([*cloudy, "--dry_run"])
    told = capsys.readouterr().out
    assert "1 Landsat and 1 Sentinel-2 in 1 pairs" in told and "9 before the gates" in told
    assert "requests" not in told, "nothing is asked of anybody"
    export_pairs.main([*cloudy, "--dry_run", "--out=examples"])
    assert capsys.readouterr().out == told
    assert list(tmp_path.iterdir()) == [] and READS == []


def test_a_dry_run_leaves_an_export_that_is_there_as_it_is(exported, cloudy, capsys):
    before = content(exported[0])
    export_pairs.main([*cloudy, f"--out={exported[0]}", "--seed=9", "--overwrite", "--dry_run"])
    assert "patches" in capsys.readouterr().out and content(exported[0]) == before


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--source=simulated"], "--out is needed"),
        (["--out=x"], "--source is needed"),
        (["--source=nasa", "--out=x"], "nasa"),
        (["--source=geotiff", "--out=x"], "needs --scenes"),
        (["--source=geotiff", "--out=x", "--scenes=nowhere.json"], "nowhere.json"),
        ([*SIMULATED, "--out=x", "--split=0.8,0.2"], "three shares"),
        ([*SIMULATED, "--out=x", "--split=most,some,0"], "most,some,0"),
        ([*SIMULATED, "--out=x", "--split_block=1000"], "split_block=1000"),
        ([*SIMULATED, "--out=x", "--min_valid=1.5"], "min_valid"),
        ([*SIMULATED, "--out=x", "--tile_size=3"], "tile_size"),
        ([*SIMULATED, "--out=x", "--bands=rgbx"], "rgbx"),
        ([*SIMULATED, "--out=x", "--level=sr"], "level=sr"),
        ([*SIMULATED, "--out=x", "--area=1,2,3,4"], "--area does not go with --source=simulated"),
        ([*SIMULATED, "--out=x", "--shard_examples=0"], "shard_examples"),
        ([*SIMULATED, "--out=x", "--request_side=17"], "request_side"),
        ([*SIMULATED, "--out=x", "--max_dead_fraction=2"], "max_dead_fraction"),
        ([*SIMULATED, "--out=x", "--threads=0"], "threads"),
        ([*SIMULATED, "--out=hdtp://bucket/x"], "Protocol not known: hdtp.*another --out"),
        ([*SIMULATED, "--out=/dev/null/x"], "nothing can be written there"),
        (["--dry_run"], "--source is needed"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlagError, match=told):
        export_pairs.main(flags)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_command_ends_with_one_line_and_status_2(tmp_path):
    flags = ["--source=simulated", f"--out={tmp_path / 'x'}", "--split_block=5"]
    result = subprocess.run([sys.executable, "-m", "beam_jobs.export_pairs", *flags], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: expected a multiple") and result.stderr.count("\n") == 1


def test_a_manifest_with_a_truncated_file_is_refused(real_data, tmp_path):
    path = real_scenes.manifest(real_data, tmp_path, "t33uuu")
    manifest = json.loads(path.read_text())
    broken = tmp_path / "broken.tif"
    whole = open(manifest["scenes"][0]["files"][0]["path"], "rb").read()
    broken.write_bytes(whole[: len(whole) // 3])
    manifest["scenes"][0]["files"][0]["path"] = str(broken)
    path.write_text(json.dumps(manifest))
    with pytest.raises(SceneError, match="broken.tif"):
        export(tmp_path / "examples", "--source=degraded", f"--scenes={path}")
    assert not (tmp_path / "examples").exists()


@pytest.mark.parametrize(("scene", "pan"), [("t33uuu", True), ("t32tmt", False)])
def test_a_real_sentinel_scene_is_exported_with_its_degraded_partner(real_data, tmp_path, scene, pan):
    path = real_scenes.manifest(real_data, tmp_path, scene)
    flags = ["--source=degraded", f"--scenes={path}", "--split=0.6,0.2,0.2", "--split_block=1920"]
    info = export(tmp_path / "examples", *flags)
    assert sum(info["counts"].values()) >= 30 and info["pan"] is pan
    assert info["level"] == {"t33uuu": "toa", "t32tmt": "sr"}[scene]
    np.testing.assert_allclose(info["shift_m"]["median"], (0, 0), atol=2.5)


@pytest.mark.parametrize(
    ("name", "shift", "tolerance"),
    # The first pair's own description says Sentinel-2 lies about a pixel of 10 m to the east; the second's was aligned.
    [("l8s2ps", (10, 0), 5), ("oli2msi", (0, 0), 5)],
)
def test_a_real_pair_goes_through_and_its_shift_is_reported(real_data, tmp_path, name, shift, tolerance):
    path = real_scenes.manifest(real_data, tmp_path, f"{name}_landsat", f"{name}_sentinel")
    flags = ["--source=geotiff", f"--scenes={path}", "--bands=rgb", "--split=0,0,1", "--min_valid=0.3"]
    info = export(tmp_path / "examples", *flags)
    assert info["counts"]["test"] >= 6
    assert info["level"] == {"l8s2ps": "uncalibrated", "oli2msi": "toa"}[name]
    np.testing.assert_allclose(info["shift_m"]["median"], shift, atol=tolerance)
