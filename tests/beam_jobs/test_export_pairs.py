import collections
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import real_scenes

from beam_jobs import export_pairs, plan
from harmonize_tf import records, sensors
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.sources.simulated import SimulatedSource

SIMULATED = ["--source=simulated", "--split_block=1920", "--split=0.5,0.25,0.25", "--shard_examples=5"]


def export(out, *flags) -> dict:
    export_pairs.main([f"--out={out}", *flags])
    return json.loads((out / "dataset_info.json").read_text())


def read(out) -> list[records.Record]:
    paths = sorted(out.glob("*/*.tfrecord.gz"))
    return [records.decode(serialized) for path in paths for serialized in records.read_shard(path)]


@pytest.fixture(scope="module")
def cloudy(tmp_path_factory):
    """Flags for simulated scenes, some of whose patches are too cloudy."""
    path = tmp_path_factory.mktemp("scenes") / "cloudy.json"
    path.write_text(json.dumps({"size": 9600, "clouds": 1.0, "nodata": True}))
    return [*SIMULATED, f"--scenes={path}", "--min_valid=0.8"]


@pytest.fixture(scope="module")
def exported(cloudy, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "examples"
    return out, export(out, *cloudy, "--threads=1")


def test_records_show_the_simulated_truth_at_their_place(exported):
    out, info = exported
    source = SimulatedSource(size=9600, clouds=1.0, nodata=True)
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
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    planned = [json.loads(line) for line in (out / "plan.jsonl").read_text().splitlines()]
    assert info["rejected"] == {"valid": len(rejected)} and rejected
    assert all(line["reason"] == "valid" and line["valid_fraction"] < 0.8 for line in rejected)
    kept = [r.id for r in read(out)]
    assert sorted(kept + [line["id"] for line in rejected]) == sorted(line["id"] for line in planned)
    assert all(r.valid_fraction >= 0.8 for r in read(out))


def test_no_block_is_in_two_splits_and_every_record_lies_in_its_splits_folder(exported):
    out, _ = exported
    splits = collections.defaultdict(set)
    for path in out.glob("*/*.tfrecord.gz"):
        for record in map(records.decode, records.read_shard(path)):
            assert record.split == path.parent.name
            splits[record.block].add(record.split)
    assert len(splits) > 3 and all(len(found) == 1 for found in splits.values())


def test_another_run_with_other_threads_gives_the_same_bytes(exported, cloudy, tmp_path):
    out, info = exported
    again = tmp_path / "elsewhere"
    assert export(again, *cloudy, "--threads=3") == info
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert file.name == "flags.txt" or (out / file).read_bytes() == (again / file).read_bytes(), file


def test_a_finished_export_is_kept_and_another_one_in_its_place_is_refused(exported, cloudy):
    out, _ = exported
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    export(out, *cloudy, "--threads=2")
    with pytest.raises(FlagError, match="seed=0 there, 9 now.*--overwrite"):
        export(out, *cloudy, "--seed=9")
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not out.with_name("examples.tmp").exists()


def test_flags_txt_repeats_the_run(exported, tmp_path):
    out, info = exported
    assert export(tmp_path / "again", f"--flagfile={out / 'flags.txt'}", f"--out={tmp_path / 'again'}") == info


def test_overwrite_replaces_an_export_whole(tmp_path):
    out = tmp_path / "examples"
    (tmp_path / "scenes.json").write_text("{}")
    flags = [*SIMULATED, f"--scenes={tmp_path / 'scenes.json'}", "--bands=rgb"]
    export(out, *flags, "--shard_examples=1", "--split=1,0,0")
    info = export(out, *flags, "--split=0,0,1", "--overwrite", "--nopan")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["test"]
    assert info["bands"] == ["blue", "green", "red"] and set(info["statistics"]) == {"landsat", "sentinel"}
    assert len(read(out)) == info["counts"]["test"] == 16


def test_when_all_is_rejected_nothing_is_written_and_the_reasons_are_told(tmp_path):
    (tmp_path / "scenes.json").write_text('{"shift_m": [12, 9]}')
    with pytest.raises(FlagError, match="16 by shift.*--max_shift"):
        export(tmp_path / "examples", *SIMULATED, f"--scenes={tmp_path / 'scenes.json'}", "--max_shift=10")
    assert [path.name for path in tmp_path.iterdir()] == ["scenes.json"]


@dataclasses.dataclass(frozen=True)
class Broken(SimulatedSource):
    """Half of its Sentinel-2 scene cannot be read."""

    def read(self, scene, bands, window):
        if scene.sensor == "sentinel" and window.left > 304_000:
            raise SceneError(f"scene {scene.id}: ms.tif is truncated; fetch it again. Received: rows 0 to 192")
        return super().read(scene, bands, window)


def test_a_scene_that_breaks_while_reading_ends_the_job_in_one_line_without_a_trace(
    tmp_path, monkeypatch, caplog, capfd
):
    monkeypatch.setitem(plan.SOURCES, "simulated", lambda settings: Broken())
    with pytest.raises(SceneError, match="patch [0-9a-f]{20} of simulated_landsat.*ms.tif is truncated") as caught:
        export(tmp_path / "examples", *SIMULATED)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    assert list(tmp_path.iterdir()) == []


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
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlagError, match=told):
        export_pairs.main(flags)
    assert list(tmp_path.iterdir()) == []


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
