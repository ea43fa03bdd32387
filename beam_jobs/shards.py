"""The folder of examples: shards, dataset_info.json, rejected.jsonl; all of it whole or not there."""

import collections
import contextlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

import harmonize_tf
from harmonize_tf import geometry, patches, records
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.records import Capture, Record
from harmonize_tf.sensors import CODE

SHIFT_STEP = 0.5  # m, the twentieth of a 10 m pixel in which shifts are estimated
INFO, FAILURES = "dataset_info.json", "failures.json"


def write_shard(element: tuple[str, Iterable[tuple[str, bytes | None]]], folder: str) -> None:
    """Writes a shard, its records in the order of their ids.

    Args:
      element: name of the shard, and ids with serialized records; None for a patch that was rejected, so that a
        shard of which nothing is left is still written.
      folder: of the examples.
    """
    shard, items = element
    path = pathlib.Path(folder) / f"{shard}.tfrecord.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    kept = sorted((name, serialized) for name, serialized in items if serialized is not None)
    records.write_shard(aside, (serialized for _, serialized in kept))
    aside.rename(path)


class Summarise(beam.CombineFn):
    """Counts, statistics and shifts of records, as dataset_info.json holds them.

    Everything is added up in integers (codes, their squares, steps of the shift), so that the result does not depend
    on the order in which runners add.
    """

    def create_accumulator(self) -> collections.Counter:
        """Sums by key, all zero."""
        return collections.Counter()

    def add_input(self, accumulator: collections.Counter, record: Record) -> collections.Counter:
        """Adds a record."""
        accumulator["count", record.split] += 1
        if not np.isnan(record.shift_m[0]):
            accumulator["shift", *(round(shift / SHIFT_STEP) for shift in record.shift_m)] += 1
        for sensor in ("landsat", "sentinel"):
            if (capture := getattr(record, sensor)) is not None:
                accumulator["spacecraft", sensor, capture.spacecraft] += 1
                for name, codes in _valid_codes(sensor, capture):
                    for band, plane in enumerate(codes.T.astype(np.int64)):
                        for power in range(3):
                            accumulator["sum", record.split, name, band, power] += int((plane**power).sum())
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[collections.Counter]) -> collections.Counter:
        """Adds accumulators."""
        total: collections.Counter = collections.Counter()
        for accumulator in accumulators:
            total.update(accumulator)
        return total

    def extract_output(self, accumulator: collections.Counter) -> dict[str, Any]:
        """The part of dataset_info.json that the records decide."""
        counts = {split: accumulator["count", split] for split in patches.SPLITS}
        spacecraft: dict[str, dict[str, int]] = {"landsat": {}, "sentinel": {}}
        for key in sorted(key for key in accumulator if key[0] == "spacecraft"):
            spacecraft[key[1]][key[2]] = accumulator[key]
        splits = ["train"] if counts["train"] else list(counts)
        names = sorted({key[2] for key in accumulator if key[0] == "sum"})
        return {
            "counts": counts,
            "spacecraft": spacecraft,
            "statistics": {name: _statistics(accumulator, splits, name) for name in names},
            "shift_m": _shifts(accumulator),
        }


def _valid_codes(sensor: str, capture: Capture) -> Iterator[tuple[str, np.ndarray]]:
    """Name and codes [pixel, band] of the clear pixels."""
    clear = capture.valid.astype(bool)
    yield sensor, capture.ms[clear]
    if capture.pan is not None:
        seen = clear.repeat(2, 0).repeat(2, 1) & (capture.pan[..., 0] > 0)
        yield "pan", capture.pan[seen]


def _statistics(sums: Mapping[tuple, int], splits: Iterable[str], name: str) -> dict[str, list[float]]:
    """Mean and standard deviation in reflectance of every band, rounded to what a code can tell."""
    mean, std = [], []
    band = 0
    while any(("sum", split, name, band, 0) in sums for split in splits):
        count, first, second = (sum(sums["sum", split, name, band, power] for split in splits) for power in range(3))
        count = max(count, 1)
        mean.append(round(first / count * CODE.scale + CODE.offset, 8))
        std.append(round((max(second * count - first**2, 0) ** 0.5) / count * CODE.scale, 8))
        band += 1
    return {"mean": mean, "std": std}


def _shifts(sums: Mapping[tuple, int]) -> dict[str, Any] | None:
    """Median to the east and north, and the length that nine of ten patches stay below, m."""
    keys = sorted(key for key in sums if key[0] == "shift")
    if not keys:
        return None
    shifts = np.repeat([key[1:] for key in keys], [sums[key] for key in keys], axis=0) * SHIFT_STEP
    p90 = round(float(np.percentile(np.hypot(*shifts.T), 90)), 3)
    return {"median": np.median(shifts, axis=0).tolist(), "p90": p90, "patches": len(shifts)}


def write_failures(failures: Sequence[tuple[str, str]], folder: str) -> None:
    """Keeps what could not be read for `check_failures`."""
    (pathlib.Path(folder) / FAILURES).write_text(json.dumps(sorted(failures)))


def check_failures(folder: pathlib.Path) -> None:
    """Ends a job of which some patch could not be read.

    Raises:
      SceneError: with the first patch's message.
    """
    path = folder / FAILURES
    failures = json.loads(path.read_text())
    path.unlink()
    if failures:
        raise SceneError(failures[0][1])


def write_info(
    summary: Mapping[str, Any], rejected: Iterable[Mapping], identity: Mapping[str, Any], folder: str
) -> None:
    """Writes rejected.jsonl and, last, dataset_info.json.

    Args:
      summary: from `Summarise`.
      rejected: lines for rejected.jsonl, in any order.
      identity: what was decided before the job ran.
      folder: of the examples.
    """
    lines = sorted(rejected, key=lambda line: line["id"])
    reasons = collections.Counter(line["reason"] for line in lines)
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "rejected.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    info = {
        "schema": records.SCHEMA,
        "package_version": harmonize_tf.__version__,
        "patch_m": geometry.PATCH,
        **identity,
        **summary,
        "rejected": dict(sorted(reasons.items())),
    }
    aside = path / f"{INFO}.tmp"
    aside.write_text(json.dumps(info, indent=2, sort_keys=True) + "\n")
    aside.rename(path / INFO)


def read_info(folder: pathlib.Path) -> dict[str, Any]:
    """The dataset_info.json of a folder of examples."""
    try:
        return json.loads((folder / INFO).read_text())
    except ValueError as error:
        raise FlagError(
            f"the export that is there is damaged ({error}); delete it or choose another --out. "
            f"Received: {folder / INFO}"
        ) from error


def is_finished(out: pathlib.Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds this very export already.

    Raises:
      FlagError: it holds another export, or something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    check_ours(out)
    info = read_info(out)
    if all(info.get(name) == value for name, value in identity.items()):
        return True
    flags = [
        f"{name}={info.get('flags', {}).get(name)} there, {value} now"
        for name, value in identity["flags"].items()
        if info.get("flags", {}).get(name) != value
    ]
    raise FlagError(
        f"{out} holds another export ({'; '.join(flags) or 'the scenes differ'}); use --overwrite, or another folder. "
        f"Received: out={out}"
    )


def check_ours(out: pathlib.Path) -> None:
    """Refuses a folder that is no finished export, so that nothing of anyone else's is ever replaced.

    Raises:
      FlagError: it is a file, or holds something else.
    """
    if out.exists() and not (out / INFO).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FlagError(
            f"expected no such folder yet, an empty one, or a finished export with {INFO}; choose another --out. "
            f"Received: out={out}"
        )


@contextlib.contextmanager
def written_aside(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `out` that takes its place when the block ends well, and is gone when it does not."""
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise FlagError(f"nothing can be written there ({error}); choose another --out. Received: out={out}") from error
    aside, old = work / "new", work / "old"
    aside.mkdir()
    try:
        yield aside
        if out.exists():
            out.rename(old)
        aside.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(work, ignore_errors=True)
