import concurrent.futures
import pickle

import numpy as np
import pytest
import real_scenes
from scene_files import FOUR, SHAPE, declare, numbers, write_manifest, write_raster
from scipy import ndimage

from harmonize_tf import geometry
from harmonize_tf.errors import SceneError
from harmonize_tf.sources import read_onto
from harmonize_tf.sources.geotiff import GeoTiffSource


def open_one(folder, dn=None, **changes):
    write = {k: changes.pop(k) for k in ("descriptions", "dtype", "tiled", "nodata_tag") if k in changes}
    if "nodata_tag" in write:
        write["nodata"] = write.pop("nodata_tag")
    write_raster(folder / "ms.tif", numbers() if dn is None else dn, **write)
    source = GeoTiffSource(write_manifest(folder, declare(**changes)))
    return source, source.scenes()[0]


def test_what_is_declared_is_what_is_read(tmp_path):
    dn = numbers()
    source, scene = open_one(tmp_path, dn, sun={"zenith": 30, "azimuth": 150}, processing_baseline="05.09")
    assert scene.bands == tuple(FOUR)
    assert (scene.time_ms, scene.sun, scene.processing_baseline) == (1_654_597_800_000, (30.0, 150.0), "05.09")
    raster = source.read(scene, ["nir", "blue"], scene.grid.window(10, 20, 30, 40))
    expected = dn[[3, 0], 10:40, 20:60].transpose(1, 2, 0) * 1e-4 - 0.1
    np.testing.assert_allclose(raster.values, expected, atol=1e-6)
    assert raster.valid.all()
    assert raster.clear.all()


def test_windows_reach_over_the_edges_and_beyond(tmp_path):
    source, scene = open_one(tmp_path)
    raster = source.read(scene, FOUR, scene.grid.window(-7, 70, 20, 30))
    assert raster.valid.sum() == 13 * 10
    assert raster.valid[7:, :10].all()
    whole = source.read(scene, FOUR, scene.grid)
    np.testing.assert_array_equal(raster.values[7:, :10], whole.values[:13, 70:])
    outside = source.read(scene, FOUR, scene.grid.window(500, 500, 5, 5))
    assert not outside.valid.any()
    assert (outside.values == 0).all()


def test_bands_of_several_files_and_grids_come_in_the_order_asked_for(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers())
    write_raster(tmp_path / "swir.tif", numbers(2, (45, 40), seed=1), pixel=20.0)
    scene = declare()
    scene["files"].append(
        {"path": "swir.tif", "bands": ["swir2", "swir1"], "scale": [1e-4, 2e-4], "offset": [0.0, 0.1]}
    )
    source = GeoTiffSource(write_manifest(tmp_path, scene))
    scene = source.scenes()[0]
    assert scene.bands == (*FOUR, "swir1", "swir2")
    raster = source.read(scene, ["swir1", "swir2"], scene.grids["swir1"])
    dn = numbers(2, (45, 40), seed=1)
    np.testing.assert_allclose(raster.values[..., 0], dn[1] * 2e-4 + 0.1, atol=1e-6)
    np.testing.assert_allclose(raster.values[..., 1], dn[0] * 1e-4, atol=1e-6)
    mixed = read_onto(source, scene, ["swir1", "red"], scene.grid.window(20, 20, 30, 30))
    assert mixed.valid.all()


def test_missing_values_are_those_declared_else_the_files_else_zero(tmp_path):
    dn = numbers(low=1000)
    dn[1, 5, 6], dn[2, 7, 8], dn[0, 9, 9] = 0, 777, 888
    for changes, missing in (
        ({}, [(5, 6)]),
        ({"nodata": 777}, [(7, 8)]),
        ({"nodata": None}, []),
        ({"nodata_tag": 888}, [(9, 9)]),
        ({"nodata": [888, 0, 777, 0]}, [(5, 6), (7, 8), (9, 9)]),
    ):
        source, scene = open_one(tmp_path, dn, **changes)
        raster = source.read(scene, FOUR, scene.grid)
        assert sorted(map(tuple, np.argwhere(~raster.valid).tolist())) == missing
        assert (raster.values[~raster.valid] == 0).all()


def test_nan_is_missing_and_reads_stay_finite(tmp_path):
    reflectance = numbers().astype(np.float32) * 1e-4
    reflectance[0, 3, 3] = np.nan
    source, scene = open_one(tmp_path, reflectance, scale=1.0, offset=0.0)
    raster = source.read(scene, FOUR, scene.grid)
    assert np.isfinite(raster.values).all()
    np.testing.assert_array_equal(np.argwhere(~raster.valid), [[3, 3]])


def test_saturation_is_missing_in_sentinel_and_a_bright_unclear_value_in_landsat(tmp_path):
    dn = numbers()
    dn[1, 4, 4] = 65535
    source, scene = open_one(tmp_path, dn)
    raster = source.read(scene, FOUR, scene.grid)
    assert not raster.valid[4, 4]
    source, scene = open_one(tmp_path, dn, sensor="landsat", spacecraft="LANDSAT_8", scale=2e-5, offset=-0.1)
    raster = source.read(scene, FOUR, scene.grid)
    assert raster.valid.all()
    assert not raster.clear[4, 4]
    assert raster.clear.sum() == raster.clear.size - 1
    assert raster.values[4, 4, 1] == pytest.approx(1.2107)


def test_quality_bands_on_coarser_grids_reach_every_pixel_that_they_touch(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers())
    scl = np.full((1, 45, 40), 4, np.uint8)
    scl[0, 10, 12] = 9
    write_raster(tmp_path / "scl.tif", scl, pixel=20.0)
    source = GeoTiffSource(write_manifest(tmp_path, declare(quality=[{"path": "scl.tif", "kind": "scl"}])))
    scene = source.scenes()[0]
    for window in (scene.grid, scene.grid.window(19, 21, 31, 8)):
        raster = source.read(scene, ["red"], window)
        row, column = window.offset_in(scene.grid)
        expected = np.ones(SHAPE, bool)
        expected[20:22, 24:26] = False
        np.testing.assert_array_equal(
            raster.clear, expected[row : row + window.shape[0], column : column + window.shape[1]]
        )
        assert raster.valid.all()


def test_a_quality_band_that_does_not_nest_marks_both_pixels_that_it_cuts(tmp_path):
    # The panchromatic band's pixels, at 7.5 mod 15 m, are cut by the cells of the 30 m quality band.
    write_raster(tmp_path / "ms.tif", numbers(1, (60, 60)), left=300_015.0, top=5_700_015.0, pixel=30.0)
    write_raster(tmp_path / "pan.tif", numbers(1, (121, 121)), left=300_007.5, top=5_700_022.5, pixel=15.0)
    qa = np.full((1, 60, 60), 21824, np.uint16)
    qa[0, 20, 30] = 22280
    write_raster(tmp_path / "qa.tif", qa, left=300_015.0, top=5_700_015.0, pixel=30.0)
    scene = declare(bands=["red"], sensor="landsat", spacecraft="LANDSAT_8")
    scene["files"].append({"path": "pan.tif", "bands": ["pan"], "scale": 1e-4})
    scene["quality"] = [{"path": "qa.tif", "kind": "qa_pixel"}]
    source = GeoTiffSource(write_manifest(tmp_path, scene))
    scene = source.scenes()[0]
    pan = source.read(scene, ["pan"], scene.grids["pan"])
    expected = np.ones((121, 121), bool)
    expected[40:43, 60:63] = False  # 30 m are two whole pixels and a half on each side
    expected[0], expected[-1], expected[:, 0], expected[:, -1] = False, False, False, False  # quality not known there
    np.testing.assert_array_equal(pan.clear, expected)
    assert pan.valid.all()


def test_reads_from_threads_and_pickled_copies_agree(tmp_path):
    source, scene = open_one(tmp_path, tiled=True)
    windows = [scene.grid.window(r, c, 16, 16) for r in range(0, 64, 8) for c in range(0, 64, 8)]
    expected = [source.read(scene, FOUR, window).values for window in windows]
    copy = pickle.loads(pickle.dumps(source))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for values, raster in zip(expected, pool.map(lambda w: copy.read(scene, FOUR, w), windows), strict=True):
            np.testing.assert_array_equal(values, raster.values)


def test_pairs_are_the_declared_ones_then_scenes_alone(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers())
    landsat = {"sensor": "landsat", "spacecraft": "LANDSAT_8"}
    scenes = [declare(id="L1", **landsat), declare(id="S1"), declare(id="S2"), declare(id="L2", **landsat)]
    manifest = write_manifest(tmp_path, *scenes, pairs=[["L2", "S1"]])
    pairs = [tuple(s and s.id for s in pair) for pair in GeoTiffSource(manifest).pairs()]
    assert pairs == [("L2", "S1"), ("L1", None), (None, "S2")]
    manifest = write_manifest(tmp_path, *scenes)
    pairs = [tuple(s and s.id for s in pair) for pair in GeoTiffSource(manifest).pairs()]
    assert pairs == [("L1", "S1"), ("L2", "S1"), (None, "S2")]


def test_folders_of_scenes_are_read_together(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "ms.tif", numbers())
        write_manifest(tmp_path / name, declare(id=name)).rename(tmp_path / name / "manifest.json")
    assert [scene.id for scene in GeoTiffSource(tmp_path).scenes()] == ["a", "b"]
    with pytest.raises(SceneError, match="unique.*id=a"):
        GeoTiffSource(tmp_path, tmp_path / "a")


# What bad input gets: (changes to the file on disk, changes to the declaration, what the message must say).
EIGHT_BIT = numbers(low=1, high=255, dtype=np.uint8)
BAD = {
    "missing scale": ({}, {"scale": None}, 'ms.tif has no "scale"; give the factor'),
    "scale zero": ({}, {"scale": 0}, "scale is a number other than 0. Received: scale=0"),
    "scale of text": ({}, {"scale": "1e-4"}, "scale is a number.*'1e-4'"),
    "too few names": ({}, {"bands": FOUR[:3]}, "3 names for 4 bands"),
    "unknown name": ({}, {"bands": ["blue", "green", "red", "infrared"]}, r"\['infrared'\]"),
    "name twice": ({}, {"bands": ["blue", "green", "red", "red"]}, "band red is declared twice"),
    "order": ({"descriptions": ["B4", "B3", "B2", "B8"]}, {}, r"band 1 of the file says it is B4 \(red\).*\"blue\""),
    "order by names": ({"descriptions": ["red", "green", "blue", "nir"]}, {}, "says it is red"),
    "red edge as nir": ({"descriptions": ["B02", "B03", "B04", "B05"]}, {}, r"B05 \(another band\)"),
    "8 bit": ({"dn": EIGHT_BIT}, {}, "8-bit.*uncalibrated.*dtype=uint8, level=toa"),
    "8 bit in 16": ({"dn": EIGHT_BIT.astype(np.uint16)}, {"scale": 1.0, "offset": 0.0}, "median reflectance.*scale=1"),
    "digital numbers as reflectance": ({}, {"scale": 1, "offset": 0}, "median reflectance of blue"),
    "sensor": ({}, {"sensor": "modis"}, "sensor is one of landsat, sentinel. Received: sensor='modis'"),
    "level": ({}, {"level": "l1c"}, "level is one of toa, sr, uncalibrated. Received: level='l1c'"),
    "spacecraft": ({}, {"spacecraft": "LANDSAT_8"}, "SENTINEL_2A.*Received: spacecraft='LANDSAT_8'"),
    "time": ({}, {"time": "yesterday"}, "2023-07-23T14:12:31Z. Received: time='yesterday'"),
    "angles": ({}, {"sun": {"elevation": 40}}, "zenith and azimuth"),
    "unknown key": ({}, {"offest": 1}, "Received: offest"),
    "quality kind": ({}, {"quality": [{"path": "ms.tif", "kind": "fmask"}]}, "kind='fmask'"),
    "quality type": ({}, {"quality": [{"path": "ms.tif", "kind": "cloud_score"}]}, "floating-point.*dtype=uint16"),
    "files no list": ({}, {"files": {"path": "ms.tif"}}, "files: expected a list of objects"),
    "quality band": ({}, {"quality": [{"path": "ms.tif", "kind": "scl", "band": 9}]}, "bands 1 to 4. Received: band=9"),
    "no such file": ({}, {"quality": [{"path": "gone.tif", "kind": "scl"}]}, "gone.tif.*there is no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_that_names_value_rule_and_remedy(case, tmp_path):
    on_disk, declared, message = BAD[case]
    with pytest.raises(SceneError, match=message) as error:
        open_one(tmp_path, **on_disk, **declared)
    assert "\n" not in str(error.value)
    assert "Received: " in str(error.value)


def test_display_values_are_allowed_when_they_are_declared_as_such(tmp_path):
    source, scene = open_one(tmp_path, EIGHT_BIT, level="uncalibrated", scale=1 / 255, offset=0.0)
    raster = source.read(scene, FOUR, scene.grid)
    assert scene.level == "uncalibrated"
    np.testing.assert_allclose(raster.values, EIGHT_BIT.transpose(1, 2, 0) / 255, atol=1e-6)


def test_a_truncated_geotiff_is_named(tmp_path):
    path = write_raster(tmp_path / "ms.tif", numbers(shape=(400, 300)))
    content = path.read_bytes()
    manifest = write_manifest(tmp_path, declare())
    GeoTiffSource(manifest)
    for share in (0.05, 0.5, 0.95):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(SceneError, match="ms.tif.*fetch it again") as error:
            GeoTiffSource(manifest)
        assert "\n" not in str(error.value)


def test_damage_that_the_samples_missed_is_named_when_it_is_read(tmp_path):
    path = write_raster(tmp_path / "ms.tif", numbers(shape=(400, 300)), compress="deflate", blockysize=1)
    source = GeoTiffSource(write_manifest(tmp_path, declare()))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 - 2000 : len(content) // 2 + 2000] = bytes(4000)
    path.write_bytes(content)
    scene = source.scenes()[0]
    with pytest.raises(SceneError, match="ms.tif: the file is truncated or damaged"):
        source.read(scene, FOUR, scene.grid)


def pair_of(folder, second, **landsat):
    write_raster(folder / "ms.tif", numbers())
    write_raster(folder / "landsat.tif", numbers(), **second)
    scene = declare("landsat.tif", id="L", sensor="landsat", spacecraft="LANDSAT_8", **landsat)
    return write_manifest(folder, scene, declare(), pairs=[["L", "S"]])


@pytest.mark.parametrize(
    ("second", "landsat", "message"),
    [
        ({"left": 400_000.0}, {}, "no common ground.*400000"),
        ({"crs": "EPSG:32634"}, {}, "no common ground.*EPSG:32634"),
        ({}, {"level": "sr"}, "one level.*sr, toa"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(second, landsat, message, tmp_path):
    with pytest.raises(SceneError, match=message):
        GeoTiffSource(pair_of(tmp_path, second, **landsat))


def test_a_pair_across_the_hemispheres_of_one_zone_is_no_mismatch(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers(), crs="EPSG:32733", top=9_000_000.0)
    write_raster(tmp_path / "landsat.tif", numbers(), crs="EPSG:32633", top=-1_000_000.0)
    scene = declare("landsat.tif", id="L", sensor="landsat", spacecraft="LANDSAT_8")
    source = GeoTiffSource(write_manifest(tmp_path, scene, declare(), pairs=[["L", "S"]]))
    assert [[s.id for s in pair] for pair in source.pairs()] == [["L", "S"]]


def test_files_of_one_scene_must_share_their_crs(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers())
    write_raster(tmp_path / "scl.tif", np.full((1, 45, 40), 4, np.uint8), pixel=20.0, crs="EPSG:32634")
    manifest = write_manifest(tmp_path, declare(quality=[{"path": "scl.tif", "kind": "scl"}]))
    with pytest.raises(SceneError, match="one CRS.*EPSG:32633.*EPSG:32634"):
        GeoTiffSource(manifest)


def test_a_crs_is_assigned_only_where_there_is_none(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers(), crs=None)
    with pytest.raises(SceneError, match="ms.tif.*no coordinate reference system"):
        GeoTiffSource(write_manifest(tmp_path, declare()))
    source = GeoTiffSource(write_manifest(tmp_path, declare(crs="EPSG:32733")))
    assert source.scenes()[0].grid.crs == "EPSG:32733"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "version"),
        ('{"version": 2, "scenes": [1]}', "'version': 2"),
        (None, "nothing at this path"),
    ],
)
def test_manifests_that_are_none_are_refused(text, message, tmp_path):
    path = tmp_path / "scenes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SceneError, match=message):
        GeoTiffSource(path)


def test_pairs_of_unknown_scenes_and_empty_folders_are_refused(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers())
    with pytest.raises(SceneError, match="Landsat scene's id.*'gone'"):
        GeoTiffSource(write_manifest(tmp_path, declare(), pairs=[["gone", "S"]]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match="manifest.json.*an empty folder"):
        GeoTiffSource(tmp_path / "empty")


def test_every_real_scene_reads_with_plausible_reflectance(real_data, tmp_path):
    for name in real_scenes.scenes(real_data):
        source = GeoTiffSource(real_scenes.manifest(real_data, tmp_path, name))
        scene = source.scenes()[0]
        window = scene.grids["red"].window(20, 20, 100, 100)
        raster = source.read(scene, [b for b in ("blue", "red") if b in scene.bands], window)
        assert raster.valid.mean() > 0.99, name
        assert 0.005 < np.median(raster.values) < 0.5, name


@pytest.mark.parametrize(("name", "east"), [("l8s2ps", 10.0), ("oli2msi", 0.5)])
def test_the_sensors_shift_in_the_real_pairs_is_estimated(name, east, real_data, tmp_path):
    source = GeoTiffSource(real_scenes.manifest(real_data, tmp_path, f"{name}_landsat", f"{name}_sentinel"))
    landsat, sentinel = source.pairs()[0]
    grid = geometry.pair_grid(sentinel.grid)
    grid = grid.window(30, 30, grid.shape[0] // 3 * 3 - 60, grid.shape[1] // 3 * 3 - 60)
    coarse = read_onto(source, landsat, ["red"], grid.at(30))
    upsampled, valid = geometry.warp(coarse.values, coarse.valid, grid.at(30), grid)
    fine = read_onto(source, sentinel, ["red"], grid)
    blurred = ndimage.gaussian_filter(fine.values[..., 0], 1.3)
    shift = geometry.estimate_shift(upsampled[..., 0], blurred, valid & fine.valid)
    # Sentinel-2 against Landsat: the L8S2PS pair is off by a 10 m pixel in x, as its meta.json says; OLI2MSI is not.
    assert 10 * shift.dx == pytest.approx(east, abs=1.5)
    assert shift.correlation > 0.85
