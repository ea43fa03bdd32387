import json

import pytest

from harmonize_tf.errors import FlagError
from harmonize_tf.sources import region

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
