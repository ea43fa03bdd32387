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
from harmonize_tf.sources.ee_products import (
    CLOUD_SCORE,
    CLOUD_SCORE_BAND,
    CLOUD_SCORE_NAME,
    CLOUD_SCORE_PIXEL,
    SATURATED,
    Product,
)

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
      left_out: reasons by the id of scenes that are not used.
    """

    landsat: tuple[Scene, ...]
    sentinel: tuple[Scene, ...]
    left_out: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class EarthEngineSource:
    """Landsat-8/9 and Sentinel-2 scenes of a region and time.

    Can be pickled, without the list of the scenes, which may be long and which reading does without; it connects anew
    where it is used.
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

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

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
            ee_listing.scene(asset, product, product.bands, tuple(product.quality.values()))
            for product in (ee_products.product(craft, self.level) for craft in self.spacecraft)
            for asset in self._images(product, start, end)
        ]
        sentinel, left_out = self._sentinel(start - more, end + more)
        without = sum(CLOUD_SCORE_NAME not in scene.masks for scene in sentinel)
        if left_out or without:
            _log.info("%d Sentinel-2 scenes left out, %d without Cloud Score+", len(left_out), without)
        ordered = (tuple(sorted(scenes, key=lambda scene: scene.id)) for scenes in (landsat, sentinel))
        return Listing(*ordered, left_out)

    def _images(
        self, product: Product, start: datetime.datetime, end: datetime.datetime
    ) -> Iterator[Mapping[str, Any]]:
        client = ee_client.client(self.connection)
        return ee_listing.images(client, self.region, product, start, end, self.cloud_cover)

    def _sentinel(self, start: datetime.datetime, end: datetime.datetime) -> tuple[list[Scene], dict[str, str]]:
        """Scenes, and the reasons of those left out."""
        product = ee_products.product(sensors.SENTINEL_SPACECRAFT[0], self.level)
        kept, left_out = ee_listing.newest(list(self._images(product, start, end)))
        scores = ee_listing.cloud_scores(ee_client.client(self.connection), self.region, start, end)
        scenes = []
        for asset in kept:
            score = (CLOUD_SCORE_NAME,) if ee_listing.index(asset) in scores else ()
            if masks := (*product.quality.values(), *score):
                scenes.append(ee_listing.scene(asset, product, self._bands(product), masks))
            else:
                left_out[ee_listing.index(asset)] = f"no {CLOUD_SCORE_NAME}"
        return scenes, left_out

    def scenes(self) -> Sequence[Scene]:
        """Landsat's, then Sentinel-2's, in the order of their ids."""
        return [*self.listing.landsat, *self.listing.sentinel]

    def pairs(self) -> Sequence[tuple[Scene, Scene]]:
        """Each Landsat scene with the scenes near in time of every Sentinel-2 tile that it meets, nearest first.

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
            found += pairing.candidates(landsat[_meet(boxes, _degrees(grid))], scenes, self.max_days)
        if not found:
            raise SceneError(
                "no Landsat and Sentinel-2 scenes belong together; widen the region, the dates, --max_days or "
                f"--cloud_cover. Received: {len(self.listing.landsat)} Landsat and {len(self.listing.sentinel)} "
                f"Sentinel-2 scenes, {self.start} to {self.end}"
            )
        return sorted(found, key=lambda pair: (pair[0].id, abs(pair[1].time_ms - pair[0].time_ms), pair[1].id))

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
        answers = [self._pixels(wanted, grid) for wanted, grid in self._asked(scene, bands, window)]
        pixels, names = answers[0], self._bands(product)
        dn = np.stack([pixels[names[band]] for band in bands], axis=-1)
        valid, clear = _data(pixels, dn, product)
        for kind, name in product.quality.items():
            if name in pixels.dtype.names:
                clear &= quality.CLEAR[kind](pixels[name])
        if CLOUD_SCORE_BAND in answers[-1].dtype.names:
            clear &= _all_clear(quality.cloud_score_clear(answers[-1][CLOUD_SCORE_BAND]), window.shape)
        values = radiometry.decode(dn, product.encoding)
        values[~valid] = 0.0
        return Raster(values, valid, valid & clear, window)

    def cost(self, scene: Scene, bands: Sequence[str], window: Grid) -> list[int]:
        """Bytes of pixels of every answer that `read` needs, as long as Earth Engine does not refuse its size."""
        return [size for wanted, grid in self._asked(scene, bands, window) for size in _sizes(wanted, grid)]

    def _asked(self, scene: Scene, bands: Sequence[str], window: Grid) -> list[tuple[Mapping[str, list[str]], Grid]]:
        """What a window needs: bands by image, and the grid of each request.

        Cloud Score+ comes along with the bands of its own 10 m, and by a request of its own for coarser ones.
        """
        product = ee_products.product(scene.spacecraft, scene.level)
        with_quality = product.sensor == "sentinel" or scene.grids[bands[0]] == scene.grid
        names = [self._bands(product)[band] for band in bands]
        wanted = {f"{product.collection}/{scene.id}": names + (list(product.quality.values()) if with_quality else [])}
        if CLOUD_SCORE_NAME not in scene.masks:
            return [(wanted, window)]
        score = {f"{CLOUD_SCORE}/{scene.id}": [CLOUD_SCORE_BAND]}
        if window.pixel[0] == CLOUD_SCORE_PIXEL:
            return [(wanted | score, window)]
        return [(wanted, window), (score, window.at(CLOUD_SCORE_PIXEL))]

    def _bands(self, product: Product) -> Mapping[str, str]:
        sentinel = product.sensor == "sentinel"
        return {b: sensors.msi_band(b, self.nir).name for b in product.bands} if sentinel else product.bands

    def _pixels(self, wanted: Mapping[str, Sequence[str]], window: Grid) -> np.ndarray:
        """Bands of images, which have different names, in a window; in four parts where it is too large for one.

        Returns:
          A structured array [height, width], one field for each band.
        """
        if _exceeds(wanted, window):
            return self._in_parts(wanted, window)
        try:
            return ee_client.client(self.connection).call(lambda: ee.data.computePixels(_request(wanted, window)))
        except TooLargeError as error:
            if min(window.shape) < 2 * SMALLEST:
                raise PermanentError(f"a window of {window.shape} pixels is not split any more: {error}") from error
            return self._in_parts(wanted, window)

    def _in_parts(self, wanted: Mapping[str, Sequence[str]], window: Grid) -> np.ndarray:
        rows = [np.concatenate([self._pixels(wanted, part) for part in row], axis=1) for row in _quarters(window)]
        return np.concatenate(rows, axis=0)


def _quarters(window: Grid) -> list[list[Grid]]:
    """Four windows that make up one, row by row."""
    (rows, columns), (middle, centre) = window.shape, (size // 2 for size in window.shape)
    return [
        [window.window(row, 0, height, centre), window.window(row, centre, height, columns - centre)]
        for row, height in ((0, middle), (middle, rows - middle))
    ]


def _exceeds(wanted: Mapping[str, Sequence[str]], window: Grid) -> bool:
    """Whether a window is beyond Earth Engine's limits, so that it need not be asked."""
    return max(window.shape) > MOST_SIDE or _size(wanted, window) > MOST_BYTES


def _sizes(wanted: Mapping[str, Sequence[str]], window: Grid) -> list[int]:
    """Bytes of the answers that make up a window."""
    if not _exceeds(wanted, window):
        return [_size(wanted, window)]
    return [size for row in _quarters(window) for part in row for size in _sizes(wanted, part)]


def _size(wanted: Mapping[str, Sequence[str]], window: Grid) -> int:
    """Bytes of a window's pixels."""
    measured = {image: ee_products.itemsize(image.rpartition("/")[0]) for image in wanted}
    sizes = (_ITEMSIZE.get(name, measured[image]) for image, names in wanted.items() for name in names)
    return math.prod(window.shape) * sum(sizes)


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
    """Where there is data in every band, and where none is saturated. What is masked comes as 0.

    Sentinel-2's numbers are clipped at 0 where its offset was taken off, so that a dark band has 0 too: without data is
    what has 0 in all bands, or no class.
    """
    planes = np.moveaxis(dn, -1, 0)  # to reduce along a short last axis takes numpy ten times as long
    saturated = np.any([plane == SATURATED for plane in planes], axis=0)
    if product.sensor == "sentinel":
        valid = np.any([plane != 0 for plane in planes], axis=0)
        for name in product.quality.values():
            valid &= pixels[name] != 0
        return valid & ~saturated, np.ones_like(valid)
    valid = np.all([np.isfinite(plane) & (plane != 0) for plane in planes], axis=0)
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
