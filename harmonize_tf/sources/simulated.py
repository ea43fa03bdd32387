"""Simulated scenes: ground that is a closed formula of the coordinates, seen by both sensors on their real grids.

The ground is made of fields with straight edges, roads and plane waves, all of which have an exact image under a
Gaussian point spread function. So there is an exact truth for every band at any coordinate and any sharpness, and
what is read does not depend on the window. Clouds, a swath edge and isolated missing pixels come on request.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from rasterio.crs import CRS
from scipy.special import ndtr

from harmonize_tf import radiometry, sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid, false_northing
from harmonize_tf.radiometry import sentinel_to_landsat
from harmonize_tf.sources import Raster, Scene, draws, ee_products

# Typical reflectance of bare soil and of crops, in the order of `sensors.BANDS`: plausible, nothing hangs on them.
SOIL = (0.10, 0.13, 0.16, 0.25, 0.32, 0.26)
CROPS = (0.04, 0.07, 0.05, 0.40, 0.20, 0.10)
CLOUD = 0.60  # reflectance of clouds in every band
FIELD = 310.0  # m, side of a field
ROAD, ROAD_SPACING, ROAD_REFLECTANCE = 12.0, 930.0, 0.06  # m, m, added reflectance
TILT = 0.35  # rad, how far fields and roads are turned against north: no grid lies along their edges
WAVES = 14  # plane waves, the wavelengths logarithmically between these, m:
WAVELENGTHS = (45.0, 1500.0)
CLOUD_CELL = 1600.0  # m, at most one cloud in each cell of this size
TOP_LEFT = (300_000.0, 5_700_000.0)  # of the Sentinel-2 scenes, m; 0 mod 60 as on real tiles
FIRST_DAY = 19_150  # days since 1970: 2022-06-07


@dataclasses.dataclass(frozen=True)
class SimulatedSource:
    """Pairs of simulated scenes of one place, one pair a day.

    Landsat's multispectral cells have their corners at 15 mod 30 m, the panchromatic ones at 7.5 mod 15 m (reaching
    half a pixel further on each side, as in real products), Sentinel-2's at 0 mod 10 m and 0 mod 20 m. In a southern
    zone (EPSG:327xx) Landsat comes in the northern variant with negative northings. Landsat differs from Sentinel-2 by
    its MTF and, at level "sr", by the HLS band-pass. Values come in the steps of the products' digital numbers: what is
    read is the truth within half a step, 5e-5 in Sentinel-2, 1.4e-5 in Landsat at level "sr", none at "toa".

    Attributes:
      seed: chooses the ground.
      bands: the bands that the scenes have, without the panchromatic one, which comes with level "toa".
      level: "toa" or "sr".
      crs: UTM zone of the Sentinel-2 scenes.
      size: side of the Sentinel-2 scenes, m, a multiple of 60.
      days: days of the Landsat passes after the first; Sentinel-2 follows within the hour.
      clouds: share of the cells of 1.6 km that carry a cloud, 0 to 1.
      clouds_move: whether the two sensors see the clouds at different places.
      nodata: whether Landsat's swath ends within the scene (a wedge in the west) and single pixels are missing.
      shift_m: where Sentinel-2's image lies against Landsat's, east and north, m, as in a record; it is Landsat's that
        is displaced.
    """

    seed: int = 0
    bands: tuple[str, ...] = sensors.BANDS
    level: str = "toa"
    crs: str = "EPSG:32633"
    size: int = 7680
    days: tuple[int, ...] = (0,)
    clouds: float = 0.0
    clouds_move: bool = False
    nodata: bool = False
    shift_m: tuple[float, float] = (0.0, 0.0)

    def scenes(self) -> Sequence[Scene]:
        """Landsat and Sentinel-2 scenes of every day."""
        return [scene for pair in self.pairs() for scene in pair]

    def pairs(self) -> Sequence[tuple[Scene, Scene]]:
        """The two scenes of every day."""
        return [(self._scene("landsat", day), self._scene("sentinel", day)) for day in self.days]

    def read(self, scene: Scene, bands: Sequence[str], window: Grid) -> Raster:
        """Reads a window; see `SceneSource.read`.

        Raises:
          SceneError: the window is not on the bands' native grid.
        """
        native = scene.grids[bands[0]]
        offset = window.offset_in(native)
        if offset is None:
            raise SceneError(f"a window must lie on the native grid, {native}. Received: window={window}")
        rows, columns = (start + np.arange(size) for start, size in zip(offset, window.shape, strict=True))
        east = (native.left + (columns + 0.5) * native.pixel[0])[None, :]
        north = (native.top - (rows + 0.5) * native.pixel[1])[:, None]
        valid = ((rows >= 0) & (rows < native.shape[0]))[:, None] & ((columns >= 0) & (columns < native.shape[1]))
        landsat = scene.sensor == "landsat"
        if landsat and self.nodata:
            valid &= east > native.left + (self.size / 6) * (1 + (north - native.top) / self.size)
            valid &= draws.uniform(self.seed + 1, rows[:, None], columns) > 2e-4
        if landsat:
            north = north + self._false_northing
        values = np.stack([self._seen(scene, band, east, north) for band in bands], axis=-1)
        cloud = self._cloud(scene, east, north, native.pixel[0])
        values[cloud] = CLOUD
        encoding = ee_products.product(scene.spacecraft, scene.level).encoding
        values = radiometry.decode(ee_products.digital_numbers(values, encoding), encoding)
        values[~valid] = 0.0
        return Raster(values, valid, valid & ~cloud, window)

    def truth(self, easting: Any, northing: Any, band: str, sigma: float = 0.0) -> np.ndarray:
        """The ground's reflectance in Sentinel-2's radiometry, cloud-free.

        Args:
          easting: m, in `crs`; array or number.
          northing: m, broadcasts against `easting`.
          band: one of `sensors.BANDS`, or "pan".
          sigma: standard deviation of the Gaussian point spread function, m.

        Returns:
          float64 reflectance of the two's common shape.
        """
        if band == "pan":
            return sum(w * self.truth(easting, northing, b, sigma) for b, w in sensors.pan_weights().items())
        index = sensors.BANDS.index(band)
        east, north = np.asarray(easting, np.float64) - TOP_LEFT[0], np.asarray(northing, np.float64) - TOP_LEFT[1]
        greenness, brightness = 0.15 + 0.7 * self._fields(east, north, sigma), self._roads(east, north, sigma)
        for frequency_east, frequency_north, phase, green, bright in self._waves:
            angle = 2 * np.pi * (frequency_east * east + frequency_north * north) + phase
            kept = np.exp(-2 * (np.pi * sigma) ** 2 * (frequency_east**2 + frequency_north**2))
            wave = kept * np.sin(angle)
            greenness, brightness = greenness + green * wave, brightness + bright * wave
        return SOIL[index] + (CROPS[index] - SOIL[index]) * greenness + brightness

    @cached_property
    def _false_northing(self) -> float:
        """What is added to Landsat's northings, always those of the northern zone, to get the ones in `crs`."""
        return float(false_northing(self.crs))

    @cached_property
    def _waves(self) -> np.ndarray:
        """[WAVES, 5]: frequency to the east and north, 1/m; phase; amplitude of greenness and of reflectance."""
        draw = draws.uniform(self.seed, np.arange(WAVES)[:, None], np.arange(4))
        shortest, longest = WAVELENGTHS
        wavelength = shortest * (longest / shortest) ** ((np.arange(WAVES) + draw[:, 0]) / WAVES)
        heading, phase = 2 * np.pi * draw[:, 1], 2 * np.pi * draw[:, 2]
        columns = (np.cos(heading) / wavelength, np.sin(heading) / wavelength, phase, 0.03 * draw[:, 3])
        return np.stack([*columns, 0.003 * (1 - draw[:, 3])], axis=-1)

    def _fields(self, east: np.ndarray, north: np.ndarray, sigma: float) -> np.ndarray:
        """0..1: a value for each field. Blurred edges are exact while `sigma` is small against half a field."""
        along, across = _turned(east, north)
        column, row = np.rint(along / FIELD), np.rint(across / FIELD)
        right, up = _step(along - column * FIELD, sigma), _step(across - row * FIELD, sigma)
        value = [[draws.uniform(self.seed, row - 1 + j, column - 1 + i, 2) for i in (0, 1)] for j in (0, 1)]
        lower, upper = (low * (1 - right) + high * right for low, high in value)
        return lower * (1 - up) + upper * up

    def _roads(self, east: np.ndarray, north: np.ndarray, sigma: float) -> np.ndarray:
        """Added reflectance of parallel roads."""
        _, across = _turned(east, north)
        distance = across - (np.rint(across / ROAD_SPACING - 0.4) + 0.4) * ROAD_SPACING
        return ROAD_REFLECTANCE * (_step(distance + ROAD / 2, sigma) - _step(distance - ROAD / 2, sigma))

    def _seen(self, scene: Scene, band: str, east: np.ndarray, north: np.ndarray) -> np.ndarray:
        """What the sensor sees of the ground: its MTF and its radiometry."""
        if scene.sensor == "sentinel":
            return self.truth(east, north, band, sensors.MSI[band].sigma)
        east, north = east + self.shift_m[0], north + self.shift_m[1]
        if band == "pan":
            return self.truth(east, north, band, sensors.OLI_PAN.sigma)
        truth = self.truth(east, north, band, sensors.OLI[band].sigma)
        return sentinel_to_landsat([band], self.level, "SENTINEL_2A").apply(truth[..., None])[..., 0]

    def _cloud(self, scene: Scene, east: np.ndarray, north: np.ndarray, pixel: float) -> np.ndarray:
        """Whether there is a cloud, a disc in some of the cells: at 20 m, whether one of the four 10 m pixels is."""
        shape = np.broadcast_shapes(east.shape, north.shape)
        if self.clouds and pixel == 20:
            corners = [(x, y) for x in (-5, 5) for y in (-5, 5)]
            return np.any([self._cloud(scene, east + x, north + y, 10) for x, y in corners], axis=0)
        if not self.clouds:
            return np.zeros(shape, bool)
        moved = scene.sensor == "landsat" and self.clouds_move
        key = draws.bits(self.seed, scene.time_ms // 86_400_000, int(moved))
        column, row = np.floor(east / CLOUD_CELL), np.floor(north / CLOUD_CELL)
        there, x, y, size = (draws.uniform(int(key), row, column, i) for i in range(4))
        radius = CLOUD_CELL * (0.1 + 0.15 * size)
        x, y = (column + 0.25 + 0.5 * x) * CLOUD_CELL, (row + 0.25 + 0.5 * y) * CLOUD_CELL
        return np.broadcast_to((there < self.clouds) & ((east - x) ** 2 + (north - y) ** 2 < radius**2), shape)

    def _scene(self, sensor: str, day: int) -> Scene:
        landsat = sensor == "landsat"
        return Scene(
            id=f"simulated_{sensor}_seed{self.seed}_day{day}",
            sensor=sensor,
            level=self.level,
            product="SIMULATED",
            spacecraft="LANDSAT_8" if landsat else "SENTINEL_2A",
            time_ms=((FIRST_DAY + day) * 24 + 10) * 3_600_000 + (0 if landsat else 1_800_000),
            grids=self._landsat_grids() if landsat else self._sentinel_grids(),
            sun=(40.0, 150.0),
            view=(float("nan"),) * 2 if landsat else (0.0, 0.0),  # Landsat's metadata do not tell
        )

    def _sentinel_grids(self) -> dict[str, Grid]:
        pixels = {band: float(sensors.MSI[band].gsd) for band in self.bands}
        sizes = {band: round(self.size / pixel) for band, pixel in pixels.items()}
        return {b: Grid(self.crs, *TOP_LEFT, (p, p), (sizes[b], sizes[b])) for b, p in pixels.items()}

    def _landsat_grids(self) -> dict[str, Grid]:
        """One pixel beyond Sentinel-2's scene on each side, so that every patch there has its Landsat."""
        corner = TOP_LEFT[0] - 45, TOP_LEFT[1] + 45 - self._false_northing
        left, top = (30.0 * math.floor(coordinate / 30) + 15 for coordinate in corner)
        count = self.size // 30 + 4
        grids = {b: Grid(f"EPSG:{self._landsat_epsg}", left, top, (30.0, 30.0), (count, count)) for b in self.bands}
        if self.level == "toa":
            corner, count = (left - 7.5, top + 7.5), 2 * count + 1
            grids["pan"] = Grid(f"EPSG:{self._landsat_epsg}", *corner, (15.0, 15.0), (count, count))
        return grids

    @property
    def _landsat_epsg(self) -> int:
        code = CRS.from_user_input(self.crs).to_epsg() or 0
        return code - 100 if self._false_northing else code


def _turned(east: np.ndarray, north: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across the fields, m."""
    cosine, sine = np.cos(TILT), np.sin(TILT)
    return cosine * east + sine * north, cosine * north - sine * east


def _step(distance: np.ndarray, sigma: float) -> np.ndarray:
    """A step from 0 to 1, blurred by a Gaussian."""
    return ndtr(distance / sigma) if sigma else np.heaviside(distance, 0.5)
