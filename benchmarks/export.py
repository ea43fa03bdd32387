"""Patches per second of `harmonize export` against a thread pool that only reads the same windows with rasterio.

    OPENBLAS_NUM_THREADS=1 python benchmarks/export.py --side=23040 --threads=2

The variable is what the command sets for itself before numpy is imported; without it numpy's threads and the job's
get in each other's way, and a patch costs twice the time.

Simulated scenes are written as tiled, deflated GeoTIFFs first, as Landsat's and Sentinel-2's are delivered. The plain
reader reads what the job reads, margins included, and does nothing with it; so the ratio is what planning, warping,
gates, encoding, compression and Beam leave of the disk's and the decompressor's speed.
"""

import json
import logging
import pathlib
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import rasterio
from absl import flags
from rasterio.windows import from_bounds

from beam_jobs import export_pairs
from harmonize_tf import command, radiometry
from harmonize_tf.sources import MARGIN
from harmonize_tf.sources.simulated import SimulatedSource

FLAGS = flags.FlagValues()
_SIDE = flags.DEFINE_integer("side", 15360, "Side of the scenes in m, a multiple of 1920.", flag_values=FLAGS)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of the job and of the plain reader.", flag_values=FLAGS)

BANDS = ("blue", "green", "red", "nir")
STRIP = 384  # rows written at once: bounded memory


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the two rates and their ratio."""
    command.parse(FLAGS, argv)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        files = write_scenes(SimulatedSource(size=_SIDE.value, bands=BANDS), path)
        start = time.perf_counter()
        export_pairs.main(
            [
                "--source=geotiff",
                f"--scenes={path / 'manifest.json'}",
                f"--out={path / 'examples'}",
                "--split=1,0,0",
                f"--threads={_THREADS.value}",
            ]
        )
        job = time.perf_counter() - start
        squares = [json.loads(line) for line in (path / "examples" / "plan.jsonl").read_text().splitlines()]
        plan = [patch for square in squares for patch in square["patches"]]
        start = time.perf_counter()
        with ThreadPoolExecutor(_THREADS.value) as pool:
            size = sum(pool.map(lambda patch: read_plainly(files, patch), plan))
        plain = time.perf_counter() - start
    rates = len(plan) / job, len(plan) / plain
    print(f"{len(plan)} patches, {size / 1e6:.0f} MB, {_THREADS.value} threads")
    print(f"export {rates[0]:.1f} patches/s, plain reading {rates[1]:.1f} patches/s, ratio {rates[0] / rates[1]:.3f}")


def read_plainly(files: Sequence[pathlib.Path], patch: dict) -> int:
    """Reads a patch's windows, margins included; returns the number of bytes."""
    size = 0
    for path in files:
        with rasterio.open(path) as raster:
            margin = MARGIN * raster.res[0]
            left, top = patch["left"] - margin, patch["top"] + margin
            side = 1920 + 2 * margin
            window = from_bounds(left, top - side, left + side, top, raster.transform).round_offsets().round_lengths()
            size += raster.read(window=window, boundless=False).nbytes
    return size


def write_scenes(source: SimulatedSource, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes a simulated pair as GeoTIFFs with their manifest; returns the files."""
    scenes, paths = [], []
    for scene in source.scenes():
        files = []
        for bands in (BANDS, ("pan",)) if scene.sensor == "landsat" else (BANDS,):
            paths.append(folder / f"{scene.sensor}_{bands[-1]}.tif")
            _write(source, scene, bands, paths[-1])
            files.append({"path": paths[-1].name, "bands": list(bands), "scale": 1e-4, "offset": -0.1})
        entry = {"id": scene.id, "sensor": scene.sensor, "level": scene.level, "spacecraft": scene.spacecraft}
        scenes.append(entry | {"files": files})
    manifest = {"version": 1, "scenes": scenes, "pairs": [[scene["id"] for scene in scenes]]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return paths


def _write(source: SimulatedSource, scene: object, bands: Sequence[str], path: pathlib.Path) -> None:
    grid = scene.grids[bands[0]]
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2, "nodata": 0}
    place = {"crs": grid.crs, "transform": grid.transform, "height": grid.shape[0], "width": grid.shape[1]}
    with rasterio.open(path, "w", "GTiff", dtype="uint16", count=len(bands), **layout, **place) as file:
        for row in range(0, grid.shape[0], STRIP):
            rows = min(STRIP, grid.shape[0] - row)
            raster = source.read(scene, bands, grid.window(row, 0, rows, grid.shape[1]))
            codes = radiometry.encode(raster.values, raster.valid[..., None])
            window = rasterio.windows.Window(0, row, grid.shape[1], rows)
            file.write(np.moveaxis(codes, -1, 0), window=window)


if __name__ == "__main__":
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    command.run(main)
