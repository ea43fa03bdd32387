import json
import math

import numpy as np
import pytest
from skimage.measure import points_in_poly

from harmonize_tf.errors import FlagError
from harmonize_tf.sources import ee_listing, ee_products, region
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.testing.ee_assets import Catalogue

SQUARE = [[[12.0, 51.0], [13.0, 51.0], [13.0, 52.0], [12.0, 51.0]]]
POLYGON = {"type": "Polygon", "coordinates": SQUARE}


def test_a_bounding_box_is_its_rectangle():
    ring = json.loads(region.parse("12,51,13.5,52"))["coordinates"][0]
    assert ring == [[12, 51], [13.5, 51], [13.5, 52], [12, 52], [12, 51]]


def test_all_polygons_of_a_file_are_taken(tmp_path):
    feature = {"type": "Feature", "properties": {}, "geometry": POLYGON}
    multi = {"type": "MultiPolygon", "coordinates": [SQUARE, SQUARE]}
    path = tmp_path / "region.geojson"
    for geojson, expected in (
        (POLYGON, POLYGON),
        (feature, POLYGON),
        ({"type": "FeatureCollection", "features": [feature, feature]}, multi),
        ({"type": "GeometryCollection", "geometries": [POLYGON, POLYGON]}, multi),
        (multi, multi),
    ):
        path.write_text(json.dumps(geojson))
        assert json.loads(region.parse(str(path))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("13,51,12,52", "west of east"),
        ("12,51,13", "west,south,east,north"),
        ("300000,5700000,310000,5710000", "degrees, longitude first"),
        ("nowhere.geojson", "GeoJSON file"),
    ],
)
def test_what_is_no_region_is_told(text, message):
    with pytest.raises(FlagError, match=message):
        region.parse(text)


def test_lines_and_points_are_no_region(tmp_path):
    path = tmp_path / "point.geojson"
    path.write_text(json.dumps({"type": "Point", "coordinates": [12, 51]}))
    with pytest.raises(FlagError, match="type=Point"):
        region.parse(str(path))


def star(random, longitude, latitude, size, corners=40):
    """A closed ring around a point."""
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radius = size * random.uniform(0.4, 1, corners)
    ring = np.stack([longitude + radius * np.cos(angles), latitude + radius * np.sin(angles)], axis=1)
    return [*ring.tolist(), ring[0].tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_a_point_is_within_an_area_when_it_is_in_a_polygon_and_not_in_its_holes(seed):
    random = np.random.default_rng(seed)
    centres = np.array([(-2, -1), (-1, 1), (1, -1), (2, 1)]) + random.uniform(-0.5, 0.5, (4, 2))
    polygons = [[star(random, *centre, 3), star(random, *centre, 1)] for centre in centres]
    text = json.dumps({"type": "MultiPolygon", "coordinates": polygons})
    for west in (-6, -3, -1, 1, 4):
        points = np.stack([random.uniform(west, west + 2, 2000), random.uniform(-3, 3, 2000)], axis=1)
        points[:200, 1] = random.choice(
            [latitude for polygon in polygons for ring in polygon for _, latitude in ring], 200
        )
        inside = [points_in_poly(points, outer) & ~points_in_poly(points, hole) for outer, hole in polygons]
        np.testing.assert_array_equal(region.within(text, *points.T), np.any(inside, axis=0))
        assert west in (-6, 4) or 0.1 < np.mean(np.any(inside, axis=0)) < 1


def test_areas_side_by_side_leave_no_point_out():
    longitude, latitude = (axis.ravel() for axis in np.meshgrid(np.linspace(10, 14, 9), np.linspace(50, 54, 9)))
    west, east = (region.within(region.parse(box), longitude, latitude) for box in ("9,49,12,55", "12,49,15,55"))
    np.testing.assert_array_equal(west, longitude <= 12)
    np.testing.assert_array_equal(east, longitude >= 12)


def test_ground_in_two_overlapping_polygons_is_within():
    boxes = [region._box(10, 50, 13, 53), region._box(12, 52, 15, 55)]
    text = json.dumps({"type": "MultiPolygon", "coordinates": boxes})
    inside = region.within(text, np.array([11, 12.5, 14, 14]), np.array([51, 52.5, 54, 51]))
    assert inside.tolist() == [True, True, True, False]


def footprint(**geometry):
    """That of a scene whose image has a geometry."""
    simulated = SimulatedSource(size=1920)
    product = ee_products.product("SENTINEL_2A", "toa")
    (asset,) = (a.describe() for n, a in Catalogue(simulated).assets.items() if n.startswith(product.collection))
    if geometry:
        asset["geometry"] = geometry
    else:
        del asset["geometry"]
    return ee_listing.scene(asset, product, product.bands, ()).footprint


def test_a_scenes_footprint_is_made_of_the_polygons_of_its_images_geometry():
    (ring,) = SQUARE
    line = {"type": "LineString", "coordinates": ring[:2]}
    assert footprint(**POLYGON) == POLYGON
    assert footprint(type="LinearRing", coordinates=ring) == POLYGON
    assert footprint(type="MultiPolygon", coordinates=[SQUARE, SQUARE])["coordinates"] == [SQUARE, SQUARE]
    assert footprint(type="GeometryCollection", geometries=[line, POLYGON]) == POLYGON
    assert footprint(type="GeometryCollection", geometries=[POLYGON, POLYGON])["coordinates"] == [SQUARE, SQUARE]


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"type": "LineString", "coordinates": SQUARE[0]},
        {"type": "GeometryCollection", "geometries": []},
        {"type": "LinearRing", "coordinates": SQUARE[0][:2]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[[179, 1], [-179, 1], [-179, 2], [179, 1]]]},
        {"type": "Polygon", "coordinates": [[[179, 1], [181, 1], [181, 2], [179, 1]]]},
        {"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]},
        {"type": "Polygon", "coordinates": [[[-math.inf, -90], [math.inf, -90], [math.inf, 90], [-math.inf, -90]]]},
        {"type": "Polygon", "coordinates": [[["-Infinity", -90], ["Infinity", -90], [0, 90], ["-Infinity", -90]]]},
    ],
)
def test_a_geometry_that_bounds_nothing_or_crosses_the_antimeridian_is_no_footprint(geometry):
    assert footprint(**geometry) is None
