"""Counts, statistics and shifts of records, as dataset_info.json holds them.

Everything is added up in integers (codes, their squares, steps of the shift), so that the result does not depend on
the order in which it is added.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from beam_jobs.squares import Pair
from harmonize_tf import patches
from harmonize_tf.records import Capture, Record
from harmonize_tf.sensors import CODE

SHIFT_STEP = 0.5  # m, the twentieth of a 10 m pixel in which shifts are estimated


def of(record: Record, scenes: Pair) -> Counter:
    """A record's contribution; sums by keys that are tuples."""
    sums: Counter = Counter({("count", record.split): 1})
    if not np.isnan(record.shift_m[0]):
        sums["shift", *(round(shift / SHIFT_STEP) for shift in record.shift_m)] += 1
    for sensor, capture, scene in zip(("landsat", "sentinel"), (record.landsat, record.sentinel), scenes, strict=True):
        if capture is not None:
            sums["spacecraft", sensor, capture.spacecraft] += 1
            if scene.masks:
                sums["masks", sensor, " and ".join(scene.masks)] += 1
            for name, codes in _valid_codes(sensor, capture):
                # Exact, because sums of whole numbers below 2**53 are: two million pixels of the highest code.
                for band, plane in enumerate(codes.T.astype(np.float64)):
                    for power, value in enumerate((len(plane), plane.sum(), plane @ plane)):
                        sums["sum", record.split, name, band, power] += int(value)
    return sums


def to_json(sums: Counter) -> list[Any]:
    """For a manifest."""
    return [[list(key), sums[key]] for key in sorted(sums, key=json.dumps)]


def from_json(content: Iterable[Any]) -> Counter:
    """The inverse of `to_json`."""
    return Counter({tuple(key): value for key, value in content})


def described(sums: Counter) -> dict[str, Any]:
    """The part of dataset_info.json that the records decide."""
    counts = {split: sums["count", split] for split in patches.SPLITS}
    splits = ["train"] if counts["train"] else list(counts)
    names = sorted({key[2] for key in sums if key[0] == "sum"})
    return {
        "counts": counts,
        "spacecraft": _counted(sums, "spacecraft"),
        "masks": _counted(sums, "masks"),
        "statistics": {name: _statistics(sums, splits, name) for name in names},
        "shift_m": _shifts(sums),
    }


def _counted(sums: Counter, kind: str) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {"landsat": {}, "sentinel": {}}
    for key in sorted(key for key in sums if key[0] == kind):
        counted[key[1]][key[2]] = sums[key]
    return counted


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
