"""From a square to its records: read the patches, compare the two sides of each, reject it or make it a record."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from beam_jobs.settings import Settings
from beam_jobs.squares import Square
from harmonize_tf import degradation, geometry, radiometry, sensors
from harmonize_tf.patches import Patch
from harmonize_tf.records import Capture, Record
from harmonize_tf.sources import Raster, Scene, SceneSource, read_all_onto

NOT_KNOWN = float("nan")


@dataclasses.dataclass(frozen=True)
class Views:
    """A patch as read, each side on its own grid of the pair grid.

    Attributes:
      patch: what was planned.
      scenes: Landsat's and Sentinel-2's.
      landsat: 30 m, or None.
      pan: 15 m, or None.
      sentinel: 10 m, or None.
    """

    patch: Patch
    scenes: tuple[Scene | None, Scene | None]
    landsat: Raster | None
    pan: Raster | None
    sentinel: Raster | None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What comparing the two sides gave.

    Attributes:
      valid_fraction: share of the patch that is clear on all sides.
      shift_m: where Sentinel-2's image lies against Landsat's, east and north, m; NaN: nothing to compare.
      correlation: of the two at one sharpness, before any shift; NaN: nothing to compare.
      reason: "valid", "correlation" or "shift", whichever gate closed first; None: all are open.
    """

    valid_fraction: float
    shift_m: tuple[float, float]
    correlation: float
    reason: str | None


def fetch(
    source: SceneSource,
    square: Square,
    bands: tuple[str, ...],
    *,
    pan: bool,
    each: Callable[..., Iterable[list[Raster | None]]] = map,
) -> list[Views]:
    """Reads both sides of a square's patches onto the pair grid: 30 m, 15 m for the panchromatic band, 10 m.

    Args:
      source: of the scenes.
      square: what to read.
      bands: band names.
      pan: whether the panchromatic band is read too.
      each: as `map`, to read the sides in some other way than one after the other.

    Raises:
      SceneError: a scene cannot be read there.
      PermanentError, TransientError: the service behind the source does not give it.
    """
    (landsat, sentinel), grids = square.scenes, [patch.grid for patch in square.patches]

    def read(scene: Scene | None, names: tuple[str, ...], pixel: float) -> list[Raster | None]:
        if scene is None:
            return [None] * len(grids)
        return read_all_onto(source, scene, names, [grid.at(pixel) for grid in grids])

    scenes, names = (landsat, landsat if pan else None, sentinel), (bands, ("pan",), bands)
    sides = each(read, scenes, names, (30.0, 15.0, 10.0))
    return [Views(patch, square.scenes, *rasters) for patch, *rasters in zip(square.patches, *sides, strict=True)]


def examine(views: Views, settings: Settings) -> Verdict:
    """Compares a patch's sides and holds them against the gates; a patch of one side has only the first gate."""
    clear = np.ones(views.patch.grid.shape, bool)
    for side in (views.landsat, views.sentinel):
        if side is not None:
            clear &= _enlarged(side.clear, len(clear) // len(side.clear))
    fraction = float(clear.mean())
    if not clear.any() or fraction < settings.min_valid:
        return Verdict(fraction, (NOT_KNOWN, NOT_KNOWN), NOT_KNOWN, "valid")
    shift = _shift(views, clear, settings)
    if shift is None:
        return Verdict(fraction, (NOT_KNOWN, NOT_KNOWN), NOT_KNOWN, None)
    east, north = shift.dx * views.patch.grid.pixel[0], -shift.dy * views.patch.grid.pixel[1]
    reason = None
    if shift.correlation < settings.min_correlation:
        reason = "correlation"
    elif math.hypot(east, north) > settings.max_shift:
        reason = "shift"
    return Verdict(fraction, (east, north), shift.correlation, reason)


def _enlarged(mask: np.ndarray, factor: int) -> np.ndarray:
    return mask.repeat(factor, 0).repeat(factor, 1)


def _shift(views: Views, clear: np.ndarray, settings: Settings) -> geometry.Shift | None:
    """Sentinel-2 against Landsat at 10 m, both as sharp as Landsat, on the mean of the visible bands."""
    if views.landsat is None or views.sentinel is None:
        return None
    visible = [index for index, band in enumerate(settings.bands) if band in sensors.BANDS[:3]]
    landsat, sentinel = (side.values[..., visible].mean(-1, keepdims=True) for side in (views.landsat, views.sentinel))
    upsampled, seen = geometry.warp(landsat, views.landsat.valid, views.landsat.grid, views.sentinel.grid)
    # The mean of the visible bands' blurs: they differ by a few hundredths of a pixel.
    sigma = float(np.mean(sensors.blur_sigma([settings.bands[index] for index in visible], settings.nir)))
    rows, columns = (np.arange(size) for size in clear.shape)
    blurred, _ = degradation.sample_blurred(sentinel, views.sentinel.valid, rows, columns, [sigma], footprint=1)
    return geometry.estimate_shift(upsampled[..., 0], blurred[..., 0], clear & seen)


def to_record(views: Views, verdict: Verdict, settings: Settings, level: str) -> Record:
    """The patch as a record."""
    patch, (landsat, sentinel) = views.patch, views.scenes
    times = [scene.time_ms for scene in views.scenes if scene is not None and scene.time_ms]
    transform = patch.grid.transform
    return Record(
        id=patch.id,
        split=patch.split,
        block=patch.block,
        source=settings.source,
        level=level,
        bands=settings.bands,
        crs=patch.crs,
        transform=(transform.a, transform.b, transform.c, transform.d, transform.e, transform.f),
        landsat=landsat and _capture(landsat, views.landsat, views.pan),
        sentinel=sentinel and _capture(sentinel, views.sentinel, None),
        dt_s=(times[1] - times[0]) / 1000 if len(times) == 2 else NOT_KNOWN,
        valid_fraction=verdict.valid_fraction,
        shift_m=verdict.shift_m,
    )


def _capture(scene: Scene, raster: Raster, pan: Raster | None) -> Capture:
    return Capture(
        ms=_codes(raster),
        valid=raster.clear.astype(np.uint8),
        scene_id=scene.id,
        product=scene.product,
        spacecraft=scene.spacecraft,
        time_ms=scene.time_ms,
        sun=scene.sun,
        view=scene.view,
        processing_baseline=scene.processing_baseline,
        pan=pan and _codes(pan),
    )


def _codes(raster: Raster) -> np.ndarray:
    return radiometry.encode(raster.values, raster.valid[..., None])


def rejection(patch: Patch, verdict: Verdict) -> dict:
    """A line of rejected.jsonl; what is not known is null."""
    values = {"valid_fraction": verdict.valid_fraction, "correlation": verdict.correlation}
    known = {name: round(value, 4) if math.isfinite(value) else None for name, value in values.items()}
    shift = None if math.isnan(verdict.shift_m[0]) else list(verdict.shift_m)
    return dataclasses.asdict(patch) | known | {"reason": verdict.reason, "shift_m": shift}
