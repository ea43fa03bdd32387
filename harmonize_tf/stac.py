"""The STAC item of a product: what it is, where and when it lies, of what it was made, and its files' checksums.

STAC 1.1 with the extensions eo 2.0, raster 2.0, projection 2.0, view 1.0, file 2.1, processing 1.2, classification 2.0
and, for a Sentinel-2 tile, grid 1.1.
"""

import datetime
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pystac
import rasterio
import rasterio.warp
import shapely
import shapely.geometry

import harmonize_tf
from harmonize_tf import artifacts, mgrs, quality, sensors
from harmonize_tf.cog import Image
from harmonize_tf.geometry import Grid
from harmonize_tf.manifest import Manifest
from harmonize_tf.sources import Scene

EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in {
        "eo": "2.0.0",
        "raster": "2.0.0",
        "projection": "2.0.0",
        "view": "1.0.0",
        "file": "2.1.0",
        "processing": "1.2.0",
        "classification": "2.0.0",
        "grid": "1.1.0",
    }.items()
}
COMMON_NAMES = {"swir1": "swir16", "swir2": "swir22"}  # of eo, where they are not the names here
LAUNCH = datetime.datetime(2013, 2, 11, tzinfo=datetime.UTC)  # of Landsat 8, before which there was no OLI
_SHA256 = "1220"  # multihash: the function's code and the digest's length, 32 bytes
# Where USGS describes the scenes of Collection 2.
_USGS = "https://landsatlook.usgs.gov/stac-server/collections/{collection}/items/{name}"
_COLLECTION_2 = re.compile(r"L[CO]0[89]_L([12])[A-Z]{2}_\d{6}_\d{8}_\d{8}_02_(?:T[12]|RT)")


def item(
    scene: Scene,
    manifest: Manifest,
    version: str,
    product: Image,
    files: Mapping[str, pathlib.Path],
) -> pystac.Item:
    """Describes a product.

    Args:
      scene: what it was made of.
      manifest: the model.
      version: the model's version.
      product: its main raster.
      files: "data", "quality" and "thumbnail", finished, in the folder in which the item will be.
    """
    tile = mgrs.name_of(product.grid)
    place = {"grid:code": f"MGRS-{tile}"} if tile else {}
    geometry = outline(files["quality"], product.grid)
    taken = datetime.datetime.fromtimestamp(scene.time_ms / 1000, datetime.UTC) if scene.time_ms else None
    made = pystac.Item(
        id=files["data"].stem,
        geometry=shapely.geometry.mapping(geometry),
        bbox=bounding_box(geometry),
        datetime=taken,
        # Not known is not possible in STAC: some time since Landsat 8 was launched.
        start_datetime=None if taken else LAUNCH,
        end_datetime=None if taken else datetime.datetime.now(datetime.UTC),
        properties=_properties(scene, manifest, version, product.grid) | place,
        stac_extensions=[url for name, url in EXTENSIONS.items() if place or name != "grid"],
    )
    made.assets = {
        "data": _asset(files["data"], pystac.MediaType.COG, "data reflectance", bands=_bands(product)),
        "quality": _asset(files["quality"], pystac.MediaType.COG, "data quality-mask", bands=[_quality_band()]),
        "thumbnail": _asset(files["thumbnail"], pystac.MediaType.PNG, "thumbnail"),
    }
    if known := _COLLECTION_2.fullmatch(scene.id):
        collection = {"1": "landsat-c2l1", "2": "landsat-c2l2-sr"}[known[1]]
        name = scene.id + ("_SR" if known[1] == "2" else "")
        made.add_link(pystac.Link("derived_from", _USGS.format(collection=collection, name=name), title=scene.id))
    return made


def outline(judged: pathlib.Path, grid: Grid) -> shapely.Geometry:
    """What lies around a product's data, in degrees: its convex hull, or the whole grid where there is no data."""
    first, last = np.full(grid.shape[0], grid.shape[1]), np.zeros(grid.shape[0], int)  # columns with data, of each row
    with rasterio.open(judged) as image:
        for _, block in image.block_windows(1):
            data = image.read(1, window=block) != 0
            there = np.flatnonzero(data.any(1))
            rows, columns, ends = block.row_off + there, data[there].argmax(1), data[there, ::-1].argmax(1)
            first[rows] = np.minimum(first[rows], block.col_off + columns)
            last[rows] = np.maximum(last[rows], block.col_off + block.width - ends)
    rows = np.flatnonzero(last)
    corners = [(side[rows], rows + down) for side in (first, last) for down in (0, 1)]
    found = np.transpose(grid.transform @ np.concatenate(corners, axis=1))
    ground = shapely.MultiPoint(found).convex_hull if len(found) else shapely.box(*grid.bounds)
    degrees = rasterio.warp.transform_geom(grid.crs, "EPSG:4326", shapely.segmentize(ground, 20_000), precision=6)
    return _within_180(shapely.geometry.shape(degrees))


def bounding_box(geometry: shapely.Geometry) -> list[float]:
    """West, south, east and north; west is greater than east across the antimeridian (RFC 7946, 5.2)."""
    west, south, east, north = geometry.bounds
    if isinstance(geometry, shapely.MultiPolygon):
        sides = [part.bounds for part in geometry.geoms]
        west, east = min(b[0] for b in sides if b[0] > 0), max(b[2] for b in sides if b[2] < 0)
    return [west, south, east, north]


def _within_180(polygon: shapely.Geometry) -> shapely.Geometry:
    """The same, in two parts where it crosses the antimeridian (RFC 7946, 3.1.9)."""
    if polygon.bounds[2] - polygon.bounds[0] < 180:
        return shapely.geometry.polygon.orient(polygon)
    eastern = shapely.transform(polygon, lambda p: np.where(p < [0, -np.inf], p + [360, 0], p))
    west = shapely.transform(shapely.intersection(eastern, shapely.box(180, -90, 360, 90)), lambda p: p - [360, 0])
    parts = shapely.intersection(eastern, shapely.box(0, -90, 180, 90)), west
    return shapely.MultiPolygon([shapely.geometry.polygon.orient(part) for part in parts])


def _properties(scene: Scene, manifest: Manifest, version: str, grid: Grid) -> dict[str, Any]:
    software = {"harmonize_tf": harmonize_tf.__version__, manifest.name: version}
    angles = {
        "view:sun_elevation": 90 - scene.sun[0],
        "view:sun_azimuth": scene.sun[1] % 360,
        "view:off_nadir": scene.view[0],
        "view:azimuth": scene.view[1] % 360,
    }
    return {
        "title": f"{scene.id} as Sentinel-2 would have shown it",
        "platform": scene.spacecraft.lower().replace("_", "-"),
        "instruments": ["oli"],
        "gsd": 10,
        "proj:code": grid.crs,
        "proj:transform": [float(value) for value in grid.transform],
        "proj:shape": list(grid.shape),
        "processing:software": {name: value for name, value in software.items() if value},
        "processing:level": {"toa": "L1", "sr": "L2"}.get(scene.level, scene.level),
        "processing:lineage": f"{scene.id} by model {manifest.name}, version {version or 'not known'}",
        **{name: value for name, value in angles.items() if not math.isnan(value)},
    }


def _asset(path: pathlib.Path, media_type: str, roles: str, **fields: Any) -> pystac.Asset:
    checksum = {"file:checksum": _SHA256 + artifacts.sha256(path), "file:size": path.stat().st_size}
    return pystac.Asset(f"./{path.name}", media_type=media_type, roles=roles.split(), extra_fields=fields | checksum)


def _bands(image: Image) -> list[dict[str, Any]]:
    code = {
        "nodata": 0,
        "data_type": image.dtype,
        "unit": "1",
        "raster:scale": sensors.CODE.scale,
        "raster:offset": sensors.CODE.offset,
    }
    return [{"name": band, **_spectrum(band), **code} for band in image.bands]


def _spectrum(band: str) -> dict[str, Any]:
    """Nothing for a band that is an uncertainty."""
    if band not in sensors.MSI:
        return {"description": "standard deviation of the error of the band of that name"}
    wavelength = sensors.MSI[band].wavelength / 1000
    return {"eo:common_name": COMMON_NAMES.get(band, band), "eo:center_wavelength": wavelength}


def _quality_band() -> dict[str, Any]:
    fields = [
        {
            "name": name,
            "description": meaning,
            "offset": bit.bit_length() - 1,
            "length": 1,
            "classes": [
                {"value": 1, "name": name, "description": meaning},
                {"value": 0, "name": f"not_{name}", "description": f"not known that {meaning}"},
            ],
        }
        for bit, (name, meaning) in quality.BITS.items()
    ]
    return {"name": "quality", "nodata": 0, "data_type": "uint8", "classification:bitfields": fields}
