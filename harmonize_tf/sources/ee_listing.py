"""Lists Earth Engine's images and makes scenes of what it says about them."""

import datetime
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ee
import numpy as np
from affine import Affine

from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Scene, region
from harmonize_tf.sources.ee_client import Client
from harmonize_tf.sources.ee_products import CLOUD_SCORE, Product

PAGE = 1000  # images listed by one request, Earth Engine's most


def images(
    client: Client,
    region: str,
    product: Product,
    start: datetime.datetime,
    end: datetime.datetime,
    cloud_cover: float,
) -> Iterator[Mapping[str, Any]]:
    """Images of a product in a region, from `start` to before `end`, of at most `cloud_cover` percent cloud."""
    # -1 where the cloud cover was not computed.
    properties = [f"{product.cloud_cover}>=0", f"{product.cloud_cover}<={cloud_cover:g}"]
    return _pages(client, product.collection, region, start, end, properties=properties)


def cloud_scores(client: Client, region: str, start: datetime.datetime, end: datetime.datetime) -> set[str]:
    """Ids of the Sentinel-2 scenes that Cloud Score+ has reached."""
    return {index(asset) for asset in _pages(client, CLOUD_SCORE, region, start, end, view="BASIC")}


def _pages(
    client: Client, parent: str, region: str, start: datetime.datetime, end: datetime.datetime, **more: Any
) -> Iterator[Mapping[str, Any]]:
    """Page by page, so that a failure repeats one page."""
    times = {"startTime": _iso(start), "endTime": _iso(end)}
    params = {"parent": parent, "region": region, "pageSize": PAGE} | times | more
    while True:
        page = client.call(functools.partial(ee.data.listImages, params))
        yield from page["images"]
        if not page.get("nextPageToken"):
            return
        params = params | {"pageToken": page["nextPageToken"]}


def index(asset: Mapping[str, Any]) -> str:
    """An image's id without its collection's."""
    return asset["id"].rpartition("/")[2]


def scene(asset: Mapping[str, Any], product: Product, names: Mapping[str, str], masks: tuple[str, ...]) -> Scene:
    """An image as a scene, with every band's own grid; `names` are Earth Engine's, by this project's bands."""
    properties, native = asset["properties"], {band["id"]: band["grid"] for band in asset["bands"]}
    sentinel = product.sensor == "sentinel"
    craft = properties["SPACECRAFT_NAME" if sentinel else "SPACECRAFT_ID"].upper().replace("-", "_")
    # "S2A_MSIL1C_2022..." and "LC08_L1TP_1930...": the product's type is in the first two parts.
    product_id = str(properties.get("PRODUCT_ID" if sentinel else "LANDSAT_PRODUCT_ID", product.collection))
    return Scene(
        id=index(asset),
        sensor=product.sensor,
        level=product.level,
        product="_".join(product_id.split("_")[:2]),
        spacecraft=craft,
        time_ms=_time_ms(asset["startTime"]),
        grids={name: _grid(native[band]) for name, band in names.items() if band in native},
        sun=_sun(properties),
        view=_angles(properties, "MEAN_INCIDENCE_ZENITH_ANGLE_B4", "MEAN_INCIDENCE_AZIMUTH_ANGLE_B4"),
        processing_baseline=str(properties.get("PROCESSING_BASELINE", "")) if sentinel else "",
        masks=masks,
        footprint=_footprint(asset.get("geometry") or {}),
    )


def _footprint(geometry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The polygons of an image's geometry; None where there are none, or they are unbounded or cross the antimeridian.

    Rings that stand alone are taken as polygons, other parts of a collection left out.
    """
    found: list[Any] = []
    for part in geometry.get("geometries", [geometry]):
        if part.get("type") == "LinearRing":
            found.append([part["coordinates"]])
        elif part.get("type") in ("Polygon", "MultiPolygon"):
            found += region.polygons(part)
    polygons = [polygon for polygon in found if polygon and len(polygon[0]) > 3]
    if not polygons:
        return None
    points = np.array([point[:2] for polygon in polygons for ring in polygon for point in ring], float)
    # Across the antimeridian longitudes go beyond 180 degrees, or lie at both ends of the map.
    bounded = np.isfinite(points).all() and np.abs(points[:, 0]).max() <= 180 and np.ptp(points[:, 0]) <= 180
    return region.joined(polygons) if bounded else None


def _sun(properties: Mapping[str, Any]) -> tuple[float, float]:
    if "SUN_ELEVATION" in properties:
        elevation, azimuth = _angles(properties, "SUN_ELEVATION", "SUN_AZIMUTH")
        return 90 - elevation, azimuth
    return _angles(properties, "MEAN_SOLAR_ZENITH_ANGLE", "MEAN_SOLAR_AZIMUTH_ANGLE")


def _angles(properties: Mapping[str, Any], first: str, second: str) -> tuple[float, float]:
    return float(properties.get(first, math.nan)), float(properties.get(second, math.nan))


def _grid(grid: Mapping[str, Any]) -> Grid:
    """A band's native grid; the API leaves zeros out."""
    affine, size = grid["affineTransform"], grid["dimensions"]
    keys = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")
    return Grid.of(grid["crsCode"], Affine(*(affine.get(key, 0.0) for key in keys)), (size["height"], size["width"]))


def newest(assets: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
    """One image of each Sentinel-2 tile and datastrip: that of the newest processing baseline, made last.

    Returns:
      The images, and the ids of the others with the reason.
    """
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for asset in assets:
        found.setdefault(_granule(asset), []).append(asset)
    kept, left_out = [], {}
    for images in found.values():
        *older, newest = sorted(images, key=_age)
        kept.append(newest)
        left_out |= {index(asset): "processed anew" for asset in older}
    return kept, left_out


def _granule(asset: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two processings of the same observation have in common; two datastrips share a tile between them."""
    properties = asset["properties"]
    # "GS2A_20220607T101559_036337_N04.00": the baseline comes last. "..._S20220607T101556_N04.00": the strip's start.
    datatake = properties.get("DATATAKE_IDENTIFIER", asset["startTime"]).rpartition("_N")
    strip = re.search(r"_S(\d{8}T\d{6})", properties.get("DATASTRIP_ID", ""))
    return json.dumps(asset["bands"][0]["grid"], sort_keys=True), datatake[0] or datatake[2], strip and strip[1]


def _age(asset: Mapping[str, Any]) -> tuple[str, float, str]:
    properties = asset["properties"]
    return str(properties.get("PROCESSING_BASELINE", "")), float(properties.get("GENERATION_TIME", 0)), asset["id"]


def _iso(time: datetime.datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _time_ms(text: str) -> int:
    return round(datetime.datetime.fromisoformat(text).timestamp() * 1000)
