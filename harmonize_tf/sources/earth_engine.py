"""Scenes of Earth Engine: listed once, paired here, read as raw digital numbers on every band's own grid.

Expressions are as small as can be, one image and its bands: pairing, masking and resampling happen here, where they
are the same for every source, and cost the project no compute quota.
"""

import dataclasses
import datetime
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import ee
import numpy as np
import rasterio.warp

from harmonize_tf import pairing, quality, radiometry, sensors
from harmonize_tf.errors import FlagError, PermanentError, SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Raster, Scene, ee_client, ee_listing, ee_products
from harmonize_tf.sources.ee_client import Connection, TooLargeError
from harmonize_tf.sources.ee_products import CLOUD_SCORE, CLOUD_SCORE_BAND, CLOUD_SCORE_PIXEL, SATURATED, Product

# Earth Engine's limits on one answer's pixels (developers.google.com/earth-engine/guides/usage).
MOST_BYTES, MOST_SIDE = 50_331_648, 32_768
SMALLEST = 16  # pixels: a window of this width is not split any more
_ITEMSIZE = {"QA_PIXEL": 2, "QA_RADSAT": 2, "SCL": 1, CLOUD_SCORE_BAND: 8}  # bytes
_log = logging.getLogger("harmonize")


@dataclasses.dataclass(frozen=True)
class Listing:
    """What there is.

    Attributes:
      landsat: scenes in the order of their ids.
      sentinel: the same; one of each granule.
      without_cloud_score: ids of Sentinel-2 scenes that Cloud Score+ has not reached; masked by SCL alone.
      left_out: reasons by the id of scenes that are not used.
    """

    landsat: tuple[Scene, ...]
    sentinel: tuple[Scene, ...]
    without_cloud_score: frozenset[str]
    left_out: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class EarthEngineSource:
    """Landsat-8/9 and Sentinel-2 scenes of a region and time.

    Can be pickled; once it has listed the scenes it takes the list along, and connects anew where it is used.
    Sentinel-2 is masked by the scene classification and Cloud Score+ together. At level "toa" there is no scene
    classification, so that scenes without Cloud Score+ are left out.

    Attributes:
      region: GeoJSON geometry, as `region.parse` gives it.
      start: first day of the Landsat scenes, such as "2022-06-01".
      end: the day after their last.
      level: "toa" (with the panchromatic band) or "sr".
      spacecraft: Landsat's.
      cloud_cover: greatest share of cloud in a scene, percent.
      max_days: greatest distance in time of a pair; Sentinel-2 is listed by as much more on both ends.
      nir: Sentinel-2's band behind "nir", "B8" or "B8A".
      connection: to Earth Engine.
    """

    region: str
    start: str
    end: str
    level: str = "toa"
    spacecraft: tuple[str, ...] = sensors.LANDSAT_SPACECRAFT
    cloud_cover: float = 50.0
    max_days: float = pairing.MAX_DAYS
    nir: str = "B8"
    connection: Connection = dataclasses.field(default_factory=Connection)

    @cached_property
    def listing(self) -> Listing:
        """All scenes, listed when it is first asked for.

        Raises:
          FlagError: the dates cannot be used.
          PermanentError, TransientError: Earth Engine gives no answer.
        """
        start, end, more = _day(self.start, "start"), _day(self.end, "end"), datetime.timedelta(days=self.max_days)
        if start >= end:
            raise FlagError(f"expected a start before the end. Received: start={self.start}, end={self.end}")
        landsat = [
            ee_listing.scene(asset, product, product.bands)
            for product in (ee_products.product(craft, self.level) for craft in self.spacecraft)
            for asset in self._images(product, start, end)
        ]
        sentinel, without, left_out = self._sentinel(start - more, end + more)
        if left_out or without:
            _log.info("%d Sentinel-2 scenes left out, %d without Cloud Score+", len(left_out), len(without))
        ordered = (tuple(sorted(scenes, key=lambda scene: scene.id)) for scenes in (landsat, sentinel))
        return Listing(*ordered, frozenset(without), left_out)

    def _images(
        self, product: Product, start: datetime.datetime, end: datetime.datetime
    ) -> Iterator[Mapping[str, Any]]:
        client = ee_client.client(self.connection)
        return ee_listing.images(client, self.region, product, start, end, self.cloud_cover)

    def _sentinel(
        self, start: datetime.datetime, end: datetime.datetime
    ) -> tuple[list[Scene], set[str], dict[str, str]]:
        """Scenes, the ids of those without Cloud Score+, and the reasons of those left out."""
        product = ee_products.product(sensors.SENTINEL_SPACECRAFT[0], self.level)
        kept, left_out = ee_listing.newest(list(self._images(product, start, end)))
        scores = ee_listing.cloud_scores(ee_client.client(self.connection), self.region, start, end)
        scenes = [ee_listing.scene(asset, product, self._bands(product)) for asset in kept]
        without = {scene.id for scene in scenes if scene.id not in scores}
        if product.quality:
            return scenes, without, left_out
        left_out |= dict.fromkeys(sorted(without), "no Cloud Score+")
        return [scene for scene in scenes if scene.id in scores], set(), left_out

    def scenes(self) -> Sequence[Scene]:
        """Landsat's, then Sentinel-2's, in the order of their ids."""
        return [*self.listing.landsat, *self.listing.sentinel]

    def pairs(self) -> Sequence[tuple[Scene, Scene]]:
        """Each Landsat scene with the scene nearest in time of every Sentinel-2 tile that it meets.

        Raises:
          SceneError: there is none.
        """
        tiles: dict[Grid, list[Scene]] = {}
        for scene in self.listing.sentinel:
            tiles.setdefault(scene.grid, []).append(scene)
        landsat = np.array(self.listing.landsat, object)
        boxes = np.array([_degrees(scene.grid) for scene in landsat]).reshape(-1, 4)
        found = []
        for grid, scenes in tiles.items():
            found += pairing.pair(landsat[_meet(boxes, _degrees(grid))], scenes, self.max_days)
        if not found:
            raise SceneError(
                "no Landsat and Sentinel-2 scenes belong together; widen the region, the dates, --max_days or "
                f"--cloud_cover. Received: {len(self.listing.landsat)} Landsat and {len(self.listing.sentinel)} "
                f"Sentinel-2 scenes, {self.start} to {self.end}"
            )
        return sorted(found, key=lambda pair: (pair[0].id, pair[1].id))

    def read(self, scene: Scene, bands: Sequence[str], window: Grid) -> Raster:
        """Reads a window; see `SceneSource.read`.

        The panchromatic band has no quality band on a grid that fits its own: what is valid there is clear.

        Raises:
          SceneError: the window is not on the bands' native grid.
          PermanentError, TransientError: Earth Engine gives no answer.
        """
        native = scene.grids[bands[0]]
        if window.offset_in(native) is None:
            raise SceneError(f"a window must lie on the native grid, {native}. Received: window={window}")
        product = ee_products.product(scene.spacecraft, scene.level)
        with_quality = product.sensor == "sentinel" or native == scene.grid
        names, kinds = [self._bands(product)[band] for band in bands], product.quality if with_quality else {}
        wanted = {f"{product.collection}/{scene.id}": [*names, *kinds.values()]}
        score, scored = f"{CLOUD_SCORE}/{scene.id}", self._is_scored(scene)
        if scored and window.pixel[0] == CLOUD_SCORE_PIXEL:
            wanted[score] = [CLOUD_SCORE_BAND]
        pixels = self._pixels(wanted, window)
        dn = np.stack([pixels[name] for name in names], axis=-1)
        valid, clear = _data(pixels, dn, product)
        for kind, name in kinds.items():
            clear &= quality.CLEAR[kind](pixels[name])
        if scored:
            if score not in wanted:
                pixels = self._pixels({score: [CLOUD_SCORE_BAND]}, window.at(CLOUD_SCORE_PIXEL))
            clear &= _all_clear(quality.cloud_score_clear(pixels[CLOUD_SCORE_BAND]), window.shape)
        values = np.where(valid[..., None], radiometry.decode(dn, product.encoding), np.float32(0))
        return Raster(values, valid, valid & clear, window)

    def _bands(self, product: Product) -> Mapping[str, str]:
        sentinel = product.sensor == "sentinel"
        return {b: sensors.msi_band(b, self.nir).name for b in product.bands} if sentinel else product.bands

    def _is_scored(self, scene: Scene) -> bool:
        return scene.sensor == "sentinel" and scene.id not in self.listing.without_cloud_score

    def _pixels(self, wanted: Mapping[str, Sequence[str]], window: Grid) -> np.ndarray:
        """Bands of images, which have different names, in a window; in four parts where it is too large for one.

        Returns:
          A structured array [height, width], one field for each band.
        """
        itemsizes = [_ITEMSIZE.get(name, 4) for names in wanted.values() for name in names]
        if max(window.shape) > MOST_SIDE or math.prod(window.shape) * sum(itemsizes) > MOST_BYTES:
            return self._quarters(wanted, window)
        try:
            return ee_client.client(self.connection).call(lambda: ee.data.computePixels(_request(wanted, window)))
        except TooLargeError as error:
            if min(window.shape) < 2 * SMALLEST:
                raise PermanentError(f"a window of {window.shape} pixels is not split any more: {error}") from error
            return self._quarters(wanted, window)

    def _quarters(self, wanted: Mapping[str, Sequence[str]], window: Grid) -> np.ndarray:
        (rows, columns), (middle, centre) = window.shape, (size // 2 for size in window.shape)
        strips = []
        for row, height in ((0, middle), (middle, rows - middle)):
            halves = (window.window(row, 0, height, centre), window.window(row, centre, height, columns - centre))
            strips.append(np.concatenate([self._pixels(wanted, half) for half in halves], axis=1))
        return np.concatenate(strips, axis=0)


def _degrees(grid: Grid) -> tuple[float, float, float, float]:
    """West, south, east and north; all longitudes across the antimeridian."""
    west, south, east, north = rasterio.warp.transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)
    return (west, south, east, north) if west <= east else (-180.0, south, 180.0, north)


def _meet(boxes: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Which of many boxes [n, 4] may meet another: the few that are worth an exact look."""
    west, south, east, north = boxes.T
    return (west <= box[2]) & (east >= box[0]) & (south <= box[3]) & (north >= box[1])


def _request(wanted: Mapping[str, Sequence[str]], window: Grid) -> dict[str, Any]:
    """What computePixels takes; made anew for every request, so that threads share nothing."""
    first, *others = (ee.Image(asset).select(list(names)) for asset, names in wanted.items())
    for other in others:
        first = first.addBands(other)
    affine = {"scaleX": window.pixel[0], "shearX": 0, "translateX": window.left}
    affine |= {"shearY": 0, "scaleY": -window.pixel[1], "translateY": window.top}
    size = {"width": window.shape[1], "height": window.shape[0]}
    grid = {"dimensions": size, "affineTransform": affine, "crsCode": window.crs}
    return {"expression": first, "fileFormat": "NUMPY_NDARRAY", "grid": grid}


def _data(pixels: np.ndarray, dn: np.ndarray, product: Product) -> tuple[np.ndarray, np.ndarray]:
    """Where there is data in every band, and where none is saturated. What is masked comes as 0."""
    valid = (np.isfinite(dn) & (dn != 0)).all(axis=-1)
    saturated = (dn == SATURATED).any(axis=-1)
    if product.sensor == "sentinel":
        return valid & ~saturated, np.ones_like(valid)
    if "QA_PIXEL" in pixels.dtype.names:
        fill = (pixels["QA_PIXEL"] == 0) | (pixels["QA_PIXEL"] & 1 == 1)
        valid &= ~fill
    return valid, ~saturated


def _all_clear(clear: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask on pixels as large or larger: clear where all within are."""
    factor = len(clear) // shape[0]
    return clear.reshape(shape[0], factor, shape[1], factor).all(axis=(1, 3))


def _day(text: str, flag: str) -> datetime.datetime:
    try:
        return datetime.datetime.combine(datetime.date.fromisoformat(text), datetime.time(), datetime.UTC)
    except ValueError as error:
        raise FlagError(f"expected a day such as 2022-06-01 ({error}). Received: {flag}={text}") from error
