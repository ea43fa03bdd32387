"""A Sentinel-2 scene and the Landsat-like partner made from it: the same ground, seen worse in known ways.

The partner lies on Landsat's real lattice (cells with corners at 15 mod 30 m, panchromatic ones at 7.5 mod 15 m, the
northern UTM zone in the south too) and gets Landsat's radiometry, MTF, noise and a planted shift.
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import numpy as np

from harmonize_tf import sensors
from harmonize_tf.degradation import TRUNCATE, sample_blurred
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid, false_northing
from harmonize_tf.radiometry import sentinel_to_landsat
from harmonize_tf.sources import Raster, Scene, SceneSource, draws, read_onto

PIXEL = 10.0  # m, of the Sentinel-2 image that is degraded


@dataclasses.dataclass(frozen=True)
class DegradedSource:
    """Pairs of every Sentinel-2 scene of another source and its Landsat-like partner.

    What was done is recorded in the partner's id. Any window gives the same pixels.

    Attributes:
      inner: where the Sentinel-2 scenes come from; its Landsat scenes are left out.
      seed: of the noise.
      noise: standard deviation of the noise in units of OLI's own (`sensors.OLI_NOISE`, `OLI_PAN_NOISE`); 0: none.
      shift_m: where the Sentinel-2 image lies against the partner's, east and north, m, as in a record.
      sigma: blur for each of `sensors.BANDS`, 10 m pixels; None: `sensors.blur_sigma`.
      pan_sigma: blur for the panchromatic band, 10 m pixels.
      nir: the Sentinel-2 band behind "nir", "B8" or "B8A".
    """

    inner: SceneSource
    seed: int = 0
    noise: float = 1.0
    shift_m: tuple[float, float] = (0.0, 0.0)
    sigma: tuple[float, ...] | None = None
    pan_sigma: float = sensors.PAN_BLUR_SIGMA
    nir: str = "B8"

    def scenes(self) -> Sequence[Scene]:
        """Every partner and its Sentinel-2 scene."""
        return [scene for pair in self.pairs() for scene in pair]

    def pairs(self) -> Sequence[tuple[Scene, Scene]]:
        """(Landsat-like partner, Sentinel-2 scene)."""
        return [(self._partner(scene), scene) for scene in self._sentinel_scenes()]

    def read(self, scene: Scene, bands: Sequence[str], window: Grid) -> Raster:
        """Reads a window; see `SceneSource.read`."""
        if scene.sensor == "sentinel":
            return self.inner.read(scene, bands, window)
        origin = next(s for s in self._sentinel_scenes() if self._id(s) == scene.id)
        if list(bands) == ["pan"]:
            values, valid, clear = self._degraded(origin, sensors.BANDS[:3], window, (self.pan_sigma,) * 3)
            weights = sensors.pan_weights()
            values = values @ np.float32([[weights[band]] for band in sensors.BANDS[:3]])
        else:
            values, valid, clear = self._degraded(origin, bands, window, self._sigma(bands))
            values = sentinel_to_landsat(bands, scene.level, origin.spacecraft, self.nir).apply(values)
        values += self._noise(scene, bands, window)
        values[~valid] = 0.0
        return Raster(values.astype(np.float32), valid, clear, window)

    def _degraded(
        self, origin: Scene, bands: Sequence[str], window: Grid, sigma: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The Sentinel-2 image seen from the centres of `window`'s pixels: values, valid, clear."""
        size = window.pixel[0] / PIXEL
        margin = math.ceil(max(TRUNCATE * max(sigma), size / 2)) + 1
        # What the partner shows at one place, Sentinel-2 shows at that place plus the shift.
        left = window.left + self.shift_m[0] - origin.grid.left
        top = origin.grid.top - (window.top + false_northing(origin.grid.crs) + self.shift_m[1])
        rows, columns = (
            start / PIXEL + (np.arange(count) + 0.5) * size - 0.5
            for start, count in zip((top, left), window.shape, strict=True)
        )
        first = [math.floor(positions[0]) - margin for positions in (rows, columns)]
        last = [math.ceil(positions[-1]) + margin for positions in (rows, columns)]
        near = origin.grid.window(*first, *(b - a + 1 for a, b in zip(first, last, strict=True)))
        image = read_onto(self.inner, origin, bands, near)
        positions = rows - first[0], columns - first[1]
        values, valid = sample_blurred(image.values, image.valid, *positions, sigma, footprint=size)
        _, clear = sample_blurred(image.values[..., :0], image.clear, *positions, (), footprint=size)
        return values, valid, valid & clear

    def _noise(self, scene: Scene, bands: Sequence[str], window: Grid) -> np.ndarray:
        """Gaussian noise of each pixel and band, float64 [height, width, band]."""
        row, column = window.offset_in(scene.grids[bands[0]]) or (0, 0)
        rows, columns = row + np.arange(window.shape[0]), column + np.arange(window.shape[1])
        index = np.array([(*sensors.BANDS, "pan").index(band) for band in bands])
        key = int(draws.bits(self.seed, zlib.crc32(scene.id.encode())))
        deviation = self.noise * (sensors.OLI_PAN_NOISE if bands[0] == "pan" else sensors.OLI_NOISE)
        return deviation * draws.normal(key, rows[:, None, None], columns[:, None], index)

    def _sentinel_scenes(self) -> list[Scene]:
        scenes = [scene for scene in self.inner.scenes() if scene.sensor == "sentinel"]
        if not scenes:
            raise SceneError("only Sentinel-2 scenes can be degraded; name at least one. Received: sensor=landsat")
        return scenes

    def _sigma(self, bands: Sequence[str]) -> tuple[float, ...]:
        if self.sigma is None:
            return sensors.blur_sigma(bands, self.nir)
        return tuple(self.sigma[sensors.BANDS.index(band)] for band in bands)

    def _id(self, origin: Scene) -> str:
        """Says what was done; noise and shift included, so that two partners never share an id."""
        sigma = ",".join(f"{s:g}" for s in (*self._sigma(origin.bands), self.pan_sigma))
        shift = ",".join(f"{s:g}" for s in self.shift_m)
        return f"{origin.id}?degraded&seed={self.seed}&noise={self.noise:g}&shift={shift}&sigma={sigma}&nir={self.nir}"

    def _partner(self, origin: Scene) -> Scene:
        grid = origin.grid
        if not grid.crs.startswith(("EPSG:326", "EPSG:327")) or grid.pixel != (PIXEL, PIXEL):
            raise SceneError(
                f"scene {origin.id}: a Sentinel-2 scene to degrade has to be in UTM at 10 m; warp it first. "
                f"Received: crs={grid.crs}, pixel={grid.pixel}"
            )
        grids = {band: _landsat_grid(origin, 30.0) for band in origin.bands}
        if origin.level == "toa" and set(sensors.BANDS[:3]) <= set(origin.bands):
            grids["pan"] = _landsat_grid(origin, 15.0)
        spacecraft = sensors.LANDSAT_SPACECRAFT[0]
        fields = {"sensor": "landsat", "product": "DEGRADED", "spacecraft": spacecraft, "processing_baseline": ""}
        return dataclasses.replace(origin, id=self._id(origin), grids=grids, **fields)


def _landsat_grid(origin: Scene, pixel: float) -> Grid:
    """Landsat's lattice where it covers the Sentinel-2 scene: corners at half a pixel modulo a pixel."""
    left, bottom, right, top = origin.grid.bounds
    left, right = ((math.floor(c / pixel - 0.5) + 0.5 + beyond) * pixel for c, beyond in ((left, 0), (right, 1)))
    low = false_northing(origin.grid.crs)
    bottom, top = (
        (math.floor((c - low) / pixel - 0.5) + 0.5 + beyond) * pixel for c, beyond in ((bottom, 0), (top, 1))
    )
    crs = f"EPSG:{int(origin.grid.crs[5:]) - 100}" if low else origin.grid.crs
    return Grid(crs, left, top, (pixel, pixel), (round((top - bottom) / pixel), round((right - left) / pixel)))
