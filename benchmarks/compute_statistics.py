"""Time and memory of `harmonize statistics` against the number of patches.

    python -m benchmarks.compute_statistics --patches=1000,2000,4000

Each number of patches is an export of its own, whose records are one simulated patch with other noise and another
place: what is in them does not matter to the cost, where they are does to the number of blocks. The command runs in a
process of its own; its peak memory and its seconds of processors, which other work does not change much, are that
process's. A straight line through the numbers tells what 100,000 need. The line through memory tells too much where it
ends below some thousand patches: from there on memory grows by what places take alone.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from harmonize_tf import command, geometry, patches, radiometry, records, sensors

FLAGS = flags.FlagValues()
_PATCHES = flags.DEFINE_list("patches", ["1000", "2000", "4000"], "Numbers of patches, ascending.", flag_values=FLAGS)
_SHARD = flags.DEFINE_integer("shard_examples", 256, "Patches in a shard, as exports have them.", flag_values=FLAGS)

BANDS = sensors.BAND_SETS["rgbn"]
TARGET = 100_000
SHARES = (0.8, 0.1, 0.1)
ACROSS = 400  # patches side by side
# The command's own peak, of which the kernel keeps count in KiB, and its seconds of processors.
RUN = (
    "import resource, sys; from beam_jobs import compute_statistics as job; job.main(sys.argv[1:]); "
    "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_maxrss, used.ru_utime + used.ru_stime)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints seconds and MiB for each number of patches, and what 100,000 would need."""
    command.parse(FLAGS, argv)
    numbers, seconds, memory = [int(number) for number in _PATCHES.value], [], []
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            write(path / "examples", number)
            start = time.perf_counter()
            peak, busy = run(path)
            wall = time.perf_counter() - start
        seconds.append(busy)
        memory.append(peak)
        print(f"{number} patches: {busy:.1f} s of processors in {wall:.1f} s, {peak:.0f} MiB at most", flush=True)
    if len(numbers) > 1:
        (slope, fixed), (growth, base) = np.polyfit(numbers, seconds, 1), np.polyfit(numbers, memory, 1)
        print(f"{1000 * slope:.2f} ms and {1024 * growth:.2f} KiB a patch beside {fixed:.1f} s and {base:.0f} MiB")
        print(f"{TARGET} patches: {(fixed + slope * TARGET) / 60:.1f} minutes, {base + growth * TARGET:.0f} MiB")


def run(folder: pathlib.Path) -> tuple[float, float]:
    """Runs the command on an export; returns its peak memory, MiB, and seconds of processors."""
    argv = [f"--data={folder / 'examples'}", f"--out={folder / 'statistics'}"]
    done = subprocess.run([sys.executable, "-c", RUN, *argv], check=True, stdout=subprocess.PIPE, text=True)
    peak, busy = map(float, done.stdout.split()[-2:])
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**20, busy


def write(folder: pathlib.Path, number: int) -> None:
    """Writes an export of so many patches, a shard at a time."""
    made, counts = simulated(number), dict.fromkeys(patches.SPLITS, 0)
    for shard in range(-(-number // _SHARD.value)):
        by_split: dict[str, list[bytes]] = {split: [] for split in patches.SPLITS}
        for _, record in zip(range(_SHARD.value), made, strict=False):
            by_split[record.split].append(records.encode(record))
        for split, encoded in by_split.items():
            counts[split] += len(encoded)
            path = folder / split / f"{shard:05}.tfrecord.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(records.shard(encoded))
    info = {"schema": records.SCHEMA, "level": "toa", "bands": BANDS, "nir": "B8", "source": "simulated"}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"counts": counts, "plan_sha256": "0" * 64}))


def simulated(number: int) -> Iterator[records.Record]:
    """Records of 64 x 64 and 192 x 192 pixels and the panchromatic band, each at a place of its own."""
    rng = np.random.default_rng(0)
    ground = 0.15 + 0.05 * np.cumsum(np.cumsum(rng.normal(size=(192, 192, len(BANDS))), 0), 1) / 192
    for index in range(number):
        fine = ground * rng.uniform(0.8, 1.2) + rng.normal(scale=0.01, size=ground.shape)
        coarse = fine.reshape(64, 3, 64, 3, -1).mean((1, 3))
        pan = coarse[..., :3].mean(-1, keepdims=True).repeat(2, 0).repeat(2, 1)
        column, row = index % ACROSS, index // ACROSS
        left, top = (10.0 + geometry.PATCH * place for place in (200 + column, 3000 + row))
        block = f"EPSG:32633/{(200 + column) // 2}/{(3000 + row) // 2}"
        landsat = _capture(coarse, "LANDSAT_8")
        yield records.Record(
            f"{index:020}", patches.split_of(block, SHARES, 0), block, "simulated", "toa", BANDS, "EPSG:32633",
            (10.0, 0.0, left, 0.0, -10.0, top),
            dataclasses.replace(landsat, pan=radiometry.encode(pan.astype(np.float32))),
            _capture(fine, "SENTINEL_2A"), 3600.0, 1.0, (1.0, 0.5),
        )  # fmt: skip


def _capture(reflectance: np.ndarray, spacecraft: str) -> records.Capture:
    codes = radiometry.encode(reflectance.astype(np.float32))
    return records.Capture(
        codes, np.ones(codes.shape[:2], np.uint8), "scene", "SIMULATED", spacecraft, 1_655_000_000_000
    )


if __name__ == "__main__":
    command.run(main)
