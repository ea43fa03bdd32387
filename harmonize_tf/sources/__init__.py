"""Where scenes come from: the protocol that every source follows, and reading a scene onto the pair grid.

`earth_engine`, `geotiff`, `degraded` and `simulated` are sources; `samples` fetches real scenes for `geotiff`.
Each converts its product's own digital numbers to reflectance when it reads, and nothing else does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from harmonize_tf import geometry
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid

# Pixels read around a window before it is warped: the cubic kernel reaches two, the third is for rounding.
MARGIN = 3


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is known of one scene before a pixel is read.

    Attributes:
      id: the product's own name; unique in its source.
      sensor: "landsat" or "sentinel".
      level: "toa" or "sr"; the panchromatic band is "toa" always.
      product: collection or product type, such as "LC08_L1TP".
      spacecraft: such as "LANDSAT_8" or "SENTINEL_2A".
      time_ms: acquisition, milliseconds since 1970 UTC; 0: not known.
      grids: every band's native grid by its name (`sensors.BANDS` and "pan").
      sun: zenith and azimuth, degrees; NaN: not known.
      view: zenith and azimuth, degrees; NaN: not known.
      processing_baseline: Sentinel-2's, such as "05.09"; "" otherwise.
      masks: what `Raster.clear` is made of, such as ("SCL", "Cloud Score+"); empty where the source does not tell.
      footprint: GeoJSON polygon in degrees around all data; None: it may be anywhere on the grids.
    """

    id: str
    sensor: str
    level: str
    product: str
    spacecraft: str
    time_ms: int
    grids: Mapping[str, Grid]
    sun: tuple[float, float] = (float("nan"), float("nan"))
    view: tuple[float, float] = (float("nan"), float("nan"))
    processing_baseline: str = ""
    masks: tuple[str, ...] = ()
    footprint: Mapping[str, Any] | None = None

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the multispectral bands it has, in order."""
        return tuple(band for band in self.grids if band != "pan")

    @property
    def grid(self) -> Grid:
        """The native grid of the finest multispectral band."""
        return min((self.grids[band] for band in self.bands), key=lambda grid: grid.pixel[0])


@dataclasses.dataclass(frozen=True)
class Raster:
    """Pixels on a grid.

    Attributes:
      values: reflectance [height, width, band], float32, unitless; finite everywhere, 0 where not valid.
      valid: [height, width], bool: there is data in every band.
      clear: [height, width], bool: valid, and the quality band calls it clear ground (valid where there is none).
      grid: where it lies.
    """

    values: np.ndarray
    valid: np.ndarray
    clear: np.ndarray
    grid: Grid


class SceneSource(Protocol):
    """A set of scenes and the reading of their pixels. Implementations can be pickled and used by several threads."""

    def scenes(self) -> Sequence[Scene]:
        """All scenes, in a fixed order."""

    def pairs(self) -> Sequence[tuple[Scene | None, Scene | None]]:
        """Landsat and Sentinel-2 scenes that belong together; one side is None where a scene has no partner."""

    def read(self, scene: Scene, bands: Sequence[str], window: Grid) -> Raster:
        """Reads bands that share one native grid, in a window on that grid, which may reach over the scene's edges.

        Raises:
          SceneError: a file is missing, truncated or not what the scene declares.
        """


def read_onto(source: SceneSource, scene: Scene, bands: Sequence[str], grid: Grid) -> Raster:
    """Reads bands of a scene onto a grid: natively with a margin, and warped once.

    Args:
      source: the scene's source.
      scene: one of its scenes.
      bands: band names in the order wanted; they may have different native grids.
      grid: the grid to fill.

    Raises:
      SceneError: the scene lacks a band, or cannot be read.
    """
    return read_all_onto(source, scene, bands, [grid])[0]


def read_all_onto(source: SceneSource, scene: Scene, bands: Sequence[str], grids: Sequence[Grid]) -> list[Raster]:
    """Reads bands of a scene onto several grids near each other, as `read_onto` would one by one.

    The source is asked once for each native grid, for the window around all that is needed.

    Raises:
      SceneError: the scene lacks a band, or cannot be read.
    """
    values = [np.zeros((*grid.shape, len(bands)), np.float32) for grid in grids]
    valid, clear = ([np.ones(grid.shape, bool) for grid in grids] for _ in range(2))
    for group, around in native_windows(scene, bands, grids):
        raster, places = source.read(scene, group, around), [bands.index(band) for band in group]
        for index, grid in enumerate(grids):
            near = _cut(raster, _native_window(scene.grids[group[0]], grid))
            warped, group_valid = geometry.warp(near.values, near.valid, near.grid, grid)
            values[index][..., places] = warped
            valid[index] &= group_valid
            if not np.array_equal(near.clear, near.valid):
                clear[index] &= geometry.warp(near.values[..., :0], near.clear, near.grid, grid)[1]
    for filled, mask in zip(values, valid, strict=True):
        filled[~mask] = 0.0
    return [Raster(v, m, m & c, grid) for v, m, c, grid in zip(values, valid, clear, grids, strict=True)]


def native_windows(scene: Scene, bands: Sequence[str], grids: Sequence[Grid]) -> list[tuple[list[str], Grid]]:
    """What `read_all_onto` reads: bands that share a native grid, and the window of it around all `grids`.

    Raises:
      SceneError: the scene lacks a band.
    """
    missing = [band for band in bands if band not in scene.grids]
    if missing:
        raise SceneError(
            f"scene {scene.id} has no band {', '.join(missing)}; choose a band set within what it has, "
            f"{', '.join(scene.grids)}. Received: bands={','.join(bands)}"
        )
    found = []
    for native in dict.fromkeys(scene.grids[band] for band in bands):
        windows = [_native_window(native, grid) for grid in grids]
        first = np.array([window.offset_in(native) for window in windows])
        last = (first + [window.shape for window in windows]).max(axis=0)
        corner = first.min(axis=0)
        around = native.window(*corner.tolist(), *(last - corner).tolist())
        found.append(([band for band in bands if scene.grids[band] == native], around))
    return found


def _cut(raster: Raster, window: Grid) -> Raster:
    """The part of a raster in a window within it."""
    row, column = window.offset_in(raster.grid)
    part = slice(row, row + window.shape[0]), slice(column, column + window.shape[1])
    return Raster(raster.values[part], raster.valid[part], raster.clear[part], window)


def _native_window(native: Grid, grid: Grid) -> Grid:
    """The window of a native grid, margin included, from which `grid` can be resampled."""
    bounds = grid.bounds
    if native.crs != grid.crs:
        bounds = geometry.rasterio.warp.transform_bounds(grid.crs, native.crs, *bounds, densify_pts=21)
    left, bottom, right, top = bounds
    wide, high = (right - left) / native.pixel[0], (top - bottom) / native.pixel[1]
    # Towards coarser pixels GDAL widens the kernel to theirs.
    margin = int(np.ceil(MARGIN * max(1.0, wide / grid.shape[1], high / grid.shape[0])))
    column = int(np.floor((left - native.left) / native.pixel[0])) - margin
    row = int(np.floor((native.top - top) / native.pixel[1])) - margin
    columns = int(np.ceil((right - native.left) / native.pixel[0])) + margin - column
    rows = int(np.ceil((native.top - bottom) / native.pixel[1])) + margin - row
    return native.window(row, column, rows, columns)
