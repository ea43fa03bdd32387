"""A scene through any predictor into a Cloud Optimized GeoTIFF at 10 m, window by window in bounded memory."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import itertools
import logging
import pathlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from tqdm import tqdm

import harmonize_tf
from harmonize_tf import cog, geometry, quicklook, radiometry, sources, tiling
from harmonize_tf.errors import ModelError, SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.manifest import Manifest
from harmonize_tf.sources import Scene, SceneSource
from harmonize_tf.tiling import Window

_log = logging.getLogger("harmonize")

WINDOW = 384  # 30 m cells: large against a halo of 20 to 50, and a gigabyte or two in a network at 10 m
IN_FLIGHT = 4  # windows being read, predicted or waiting to be written


class Predictor(Protocol):
    """A model to put a scene through: a SavedModel in this process, or a client of a server.

    One that can have several requests under way also offers `predict_async`, which takes the same and returns a future.
    """

    manifest: Manifest

    def predict(self, ms: np.ndarray, pan: np.ndarray | None) -> Mapping[str, np.ndarray]:
        """Codes uint16 [N,h,w,B] (and [N,2h,2w,1]) to what the model says of them.

        "sentinel_ms": codes uint16 [N,3h,3w,B], 0 is no data; "quality": uint8 [N,3h,3w,1], bits of
        `harmonize_tf.quality`; where the model tells it, "uncertainty": codes as "sentinel_ms".
        """


@dataclasses.dataclass(frozen=True)
class Product:
    """What was written.

    Attributes:
      path: the GeoTIFF.
      picture: its quick-look in natural colour.
      grid: the 10 m pixels.
      windows: how many windows the scene was cut into.
      skipped: how many of them held no data at all.
      seconds: wall time, first read to last rename.
    """

    path: pathlib.Path
    picture: pathlib.Path
    grid: Grid
    windows: int
    skipped: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Tile:
    """A window on its way.

    Attributes:
      window: where it lies.
      ms: codes of the padded window, [h, w, B].
      pan: codes of the panchromatic band, [2h, 2w, 1], where the model uses it.
      clear: which cells of the core are clear ground.
      predicted: codes of the core at 10 m; None: not predicted, or the core has no data.
    """

    window: Window
    ms: np.ndarray
    pan: np.ndarray | None
    clear: np.ndarray
    predicted: np.ndarray | None = None


def harmonize(
    source: SceneSource,
    scene: Scene,
    predictor: Predictor,
    path: pathlib.Path,
    *,
    window: int = WINDOW,
    in_flight: int = IN_FLIGHT,
) -> Product:
    """Writes a Landsat scene as Sentinel-2 would have shown it.

    Only missing data is invalid: clouds are in the scene and stay in the product. Nothing appears under the product's
    name before it is complete and has been read back.

    Args:
      source: where the scene comes from.
      scene: one of its Landsat scenes.
      predictor: the model.
      path: the GeoTIFF to write, replaced if it exists; the quick-look goes beside it as `.png`.
      window: side of a window's core, 30 m cells.
      in_flight: most windows held in memory at one time.

    Raises:
      SceneError: the scene is not what the model needs, or cannot be read.
      ModelError: the model's answer is not what its manifest says.
      HarmonizeError: the product cannot be written.
    """
    manifest = predictor.manifest
    check(scene, manifest)
    started = time.monotonic()
    grid = geometry.pair_grid(scene.grid)
    windows = list(tiling.windows((grid.shape[0] // 3, grid.shape[1] // 3), window, manifest.halo, manifest.multiple))
    natural = [manifest.bands.index(band) for band in quicklook.NATURAL]
    histogram, skipped = quicklook.Histogram(), 0
    with _quiet_threads(), cog.create(path, grid, manifest.product_bands, tags(scene, predictor)) as product:
        tiles = bounded(_worker(source, scene, grid, predictor), windows, in_flight)
        for tile in _progress(tiles, len(windows)):
            if tile.predicted is None:
                skipped += 1
                continue
            product.write(tile.predicted, *tile.window.core.slices(3))
            histogram.add(tile.ms[tile.window.cut()][..., natural], tile.clear)
    picture = path.with_suffix(".png")
    quicklook.write(path, histogram.stretch(), picture)
    return Product(path, picture, grid, len(windows), skipped, time.monotonic() - started)


def check(scene: Scene, manifest: Manifest) -> None:
    """Tells before the first pixel whether a model can take a scene.

    Raises:
      SceneError: it cannot; the message says what would fit.
    """
    model = f"model {manifest.name!r}"
    if scene.sensor != "landsat":
        raise SceneError(f"{model} takes Landsat scenes. Received: scene={scene.id}, sensor={scene.sensor}")
    if scene.level != manifest.level:
        raise SceneError(
            f"{model} is made for level {manifest.level!r}; give it a scene of that level, or take a model of the "
            f"scene's. Received: scene={scene.id}, level={scene.level!r}"
        )
    missing = [band for band in manifest.bands if band not in scene.bands]
    if missing:
        raise SceneError(
            f"{model} needs {', '.join(missing)}, which scene {scene.id} lacks; add the files, or take a model trained "
            f"on fewer bands. Received: bands={','.join(scene.bands)}"
        )
    if manifest.uses_pan and "pan" not in scene.grids:
        raise SceneError(
            f"{model} uses the panchromatic band, which scene {scene.id} lacks; add its file (B8 of the Level-1 "
            f"product), or take a model without it. Received: bands={','.join(scene.grids)}"
        )


def tags(scene: Scene, predictor: Predictor) -> dict[str, str]:
    """Provenance of a product, as GeoTIFF tags."""
    manifest = predictor.manifest
    taken = datetime.datetime.fromtimestamp(scene.time_ms / 1000, datetime.UTC) if scene.time_ms else None
    return {
        "TIFFTAG_SOFTWARE": f"harmonize_tf {harmonize_tf.__version__}",
        "TIFFTAG_DOCUMENTNAME": scene.id,
        "TIFFTAG_IMAGEDESCRIPTION": f"{scene.id} as Sentinel-2 would have shown it: 10 m, level {manifest.level}, "
        "reflectance = DN * 0.0001 - 0.1, DN 0 = no data",
        "SOURCE_SCENE": scene.id,
        "SOURCE_PRODUCT": scene.product,
        "SPACECRAFT": scene.spacecraft,
        "ACQUIRED": taken.isoformat(timespec="milliseconds") if taken else "",
        "LEVEL": scene.level,
        "MODEL": manifest.name,
        "MODEL_VERSION": str(getattr(predictor, "version", "")),
        "MODEL_MANIFEST": manifest.to_json(),
    }


def _worker(source: SceneSource, scene: Scene, grid: Grid, predictor: Predictor) -> Callable[[Window], Tile]:
    """What a thread does with a window: reads it and has it predicted."""
    manifest, predict = predictor.manifest, _prediction(predictor)

    def work(window: Window) -> Tile:
        tile = read(source, scene, grid, manifest, window)
        if not tile.ms[window.cut()].any():
            return tile
        outputs = predict(tile.ms[None], None if tile.pan is None else tile.pan[None])
        dn = np.concatenate([outputs[name] for name in ("sentinel_ms", "uncertainty") if name in outputs], -1)
        expected = (1, 3 * tile.ms.shape[0], 3 * tile.ms.shape[1], len(manifest.product_bands))
        if dn.shape != expected or dn.dtype != np.uint16:
            raise ModelError(
                f"model {manifest.name!r} should answer with uint16 {expected}; export it again with `harmonize push`. "
                f"Received: {dn.dtype} {dn.shape}"
            )
        return dataclasses.replace(tile, predicted=dn[0][window.cut(3)])

    return work


def read(source: SceneSource, scene: Scene, grid: Grid, manifest: Manifest, window: Window) -> Tile:
    """Reads what a model needs for a window.

    Args:
      source: the scene's source.
      scene: one of its scenes.
      grid: the scene's pair grid at 10 m.
      manifest: the model.
      window: one of the scene's windows.
    """
    padded = window.padded
    cells = grid.at(30.0).window(padded.row, padded.column, padded.rows, padded.columns)
    raster = sources.read_onto(source, scene, manifest.bands, cells)
    ms, pan = radiometry.encode(raster.values, raster.valid[..., None]), None
    if manifest.uses_pan and ms.any():
        sharp = sources.read_onto(source, scene, ["pan"], cells.at(15.0))
        pan = radiometry.encode(sharp.values, sharp.valid[..., None])
    return Tile(window, ms, pan, raster.clear[window.cut()])


def _prediction(predictor: Predictor) -> Callable[[np.ndarray, np.ndarray | None], Mapping[str, np.ndarray]]:
    """One prediction keeps every core busy; only a predictor that offers it has several under way."""
    if hasattr(predictor, "predict_async"):
        return lambda ms, pan: predictor.predict_async(ms, pan).result()
    lock = threading.Lock()

    def predict(ms: np.ndarray, pan: np.ndarray | None) -> Mapping[str, np.ndarray]:
        with lock:
            return predictor.predict(ms, pan)

    return predict


def bounded(function: Callable, items: Iterable, limit: int) -> Iterator:
    """Calls `function` on every item in threads and yields the results as they finish.

    At most `limit` items are under way, or finished and not yet taken.
    """
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(limit, "window") as pool:
        pending = {pool.submit(function, item) for item in itertools.islice(items, limit)}
        try:
            while pending:
                done, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                while done:
                    yield done.pop().result()
                    pending |= {pool.submit(function, item) for item in itertools.islice(items, 1)}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keeps back a warning that rasterio's warper gives at random when threads share it; the pixels are right.

    https://github.com/opendatacube/odc-geo/issues/131; 3000 warps in 8 threads gave what one thread gives.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _progress(items: Iterable, total: int) -> Iterator:
    """Passes items through, with a bar on a terminal and a line every tenth of the way otherwise."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit="window", desc="scene")
        return
    for number, item in enumerate(items, 1):
        yield item
        if number * 10 // total > (number - 1) * 10 // total:
            _log.info("scene: %d of %d windows", number, total)
