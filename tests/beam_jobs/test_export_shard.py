"""A shard made by the transform itself, and by a pipeline that counts."""

import collections
import dataclasses
import json
import threading

import pytest
from apache_beam.internal import pickler
from apache_beam.metrics import MetricsFilter
from export_settings import change

from beam_jobs import export_pairs, options, plan, shards
from beam_jobs.export_shard import ExportShard, Job
from beam_jobs.folder import Folder
from beam_jobs.shards import PERMANENT, TRANSIENT
from harmonize_tf import records
from harmonize_tf.errors import FlagError, PermanentError, SceneError, TransientError
from harmonize_tf.sources import MARGIN, ee_client
from harmonize_tf.sources.ee_client import Attempt
from harmonize_tf.sources.simulated import SimulatedSource

WANTED = change(bands=("blue", "green", "red"), pan=False, request_side=1, split=(0.6, 0.2, 0.2))
GRAY = SimulatedSource(size=5760, bands=WANTED.bands)
PLANNED = plan.make(GRAY, WANTED)
SQUARES = list(PLANNED.squares)
SPLITS = ("train", "val", "test")
# Silenced where a pipeline runs on this machine; here threads read without one.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@dataclasses.dataclass(frozen=True)
class Troubled(SimulatedSource):
    """Its Sentinel-2 scene calls a function before it is read."""

    before: object = None

    def read(self, scene, bands, window):
        if scene.sensor == "sentinel" and self.before is not None:
            self.before(window)
        return super().read(scene, bands, window)


def number(window):
    """Of the square that a window is read for."""
    (found,) = (n for n, square in enumerate(SQUARES) if place(square) == (window.left, window.top))
    return found


def place(square):
    """Of the window that is read for a square of one patch."""
    return square.patches[0].left - MARGIN * 10, square.patches[0].top + MARGIN * 10


def raising(errors):
    """Raises errors by the number of the square, and notes all that was asked for."""

    def before(window):
        before.asked.append(number(window))
        if before.asked[-1] in errors:
            raise errors[before.asked[-1]]

    before.asked = []
    return before


def job(folder, before=None, **changes):
    source = Troubled(size=GRAY.size, bands=GRAY.bands, before=before)
    made = Job(folder, source, WANTED, "toa", pan=False, splits=SPLITS, threads=1, readers=0, retry_dead=False)
    return dataclasses.replace(made, **changes)


def run(job):
    """Makes the shard; the manifest."""
    content, (task,) = PLANNED.written()
    job.folder.write("plan.jsonl", content)
    (count,) = ExportShard(job).process(task)
    manifest = shards.manifests(job.folder, [task])[task.shard]
    assert count == sum(entry["records"] for entry in manifest.files.values())
    return manifest


def content(folder):
    return folder.read_many(folder.sizes())


def exported(folder):
    """Ids of the patches in the files."""
    names = (f"{folder}/{name}" for name in folder.sizes() if name.endswith(".gz"))
    return sorted(records.decode(serialized).id for name in names for serialized in records.read_shard(name))


def dead(manifest):
    return {line["patches"][0]["id"]: line["kind"] for line in manifest.dead}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = Folder(tmp_path_factory.mktemp("undisturbed"))
    manifest = run(job(folder))
    assert not manifest.dead and not manifest.rejected
    return content(folder)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "examples")


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (TransientError("Earth Engine fails; run again later."), TRANSIENT, "Earth Engine fails; run again later."),
        (PermanentError("404, Image asset not found."), PERMANENT, "404, Image asset not found."),
        (SceneError("ms.tif: truncated"), PERMANENT, "ms.tif: truncated"),
        (ZeroDivisionError("by zero"), PERMANENT, "ZeroDivisionError('by zero')\nTraceback"),
        (OSError(5, "Input/output error"), PERMANENT, "OSError(5, 'Input/output error')\nTraceback"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_square_that_cannot_be_read_is_a_dead_letter_and_all_others_are_exported(error, kind, told, folder):
    before = raising({1: error})
    manifest = run(job(folder, before))
    assert sorted(before.asked) == list(range(len(SQUARES)))
    (line,) = manifest.dead
    assert line["kind"] == kind and line["error"].startswith(told)
    assert {name: line[name] for name in ("landsat", "sentinel", "patches")} == json.loads(SQUARES[1].line())
    assert exported(folder) == sorted(square.id for n, square in enumerate(SQUARES) if n != 1)


def test_the_traceback_of_a_bug_names_the_place(folder, caplog):
    manifest = run(job(folder, raising({0: KeyError("B11")})))
    assert "in before" in manifest.dead[0]["error"] and "test_export_shard.py" in manifest.dead[0]["error"]
    assert SQUARES[0].id in caplog.text, "and the log has it at once"


def test_an_error_that_only_a_person_can_mend_stops_the_asking_and_is_transient(folder, undisturbed):
    before = raising({2: FlagError("the credentials have ended; authenticate anew")})
    manifest = run(job(folder, before))
    assert before.asked == [0, 1, 2], "nothing more is asked"
    assert dead(manifest) == dict.fromkeys([square.id for square in SQUARES[2:]], TRANSIENT)
    assert {line["error"] for line in manifest.dead} == {"the credentials have ended; authenticate anew"}
    before = raising({})
    run(job(folder, before))
    assert before.asked == list(range(2, len(SQUARES)))
    assert content(folder) == undisturbed


def test_a_worker_that_is_out_of_memory_ends_rather_than_lose_a_square(folder):
    with pytest.raises(MemoryError):
        run(job(folder, raising({1: MemoryError()})))
    assert set(folder.sizes()) == {"plan.jsonl"}


def test_a_full_disk_is_told_and_no_more_is_asked(folder, undisturbed, monkeypatch, caplog):
    before = raising({})
    transform = ExportShard(job(folder, before))
    lines, (task,) = PLANNED.written()
    folder.write("plan.jsonl", lines)
    write = Folder._write

    def full(self, name, chunks):
        if name.startswith("train"):
            raise OSError(28, "No space left on device")
        write(self, name, chunks)

    monkeypatch.setattr(Folder, "_write", full)
    assert list(transform.process(task)) == []
    assert "No space left on device; mend that, then run the same command again. Received: " in caplog.text
    assert not folder.sizes("shards")
    before.asked.clear()
    monkeypatch.setattr(Folder, "_write", write)
    assert list(transform.process(task)) == []
    assert before.asked == [], "by this worker, until it is started anew"
    manifest = run(job(folder, before))
    assert not manifest.dead and content(folder) == undisturbed


def test_storage_that_fails_now_and_then_is_asked_again(folder, undisturbed, monkeypatch):
    monkeypatch.setattr("beam_jobs.folder.PAUSE_S", 0.01)
    write, tried = Folder._write, collections.Counter()

    def blink(self, name, chunks):
        tried[name] += 1
        if tried[name] < 3:
            raise ConnectionError("reset by peer")
        write(self, name, chunks)

    monkeypatch.setattr(Folder, "_write", blink)
    manifest = run(job(folder))
    assert set(tried.values()) == {3} and not manifest.dead and content(folder) == undisturbed


def test_a_shard_that_cannot_be_stored_is_left_out_and_the_next_ones_are_made(folder, monkeypatch, caplog):
    monkeypatch.setattr("beam_jobs.folder.PAUSE_S", 0.01)
    lines, (task,) = PLANNED.written()
    folder.write("plan.jsonl", lines)
    write = Folder._write

    def lost(self, name, chunks):
        if "00007" in name:
            raise ConnectionError("reset by peer")
        write(self, name, chunks)

    monkeypatch.setattr(Folder, "_write", lost)
    transform = ExportShard(job(folder))
    assert list(transform.process(dataclasses.replace(task, shard="00007-of-00009"))) == []
    assert "shard 00007-of-00009: reset by peer" in caplog.text
    assert len(list(transform.process(task))) == 1


def test_only_what_failed_for_passing_reasons_is_read_again_and_the_bytes_are_those_of_an_undisturbed_run(
    folder, undisturbed
):
    run(job(folder, raising({1: TransientError("503"), 2: PermanentError("404"), 4: TransientError("503")})))
    before = raising({4: TransientError("503 again")})
    manifest = run(job(folder, before))
    assert before.asked == [1, 4]
    assert dead(manifest) == {SQUARES[2].id: PERMANENT, SQUARES[4].id: TRANSIENT}
    assert [line["error"] for line in manifest.dead if line["kind"] == TRANSIENT] == ["503 again"]
    before = raising({})
    manifest = run(job(folder, before, retry_dead=True))
    assert before.asked == [2, 4] and not manifest.dead
    assert content(folder) == undisturbed


def test_a_shard_that_is_whole_is_not_read_again(folder, undisturbed):
    run(job(folder))
    before = raising({})
    run(job(folder, before))
    assert before.asked == [] and content(folder) == undisturbed


@pytest.mark.parametrize("damaged", ["train", "manifest"])
def test_a_shard_that_is_damaged_is_read_whole(damaged, folder, undisturbed):
    manifest = run(job(folder, raising({1: TransientError("503")})))
    shard = next(name for name in folder.sizes("shards" if damaged == "manifest" else damaged))
    folder.write(shard, folder.read(shard)[:-9])
    before = raising({})
    run(job(folder, before))
    assert manifest.dead and sorted(before.asked) == list(range(len(SQUARES)))
    assert content(folder) == undisturbed


@pytest.mark.parametrize("threads", [3, 8])
def test_the_bytes_do_not_depend_on_the_number_of_threads(threads, folder, undisturbed):
    run(job(folder, threads=threads))
    assert content(folder) == undisturbed


def test_shards_in_work_share_the_threads_of_their_process(tmp_path):
    lock, working, most = threading.Lock(), set(), []
    full = threading.Barrier(4)  # all threads are at work at one time, or this times out

    def before(window):
        with lock:
            working.add(threading.get_ident())
            most.append(len(working))
            wait = len(most) <= 4
        if wait:
            full.wait(timeout=20)
        with lock:
            working.discard(threading.get_ident())

    jobs = [job(Folder(tmp_path / name), before, threads=4) for name in ("one", "two")]
    together = [threading.Thread(target=run, args=[each]) for each in jobs]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert max(most) == 4 and len(most) == 2 * len(SQUARES)


def test_a_transform_travels_to_workers_and_they_know_what_to_do(folder, undisturbed):
    content_of_plan, (task,) = PLANNED.written()
    folder.write("plan.jsonl", content_of_plan)
    there = pickler.loads(pickler.dumps(ExportShard(job(folder))))
    assert list(there.process(task)) == [len(SQUARES)]
    assert content(folder) == undisturbed


def test_each_shards_requests_are_its_own_and_those_of_an_earlier_run_stay_counted(tmp_path):
    def ask(window, errors=()):
        for observer in ee_client.observers:
            observer(Attempt("ok", 0.5, 1000, 0.0))
        if number(window) in errors:
            raise TransientError("503")

    one, two = (Folder(tmp_path / name) for name in ("one", "two"))
    threads = [threading.Thread(target=run, args=[job(each, ask, threads=4)]) for each in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in (one, two):
        manifest = json.loads(each.read("shards/00000-of-00001.json"))
        assert manifest["requests"]["requests"] == len(SQUARES)
        assert manifest["requests"]["bytes"] == 1000 * len(SQUARES)
    third = Folder(tmp_path / "three")
    run(job(third, lambda window: ask(window, errors={0, 3})))
    assert run(job(third, ask)).requests["requests"] == len(SQUARES) + 2


def test_beam_counts_what_became_of_patches_and_shards(folder):
    COUNTED.clear()
    wanted = dataclasses.replace(WANTED, split=(1, 0, 0), min_valid=0.7, shard_examples=3)
    source = Counted(size=7680, bands=GRAY.bands, clouds=1.0)
    planned = plan.make(source, wanted)
    lines, tasks = planned.written()
    folder.write("plan.jsonl", lines)
    squares = list(planned.squares)
    COUNTED.update({squares[0].id: TransientError("503"), squares[-1].id: PermanentError("404")})
    PLACES.update({place(square): square.id for square in squares})
    there = Job(folder, source, wanted, "toa", pan=False, splits=SPLITS, threads=2, readers=0, retry_dead=False)
    pipeline = options.pipeline(options.pipeline_options([], 2, []))
    export_pairs.add_to(pipeline, tasks, there)
    result = pipeline.run()
    result.wait_until_finish()
    found = collections.Counter()
    for counter in result.metrics().query(MetricsFilter())["counters"]:
        found[counter.key.metric.namespace, counter.key.metric.name] += counter.committed
    made = shards.manifests(folder, tasks)
    rejected = sum(len(manifest.rejected) for manifest in made.values())
    assert rejected and found["patches", "rejected by valid"] == rejected
    assert found["patches", "exported"] == len(squares) - rejected - 2
    assert found["patches", "dead, transient"] == found["patches", "dead, permanent"] == 1
    assert (found["shards", "partial"], found["shards", "written"]) == (1, len(tasks) - 1)


COUNTED, PLACES = {}, {}


class Counted(SimulatedSource):
    """Some squares of it cannot be read."""

    def read(self, scene, bands, window):
        error = COUNTED.get(PLACES.get((window.left, window.top)))
        if error is not None:
            raise error
        return super().read(scene, bands, window)
