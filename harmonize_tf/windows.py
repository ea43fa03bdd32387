"""Windows of a scene, read and predicted: several are under way, so that a model never waits for a disk."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from rasterio.errors import NotGeoreferencedWarning

from harmonize_tf import geometry, quality, radiometry, sources
from harmonize_tf.errors import ModelError
from harmonize_tf.geometry import Grid
from harmonize_tf.manifest import Manifest
from harmonize_tf.sources import Scene, SceneSource
from harmonize_tf.tiling import Window


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
class Tile:
    """A window on its way.

    Attributes:
      window: where it lies.
      ms: codes of the padded window, [h, w, B].
      pan: codes of the panchromatic band, [2h, 2w, 1], where the model uses it.
      clear: which cells of the core are clear ground.
      predicted: codes of the core at 10 m; None: not predicted, or the core has no data.
      quality: bits of the core at 10 m, [3h, 3w, 1].
    """

    window: Window
    ms: np.ndarray
    pan: np.ndarray | None
    clear: np.ndarray
    predicted: np.ndarray | None = None
    quality: np.ndarray | None = None


def predicted(
    source: SceneSource, scene: Scene, cells: Grid, predictor: Predictor, windows: Sequence[Window], in_flight: int
) -> Iterator[Tile]:
    """Windows as they get ready, in any order.

    Args:
      source: where the scene comes from.
      scene: one of its Landsat scenes.
      cells: the pair grid at 10 m that the windows were made of.
      predictor: the model.
      windows: which to predict.
      in_flight: most of them held in memory at one time.

    Raises:
      SceneError: the scene cannot be read.
      ModelError: the model's answer is not what its manifest says.
    """
    with _quiet_threads():
        yield from bounded(_worker(source, scene, cells, predictor), windows, in_flight)


def read(source: SceneSource, scene: Scene, cells: Grid, manifest: Manifest, window: Window) -> Tile:
    """Reads what a model needs for a window.

    Args:
      source: the scene's source.
      scene: one of its scenes.
      cells: the pair grid at 10 m that the windows were made of.
      manifest: the model.
      window: one of them.
    """
    padded = window.padded
    ground = cells.at(30.0).window(padded.row, padded.column, padded.rows, padded.columns)
    raster = sources.read_onto(source, scene, manifest.bands, ground)
    ms, pan = radiometry.encode(raster.values, raster.valid[..., None]), None
    if manifest.uses_pan and ms.any():
        # Not `read_onto`, a quarter of whose time would go into what is clear, which is known already.
        sharp = ground.at(15.0)
        ((bands, around),) = sources.native_windows(scene, ["pan"], [sharp])
        native = source.read(scene, bands, around)
        values, valid = geometry.warp(native.values, native.valid, native.grid, sharp)
        pan = radiometry.encode(values, valid[..., None])
    return Tile(window, ms, pan, raster.clear[window.cut()])


def _worker(source: SceneSource, scene: Scene, cells: Grid, predictor: Predictor) -> Callable[[Window], Tile]:
    """What a thread does with a window."""
    manifest, predict = predictor.manifest, _prediction(predictor)

    def work(window: Window) -> Tile:
        tile = read(source, scene, cells, manifest, window)
        if not tile.ms[window.cut()].any():
            return tile
        outputs = predict(tile.ms[None], None if tile.pan is None else tile.pan[None])
        told = [outputs[name] for name in ("sentinel_ms", "uncertainty") if name in outputs]
        dn = told[0] if len(told) == 1 else np.concatenate(told, -1)
        judged = outputs.get("quality", np.zeros(0, np.uint8))
        shape = (1, 3 * tile.ms.shape[0], 3 * tile.ms.shape[1])
        for array, bands, dtype in ((dn, len(manifest.product_bands), np.uint16), (judged, 1, np.uint8)):
            if array.shape != (*shape, bands) or array.dtype != dtype:
                raise ModelError(
                    f"model {manifest.name!r} should answer with {np.dtype(dtype)} {(*shape, bands)}; export it again "
                    f"with `harmonize push`. Received: {array.dtype} {array.shape}"
                )
        core = window.cut(3)
        clear = (quality.CLEAR_SKY * tile.clear.astype(np.uint8)).repeat(3, 0).repeat(3, 1)[..., None]
        bits = judged[0][core]
        return dataclasses.replace(tile, predicted=dn[0][core], quality=np.where(bits != 0, bits | clear, 0))

    return work


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
