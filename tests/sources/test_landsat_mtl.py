import json
import shutil

import numpy as np
import pytest
import rasterio
from scene_files import landsat_folder

from harmonize_tf import sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.sources import landsat_mtl
from harmonize_tf.sources.geotiff import GeoTiffSource


def edit(folder, old, new):
    mtl = next(folder.glob("*_MTL.*"))
    assert old in mtl.read_text()
    mtl.write_text(mtl.read_text().replace(old, new))


def raw(path):
    with rasterio.open(path) as raster:
        return raster.read(1).astype(np.float64)


def test_level_1_becomes_top_of_atmosphere_reflectance_with_the_suns_elevation(tmp_path):
    name = landsat_folder(tmp_path)
    source = GeoTiffSource(tmp_path)
    scene = source.scenes()[0]
    assert (scene.id, scene.level, scene.product, scene.spacecraft) == (name, "toa", "LC08_L1TP", "LANDSAT_8")
    assert scene.sun == (60.0, 49.5)
    assert scene.time_ms == 1_690_121_551_280
    assert scene.bands == sensors.BANDS
    for band, suffix in (("red", "B4"), ("pan", "B8")):
        raster = source.read(scene, [band], scene.grids[band])
        dn = raw(tmp_path / f"{name}_{suffix}.TIF")
        np.testing.assert_allclose(raster.values[..., 0], (dn * 2e-5 - 0.1) / 0.5, atol=1e-6)  # sin 30 degrees
    assert scene.grids["pan"].left == scene.grids["red"].left - 7.5
    clear = source.read(scene, ["red"], scene.grid).clear
    assert not clear[10:20, 30:40].any()
    assert clear.sum() == clear.size - 100


def test_level_2_takes_its_own_factors_though_level_1s_are_repeated_in_its_json(tmp_path):
    name = landsat_folder(tmp_path, "L2SP")
    source = GeoTiffSource(tmp_path)
    scene = source.scenes()[0]
    assert (scene.level, scene.product, scene.spacecraft) == ("sr", "LC09_L2SP", "LANDSAT_9")
    assert "pan" not in scene.grids
    dn = raw(tmp_path / f"{name}_SR_B5.TIF")
    values = source.read(scene, ["nir"], scene.grid).values[..., 0]
    np.testing.assert_allclose(values, dn * 2.75e-5 - 0.2, atol=1e-6)


def test_a_folder_may_hold_level_1_and_level_2_and_both_forms_of_an_mtl_file(tmp_path):
    landsat_folder(tmp_path)
    landsat_folder(tmp_path, "L2SP")
    assert sorted(scene.level for scene in GeoTiffSource(tmp_path).scenes()) == ["sr", "toa"]
    text = next(tmp_path.glob("*_MTL.txt"))
    groups = landsat_mtl._groups(text.read_text(), text.name)
    text.with_suffix(".json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    assert sorted(scene.level for scene in GeoTiffSource(tmp_path).scenes()) == ["sr", "toa"]
    text.unlink()
    assert sorted(scene.level for scene in GeoTiffSource(tmp_path).scenes()) == ["sr", "toa"]


def test_files_have_the_names_that_their_mtl_gives_them(tmp_path):
    name = landsat_folder(tmp_path)
    red = raw(tmp_path / f"{name}_B4.TIF")
    (tmp_path / f"{name}_B4.TIF").rename(tmp_path / "RED.tif")
    edit(tmp_path, f'"{name}_B4.TIF"', '"red.TIF"')
    source = GeoTiffSource(tmp_path)
    scene = source.scenes()[0]
    values = source.read(scene, ["red"], scene.grid).values[..., 0]
    np.testing.assert_allclose(values, (red * 2e-5 - 0.1) / 0.5, atol=1e-6)


def test_where_the_mtl_names_no_files_or_they_were_renamed_they_have_its_own_name(tmp_path):
    name = landsat_folder(tmp_path / "renamed")
    for path in (tmp_path / "renamed").iterdir():
        path.rename(path.with_name(path.name.replace(name, "lake").lower()))
    landsat_folder(tmp_path / "old")
    edit(tmp_path / "old", "FILE_NAME", "NAME")
    for folder in ("renamed", "old"):
        scene = GeoTiffSource(tmp_path / folder).scenes()[0]
        assert (scene.id, set(scene.grids)) == (name, {*sensors.BANDS, "pan"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("COLLECTION_NUMBER = 02", "COLLECTION_NUMBER = 01", "Collection 2.*collection=01"),
        ('"L1TP"', '"RAW"', "Level-1 or Level-2.*level=RAW"),
        ("SUN_ELEVATION", "SUN", "expected SUN_ELEVATION"),
        ('"LANDSAT_8"', '"LANDSAT_7"', "LANDSAT_8, LANDSAT_9. Received: spacecraft='LANDSAT_7'"),
        ("REFLECTANCE_MULT", "RADIANCE_MULT", "no reflectance factors for B2"),
        ("COLLECTION_NUMBER = 02", "COLLECTION_NUMBER = ", "expected a number.*COLLECTION_NUMBER=$"),
        ("SUN_ELEVATION = 30.0", "SUN_ELEVATION = -", "expected a number.*SUN_ELEVATION=-$"),
        ("SUN_ELEVATION = 30.0", "SUN_ELEVATION = 0", "take a scene by day.*SUN_ELEVATION=0$"),
        ("SUN_AZIMUTH = ", "SUN_AZIMUTH = 1.2.", "expected a number.*SUN_AZIMUTH=1.2."),
        ("_MULT_BAND_2 = ", "_MULT_BAND_2 = E", "expected a number.*REFLECTANCE_MULT_BAND_2=E"),
    ],
)
def test_mtl_files_that_cannot_be_used_are_refused(old, new, message, tmp_path):
    landsat_folder(tmp_path)
    edit(tmp_path, old, new)
    with pytest.raises(SceneError, match=message) as error:
        GeoTiffSource(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": {"b": 1}}', "{}", "[]", "1", "{"])
def test_json_that_is_no_mtl_file_is_refused(text, tmp_path):
    (tmp_path / "X_MTL.json").write_text(text)
    with pytest.raises(SceneError, match="X_MTL.json: cannot be read as an MTL file; fetch it again") as error:
        GeoTiffSource(tmp_path)
    assert "\n" not in str(error.value)


def test_an_mtl_file_without_its_bands_is_refused(tmp_path):
    landsat_folder(tmp_path / "whole")
    (tmp_path / "alone").mkdir()
    shutil.copy(next((tmp_path / "whole").glob("*_MTL.txt")), tmp_path / "alone")
    with pytest.raises(SceneError, match="expected band files beside it, such as LC08_L1TP_.*_B2.TIF"):
        GeoTiffSource(tmp_path / "alone")


def test_a_scene_folder_with_some_bands_only_has_those(tmp_path):
    name = landsat_folder(tmp_path)
    for band in (6, 7, 8):
        (tmp_path / f"{name}_B{band}.TIF").unlink()
    scene = GeoTiffSource(tmp_path).scenes()[0]
    assert scene.bands == sensors.BANDS[:4]
    assert "pan" not in scene.grids


def test_the_real_alabama_folder_reads_as_its_restacked_copy_does(real_data, tmp_path):
    """USGS's own pre-collection MTL beside single-band files, made from the stacks."""
    import real_scenes

    stack = real_data / "scenes" / "landsat8" / "alabama_020039_20150804"
    name = "LC80200392015216LGN00"
    shutil.copy(stack / "MTL.txt", tmp_path / f"{name}_MTL.txt")
    files = {"B2": ("ms_30m", 2), "B4": ("ms_30m", 4), "B8": ("pan_15m", 1), "BQA": ("bqa_30m", 1)}
    for band, (file, index) in files.items():
        with rasterio.open(stack / f"{file}.tif") as raster:
            profile = raster.profile | {"count": 1}
            with rasterio.open(tmp_path / f"{name}_{band}.tif", "w", **profile) as out:
                out.write(raster.read(index), 1)
    folder, declared = GeoTiffSource(tmp_path), tmp_path / "stack"
    declared.mkdir()
    stacked = GeoTiffSource(real_scenes.manifest(real_data, declared, "alabama"))
    for bands in (["blue", "red"], ["pan"]):
        rasters = [s.read(s.scenes()[0], bands, s.scenes()[0].grids[bands[0]]) for s in (folder, stacked)]
        np.testing.assert_allclose(rasters[0].values, rasters[1].values, atol=1e-6)
        np.testing.assert_array_equal(rasters[0].clear, rasters[1].clear)
    assert rasters[0].clear.mean() == pytest.approx(0.63, abs=0.02)  # half broken cloud
