"""The job's one transform: a shard's squares fetched by threads, judged, encoded and written."""

import dataclasses
import functools
import logging
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from beam_jobs import progress, shards, summary, transforms
from beam_jobs.folder import Folder, StorageError
from beam_jobs.plan import PLAN, Task
from beam_jobs.settings import Settings
from beam_jobs.shards import PERMANENT, TRANSIENT, Harvest
from beam_jobs.squares import Square
from beam_jobs.stopping import cancelled
from beam_jobs.tally import Tally
from harmonize_tf import records
from harmonize_tf.errors import HarmonizeError, PermanentError, SceneError, TransientError
from harmonize_tf.sources import SceneSource

_log = logging.getLogger("harmonize")
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker has to know.

    Attributes:
      folder: with the plan in it; the shards go there.
      source: of the scenes.
      settings: flags.
      level: of all scenes.
      pan: whether the records hold the panchromatic band.
      splits: those that have patches.
      threads: that work on squares in one process, those that wait for an answer included.
      readers: further threads that read a square's sides at the same time; 0: they are read one after the other.
      retry_dead: whether squares are fetched again that failed for good.
    """

    folder: Folder
    source: SceneSource
    settings: Settings
    level: str
    pan: bool
    splits: tuple[str, ...]
    threads: int
    readers: int
    retry_dead: bool


class ExportShard(beam.DoFn):
    """`Task` to the number of patches that the shard holds; the shard and its manifest are in the folder then.

    One shard is one element: what is finished stays finished, whatever happens to the job, and a worker holds the
    encoded records of a shard in memory, no more.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stopped: str | None = None  # why nothing more is asked
        self._full = False

    def process(self, task: Task) -> Iterator[int]:
        """Makes a shard, or the rest of one; one that cannot be stored is left out, for the same command to make."""
        if self._full or cancelled.is_set():
            return
        try:
            manifest = self._made(task)
        except (CancelledError, RuntimeError):  # its threads were told to stop, or had ended before it asked them
            if cancelled.is_set():
                return
            raise
        except StorageError as error:
            self._full = error.lasting  # what were fetched now would be lost
            _log.error("shard %s: %s", task.shard, error)
            Metrics.counter("shards", "not stored").inc()
            return
        _report(manifest)
        yield sum(entry["records"] for entry in manifest.files.values())

    def _made(self, task: Task) -> shards.Manifest:
        job, tally = self._job, Tally()
        lines = job.folder.read_range(PLAN, task.start, task.stop).splitlines()
        squares = [Square.parse(line) for line in lines]
        harvest, missing = shards.kept(job.folder, task.shard, squares, retry_dead=job.retry_dead)
        progress.advance(task.patches - sum(len(square.patches) for square in missing))
        if self._stopped is not None and missing:
            # By now a person may have mended it: one square tells.
            self._stopped = None
            harvest.add(self._harvest(missing.pop(0), tally))
        for part in _pool("squares", job.threads).map(functools.partial(self._harvest, tally=tally), missing):
            harvest.add(part)
        harvest.requests.append(tally.summary())
        manifest = shards.write(job.folder, task.shard, job.splits, harvest)
        tally.report()
        return manifest

    def _harvest(self, square: Square, tally: Tally) -> Harvest:
        """What becomes of one square; nothing that happens to it ends a job of a week."""
        harvest = self._tried(square, tally)
        progress.advance(len(square.patches))
        return harvest

    def _tried(self, square: Square, tally: Tally) -> Harvest:
        if self._stopped is not None:
            return _dead(square, TRANSIENT, self._stopped)
        try:
            return harvested(square, self._job, tally)
        except TransientError as error:
            return _dead(square, TRANSIENT, str(error))
        except (PermanentError, SceneError) as error:
            return _dead(square, PERMANENT, str(error))
        except HarmonizeError as error:  # no square will fare better until a person has mended it
            self._stopped = str(error)
            return _dead(square, TRANSIENT, str(error))
        except MemoryError:
            raise
        except Exception as error:  # a bug must not stop the other squares, nor be lost
            if cancelled.is_set():
                raise CancelledError from error
            _log.exception("square %s", square.id)
            return _dead(square, PERMANENT, f"{error!r}\n{traceback.format_exc()}")


def harvested(square: Square, job: Job, tally: Tally) -> Harvest:
    """Fetches a square, holds its patches against the gates and encodes those that pass.

    Raises:
      HarmonizeError: it cannot be fetched.
    """

    def each(read: Callable[..., Any], *sides: Iterable[Any]) -> Iterable[Any]:
        counted = tally.counted(read)
        return _pool("readers", job.readers).map(counted, *sides) if job.readers else map(counted, *sides)

    harvest = Harvest()
    for views in transforms.fetch(job.source, square, job.settings.bands, pan=job.pan, each=each):
        verdict = transforms.examine(views, job.settings)
        if verdict.reason is None:
            record = transforms.to_record(views, verdict, job.settings, job.level)
            harvest.encoded.append((record.split, record.id, records.encode(record)))
            harvest.sums.update(summary.of(record, square.scenes))
        else:
            harvest.rejected.append(transforms.rejection(views.patch, verdict))
    return harvest


def _dead(square: Square, kind: str, error: str) -> Harvest:
    return Harvest(dead=[square.plain() | {"kind": kind, "error": error}])


def _report(manifest: shards.Manifest) -> None:
    """Counts the shard for Beam."""
    Metrics.counter("shards", "partial" if manifest.missing(retry_dead=False) else "written").inc()
    Metrics.counter("patches", "exported").inc(sum(entry["records"] for entry in manifest.files.values()))
    for line in manifest.rejected:
        Metrics.counter("patches", f"rejected by {line['reason']}").inc()
    for line in manifest.dead:
        Metrics.counter("patches", f"dead, {line['kind']}").inc(len(line["patches"]))


_pools: dict[tuple[str, int], ThreadPoolExecutor] = {}


def _pool(name: str, threads: int) -> ThreadPoolExecutor:
    """The process's threads: shared by the shards in work, so that one's last squares leave none idle."""
    with _lock:
        if (name, threads) not in _pools:
            _pools[name, threads] = ThreadPoolExecutor(threads, thread_name_prefix=name)
        return _pools[name, threads]


def stop_squares() -> None:
    """Lets the process's threads take no more squares. The readers have to end their work."""
    for key in [key for key in list(_pools) if key[0] == "squares"]:
        _pools.pop(key).shutdown(wait=False, cancel_futures=True)
