"""What a dry run says against what the export then asks an emulator for."""

import json
import re
import threading

import ee
import pytest
from earth_engine import loopback_only, served  # noqa: F401
from export_settings import change

from beam_jobs import estimate, export_pairs, plan
from harmonize_tf import records, sensors
from harmonize_tf.sources.simulated import SimulatedSource

WANTED = change(source="earthengine", split_block=1920, request_side=2, shard_examples=8, min_valid=0.4)
SCENES = {"size": 3840, "clouds": 0.4}


@pytest.fixture
def answered(monkeypatch):
    """Bytes of the pixels of every answer."""
    sizes, lock, compute = [], threading.Lock(), ee.data.computePixels

    def computed(request):
        pixels = compute(request)
        with lock:
            sizes.append(pixels.nbytes)
        return pixels

    monkeypatch.setattr(ee.data, "computePixels", computed)
    return sizes


def flags(emulator, wanted, *more):
    return [
        "--source=earthengine", f"--ee_url={emulator.url}", "--ee_project=emulator-project", "--area=-180,-80,180,80",
        "--start=2022-06-01", "--end=2022-08-01", "--split=1,0,0", "--split_block=1920", f"--level={wanted.level}",
        f"--request_side={wanted.request_side}", "--shard_examples=8", "--min_valid=0.4",
        f"--bands={next(name for name, bands in sensors.BAND_SETS.items() if bands == wanted.bands)}", *more,
    ]  # fmt: skip


def asked(emulator):
    return [request for request in emulator.requests("image:computePixels") if request.status == 200]


@pytest.mark.parametrize("without_score", [False, True], ids=["scored", "unscored"])
@pytest.mark.parametrize("bands", ["rgbn", "all6"])
@pytest.mark.parametrize("level", ["toa", "sr"])
def test_the_export_asks_for_as_many_requests_and_bytes_as_were_told(level, bands, without_score, answered, tmp_path):
    wanted = change(**vars(WANTED) | {"level": level, "bands": sensors.BAND_SETS[bands]})
    scenes = SimulatedSource(**SCENES, level=level, days=(0, 16))
    # At top of atmosphere a scene without Cloud Score+ is left out: one of the two is.
    lacking = [scenes.pairs()[1][1].id] if without_score else []
    with served(scenes, without_cloud_score=lacking) as (emulator, source):
        planned = plan.make(source, wanted)
        count, size = estimate.requests(planned, source, wanted)
        assert not asked(emulator)
        export_pairs.main(flags(emulator, wanted, f"--out={tmp_path / 'examples'}"))
        assert len(asked(emulator)) == count == len(answered)
        assert sum(answered) == size
    info = json.loads((tmp_path / "examples" / "dataset_info.json").read_text())
    assert info["requests"]["requests"] == count
    assert 0 < info["requests"]["bytes"] - size < 1000 * count, "headers come on top"
    scored = {"Cloud Score+" in masks for masks in info["masks"]["sentinel"]}
    assert scored == ({True, False} if without_score and level == "sr" else {True})


# Where Sentinel-2's codes of two bytes are counted as four when a window is split, and as two when it is estimated.
@pytest.mark.parametrize("most", [1_000_000, 1_300_000])
def test_windows_beyond_one_answer_are_counted_in_the_parts_that_are_asked_for(most, monkeypatch, answered, tmp_path):
    monkeypatch.setattr("harmonize_tf.sources.earth_engine.MOST_BYTES", most)
    wanted = change(**vars(WANTED) | {"level": "toa", "request_side": 2})
    with served(SimulatedSource(size=5760)) as (emulator, source):
        planned = plan.make(source, wanted)
        count, size = estimate.requests(planned, source, wanted)
        assert count > 3 * len(list(planned.squares))
        export_pairs.main(flags(emulator, wanted, f"--out={tmp_path / 'examples'}"))
        assert len(answered) == count
        assert sum(answered) == pytest.approx(size, rel=1e-4)


def test_larger_squares_mean_fewer_requests_and_fewer_bytes():
    with served(SimulatedSource(size=15_360)) as (emulator, source):
        found = []
        for side in (1, 2, 4):
            wanted = change(**vars(WANTED) | {"request_side": side, "shard_examples": 256, "level": "toa"})
            found.append(estimate.requests(plan.make(source, wanted), source, wanted))
        assert not asked(emulator)
    counts, sizes = zip(*found, strict=True)
    assert counts[0] > counts[1] > counts[2] and sizes[0] > sizes[1] > sizes[2]


def test_records_are_as_large_as_was_told_and_a_little_more_for_their_descriptions(tmp_path):
    source = SimulatedSource(size=3840)
    for level, pan in (("toa", True), ("toa", False), ("sr", None)):
        out = tmp_path / f"{level}{pan}"
        scenes = tmp_path / "scenes.json"
        scenes.write_text(json.dumps({"size": 3840, "level": level}))
        choice = {True: ["--pan"], False: ["--nopan"], None: []}[pan]
        export_pairs.main(
            ["--source=simulated", f"--scenes={scenes}", f"--out={out}", "--split=1,0,0", "--split_block=1920", *choice]
        )
        wanted = change(pan=pan)
        planned = plan.make(SimulatedSource(size=source.size, level=level), wanted)
        told = estimate.record_bytes(planned, wanted)
        found = [len(s) for path in out.glob("*/*.gz") for s in records.read_shard(path)]
        assert len(found) == len(list(planned.patches))
        assert told < sum(found) < told + 2000 * len(found)


def test_one_sided_patches_have_the_bytes_of_their_side():
    source = SimulatedSource(size=3840)
    landsat, sentinel = source.pairs()[0]

    class Given(SimulatedSource):
        def pairs(self):
            return [(landsat, None), (None, sentinel)]

    both = estimate.record_bytes(plan.make(source, change()), change())
    planned = plan.make(Given(), change())
    alone = estimate.record_bytes(planned, change())
    counts = [sum(patch.landsat is None for patch in planned.patches), sum(p.sentinel is None for p in planned.patches)]
    assert counts[0] == 4 and counts[1] >= 4
    fine = 192 * 192 * (4 * 2 + 1)
    coarse = 64 * 64 * (4 * 2 + 1) + 128 * 128 * 2
    assert both == 4 * (fine + coarse) and alone == counts[0] * fine + counts[1] * coarse


def test_the_words_tell_scenes_patches_shards_and_time(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = change(**vars(WANTED) | {"level": "sr"})
    with served(SimulatedSource(**SCENES, level="sr", days=(0, 16))) as (emulator, source):
        planned = plan.make(source, wanted)
        count, _ = estimate.requests(planned, source, wanted)
        export_pairs.main(flags(emulator, wanted, "--dry_run"))
        assert not asked(emulator)
    told = capsys.readouterr().out
    patches = len(list(planned.patches))
    assert "scenes    2 Landsat and 2 Sentinel-2 in 2 pairs" in told
    assert f"patches   {patches} before the gates: {patches} train, 0 val, 0 test" in told
    assert f"shards    {len(planned.shards)}, of {len(list(planned.squares))} squares" in told
    assert re.search(rf"requests  {count} for [\d.]+ MB of pixels", told)
    # The quota of 40 requests in flight is what counts, for 2 s each.
    assert f"time      {count * 2 / 40 / 3600:.2g} hours at the quota of 40 requests in flight and 100 a second" in told
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_asks_nobody_is_told_without_requests():
    source = SimulatedSource(size=3840)
    told = estimate.told(plan.make(source, change()), source, change(), 40)
    assert "patches   4 before the gates" in told and "requests" not in told and "time" not in told


@pytest.mark.parametrize(
    ("size", "told"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (5_033_164, "5.03 MB"), (12e12, "12 TB")]
)
def test_sizes_are_told_in_units_of_a_thousand(size, told):
    assert estimate._bytes(size) == told
