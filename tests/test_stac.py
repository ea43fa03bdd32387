import dataclasses
import json

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
import shapely
from pystac.extensions.file import FileExtension
from pystac.extensions.grid import GridExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.view import ViewExtension
from pystac.validation import validate_dict
from test_products import BANDS, Smooth, assert_checksums

from harmonize_tf import cog, geometry, mgrs, products, stac
from harmonize_tf.geometry import Grid
from harmonize_tf.sources.simulated import SimulatedSource


def make(folder, *, grid=None, predictor=None, **changes):
    source = SimulatedSource(size=3600, nodata=True)
    scene = dataclasses.replace(source.scenes()[0], **changes)
    product = products.harmonize(source, scene, predictor or Smooth(), folder / "out.tif", grid=grid)
    return product, pystac.Item.from_file(str(product.item))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("product"), sun=(40.0, 150.0), view=(3.0, 100.0))


def test_an_item_is_valid_stac(made):
    """Against the core's schemas, which pystac carries; those of the extensions are on the network only."""
    content = json.loads(made[0].item.read_text())
    assert content["stac_version"] == "1.1.0"
    assert validate_dict(content, extensions=[])


def test_an_item_tells_what_the_rasters_say_of_themselves(made):
    product, item = made
    projection, view = ProjectionExtension.ext(item), ViewExtension.ext(item)
    with rasterio.open(product.path) as image:
        assert projection.epsg == image.crs.to_epsg() and projection.shape == list(image.shape)
        assert tuple(projection.transform)[:6] == tuple(image.transform)[:6]
        bands = item.assets["data"].extra_fields["bands"]
        assert tuple(band["name"] for band in bands) == image.descriptions
        assert tuple(band["raster:scale"] for band in bands) == image.scales
        assert tuple(band["raster:offset"] for band in bands) == image.offsets
        assert {band["nodata"] for band in bands} == {image.nodata}
        waves = [float(image.tags(k, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) for k in image.indexes]
    assert [band["eo:center_wavelength"] for band in bands] == waves
    assert [band["eo:common_name"] for band in bands] == list(BANDS)
    assert (view.sun_elevation, view.sun_azimuth, view.off_nadir, view.azimuth) == (50, 150, 3, 100)
    assert item.common_metadata.platform == "landsat-8" and item.common_metadata.gsd == 10
    assert item.datetime.isoformat() == "2022-06-07T10:00:00+00:00"
    assert set(item.properties["processing:software"]) == {"harmonize_tf"}


def test_an_item_lists_the_files_with_their_sizes_and_checksums(made):
    product, item = made
    assert {name: asset.roles[-1] for name, asset in item.assets.items()} == {
        "data": "reflectance",
        "quality": "quality-mask",
        "thumbnail": "thumbnail",
    }
    assert_checksums(product.item)
    assert FileExtension.ext(item.assets["data"]).size == product.path.stat().st_size
    bits = item.assets["quality"].extra_fields["bands"][0]["classification:bitfields"]
    assert [(bit["name"], bit["offset"]) for bit in bits] == [("data", 0), ("consistent", 1), ("clear", 2)]


def test_the_geometry_is_around_all_data_and_little_else(made):
    product, item = made
    with rasterio.open(product.path) as image:
        seen = np.argwhere(image.read(1) != 0)
        x, y = image.transform @ (seen[:, 1] + 0.5, seen[:, 0] + 0.5)
        degrees = rasterio.warp.transform(image.crs, "EPSG:4326", x, y)
    outline = shapely.geometry.shape(item.geometry)
    assert shapely.contains_xy(shapely.buffer(outline, 1e-6), *degrees).all()
    hull = shapely.MultiPoint(np.transpose(degrees)).convex_hull
    assert outline.area < 1.05 * hull.area and item.bbox == list(outline.bounds)
    assert outline.exterior.is_ccw


@pytest.mark.parametrize("crs, left", [("EPSG:32601", 120_000), ("EPSG:32660", 780_000)])
def test_an_outline_across_the_antimeridian_is_in_two_parts_on_either_side(crs, left, tmp_path):
    grid = Grid(crs, left, 1_000_000, (10.0, 10.0), (600, 10_000))
    quality = cog.Pixels(tmp_path / "q.tif", cog.Image(grid, ("quality",), {}, "uint8", None, "NEAREST"))
    quality.write(np.ones((600, 10_000, 1), np.uint8), slice(0, 600), slice(0, 10_000))
    quality.close()
    outline = stac.outline(tmp_path / "q.tif", grid)
    assert outline.geom_type == "MultiPolygon" and len(outline.geoms) == 2
    west, east = sorted(outline.geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == -180 and east.bounds[2] == 180 and west.bounds[2] < -179 and east.bounds[0] > 179
    box = stac.bounding_box(outline)
    assert (box[0], box[2]) == (east.bounds[0], west.bounds[2]) and box[1] < box[3]


def test_a_narrow_strip_in_a_large_product_is_within_its_outline(tmp_path):
    grid = Grid("EPSG:32633", 400_000, 5_000_000, (10.0, 10.0), (6_000, 6_000))
    quality = cog.Pixels(tmp_path / "q.tif", cog.Image(grid, ("quality",), {}, "uint8", None, "NEAREST"))
    quality.write(np.ones((6_000, 6, 1), np.uint8), slice(0, 6_000), slice(5_990, 5_996))
    quality.close()
    outline = stac.outline(tmp_path / "q.tif", grid)
    metres = rasterio.warp.transform("EPSG:4326", grid.crs, *np.transpose(shapely.get_coordinates(outline)))
    found = [bound(axis) for axis in metres for bound in (min, max)]
    np.testing.assert_allclose(found, [459_900, 459_960, 4_940_000, 5_000_000], atol=0.2)


def test_a_sentinel_tile_is_named_by_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(mgrs, "SIDE", 300)  # pixels instead of 10980, for the sake of time
    grid = mgrs.mgrs_tile("33UUS")
    product, item = make(tmp_path, grid=grid)
    assert product.grid == grid and GridExtension.ext(item).code == "MGRS-33UUS"
    assert "grid:code" not in make(tmp_path)[1].properties


def test_the_uncertainty_of_a_band_is_told_from_the_band(tmp_path):
    _, item = make(tmp_path, predictor=Smooth(uncertainty=True))
    bands = item.assets["data"].extra_fields["bands"]
    assert [band["name"] for band in bands[4:]] == [f"{band}_uncertainty" for band in BANDS]
    assert all("eo:common_name" not in band for band in bands[4:])


@pytest.mark.parametrize(
    "name, derived",
    [
        (
            "LC09_L2SP_143054_20230520_20230522_02_T1",
            "landsat-c2l2-sr/items/LC09_L2SP_143054_20230520_20230522_02_T1_SR",
        ),
        ("LC08_L1TP_143054_20230520_20230522_02_T1", "landsat-c2l1/items/LC08_L1TP_143054_20230520_20230522_02_T1"),
        ("LC80200392015216LGN00", None),
    ],
)
def test_a_scene_of_collection_2_is_linked_to_where_usgs_describes_it(name, derived, tmp_path):
    _, item = make(tmp_path, id=name)
    links = [link.href for link in item.get_links("derived_from")]
    assert links == ([f"https://landsatlook.usgs.gov/stac-server/collections/{derived}"] if derived else [])
    assert name in item.properties["processing:lineage"]


def test_a_scene_without_a_time_is_of_some_time_since_landsat_8_was_launched(tmp_path):
    product, item = make(tmp_path, time_ms=0)
    assert item.datetime is None and item.common_metadata.start_datetime.year == 2013
    assert validate_dict(json.loads(product.item.read_text()), extensions=[])
    assert geometry.pair_grid(SimulatedSource(size=3600).scenes()[0].grid) == product.grid
