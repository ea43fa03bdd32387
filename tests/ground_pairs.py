"""Pairs of patches of random ground for tests of statistics: cheap, all of one kind, and no two alike."""

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter

from harmonize_tf import geometry, patches, radiometry, sensors
from harmonize_tf.records import Capture, Record
from harmonize_tf.statistics import places
from harmonize_tf.statistics.groups import groups
from harmonize_tf.statistics.measure import measure
from harmonize_tf.statistics.totals import Totals

BANDS = sensors.BAND_SETS["rgbn"]
MEANS = np.array([0.15, 0.13, 0.12, 0.25])
CELLS = 16  # of 30 m along a side
TIME = 1_655_000_000_000  # 2022-06-12, ms
INFO = {"level": "toa", "bands": list(BANDS), "nir": "B8", "source": "random", "plan_sha256": "0" * 64, "schema": 1}


def record(number: int, split: str = "train", side: int = CELLS) -> Record:
    """A patch: bands that share half of their variance, clouds over a corner of some, Landsat as means of 3 x 3."""
    rng = np.random.default_rng(number)
    shape = (3 * side, 3 * side)
    shared, *own = (sum(_field(rng, shape, sigma) for sigma in (0.7, 3, 8)) / np.sqrt(3) for _ in range(1 + len(BANDS)))
    image = np.stack([shared + one for one in own], -1) / np.sqrt(2) * MEANS / 4
    fine = MEANS * rng.normal(1, 0.1) + image + rng.normal(scale=1e-3, size=image.shape)
    coarse = fine.reshape(side, 3, side, 3, -1).mean((1, 3)) + rng.normal(scale=3e-4, size=(side, side, len(BANDS)))
    pan = coarse[..., :3].mean(-1, keepdims=True).repeat(2, 0).repeat(2, 1)
    clear = np.ones((side, side), np.uint8)
    if number % 3 == 0:
        clear[: side // 2, : side // 3] = 0
    column, row = number % 20, number // 20
    left, top = 10.0 + geometry.PATCH * column, 10.0 + geometry.PATCH * (row + 1)
    pixel = geometry.PATCH / (3 * side)  # so that a patch is as large as others, whatever its pixels
    landsat = Capture(
        _codes(coarse), clear, "L", "LC08", "LANDSAT_8", TIME + number * 86_400_000, (30.0, 150.0), pan=_codes(pan)
    )
    sentinel = Capture(
        _codes(fine), clear.repeat(3, 0).repeat(3, 1), "S", "S2_HARMONIZED", "SENTINEL_2A", TIME, (31.0, 150.0)
    )
    return Record(
        f"{number:020}", split, f"EPSG:32633/{column}/{row}", "random", "toa", BANDS, "EPSG:32633",
        (pixel, 0.0, left, 0.0, -pixel, top), landsat, sentinel,
        dt_s=3600.0 * (number % 5), valid_fraction=float(clear.mean()), shift_m=(0.5 * (number % 7), -1.0),
    )  # fmt: skip


def _field(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    field = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return field / field.std()


def _codes(reflectance: np.ndarray) -> np.ndarray:
    return radiometry.encode(reflectance.astype(np.float32))


def splits(train: int = 13, val: int = 10, test: int = 9, first: int = 0) -> dict[str, list[Record]]:
    """As many patches of each split."""
    made, number = {}, first
    for split, count in {"train": train, "val": val, "test": test}.items():
        made[split] = [record(number + i, split) for i in range(count)]
        number += count
    return made


def changed(by_split, change, only=patches.SPLITS) -> dict[str, list[Record]]:
    """The same with each record changed, of some splits."""
    return {split: [change(r) if split in only else r for r in found] for split, found in by_split.items()}


def with_codes(one: Record, sensor: str, function) -> Record:
    """The record with other reflectance codes on one side."""
    capture = getattr(one, sensor)
    codes = np.clip(np.rint(function(capture.ms.astype(float))), 0, 65535).astype(np.uint16)
    return dataclasses.replace(one, **{sensor: dataclasses.replace(capture, ms=codes)})


def described(by_split):
    """Groups and places of records, as the job would have them."""
    totals, found = Totals(), {}
    for split, some in by_split.items():
        for one in some:
            measure(one, split, totals)
            places.add(found, dict.fromkeys(places.of(one), places.counts(split)))
    return groups(totals, places.numbers(found)), found, totals


def info(by_split) -> dict:
    """What dataset_info.json would say."""
    return INFO | {"counts": {split: len(some) for split, some in by_split.items()}}
