"""Whole scenes: `harmonize scene`, with the model in its process and on a server, against the bare network.

    python benchmarks/scene.py --cells=7800 [--cells=3900 ...] [--model=RUN/serving/NAME] [--scene=MANIFEST]

Mosaics a real Landsat scene (without one a simulated one), mirrored at its edges, into a square of the wanted size,
puts it through the model as a user would, each time in a process of its own, and the bare network over the very same
padded windows: some of them before and some after, so that a busy machine is as busy for both. Without --model, a
network of the small preset's size that was never trained.

Prints for each size, in megapixels of 10 m: wall and processor time of the windows (read, predicted and kept) and of
what comes after them (GeoTIFFs, quick-look, item); the ratio of the bare network's time to them; the peak of memory.
Processor time is that of client and server together; it tells more on a machine that does other work too.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import dataclasses
import json
import logging
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import rasterio
from absl import flags

from harmonize_tf import command, geometry, predictors, products, radiometry, sensors, tiling, windows
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.radiometry import Bandpass
from harmonize_tf.sources import Scene, SceneSource
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.windows import Predictor
from serving.export import export_harmonizer
from serving.local import LocalPredictor

FLAGS = flags.FlagValues()
_CELLS = flags.DEFINE_multi_integer("cells", [1200], "Side of a scene, pixels of 30 m; repeat it.", flag_values=FLAGS)
_MODEL = flags.DEFINE_string("model", None, "An exported model, level toa.", flag_values=FLAGS)
_SCENE = flags.DEFINE_string("scene", None, "Manifest of the scene to mosaic.", flag_values=FLAGS)
_WINDOW = flags.DEFINE_integer("window", products.WINDOW, "Side of a window's core.", 1, flag_values=FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 1, "How often to measure each.", 1, flag_values=FLAGS)
_BARE = flags.DEFINE_integer("bare", 12, "Windows for the bare network in each turn.", 1, flag_values=FLAGS)
_WAY = flags.DEFINE_multi_enum(
    "way", ["local", "server"], ["local", "server"], "Where the model is; repeat it.", flag_values=FLAGS
)
_FOLDER = flags.DEFINE_string("folder", None, "Where there is room for it all.", flag_values=FLAGS)
_CHILD = flags.DEFINE_string("child", None, "Of itself: the server to ask, or `local`.", flag_values=FLAGS)

BANDS = sensors.BAND_SETS["rgbn"]


@dataclasses.dataclass
class Cost:
    """What a scene took: seconds of wall and processor time, MB."""

    windows: tuple[float, float]
    after: tuple[float, float]
    peak: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    rest = command.parse(FLAGS, argv)
    logging.getLogger().setLevel(logging.WARNING)
    if _CHILD.value:
        return child(pathlib.Path(rest[0]))
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as name:
        folder = pathlib.Path(name)
        model = pathlib.Path(_MODEL.value or folder / "bench")
        if not _MODEL.value:
            export_harmonizer(harmonizer(), model)
        local = LocalPredictor(model)
        print(f"{'Mpx':>6} {'':>8} {'windows':>16} {'ratio':>11} {'after them':>16} {'ratio, all':>11} {'peak':>8}")
        for cells in _CELLS.value:
            measure(write_scene(folder / str(cells), cells), local, model)


def measure(manifest: pathlib.Path, local: LocalPredictor, model: pathlib.Path) -> None:
    """Prints a line for each way."""
    source = GeoTiffSource(manifest)
    scene = source.scenes()[0]
    cells = geometry.pair_grid(scene.grid)
    shape = cells.at(30.0).shape
    plan = list(tiling.windows(shape, _WINDOW.value, local.manifest.halo, local.manifest.multiple))
    before = bare(source, scene, plan, local, cells)
    for way in _WAY.value * _ROUNDS.value:
        cost, more = alone(manifest, model) if way == "local" else served(manifest, model)
        after = bare(source, scene, plan, local, cells)
        report(way, cells, (before + after) / 2, cost, more)
        before = after


def alone(manifest: pathlib.Path, model: pathlib.Path) -> tuple[Cost, str]:
    """A scene with the model in its process."""
    return run(manifest, "local", model), ""


def served(manifest: pathlib.Path, model: pathlib.Path) -> tuple[Cost, str]:
    """A scene with the model on a server, whose processor time counts too; in words, the server's memory."""
    with server(model) as (address, process):
        spent = process_seconds(process.pid)
        cost = run(manifest, address, model)
        spent = process_seconds(process.pid) - spent
        peak = re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{process.pid}/status").read_text())
    cost.windows = cost.windows[0], cost.windows[1] + spent
    return cost, f" + {int(peak[1]) / 1e3:.0f} MB in the server"


def report(way: str, cells: geometry.Grid, network: np.ndarray, cost: Cost, more: str = "") -> None:
    """Prints a line: wall / processor time."""
    whole = np.add(cost.windows, cost.after)
    pixels = cells.shape[0] * cells.shape[1] / 1e6

    def two(values: Sequence[float], digits: int) -> str:
        return " / ".join(f"{value:.{digits}f}" for value in values)

    print(
        f"{pixels:6.1f} {way:>8} {two(cost.windows, 1):>14} s {two(network / cost.windows, 2):>11} "
        f"{two(cost.after, 1):>14} s {two(network / whole, 2):>11} {cost.peak:5.0f} MB{more}; "
        f"network {two(network, 1)} s, {two(pixels / whole, 2)} Mpx/s",
        flush=True,
    )


def bare(
    source: SceneSource, scene: Scene, plan: Sequence[tiling.Window], local: Predictor, cells: geometry.Grid
) -> np.ndarray:
    """Wall and processor time of the bare network for all windows, from some of them, evenly spread."""
    some = [plan[i] for i in np.unique(np.linspace(0, len(plan) - 1, _BARE.value).astype(int))]
    spent = np.zeros(2)
    for index, window in enumerate([some[0], *some]):
        tile = windows.read(source, scene, cells, local.manifest, window)
        started = np.array([time.perf_counter(), time.process_time()])
        local.predict(tile.ms[None], None if tile.pan is None else tile.pan[None])
        if index:  # the first is to warm up
            spent += [time.perf_counter(), time.process_time()] - started
    return spent * len(plan) / len(some)


def run(manifest: pathlib.Path, way: str, model: pathlib.Path) -> Cost:
    """A scene in a process of its own."""
    argv = [str(manifest), f"--child={way}", f"--model={model}", f"--window={_WINDOW.value}"]
    done = subprocess.run([sys.executable, __file__, *argv], stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def child(manifest: pathlib.Path) -> None:
    """Puts a scene through and prints what it took."""
    source, marks, publish = GeoTiffSource(manifest), [], products._publish

    def mark() -> None:
        marks.append(np.array([time.perf_counter(), time.process_time()]))

    def marked(*args: object) -> None:
        mark()
        publish(*args)

    products._publish = marked
    opened = predictors.local(_MODEL.value) if _CHILD.value == "local" else predictors.served(_CHILD.value, "bench")
    with opened as predictor:
        mark()
        out = manifest.with_name("out.tif")
        products.harmonize(source, source.scenes()[0], predictor, out, window=_WINDOW.value)
        mark()
    until, after = np.diff(marks, axis=0).tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"windows": until, "after": after, "peak": peak}))


@contextlib.contextmanager
def server(model: pathlib.Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server with the model."""
    argv = [f"--model_base_path={model.resolve()}", "--model_name=bench", "--port=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.server", *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process.stdout.readline().split()[-1], process
    finally:
        process.terminate()
        process.wait()


def process_seconds(pid: int) -> float:
    """Processor time of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def harmonizer() -> Harmonizer:
    """An untrained model of the small preset's size for level "toa" with the panchromatic band."""
    keras.utils.set_random_seed(0)
    one = (1.0,) * len(BANDS)
    return Harmonizer(
        bands=BANDS,
        level="toa",
        uses_pan=True,
        bandpass=Bandpass(one, (0.0,) * len(BANDS), "identity"),
        sigma=sensors.blur_sigma(BANDS),
        mean=(0.1,) * len(BANDS),
        std=(0.05,) * len(BANDS),
        blocks=6,
        filters=48,
    )


def write_scene(folder: pathlib.Path, cells: int) -> pathlib.Path:
    """A square Landsat scene as tiled GeoTIFFs, its sample mirrored over and over, and its manifest."""
    folder.mkdir()
    source = GeoTiffSource(_SCENE.value) if _SCENE.value else SimulatedSource(bands=BANDS, size=9000, clouds=0.2)
    scene = source.scenes()[0]
    files = [_mosaic(source, scene, BANDS, cells, folder / "ms.tif")]
    files.append(_mosaic(source, scene, ("pan",), 2 * cells, folder / "pan.tif"))
    entry = {"id": scene.id, "sensor": "landsat", "level": "toa", "spacecraft": scene.spacecraft, "files": files}
    entry |= {"quality": [{"path": "clear.tif", "kind": "scl"}], "time": "2015-08-04T16:19:21Z"}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"version": 1, "scenes": [entry]}))
    return manifest


def _mosaic(source: SceneSource, scene: Scene, bands: Sequence[str], side: int, path: pathlib.Path) -> dict:
    grid = scene.grids[bands[0]]
    raster = source.read(scene, bands, grid)
    planes = {path: np.moveaxis(radiometry.encode(raster.values, raster.valid[..., None]), -1, 0)}
    if "pan" not in bands:
        # Of Sentinel-2's classes: 4 is vegetation, 9 cloud.
        planes[path.with_name("clear.tif")] = np.where(raster.clear, 4, 9).astype(np.uint8)[None]
    for name, sample in planes.items():
        rows, columns = (_mirrored(size, side) for size in sample.shape[1:])
        place = {"crs": grid.crs, "transform": grid.transform, "height": side, "width": side, "dtype": sample.dtype}
        tiles = {"tiled": True, "compress": "deflate", "zlevel": 1, "bigtiff": "IF_SAFER"}
        with rasterio.open(name, "w", "GTiff", count=len(sample), **place, **tiles) as file:
            for row in range(0, side, 256):
                part = sample[:, rows[row : row + 256]][:, :, columns]
                file.write(part, window=((row, row + part.shape[1]), (0, side)))
    return {"path": path.name, "bands": list(bands), "scale": 1e-4, "offset": -0.1, "nodata": 0}


def _mirrored(size: int, side: int) -> np.ndarray:
    """Indices 0, 1, ... size - 1, size - 1, ... 1, 0, 0, 1, ..."""
    index = np.arange(side) % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)


if __name__ == "__main__":
    command.run(main)
