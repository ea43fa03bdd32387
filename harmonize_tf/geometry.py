"""Grids, the pair grid, warping onto it, and the shift between two images.

Landsat's 30 m cells have their corners at 15 mod 30 m, its panchromatic ones at 7.5 mod 15 m, Sentinel-2's at
0 mod 10 m. They do not nest, so every scene is warped once onto the pair grid: Sentinel-2's 10 m lattice, whose
30 m cells have their corners at 10 mod 30 m. That leaves Landsat a shift of 5 m, a sixth of a pixel, where a cubic
kernel keeps 0.85 of the Nyquist frequency; corners at 0 mod 30 m would mean half a pixel, where it keeps nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import rasterio.warp
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from scipy.ndimage import gaussian_filter
from skimage.registration import phase_cross_correlation

from harmonize_tf.errors import SceneError

CELL = 30  # m, the cell in which the 10, 15 and 30 m pixels nest
ORIGIN = 10  # m, corners of the cells modulo CELL, easting and (northern-hemisphere) northing
SOUTHERN_FALSE_NORTHING = 10_000_000  # m, of the UTM zones 327xx
PATCH = 1920  # m, side of a patch
FILL = 3.0  # pixels, how far around a gap `estimate_shift` looks for what to fill it with: a 30 m cell at 10 m


@dataclasses.dataclass(frozen=True)
class Grid:
    """A north-up raster's place on the ground.

    Attributes:
      crs: coordinate reference system, such as "EPSG:32633".
      left: coordinate of the left edge, CRS units.
      top: coordinate of the upper edge, CRS units.
      pixel: size of a pixel, CRS units (width, height), both positive.
      shape: rows and columns.
    """

    crs: str
    left: float
    top: float
    pixel: tuple[float, float]
    shape: tuple[int, int]

    @classmethod
    def of(cls, crs: Any, transform: Affine, shape: tuple[int, int]) -> "Grid":
        """The grid of a rasterio dataset.

        Raises:
          SceneError: the raster has no CRS, or is rotated or not north-up.
        """
        if crs is None:
            raise SceneError(
                "the raster has no coordinate reference system, expected one; assign it with "
                f"`rio edit-info --crs`. Received: crs={crs}"
            )
        if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
            raise SceneError(f"expected a north-up raster; warp it first. Received: transform={tuple(transform)[:6]}")
        return cls(CRS.from_user_input(crs).to_string(), transform.c, transform.f, (transform.a, -transform.e), shape)

    @property
    def transform(self) -> Affine:
        """The affine transform from (column, row) to CRS coordinates."""
        return Affine(self.pixel[0], 0.0, self.left, 0.0, -self.pixel[1], self.top)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in CRS units."""
        rows, columns = self.shape
        return self.left, self.top - rows * self.pixel[1], self.left + columns * self.pixel[0], self.top

    def window(self, row: int, column: int, rows: int, columns: int) -> "Grid":
        """The grid of a window, which may reach over the edges."""
        width, height = self.pixel
        left, top = self.left + column * width, self.top - row * height
        return dataclasses.replace(self, left=left, top=top, shape=(rows, columns))

    def at(self, pixel: float) -> "Grid":
        """The same ground in square pixels of another size, which must divide it."""
        rows, columns = (size * p / pixel for size, p in zip(self.shape, self.pixel[::-1], strict=True))
        if not (math.isclose(rows, round(rows)) and math.isclose(columns, round(columns))):
            raise SceneError(f"pixels of {pixel} m do not divide the grid. Received: grid={self}")
        return dataclasses.replace(self, pixel=(pixel, pixel), shape=(round(rows), round(columns)))

    def offset_in(self, other: "Grid") -> tuple[int, int] | None:
        """Row and column of this grid's corner in `other` if both are one lattice, else None."""
        if self.crs != other.crs or not np.allclose(self.pixel, other.pixel, rtol=1e-9):
            return None
        row, column = (other.top - self.top) / self.pixel[1], (self.left - other.left) / self.pixel[0]
        if abs(row - round(row)) > 1e-3 or abs(column - round(column)) > 1e-3:
            return None
        return round(row), round(column)


def sentinel_crs(crs: str, bounds: tuple[float, float, float, float]) -> str:
    """The UTM zone in which Sentinel-2 delivers what lies at `bounds`: 326xx in the north, 327xx in the south.

    Landsat uses the northern zones on both hemispheres (negative northings in the south). Coordinates that are not
    UTM go to the zone of the bounds' centre.
    """
    code = CRS.from_user_input(crs).to_epsg() or 0
    left, bottom, right, top = bounds
    if 32701 <= code <= 32760:
        return f"EPSG:{code if (bottom + top) / 2 < SOUTHERN_FALSE_NORTHING else code - 100}"
    if 32601 <= code <= 32660:
        return f"EPSG:{code + 100 if (bottom + top) / 2 < 0 else code}"
    west, south, east, north = rasterio.warp.transform_bounds(crs, "EPSG:4326", *bounds)
    east += 360 * (east < west)  # across the antimeridian
    return f"EPSG:{utm_zone((west + east) / 2, (south + north) / 2)}"


def utm_zone(longitude: np.ndarray | float, latitude: np.ndarray | float) -> np.ndarray:
    """EPSG code of the UTM zone to which Sentinel-2's tiling (MGRS) gives each place.

    Args:
      longitude: degrees.
      latitude: degrees, -80 to 84.

    Returns:
      326xx or 327xx; with MGRS's exceptions, 32V for all of south-western Norway, and 31X, 33X, 35X, 37X on Svalbard.
    """
    longitude, latitude = np.asarray(longitude), np.asarray(latitude)
    zone = (np.floor(longitude / 6) + 30).astype(int) % 60 + 1
    zone = np.where((latitude >= 56) & (latitude < 64) & (longitude >= 3) & (longitude < 12), 32, zone)
    svalbard = (latitude >= 72) & (longitude >= 0) & (longitude < 42)
    zone = np.where(svalbard, 31 + 2 * np.searchsorted([9, 21, 33], longitude, side="right"), zone)
    return zone + np.where(latitude < 0, 32700, 32600)


def lattice_origin(crs: str) -> tuple[int, int]:
    """Easting and northing, modulo `CELL`, of the pair grid's cell corners in a UTM zone."""
    return ORIGIN, (ORIGIN + false_northing(crs)) % CELL


@functools.cache
def false_northing(crs: str) -> int:
    """What a UTM zone adds to northern-hemisphere northings, m: 10,000 km in the zones 327xx, else nothing."""
    southern = 32701 <= (CRS.from_user_input(crs).to_epsg() or 0) <= 32760
    return SOUTHERN_FALSE_NORTHING if southern else 0


@functools.lru_cache(maxsize=1 << 16)
def bounds_in(crs: str, grid: Grid) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of what lies around a grid in a CRS."""
    if grid.crs == crs:
        return grid.bounds
    return rasterio.warp.transform_bounds(grid.crs, crs, *grid.bounds, densify_pts=51)


def pair_grid(grid: Grid) -> Grid:
    """The pair grid at 10 m, in Sentinel-2's UTM zone, that covers a scene's grid; sides are multiples of 30 m."""
    crs = sentinel_crs(grid.crs, grid.bounds)
    bounds = bounds_in(crs, grid)
    east, north = lattice_origin(crs)
    # A nanometre of slack: a corner that lies on the lattice stays there.
    left, bottom, right, top = bounds
    left, right = (_snap(left + 1e-6, east, math.floor), _snap(right - 1e-6, east, math.ceil))
    bottom, top = (_snap(bottom + 1e-6, north, math.floor), _snap(top - 1e-6, north, math.ceil))
    return Grid(crs, left, top, (10.0, 10.0), (round((top - bottom) / 10), round((right - left) / 10)))


def _snap(coordinate: float, origin: int, rounding: Any) -> float:
    return float(origin + CELL * rounding((coordinate - origin) / CELL))


def warp(values: np.ndarray, valid: np.ndarray, source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Resamples an image onto another grid: cubic for values, "any invalid neighbour" for the mask.

    Invalid pixels do not contribute to any value; a target pixel is valid when all of the (up to four) source pixels
    nearest to its centre are. On one lattice this is a plain copy.

    Args:
      values: [height, width, band], float32.
      valid: [height, width], bool.
      source: their grid.
      target: the grid to fill.

    Returns:
      Values [target height, target width, band], 0 where not valid, and the mask.
    """
    offset = target.offset_in(source)
    if offset is not None:
        return _copy(values, valid, offset, target.shape)
    if shift := _shift(source, target):
        return _shifted(values, valid, *shift, target.shape)
    planes = np.where(valid, np.moveaxis(values, -1, 0), np.nan).astype(np.float32)
    # What the source does not reach stays as it is: NaN, or 1, invalid.
    warped = np.full((len(planes), *target.shape), np.nan, np.float32)
    invalid = np.ones(target.shape, np.float32)
    shared = {
        "src_transform": source.transform,
        "src_crs": source.crs,
        "dst_transform": target.transform,
        "dst_crs": target.crs,
        "tolerance": 0.0,
        "init_dest_nodata": False,
    }
    if source.crs != target.crs and _in_metres(source.crs) and _in_metres(target.crs):
        # GDAL would take it from the sizes of the two rasters, which differ with every window once they are turned.
        ratio = zip(("XSCALE", "YSCALE"), source.pixel, target.pixel, strict=True)
        shared |= {name: wide / wanted for name, wide, wanted in ratio}
    # Without gaps GDAL needs no no-data values, and is three times as fast; but for the last bit at the source's edge,
    # where the kernel reaches over it, the values are the same.
    whole = len(planes) > 0 and valid.all()
    if len(planes):
        nodata = {} if whole else {"src_nodata": np.nan, "dst_nodata": np.nan}
        rasterio.warp.reproject(planes, warped, resampling=Resampling.cubic, **nodata, **shared)
    if not whole:
        rasterio.warp.reproject((~valid).astype(np.float32), invalid, resampling=Resampling.bilinear, **shared)
    warped_valid = (whole | (invalid <= 1e-6)) & np.isfinite(warped).all(axis=0)
    return np.where(warped_valid, warped, 0.0).transpose(1, 2, 0), warped_valid


def _shift(source: Grid, target: Grid) -> tuple[tuple[int, int], tuple[float, float]] | None:
    """Row and column of `source` from whose centre the target's first centre is less than a pixel away, and how far.

    None where it takes more than a shift to get from one grid to the other, or cubic convolution would reach out of
    `source`.
    """
    if source.crs != target.crs or not np.allclose(source.pixel, target.pixel, rtol=1e-9):
        return None
    place = (source.top - target.top) / source.pixel[1], (target.left - source.left) / source.pixel[0]
    first = math.floor(place[0]), math.floor(place[1])
    if any(f < 1 or f + n + 2 > size for f, n, size in zip(first, target.shape, source.shape, strict=True)):
        return None
    return first, (place[0] - first[0], place[1] - first[1])


def _shifted(
    values: np.ndarray, valid: np.ndarray, first: tuple[int, int], part: tuple[float, float], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """`warp` where it does the same at every pixel, as GDAL does it, in a ninth of the time.

    Where one of its sixteen pixels is invalid, cubic convolution gives way to linear interpolation between four.
    """
    # Rows and columns, from -1 on, that count in some way: of no weight is what the target's centres hit exactly.
    near = [slice(1, 3 if t > 0 else 2) for t in part]
    around, beside = (_all_of(valid, first, shape, taps) for taps in ([slice(0, 4)] * 2, near))
    keys = [_keys(t) for t in part]
    warped = _weighted(_weighted(values, 0, first[0], shape[0], keys[0]), 1, first[1], shape[1], keys[1])
    rows, columns = np.nonzero(beside & ~around)
    linear = np.zeros((len(rows), values.shape[-1]), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
            linear += np.float32(weight) * values[first[0] + rows + down, first[1] + columns + right]
    warped[rows, columns] = linear
    warped[~beside] = 0.0
    return warped, beside


def _keys(t: float) -> tuple[float, float, float, float]:
    """Cubic convolution's weights, a = -1/2, of pixels at -1, 0, 1 and 2 (Keys 1981, IEEE Trans. ASSP 29(6))."""
    return (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )


def _weighted(values: np.ndarray, axis: int, first: int, size: int, weights: Sequence[float]) -> np.ndarray:
    """The sum of four neighbours along an axis, from `first` - 1 on, at `size` places."""
    along = np.moveaxis(values, axis, 0)
    total = np.float32(weights[0]) * along[first - 1 : first - 1 + size]
    for tap in (1, 2, 3):
        total += np.float32(weights[tap]) * along[first - 1 + tap : first - 1 + tap + size]
    return np.moveaxis(total, 0, axis)


def _all_of(mask: np.ndarray, first: tuple[int, int], shape: tuple[int, int], taps: Sequence[slice]) -> np.ndarray:
    """Whether all pixels of a rectangle are set, at each place; `taps` counts rows and columns from `first` - 1 on."""
    for axis in (0, 1):
        along = np.moveaxis(mask, axis, 0)
        starts = range(first[axis] - 1, first[axis] + 3)[taps[axis]]
        mask = np.moveaxis(np.logical_and.reduce([along[k : k + shape[axis]] for k in starts]), 0, axis)
    return mask


@functools.cache
def _in_metres(crs: str) -> bool:
    return CRS.from_user_input(crs).linear_units == "metre"


def _copy(
    values: np.ndarray, valid: np.ndarray, offset: tuple[int, int], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a window, which may reach over the edges, out of an image."""
    out = np.zeros((*shape, values.shape[-1]), np.float32)
    out_valid = np.zeros(shape, bool)
    row, column = offset
    top, left = max(0, -row), max(0, -column)
    bottom, right = min(shape[0], values.shape[0] - row), min(shape[1], values.shape[1] - column)
    if top < bottom and left < right:
        inside = slice(top, bottom), slice(left, right)
        there = slice(top + row, bottom + row), slice(left + column, right + column)
        out_valid[inside] = valid[there]
        out[inside] = np.where(valid[there][..., None], values[there], 0.0)
    return out, out_valid


@dataclasses.dataclass(frozen=True)
class Shift:
    """Where one image lies against another.

    Attributes:
      dx: columns to the right, pixels.
      dy: rows down, pixels.
      correlation: Pearson's r of the two images where both are valid, as they stand, unitless.
    """

    dx: float
    dy: float
    correlation: float


def estimate_shift(reference: np.ndarray, moved: np.ndarray, valid: np.ndarray) -> Shift | None:
    """Sub-pixel shift of `moved` against `reference` by phase correlation (scikit-image, a twentieth of a pixel).

    Both images should show the same blur. Pixels that are not valid are filled smoothly from the valid ones around them
    and the edges are tapered, so that neither masks nor borders correlate with themselves.

    Args:
      reference: [height, width].
      moved: [height, width], on the same grid.
      valid: [height, width], bool, where both have data.

    Returns:
      None where there is nothing to correlate: fewer than 64 valid pixels, or one of the images is flat.
    """
    if valid.sum() < 64:
        return None
    pair = np.stack([reference, moved]).astype(np.float64)
    pair -= pair[:, valid].mean(axis=1)[:, None, None]
    seen = pair[:, valid]
    deviation = seen.std(axis=1)
    if (deviation < 1e-6).any():  # a hundredth of a code; float32 rounding alone leaves 1e-8
        return None
    correlation = float((seen[0] * seen[1]).mean() / deviation.prod())
    if not valid.all():
        pair = fill_gaps(pair, valid)
    window = np.outer(*(np.hanning(size + 2)[1:-1] for size in reference.shape))
    shift, _, _ = phase_cross_correlation(pair[1] * window, pair[0] * window, upsample_factor=20, normalization=None)
    return Shift(dx=float(shift[1]), dy=float(shift[0]), correlation=correlation)


def fill_gaps(images: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Images of mean 0, [n, height, width], whose gaps fade from what is valid around them to 0.

    Args:
      images: anything where not valid.
      valid: [height, width], bool.
    """
    known = np.where(valid, images, 0.0)
    near = gaussian_filter(valid.astype(np.float64), FILL)
    around = np.stack([gaussian_filter(image, FILL) for image in known]) / np.maximum(near, 0.05)
    return np.where(valid, known, around)
