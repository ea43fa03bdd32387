"""The export from Earth Engine, by the real client against the emulator on loopback."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import real_scenes
from earth_engine import loopback_only  # noqa: F401

from beam_jobs import export_pairs, options
from beam_jobs.folder import Folder
from beam_jobs.squares import Square
from harmonize_tf import records, sensors
from harmonize_tf.errors import FlagError, HarmonizeError
from harmonize_tf.sources import native_windows
from harmonize_tf.sources.degraded import DegradedSource
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.testing.earth_engine_emulator import Emulator
from harmonize_tf.testing.ee_limits import AGGREGATIONS, Fault, Limits

SIMULATED = {"size": 9600, "clouds": 0.7, "clouds_move": True, "nodata": True}
SHARED = ["--split_block=1920", "--split=0.6,0.2,0.2", "--shard_examples=6", "--request_side=2", "--min_valid=0.6"]
REGION = ["--area=10,45,14,53", "--start=2022-06-01", "--end=2022-08-01", "--ee_project=emulator-project"]
DRILLS = bool(os.environ.get("HARMONIZE_DRILLS"))


def simulated(**more) -> SimulatedSource:
    return SimulatedSource(**SIMULATED | more)


def asked(emulator, out, *more) -> list[str]:
    """Flags of an export from an emulator."""
    return ["--source=earthengine", f"--ee_url={emulator.url}", f"--out={out}", *REGION, *SHARED, *more]


def export(emulator, out, *more) -> dict:
    export_pairs.main(asked(emulator, out, *more))
    return json.loads((out / "dataset_info.json").read_text())


def content(out) -> dict[str, bytes]:
    """Every shard, record by record, without the name of the source."""
    found = {}
    for path in sorted(out.glob("*/*.tfrecord.gz")):
        plain = [dataclasses.replace(records.decode(s), source="") for s in records.read_shard(path)]
        found[str(path.relative_to(out))] = b"".join(records.frame(records.encode(record)) for record in plain)
    return found


def digests(out) -> dict[str, str]:
    """Of every shard as it is."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("*/*.tfrecord.gz"))
    }


def read(out) -> list[records.Record]:
    return [records.decode(s) for path in sorted(out.glob("*/*.tfrecord.gz")) for s in records.read_shard(path)]


def pixel_requests(emulator, status=200):
    return [request for request in emulator.requests("image:computePixels") if request.status == status]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of an export that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "examples"
    with Emulator(simulated()) as emulator:
        export(emulator, out)
    return out


@pytest.mark.parametrize("level", ["toa", "sr"])
def test_an_export_equals_that_of_the_same_scenes_without_earth_engine(level, tmp_path):
    scenes = tmp_path / "scenes.json"
    scenes.write_text(json.dumps(SIMULATED | {"level": level, "days": [0, 16]}))
    export_pairs.main(["--source=simulated", f"--scenes={scenes}", f"--out={tmp_path / 'here'}", *SHARED])
    with Emulator(simulated(level=level, days=(0, 16))) as emulator:
        info = export(emulator, tmp_path / "there", f"--level={level}")
    here = json.loads((tmp_path / "here" / "dataset_info.json").read_text())
    assert content(tmp_path / "there") == content(tmp_path / "here")
    for name in ("counts", "rejected", "statistics", "shift_m", "spacecraft", "pan", "level"):
        assert info[name] == here[name]
    assert sum(info["counts"].values()) > 20 and info["rejected"]["valid"] > 1
    masks = {"toa": "Cloud Score+", "sr": "SCL and Cloud Score+"}[level]
    assert info["masks"]["sentinel"] == {masks: sum(info["counts"].values())}


@pytest.mark.parametrize(("name", "level", "codes"), [("t33uuu", "toa", 0), ("t32tmt", "sr", 1)])
def test_real_pixels_come_through_earth_engine_as_they_are(real_data, tmp_path, name, level, codes):
    """A Sentinel-2 scene and the Landsat-like partner made from it; at level sr Landsat comes in steps of 2.75e-5."""
    scene = real_scenes.manifest(real_data, tmp_path, name)
    more = ["--split_block=1920", "--split=0.6,0.2,0.2", "--min_valid=0.7"]
    export_pairs.main(["--source=degraded", f"--scenes={scene}", f"--out={tmp_path / 'here'}", *more])
    area = ["--area=-20,30,40,60", "--start=2015-01-01", "--end=2022-01-01", f"--level={level}", "--max_days=0"]
    with Emulator(DegradedSource(GeoTiffSource(scene))) as emulator:
        export(emulator, tmp_path / "there", *area, *more)
    here, there = ({r.id: r for r in read(tmp_path / side)} for side in ("here", "there"))
    assert here.keys() == there.keys() and len(here) > 15
    for key, expected in here.items():
        found = there[key]
        assert (found.split, found.valid_fraction, found.transform) == (
            expected.split, expected.valid_fraction, expected.transform,
        )  # fmt: skip
        np.testing.assert_array_equal(found.sentinel.ms, expected.sentinel.ms)
        assert np.abs(found.landsat.ms.astype(int) - expected.landsat.ms).max() <= codes
        if level == "toa":
            np.testing.assert_array_equal(found.landsat.pan, expected.landsat.pan)
        for side in ("landsat", "sentinel"):
            np.testing.assert_array_equal(getattr(found, side).valid, getattr(expected, side).valid)


RUNNERS = {
    "in memory": ["--direct_running_mode=in_memory"],
    "DirectRunner": ["--runner=DirectRunner"],
    "processes": ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_gives_the_same_bytes_and_keeps_within_the_quota(runner, undisturbed, tmp_path):
    with Emulator(simulated(), latency=0.02) as emulator:
        export(emulator, tmp_path / "examples", "--ee_max_concurrent=4", *RUNNERS[runner])
        assert emulator.peak <= 4
        assert {request.status for request in emulator.log} == {200}
    assert digests(tmp_path / "examples") == digests(undisturbed)


def test_one_request_reads_the_patches_of_a_whole_square(tmp_path):
    with Emulator(simulated(size=15_360)) as emulator:
        export(emulator, tmp_path / "examples", "--request_side=4", "--shard_examples=256")
        squares = (tmp_path / "examples" / "plan.jsonl").read_text().splitlines()
        patches = sum(len(Square.parse(line).patches) for line in squares)
        assert len(pixel_requests(emulator)) == 3 * len(squares) and patches / len(squares) > 5
        assert not emulator.requests("value:compute") and len(emulator.requests("listAssets")) < 10
        for request in pixel_requests(emulator):
            grid = json.loads(request.body)["grid"]["affineTransform"]
            assert grid["translateX"] % grid["scaleX"] == {30: 15, 15: 7.5, 10: 0}[grid["scaleX"]], "native pixels"


def check_places(count, size, tmp_path):
    """Exports patches by 64 threads and compares every pixel of every record with the ground's formula there."""
    source = SimulatedSource(seed=7, size=size)
    threads = ["--threads=64", "--ee_max_concurrent=64", "--min_valid=1", "--shard_examples=128", "--request_side=1"]
    with Emulator(source, latency=0.05) as emulator:
        info = export(emulator, tmp_path / "examples", *threads)
        assert sum(info["counts"].values()) >= count and not info["rejected"]
        assert 16 < emulator.peak <= 64
    for record in read(tmp_path / "examples"):
        _, _, left, _, _, top = record.transform
        for name, pixel in {"sentinel": 10.0, "landsat": 30.0, "pan": 15.0}.items():
            side = round(1920 / pixel)
            east = left + (np.arange(side) + 0.5) * pixel
            north = (top - (np.arange(side) + 0.5) * pixel)[:, None]
            codes = record.landsat.pan if name == "pan" else getattr(record, name).ms
            for index, band in enumerate(("pan",) if name == "pan" else record.bands):
                compare(source, codes[..., index] * 1e-4 - 0.1, east, north, band, name)


def compare(source, seen, east, north, band, name):
    optics = {"pan": sensors.OLI_PAN, "landsat": sensors.OLI.get(band), "sentinel": sensors.MSI.get(band)}[name]
    truth = source.truth(east, north, band, optics.sigma)
    if name == "sentinel":
        assert np.abs(seen - truth).max() < 1.01e-4, "half a code of the product, half of the record"
        return
    # Landsat's pixels were resampled once, so they are not equal to the truth, but nearest to it at their own place.
    error = rms(seen - truth)
    assert error < 0.15 * seen.std()
    for dx, dy in ((10, 0), (-10, 0), (0, 10), (0, -10)):
        assert error < rms(seen - source.truth(east + dx, north + dy, band, optics.sigma)) / 1.4


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


def test_every_pixel_of_a_hundred_patches_by_64_threads_is_where_it_says(tmp_path):
    check_places(100, 21_120, tmp_path)


@pytest.mark.skipif(not DRILLS, reason="a drill; set HARMONIZE_DRILLS=1 to run it")
def test_every_pixel_of_a_thousand_patches_by_64_threads_is_where_it_says(tmp_path):
    check_places(1000, 63_360, tmp_path)


def squares_of(out) -> dict[str, tuple[str, set]]:
    """Shard, and what is asked for (image and corner of the grid), of every square of an export."""
    job = json.loads((out / "job.json").read_text())
    plan = (out / "plan.jsonl").read_bytes()
    found = {}
    for shard, start, stop, _ in job["tasks"]:
        for line in plan[start:stop].splitlines():
            square = Square.parse(line)
            grids, requests = [patch.grid for patch in square.patches], set()
            sides = zip((*square.scenes, square.scenes[0]), (30, 10, 15), (job["about"]["bands"],) * 2 + (["pan"],),
                        strict=True)  # fmt: skip
            for scene, pixel, bands in sides:
                for _, window in native_windows(scene, bands, [grid.at(pixel) for grid in grids]):
                    requests.add((scene.id, window.left, window.top))
            found[square.id] = shard, requests
    return found


def windows(requests) -> list[tuple]:
    """Image and corner of the grid of pixel requests."""
    found = []
    for request in requests:
        body = json.loads(request.body)
        affine = body["grid"]["affineTransform"]
        text = json.dumps(body["expression"])
        scene = next(name for name in text.split('"') if name.startswith(("LANDSAT/", "COPERNICUS/"))).split("/")[-1]
        found.append((scene, affine["translateX"], affine["translateY"]))
    return found


def finished(out) -> set[str]:
    return {path.stem for path in out.glob("shards/*.json")}


def check_kills(times, tmp_path, undisturbed):
    """Kills the job at random moments, and lets it end at last."""
    out, draw = tmp_path / "examples", random.Random(times)
    with Emulator(simulated(), latency=0.06 * times) as emulator:  # slow enough to be killed that often
        command = [sys.executable, "-m", "beam_jobs.export_pairs", *asked(emulator, out, "--ee_max_concurrent=4")]
        killed = 0
        while True:
            before, log = finished(out), len(emulator.log)
            job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                if killed % 3 < 2:  # while it fetches, after the seconds that imports take; else at any moment
                    wait_for(lambda log=log, job=job: len(emulator.log) > log or job.poll() is not None)
                longest = 0.25 * times if killed % 3 < 2 else 4.0
                job.wait(timeout=draw.uniform(0.1, longest) if killed < times else 120)
            except subprocess.TimeoutExpired:
                os.kill(job.pid, signal.SIGKILL)
                killed += 1
            job.stderr.close()
            job.wait()
            if (out / "job.json").exists():
                asked_now = set(windows(r for r in emulator.log[log:] if "computePixels" in r.path))
                for shard, requests in squares_of(out).values():
                    assert shard not in before or not requests & asked_now, "a finished shard was fetched again"
            if job.returncode == 0:
                break
        assert killed == times or len(before) == len(finished(out))
        every = set().union(*(requests for _, requests in squares_of(out).values()))
        assert every <= set(windows(pixel_requests(emulator))), "everything was fetched"
    assert digests(out) == digests(undisturbed)
    assert not (out / "_staging").exists()
    info = json.loads((out / "dataset_info.json").read_text())
    assert info["dead"] == {"permanent": 0, "transient": 0}
    return killed


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_job_that_is_killed_goes_on_where_it_was_and_gives_the_same_bytes(tmp_path, undisturbed):
    assert check_kills(3, tmp_path, undisturbed) >= 2


@pytest.mark.skipif(not DRILLS, reason="a drill; set HARMONIZE_DRILLS=1 to run it")
def test_a_job_that_is_killed_ten_times_gives_the_same_bytes(tmp_path, undisturbed):
    assert check_kills(10, tmp_path, undisturbed) >= 8


@pytest.mark.parametrize("after", [0.15, 0.9])
def test_a_job_that_is_interrupted_ends_in_a_line_and_goes_on_to_the_same_bytes(after, tmp_path, undisturbed):
    out = tmp_path / "examples"
    with Emulator(simulated(), latency=0.4) as emulator:
        flags = asked(emulator, out, "--ee_max_concurrent=4", "--threads=2")
        command = [sys.executable, "-m", "beam_jobs.export_pairs", *flags]
        job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: emulator.requests("computePixels"))
        time.sleep(after)
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=60)
        assert job.returncode == 130 and "stopped; run the same command again" in said
        assert "Traceback" not in said and "permanent" not in said
        for manifest in out.glob("shards/*.json"):
            assert not json.loads(manifest.read_text())["dead"]
        export(emulator, out)
    assert digests(out) == digests(undisturbed)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_new_export_that_had_not_taken_its_place_yet_takes_it(renamed, tmp_path, undisturbed):
    out = tmp_path / "examples"
    with Emulator(simulated()) as emulator:
        export(emulator, out, "--bands=rgb")
        old = digests(out)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Folder, "take_over", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                export(emulator, out, "--overwrite")
        assert digests(out) == old
        if renamed:
            out.rename(tmp_path / ".examples.replaced")  # where a kill between two renames leaves it
        else:
            (out / "dataset_info.json").unlink()  # what a bucket loses first
        log = len(emulator.log)
        export(emulator, out)
        assert len(emulator.log) == log, "nothing is asked again"
    assert digests(out) == digests(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]


def test_a_quota_of_three_for_sixteen_workers_loses_nothing_and_is_kept_to(tmp_path, undisturbed):
    with Emulator(simulated(), limits=Limits(concurrent=3), latency=0.05) as emulator:
        info = export(emulator, tmp_path / "examples", "--ee_max_concurrent=16")
        statuses = [request.status for request in emulator.requests("computePixels")]
        assert emulator.peak == 3 and 0 < statuses.count(429) < 60
        assert statuses[-len(statuses) // 3 :].count(429) <= 1, "the limiter has settled"
    assert digests(tmp_path / "examples") == digests(undisturbed)
    assert info["requests"]["outcomes"]["refused"] == statuses.count(429)
    assert info["requests"]["throttled_s"] > 0


def test_an_outage_of_a_third_of_all_requests_loses_nothing(tmp_path, undisturbed):
    storm = [
        Fault(503, "computePixels", share=0.3, seed=3),
        Fault(0, "computePixels", share=0.05, seed=4),
        Fault(429, "computePixels", share=0.1, message=AGGREGATIONS),
    ]
    with Emulator(simulated(), faults=storm) as emulator:
        info = export(emulator, tmp_path / "examples", "--ee_attempts=12", "--ee_max_concurrent=8")
        statuses = [request.status for request in emulator.requests("computePixels")]
        assert statuses.count(503) > 5
    assert digests(tmp_path / "examples") == digests(undisturbed)
    assert info["dead"] == {"permanent": 0, "transient": 0}
    assert info["requests"]["outcomes"]["failed"] == statuses.count(503) + statuses.count(0)


def test_what_an_outage_has_left_out_is_healed_by_the_same_command_and_nothing_else_is_fetched(tmp_path, undisturbed):
    out = tmp_path / "examples"
    with Emulator(simulated()) as emulator:
        emulator.faults = [Fault(503, "computePixels", share=0.4, seed=5)]
        with pytest.raises(FlagError, match="could not be fetched.*run the same command again.*--max_dead_fraction"):
            export(emulator, out, "--ee_attempts=1")
        assert not (out / "dataset_info.json").exists()
        dead = [Square.parse(line) for line in (out / "dead.jsonl").read_text().splitlines()]
        known, log = squares_of(out), len(emulator.log)
        assert 0 < len(dead) < len(known)
        emulator.faults = []
        info = export(emulator, out, "--ee_attempts=1")
        again = set(windows(request for request in emulator.log[log:] if "computePixels" in request.path))
        assert again == set().union(*(known[square.id][1] for square in dead))
    assert digests(out) == digests(undisturbed)
    assert (out / "dead.jsonl").read_text() == "" and info["dead"]["transient"] == 0


def test_a_server_that_hangs_is_left_and_what_it_kept_is_healed(tmp_path, undisturbed):
    hang = Fault(200, "computePixels", count=4, hang=60)
    with Emulator(simulated(), faults=[hang]) as emulator:
        start = time.monotonic()
        export(emulator, tmp_path / "examples", "--ee_deadline_s=1.5", "--ee_max_concurrent=8")
        assert time.monotonic() - start < 40
    assert digests(tmp_path / "examples") == digests(undisturbed)


def test_what_is_gone_for_good_is_listed_and_can_be_done_without_or_retried(tmp_path, undisturbed):
    out = tmp_path / "examples"
    with Emulator(simulated()) as emulator:
        known = squares_of(undisturbed)
        lost = sorted(known)[1]
        _, east, north = next(iter(known[lost][1]))
        corner = rf'"translateX": ?{east!r}\b.*"translateY": ?{north!r}\b'
        emulator.faults = [Fault(404, corner, message="Image asset not found.")]
        with pytest.raises(FlagError, match="add --retry_dead, or do without them by --max_dead_fraction.*404"):
            export(emulator, out, "--max_dead_fraction=0")
        log = len(emulator.log)
        info = export(emulator, out, "--max_dead_fraction=0.5")
        assert len(emulator.log) == log, "nothing had to be asked again"
        (line,) = map(json.loads, (out / "dead.jsonl").read_text().splitlines())
        assert line["kind"] == "permanent" and "404, Image asset not found." in line["error"]
        assert Square.parse(json.dumps(line)).id == lost and info["dead"]["permanent"] == len(line["patches"])
        emulator.faults = []
        info = export(emulator, out, "--retry_dead")
        assert info["dead"]["permanent"] == 0
    assert digests(out) == digests(undisturbed)


@pytest.mark.parametrize("limits", [Limits(bytes=400_000), Limits(memory_pixels=120_000)])
def test_squares_that_are_refused_for_their_size_are_read_in_parts(limits, tmp_path, undisturbed):
    with Emulator(simulated(), limits=limits) as emulator:
        info = export(emulator, tmp_path / "examples")
        refused = pixel_requests(emulator, 400)
        assert refused and info["requests"]["outcomes"]["too_large"] == len(refused)
    assert digests(tmp_path / "examples") == digests(undisturbed)


def test_a_scene_that_cloud_score_has_not_reached_is_masked_by_its_classes_and_recorded(tmp_path):
    source = simulated(level="sr", days=(0, 16))
    name = source.pairs()[0][1].id
    with Emulator(source, without_cloud_score=[name]) as emulator:
        info = export(emulator, tmp_path / "examples", "--level=sr")
    counts = info["masks"]["sentinel"]
    assert set(counts) == {"SCL", "SCL and Cloud Score+"}
    assert counts["SCL"] == sum(record.sentinel.scene_id == name for record in read(tmp_path / "examples"))


def test_credentials_that_end_stop_the_job_and_cost_nothing(tmp_path, undisturbed, monkeypatch):
    out = tmp_path / "examples"
    with Emulator(simulated()) as emulator:
        emulator.faults = [Fault(401, "computePixels", message="Request had invalid authentication credentials.")]
        with pytest.raises(FlagError, match="authenticate anew"):
            export(emulator, out, "--ee_max_concurrent=2", "--threads=2")
        # Three shards are in work at once, with at most two threads each; each later shard tries one square.
        shards = len(list((out / "shards").glob("*.json")))
        under_way = 3 * (3 * 2 + shards - 3)  # a square has three sides
        planned = set().union(*(requests for _, requests in squares_of(undisturbed).values()))
        assert len(emulator.requests("computePixels")) <= under_way < len(planned)
        emulator.faults = []
        export(emulator, out)
    assert digests(out) == digests(undisturbed)


def test_new_scenes_in_the_catalogue_do_not_change_an_export_that_has_begun(tmp_path, undisturbed):
    out = tmp_path / "examples"
    with Emulator(simulated()) as emulator:
        export(emulator, out)
    next(iter(out.glob("shards/*.json"))).unlink()
    with Emulator(simulated(days=(0, 8, 16))) as emulator:
        export(emulator, out, f"--ee_url={emulator.url}")
        assert not emulator.requests("listAssets")
    assert digests(out) == digests(undisturbed)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--area="], "needs --area, --start and --end"),
        (["--start="], "needs --area, --start and --end"),
        (["--landsat=7"], "8,9. Received: landsat=7"),
        (["--level=uncalibrated"], "levels toa and sr"),
        (["--scenes=x.json", "--out=y"], "x.json"),
        (["--end=2022-05-01"], "before the end"),
        (["--area=1,2"], "west,south,east,north"),
        (["--ee_url=http://example.org"], "https"),
        (["--runner=DataflowRunner", "--max_num_workers=1", "--out=here"], "workers see buckets only"),
        (["--area=20,45,21,46"], "no Landsat and Sentinel-2 scenes"),
        (
            ["--direct_running_mode=multi_processing", "--direct_num_workers=8", "--ee_max_concurrent=4"],
            "max_concurrent",
        ),
    ],
)
def test_wrong_flags_are_told_and_nothing_is_planned(flags, told, tmp_path):
    with Emulator(SimulatedSource(size=1920)) as emulator, pytest.raises(HarmonizeError, match=told):
        export(emulator, tmp_path / "examples", *flags)
    assert not (tmp_path / "examples" / "job.json").exists()


def test_a_dry_run_tells_the_size_of_the_plan_and_writes_nothing(tmp_path, capsys, undisturbed):
    with Emulator(simulated()) as emulator:
        export_pairs.main(asked(emulator, tmp_path / "examples", "--dry_run"))
        assert not emulator.requests("computePixels")
    told = capsys.readouterr().out
    job = json.loads((undisturbed / "job.json").read_text())
    patches = sum(task[3] for task in job["tasks"])
    requests = sum(len(asked_for) for _, asked_for in squares_of(undisturbed).values())
    assert f"patches   {patches} before the gates" in told and f"requests  {requests} for" in told
    assert list(tmp_path.iterdir()) == []


def test_the_requests_of_all_runs_are_told_at_the_end(undisturbed, tmp_path, caplog):
    with Emulator(simulated(), latency=0.02) as emulator, caplog.at_level("INFO", "harmonize"):
        info = export(emulator, tmp_path / "examples")
        requests = pixel_requests(emulator)
    told = info["requests"]
    assert told["requests"] == told["outcomes"]["ok"] == len(requests)
    assert told["latency_s"]["sum"] >= 0.02 * len(requests) and told["bytes"] > 1e6
    assert f"{len(requests)} requests, {told['bytes'] / 1e6:,.0f} MB" in caplog.text


@pytest.mark.parametrize("runner", [[], ["--direct_running_mode=multi_processing"]], ids=["threads", "processes"])
def test_beam_counts_requests_patches_and_shards(runner, undisturbed, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(options, "pipeline", lambda *a, made=options.pipeline: ran.append(made(*a)) or ran[-1])
    with Emulator(simulated(), latency=0.02, limits=Limits(concurrent=2)) as emulator:
        info = export(emulator, tmp_path / "examples", "--ee_max_concurrent=4", *runner)
    found = ran[0].result.metrics().query()
    counted = {f"{c.key.metric.namespace}/{c.key.metric.name}": c.committed for c in found["counters"]}
    told = info["requests"]
    assert counted["ee/requests"] == told["requests"] and counted["ee/bytes"] == told["bytes"]
    assert {name: counted[f"ee/{name}"] for name in told["outcomes"]} == told["outcomes"]
    assert abs(counted["ee/cumulativeThrottlingSeconds"] - told["throttled_s"]) < 3
    assert counted["patches/exported"] == sum(info["counts"].values())
    assert counted["patches/rejected by valid"] == info["rejected"]["valid"]
    assert counted["shards/written"] == len(finished(tmp_path / "examples"))
    latency = next(d.committed for d in found["distributions"] if d.key.metric.name == "latency_ms")
    assert latency.count == told["requests"] and 20 <= latency.max < 5000


def test_counts_by_reason_are_those_of_the_lists(undisturbed):
    info = json.loads((undisturbed / "dataset_info.json").read_text())
    lines = [json.loads(line) for line in (undisturbed / "rejected.jsonl").read_text().splitlines()]
    assert info["rejected"] == collections.Counter(line["reason"] for line in lines)
    planned = sum(len(Square.parse(line).patches) for line in (undisturbed / "plan.jsonl").read_text().splitlines())
    assert sum(info["counts"].values()) + len(lines) == planned
    assert pathlib.Path(undisturbed / "flags.txt").read_text().count("--source=earthengine") == 1
