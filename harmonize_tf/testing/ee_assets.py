"""Scenes of any source as Earth Engine's images: metadata, listing, and digital numbers on the native grids."""

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import rasterio.warp

from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Raster, Scene, SceneSource, ee_products
from harmonize_tf.sources.ee_products import CLOUD_SCORE, CLOUD_SCORE_BAND
from harmonize_tf.testing.ee_limits import Refusal

PUBLIC = "projects/earthengine-public/assets/"
# QA_PIXEL as it mostly is on clear ground (all confidences low) and under cloud (its confidence high); fill.
QA_CLEAR, QA_CLOUD, QA_FILL = 21824, 22280, 1
SCL_SOIL, SCL_CLOUD = 5, 9


@dataclasses.dataclass(frozen=True)
class AssetBand:
    """One band of an image.

    Attributes:
      name: Earth Engine's.
      grid: native.
      dtype: of its pixels.
      read: digital numbers of a window on the native grid, 0 where masked.
    """

    name: str
    grid: Grid
    dtype: np.dtype
    read: Callable[[Grid], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Asset:
    """An image.

    Attributes:
      id: with its collection, such as "LANDSAT/LC08/C02/T1_TOA/LC08_123".
      bands: in order.
      time_ms: acquisition.
      properties: metadata.
      footprint: GeoJSON geometry, degrees.
    """

    id: str
    bands: tuple[AssetBand, ...]
    time_ms: int
    properties: Mapping[str, Any]
    footprint: Mapping[str, Any]

    def describe(self, full: bool = True) -> dict[str, Any]:
        """As the REST API describes it; without bands and properties in the basic view."""
        time = datetime.datetime.fromtimestamp(self.time_ms / 1000, datetime.UTC).isoformat().replace("+00:00", "Z")
        basic = {"type": "IMAGE", "name": PUBLIC + self.id, "id": self.id, "startTime": time, "endTime": time}
        if not full:
            return basic
        bands = [{"id": b.name, "dataType": _data_type(b.dtype), "grid": _grid(b.grid)} for b in self.bands]
        return basic | {"properties": dict(self.properties), "geometry": dict(self.footprint), "bands": bands}


class Catalogue:
    """All images that there are."""

    def __init__(
        self,
        source: SceneSource,
        *,
        without_cloud_score: Sequence[str] = (),
        properties: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Makes images of a source's scenes.

        Args:
          source: where they come from.
          without_cloud_score: ids of Sentinel-2 scenes that Cloud Score+ has not reached yet.
          properties: metadata by scene id, in place of what is made up (a cloud cover of 5 %).
        """
        self.assets: dict[str, Asset] = {}
        for scene in source.scenes():
            more = (properties or {}).get(scene.id, {})
            made = [_landsat(source, scene, more)] if scene.sensor == "landsat" else [_sentinel(source, scene, more)]
            if scene.sensor == "sentinel" and scene.id not in without_cloud_score:
                made.append(_cloud_score(source, scene))
            self.assets |= {asset.id: asset for asset in made}
        collections = {ee_products.product(c, level).collection for c in _CRAFTS for level in ("toa", "sr")}
        self._collections = collections | {CLOUD_SCORE}

    def get(self, asset_id: str) -> Asset:
        """An image by its id.

        Raises:
          Refusal: 404, there is none.
        """
        if asset_id not in self.assets:
            raise Refusal(404, f"Image asset '{asset_id}' not found (does not exist or caller does not have access).")
        return self.assets[asset_id]

    def list(self, collection: str, query: str) -> Sequence[Asset]:
        """Images of a collection that a filter lets through, by id.

        Raises:
          Refusal: 404, no such collection; 400, a filter that is not understood.
        """
        if collection not in self._collections:
            raise Refusal(404, f"Asset '{collection}' not found (does not exist or caller does not have access).")
        tests = [_clause(text) for text in re.split(r" AND ", query) if text]
        members = (self.assets[name] for name in sorted(self.assets) if name.rpartition("/")[0] == collection)
        return [asset for asset in members if all(test(asset) for test in tests)]


_CRAFTS = ("LANDSAT_8", "LANDSAT_9", "SENTINEL_2A")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "!=": lambda a, b: a != b,
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


def _clause(text: str) -> Callable[[Asset], bool]:
    """One condition of a filter."""
    if region := re.fullmatch(r'\s*intersects\("(.*)"\)\s*', text, re.DOTALL):
        try:
            wanted = _box(json.loads(region[1].replace("'", '"')))
        except ValueError as error:
            raise Refusal(400, f"Invalid geometry in filter: {text}") from error
        return lambda asset: _meet(wanted, _box(asset.footprint))
    found = re.fullmatch(r'\s*(startTime|endTime|properties\.[\w:]+)\s*(<=|>=|!=|<|>|=)\s*("?)(.*?)\3\s*', text)
    if not found:
        raise Refusal(400, f"Invalid filter: {text}")
    name, operator, quote, value = found.groups()
    compare = _COMPARE[operator]
    if name in ("startTime", "endTime"):
        time = datetime.datetime.fromisoformat(value).timestamp() * 1000
        return lambda asset: compare(asset.time_ms, time)
    key, wanted_value = name.removeprefix("properties."), value if quote else float(value)
    return lambda asset: key in asset.properties and compare(asset.properties[key], wanted_value)


def _box(geometry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """West, south, east and north of a GeoJSON geometry: footprints and regions are compared by these alone."""
    numbers = np.array([float(n) for n in re.findall(r"-?\d[\d.eE+-]*", json.dumps(geometry["coordinates"]))])
    points = numbers.reshape(-1, 2)
    return (*points.min(axis=0), *points.max(axis=0))


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _landsat(source: SceneSource, scene: Scene, more: Mapping[str, Any]) -> Asset:
    product = ee_products.product(scene.spacecraft, scene.level)
    bands = _measured(source, scene, product)
    bands.append(_made(source, scene, "QA_PIXEL", np.dtype(np.uint16), _qa_pixel))
    nothing = AssetBand("QA_RADSAT", scene.grid, np.dtype(np.uint16), lambda window: np.zeros(window.shape, np.uint16))
    bands.append(nothing)  # no source tells of saturation
    properties = _properties(scene, {
        "SPACECRAFT_ID": scene.spacecraft,
        "LANDSAT_PRODUCT_ID": scene.product,
        "CLOUD_COVER": 5.0,
        "SUN_ELEVATION": 90 - scene.sun[0],
        "SUN_AZIMUTH": scene.sun[1],
    })  # fmt: skip
    return _asset(f"{product.collection}/{scene.id}", scene, bands, properties | more)


def _sentinel(source: SceneSource, scene: Scene, more: Mapping[str, Any]) -> Asset:
    product = ee_products.product(scene.spacecraft, scene.level)
    bands = _measured(source, scene, product)
    if scene.level == "sr":
        shape = tuple(math.ceil(size / 2) for size in scene.grid.shape)
        grid = dataclasses.replace(scene.grid, pixel=(20.0, 20.0), shape=shape)
        bands.append(AssetBand("SCL", grid, np.dtype(np.uint8), lambda window: _scl(source, scene, window)))
    properties = _properties(scene, {
        "SPACECRAFT_NAME": f"Sentinel-{scene.spacecraft[-2:]}",
        "PRODUCT_ID": scene.product,
        "CLOUDY_PIXEL_PERCENTAGE": 5.0,
        "MEAN_SOLAR_ZENITH_ANGLE": scene.sun[0],
        "MEAN_SOLAR_AZIMUTH_ANGLE": scene.sun[1],
        "MEAN_INCIDENCE_ZENITH_ANGLE_B4": scene.view[0],
        "MEAN_INCIDENCE_AZIMUTH_ANGLE_B4": scene.view[1],
        "PROCESSING_BASELINE": scene.processing_baseline,
    })  # fmt: skip
    return _asset(f"{product.collection}/{scene.id}", scene, bands, properties | more)


def _cloud_score(source: SceneSource, scene: Scene) -> Asset:
    band = _made(source, scene, CLOUD_SCORE_BAND, np.dtype(np.float64), lambda raster: raster.clear)
    return _asset(f"{CLOUD_SCORE}/{scene.id}", scene, [band], {})


def _asset(name: str, scene: Scene, bands: Sequence[AssetBand], properties: Mapping[str, Any]) -> Asset:
    left, bottom, right, top = scene.grid.bounds
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    footprint = rasterio.warp.transform_geom(scene.grid.crs, "EPSG:4326", polygon)
    return Asset(name, tuple(bands), scene.time_ms, {"system:index": scene.id} | dict(properties), footprint)


def _properties(scene: Scene, known: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are known at all."""
    return {k: v for k, v in known.items() if v != "" and not (isinstance(v, float) and math.isnan(v))}


def _measured(source: SceneSource, scene: Scene, product: ee_products.Product) -> list[AssetBand]:
    """The bands of the sensor itself."""

    def reading(band: str) -> Callable[[Grid], np.ndarray]:
        def read(window: Grid) -> np.ndarray:
            raster = source.read(scene, [band], window)
            numbers = ee_products.digital_numbers(raster.values[..., 0], product.encoding)
            return np.where(raster.valid, numbers, 0).astype(product.dtype)

        return read

    def name(band: str, grid: Grid) -> str:
        narrow = scene.sensor == "sentinel" and band == "nir" and grid.pixel[0] == 20
        return "B8A" if narrow else product.bands[band]

    return [AssetBand(name(b, grid), grid, product.dtype, reading(b)) for b, grid in scene.grids.items()]


def _made(
    source: SceneSource, scene: Scene, name: str, dtype: np.dtype, made: Callable[[Raster], np.ndarray]
) -> AssetBand:
    """A quality band on the grid of the finest multispectral one, made of its masks; 0 beyond the scene."""
    band = next(b for b in scene.bands if scene.grids[b] == scene.grid)

    def read(window: Grid) -> np.ndarray:
        return np.where(_inside(window, scene.grid), made(source.read(scene, [band], window)), 0).astype(dtype)

    return AssetBand(name, scene.grid, dtype, read)


def _inside(window: Grid, native: Grid) -> np.ndarray:
    row, column = window.offset_in(native) or (0, 0)
    rows, columns = row + np.arange(window.shape[0]), column + np.arange(window.shape[1])
    return ((rows >= 0) & (rows < native.shape[0]))[:, None] & ((columns >= 0) & (columns < native.shape[1]))


def _qa_pixel(raster: Raster) -> np.ndarray:
    return np.where(raster.clear, QA_CLEAR, np.where(raster.valid, QA_CLOUD, QA_FILL))


def _scl(source: SceneSource, scene: Scene, window: Grid) -> np.ndarray:
    """Cloud or no data where all four pixels of 10 m are."""
    band = next(b for b in scene.bands if scene.grids[b] == scene.grid)
    raster = source.read(scene, [band], window.at(10))
    rows, columns = window.shape
    clear, valid = (m.reshape(rows, 2, columns, 2).any(axis=(1, 3)) for m in (raster.clear, raster.valid))
    return np.where(valid, np.where(clear, SCL_SOIL, SCL_CLOUD), 0).astype(np.uint8)


def _data_type(dtype: np.dtype) -> dict[str, Any]:
    if dtype.kind == "f":
        return {"precision": "FLOAT" if dtype.itemsize == 4 else "DOUBLE"}
    return {"precision": "INT", "range": {"min": 0, "max": int(np.iinfo(dtype).max)}}


def _grid(grid: Grid) -> dict[str, Any]:
    """As the API writes it: zeros are left out."""
    affine = {"scaleX": grid.pixel[0], "translateX": grid.left, "scaleY": -grid.pixel[1], "translateY": grid.top}
    return {
        "crsCode": grid.crs,
        "dimensions": {"width": grid.shape[1], "height": grid.shape[0]},
        "affineTransform": {name: value for name, value in affine.items() if value},
    }
