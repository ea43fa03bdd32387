"""A folder of examples in miniature, as `harmonize export` would leave it, from a scene in closed form."""

import dataclasses
import json

import numpy as np

from harmonize_tf import degradation, radiometry, records, sensors

BANDS = sensors.BAND_SETS["rgbn"]
CELLS = 16  # 30 m pixels along one side of a patch
SHARDS = 2


def sentinel_scene(number, bands=BANDS):
    """Reflectance [3 CELLS, 3 CELLS, band]: waves of 35 to 200 m in all directions, stronger in later bands."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: 3 * CELLS, : 3 * CELLS] * 10.0
    image = np.zeros((3 * CELLS, 3 * CELLS, len(bands)))
    for length in (35, 60, 100, 200):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / length + phase)
        image += 0.02 * wave[..., None] * (1 + 0.2 * np.arange(len(bands)))
    return (0.25 + image).astype(np.float32)


def record(number, split="train", bands=BANDS, pan=True, level="toa"):
    truth = sentinel_scene(number, bands)
    everywhere = np.ones(truth.shape[:2], bool)
    low, _ = degradation.degrade(truth, everywhere, sensors.blur_sigma(bands))
    rows = (np.arange(2 * CELLS) + 0.5) * 1.5 - 0.5
    grey = truth[..., :3].mean(-1, keepdims=True)
    fine, _ = degradation.sample_blurred(grey, everywhere, rows, rows, [sensors.PAN_BLUR_SIGMA], 1.5)
    landsat = records.Capture(
        radiometry.encode(low), np.ones((CELLS, CELLS), np.uint8), "L", "simulated", "LANDSAT_8",
        pan=radiometry.encode(fine) if pan else None,
    )  # fmt: skip
    sentinel = records.Capture(
        radiometry.encode(truth), np.ones(truth.shape[:2], np.uint8), "S", "simulated", "SENTINEL_2A"
    )
    side = 30.0 * CELLS
    transform = (10.0, 0.0, 10.0 + side * number, 0.0, -10.0, 10.0)
    return records.Record(
        f"patch{number}", split, f"block{number}", "simulated", level, tuple(bands), "EPSG:32633", transform,
        landsat, sentinel,
    )  # fmt: skip


def cloudy(record):
    """A change for `write`: both sensors see cloud, in places of their own and not in every patch as much."""
    number, sides = int(record.id.removeprefix("patch")), {}
    for name, where in (("landsat", np.s_[: 2 * (number % 3)]), ("sentinel", np.s_[:, 8 * (2 + number % 4) :])):
        capture = getattr(record, name)
        valid = capture.valid.copy()
        valid[where] = 0
        sides[name] = dataclasses.replace(capture, valid=valid)
    return dataclasses.replace(record, **sides)


def write(directory, *, bands=BANDS, pan=True, level="toa", train=6, val=3, test=3, change=lambda record: record):
    """Writes RUN/examples and returns its records by split; `change` may alter a record before it is written."""
    by_split, number = {}, 0
    for split, count in {"train": train, "val": val, "test": test}.items():
        by_split[split] = [change(record(number + i, split, bands, pan, level)) for i in range(count)]
        number += count
        (directory / split).mkdir(parents=True)
        for shard in range(SHARDS):
            path = directory / split / f"{shard:05}-of-{SHARDS:05}.tfrecord.gz"
            path.write_bytes(records.shard(records.encode(r) for r in by_split[split][shard::SHARDS]))
    flat = {"mean": [0.25] * len(bands), "std": [0.05] * len(bands)}
    info = {
        "schema": records.SCHEMA, "package_version": "0.1.0", "source": "simulated", "level": level,
        "bands": list(bands), "nir": "B8", "pan": pan, "patch_m": 30 * CELLS,
        "counts": {"train": train, "val": val, "test": test}, "rejected": {},
        "spacecraft": {"landsat": {"LANDSAT_8": number}, "sentinel": {"SENTINEL_2A": number}},
        "statistics": {"landsat": flat, "sentinel": flat} | ({"pan": {"mean": [0.25], "std": [0.05]}} if pan else {}),
        "flags": {}, "plan_sha256": "0" * 64,
    }  # fmt: skip
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return by_split


def in_reading_order(by_split, split):
    """The records as the shards hold them, one after the other."""
    return [r for shard in range(SHARDS) for r in by_split[split][shard::SHARDS]]
