"""Whole scenes: `harmonize scene` against the bare network on the very same padded windows, and against a server.

    python benchmarks/scene.py [--cells=1200] [--window=256] [--blocks=16] [--filters=64] [--rounds=3]

Writes a simulated scene as GeoTIFFs and an untrained Harmonizer of the given size into a temporary folder. Prints the
best of all rounds, all kinds taking turns, in megapixels of 10 m: wall time, and the processor time of this process,
which tells more on a machine that does other work too.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import rasterio
from absl import flags

from harmonize_tf import cog, command, geometry, products, quicklook, radiometry, sensors, tiling
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.radiometry import Bandpass
from harmonize_tf.sources import Scene
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource
from serving.client import Client
from serving.export import export_harmonizer
from serving.local import LocalPredictor

FLAGS = flags.FlagValues()
_CELLS = flags.DEFINE_integer("cells", 1200, "Side of the scene, pixels of 30 m.", 128, flag_values=FLAGS)
_WINDOW = flags.DEFINE_integer("window", products.WINDOW, "Side of a window's core.", 1, flag_values=FLAGS)
_BLOCKS = flags.DEFINE_integer("blocks", 16, "Residual blocks of the network.", 0, flag_values=FLAGS)
_FILTERS = flags.DEFINE_integer("filters", 64, "Channels of the network.", 1, flag_values=FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often to measure.", 1, flag_values=FLAGS)

BANDS = sensors.BAND_SETS["rgbn"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    command.parse(FLAGS, argv)
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source = GeoTiffSource(write_scene(folder / "scene"))
        model = folder / "bench"
        export_harmonizer(harmonizer(), model)
        server = subprocess.Popen(
            [sys.executable, "-m", "serving.server", f"--model_base_path={model}", "--model_name=bench", "--port=0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            address = server.stdout.readline().split()[-1]
            with Client(address, "bench") as client:
                measure(source, source.scenes()[0], LocalPredictor(model), client, folder / "out.tif")
        finally:
            server.terminate()
            server.wait()


def measure(source: GeoTiffSource, scene: Scene, local: LocalPredictor, client: Client, out: pathlib.Path) -> None:
    """Runs everything in turns and prints the best times."""
    grid = geometry.pair_grid(scene.grid)
    manifest = local.manifest
    shape = grid.shape[0] // 3, grid.shape[1] // 3
    windows = list(tiling.windows(shape, _WINDOW.value, manifest.halo, manifest.multiple))
    pixels = grid.shape[0] * grid.shape[1] / 1e6
    print(f"{pixels:.1f} Mpx, {len(windows)} windows of {windows[0].padded.rows} cells, halo {manifest.halo}")

    def read() -> list[products.Tile]:
        return [products.read(source, scene, grid, manifest, window) for window in windows]

    tiles = read()
    predicted = [local.predict(tile.ms[None], tile.pan[None])["sentinel_ms"][0] for tile in tiles[:1]]

    def bare() -> None:
        predicted[:] = [local.predict(tile.ms[None], tile.pan[None])["sentinel_ms"][0] for tile in tiles]

    def write() -> None:
        with cog.create(out, grid, BANDS, {}) as product:
            for window, dn in zip(windows, predicted, strict=True):
                product.write(dn[window.cut(3)], *window.core.slices(3))

    def picture() -> None:
        quicklook.write(out, quicklook.Stretch(np.zeros(3), np.ones(3)), out.with_suffix(".png"))

    kinds: dict[str, Callable[[], object]] = {
        "bare network": bare,
        "scene, local": lambda: products.harmonize(source, scene, local, out, window=_WINDOW.value),
        "scene, server": lambda: products.harmonize(source, scene, client, out, window=_WINDOW.value),
        "  reading alone": read,
        "  writing alone": write,
        "  quick-look alone": picture,
    }
    wall, cpu = (dict.fromkeys(kinds, float("inf")) for _ in range(2))
    for _ in range(_ROUNDS.value):
        for kind, function in kinds.items():
            started = time.perf_counter(), time.process_time()
            function()
            wall[kind] = min(wall[kind], time.perf_counter() - started[0])
            cpu[kind] = min(cpu[kind], time.process_time() - started[1])
    print(f"{'':<20} {'wall':>8} {'Mpx/s':>7} {'ratio':>6} {'CPU, this process':>18} {'ratio':>6}")
    for kind in kinds:
        rates = pixels / wall[kind], wall["bare network"] / wall[kind], cpu["bare network"] / cpu[kind]
        print(f"{kind:<20} {wall[kind]:6.2f} s {rates[0]:7.2f} {rates[1]:6.2f} {cpu[kind]:16.2f} s {rates[2]:6.2f}")


def harmonizer() -> Harmonizer:
    """An untrained model for level "toa" with the panchromatic band."""
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
        blocks=_BLOCKS.value,
        filters=_FILTERS.value,
    )


def write_scene(folder: pathlib.Path) -> pathlib.Path:
    """A simulated Landsat scene as tiled GeoTIFFs, and its manifest."""
    folder.mkdir()
    source = SimulatedSource(bands=BANDS, size=-(-_CELLS.value // 2) * 60, clouds=0.2)
    scene = source.scenes()[0]
    files = []
    for name, bands in {"ms": BANDS, "pan": ("pan",)}.items():
        grid = scene.grids[bands[0]]
        place = {"crs": grid.crs, "transform": grid.transform, "height": grid.shape[0], "width": grid.shape[1]}
        raster = source.read(scene, bands, grid)
        with rasterio.open(
            folder / f"{name}.tif",
            "w",
            "GTiff",
            dtype="uint16",
            count=len(bands),
            tiled=True,
            compress="deflate",
            **place,
        ) as file:
            file.write(np.moveaxis(radiometry.encode(raster.values, raster.valid[..., None]), -1, 0))
        files.append({"path": f"{name}.tif", "bands": list(bands), "scale": 1e-4, "offset": -0.1, "nodata": 0})
    entry = {"id": scene.id, "sensor": "landsat", "level": "toa", "spacecraft": scene.spacecraft, "files": files}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"version": 1, "scenes": [entry]}))
    return manifest


if __name__ == "__main__":
    command.run(main)
