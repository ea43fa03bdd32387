"""The region of an export: a GeoJSON file or a bounding box, and what lies within it.

As GeoJSON has it (RFC 7946), edges are straight in longitude and latitude and nothing crosses the antimeridian.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely

from harmonize_tf.errors import FlagError


def parse(text: str) -> str:
    """The region as a GeoJSON geometry.

    Args:
      text: path of a GeoJSON file (a polygon, or features of them), or "west,south,east,north" in degrees.

    Returns:
      JSON text of a Polygon or MultiPolygon, longitude and latitude in degrees.

    Raises:
      FlagError: it is neither, or lies beyond the globe.
    """
    numbers = _numbers(text)
    found = [_box(*numbers)] if numbers else _polygons(_load(text), text)
    for longitude, latitude, *_ in (point for polygon in found for ring in polygon for point in ring):
        if abs(longitude) > 180 or abs(latitude) > 90:
            raise FlagError(
                "a region's coordinates are degrees, longitude first; convert them to EPSG:4326. "
                f"Received: area={text}, point {longitude},{latitude}"
            )
    return json.dumps(joined(found))


def joined(polygons: Sequence[Any]) -> dict[str, Any]:
    """The GeoJSON geometry of polygons, which are lists of rings: a Polygon where there is one, else a MultiPolygon."""
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def polygons(geometry: Mapping[str, Any]) -> list[Any]:
    """The polygons of a GeoJSON Polygon or MultiPolygon."""
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]


def within(area: str, longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Which points lie in an area or on its edge.

    Args:
      area: GeoJSON geometry, as `parse` gives it.
      longitude: degrees, [n].
      latitude: degrees, [n].

    Returns:
      bool [n].
    """
    return shapely.intersects_xy(_shape(area), longitude, latitude)


@functools.lru_cache(maxsize=8)
def _shape(area: str) -> shapely.Geometry:
    """An area, of which overlapping polygons are one."""
    shape = shapely.union_all(shapely.get_parts(shapely.from_geojson(area)))
    shapely.prepare(shape)
    return shape


def _numbers(text: str) -> list[float]:
    """West, south, east and north; empty where the text is no bounding box."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise FlagError(
            "a bounding box is west,south,east,north in degrees, west of east (split one across the antimeridian) and "
            f"south of north. Received: area={text}"
        )
    return numbers


def _box(west: float, south: float, east: float, north: float) -> list[Any]:
    return [[[west, south], [east, south], [east, north], [west, north], [west, south]]]


def _load(path: str) -> Any:
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise FlagError(
            f"a region is a GeoJSON file or west,south,east,north ({error}). Received: area={path}"
        ) from error


def _polygons(geojson: Any, path: str) -> list[Any]:
    kind = geojson.get("type") if isinstance(geojson, dict) else None
    if kind == "FeatureCollection":
        return [polygon for feature in geojson["features"] for polygon in _polygons(feature, path)]
    if kind == "Feature":
        return _polygons(geojson["geometry"], path)
    if kind == "GeometryCollection":
        return [polygon for geometry in geojson["geometries"] for polygon in _polygons(geometry, path)]
    if kind in ("Polygon", "MultiPolygon"):
        return polygons(geojson)
    raise FlagError(f"a region's geometries are polygons; leave others out. Received: area={path}, type={kind}")
