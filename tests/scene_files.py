"""Small scenes on disk for tests: rasters, manifests and Landsat folders with an MTL file."""

import json

import numpy as np
import rasterio
from affine import Affine

SHAPE = (90, 80)
FOUR = ["blue", "green", "red", "nir"]


def write_raster(
    path, dn, *, left=300_000.0, top=5_700_000.0, pixel=10.0, crs="EPSG:32633", descriptions=(), **profile
):
    """Writes [band, height, width] or [height, width] digital numbers."""
    dn = np.atleast_3d(dn.T).T if dn.ndim == 2 else dn
    count, height, width = dn.shape
    profile = {"driver": "GTiff", "dtype": dn.dtype, "crs": crs, **profile}
    profile |= {"count": count, "height": height, "width": width}
    with rasterio.open(path, "w", transform=Affine(pixel, 0, left, 0, -pixel, top), **profile) as raster:
        raster.write(dn)
        for index, description in enumerate(descriptions, 1):
            raster.set_band_description(index, description)
    return path


def numbers(bands=4, shape=SHAPE, seed=0, low=500, high=4000, dtype=np.uint16):
    """Random digital numbers without 0 and 65535."""
    return np.random.default_rng(seed).integers(low, high, (bands, *shape)).astype(dtype)


def declare(path="ms.tif", **changes):
    """A Sentinel-2 scene of one file; keys of the file and of the scene may be changed, None removes one."""
    file = {"path": path, "bands": FOUR, "scale": 1e-4, "offset": -0.1}
    scene = {
        "id": "S",
        "sensor": "sentinel",
        "level": "toa",
        "spacecraft": "SENTINEL_2A",
        "time": "2022-06-07T10:30:00Z",
    }
    for key, value in changes.items():
        target = file if key in ("bands", "scale", "offset", "nodata", "crs") else scene
        target[key] = value
        if value is None and key != "nodata":
            del target[key]
    return {"files": [file]} | scene


def write_manifest(folder, *scenes, **more):
    path = folder / "scenes.json"
    path.write_text(json.dumps({"version": 1, "scenes": scenes, **more}))
    return path


L1_MTL = """GROUP = LANDSAT_METADATA_FILE
  GROUP = PRODUCT_CONTENTS
    LANDSAT_PRODUCT_ID = "{id}"
    PROCESSING_LEVEL = "L1TP"
    COLLECTION_NUMBER = {collection}
{names}
  END_GROUP = PRODUCT_CONTENTS
  GROUP = IMAGE_ATTRIBUTES
    SPACECRAFT_ID = "LANDSAT_8"
    DATE_ACQUIRED = 2023-07-23
    SCENE_CENTER_TIME = "14:12:31.2799050Z"
    SUN_AZIMUTH = 49.5
    SUN_ELEVATION = 30.0
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
{factors}
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
END
"""
L2_GROUPS = {
    "PRODUCT_CONTENTS": {"PROCESSING_LEVEL": "L2SP", "COLLECTION_NUMBER": "02"},
    "IMAGE_ATTRIBUTES": {
        "SPACECRAFT_ID": "LANDSAT_9",
        "DATE_ACQUIRED": "2023-07-23",
        "SCENE_CENTER_TIME": "14:12:31.2799050Z",
        "SUN_AZIMUTH": "49.5",
        "SUN_ELEVATION": "30.0",
    },
    "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {},
    "LEVEL1_PROCESSING_RECORD": {},
    "LEVEL1_RADIOMETRIC_RESCALING": {},
}


def landsat_folder(folder, level="L1TP", collection="02"):
    """A Landsat folder: six bands, with L1TP the panchromatic one too, and QA_PIXEL; returns its id.

    Other files that the MTL names are not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"LC08_{level}_010010_20230723_20230730_02_T1"
    prefix = "SR_B" if level == "L2SP" else "B"
    names = {f"FILE_NAME_BAND_{band}": f"{name}_{prefix}{band}.TIF" for band in range(1, 9 - (level == "L2SP"))}
    names["FILE_NAME_QUALITY_L1_PIXEL"] = f"{name}_QA_PIXEL.TIF"
    for band in range(2, 8):
        dn = numbers(1, seed=band, low=8000, high=14_000)
        write_raster(folder / f"{name}_{prefix}{band}.TIF", dn, left=300_015.0, top=5_700_015.0, pixel=30.0)
    qa = np.full((1, *SHAPE), 21824, np.uint16)
    qa[0, 10:20, 30:40] = 22280
    write_raster(folder / f"{name}_QA_PIXEL.TIF", qa, left=300_015.0, top=5_700_015.0, pixel=30.0)
    if level == "L1TP":
        shape = (2 * SHAPE[0] + 1, 2 * SHAPE[1] + 1)
        dn = numbers(1, shape, seed=8, low=8000, high=14_000)
        write_raster(folder / f"{name}_B8.TIF", dn, left=300_007.5, top=5_700_022.5, pixel=15.0)
        keys = {"MULT": "2.0000E-05", "ADD": "-0.100000"}
        factors = "\n".join(f"    REFLECTANCE_{k}_BAND_{b} = {v}" for k, v in keys.items() for b in range(1, 10))
        texts = {"names": "\n".join(f'    {key} = "{value}"' for key, value in names.items()), "factors": factors}
        (folder / f"{name}_MTL.txt").write_text(L1_MTL.format(id=name, collection=collection, **texts))
    else:
        groups = json.loads(json.dumps(L2_GROUPS))
        groups["PRODUCT_CONTENTS"] |= {"LANDSAT_PRODUCT_ID": name} | names
        # Level-1's keys come first and have other values: they must not be taken.
        groups["LEVEL1_PROCESSING_RECORD"] = {key: "LC08_L1TP_B.TIF" for key in names}
        for group, (scale, offset) in {
            "LEVEL1_RADIOMETRIC_RESCALING": ("2.0000E-05", "-0.1"),
            "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": ("2.75e-05", "-0.2"),
        }.items():
            for band in range(1, 8):
                groups[group] |= {f"REFLECTANCE_MULT_BAND_{band}": scale, f"REFLECTANCE_ADD_BAND_{band}": offset}
        (folder / f"{name}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": dict(reversed(groups.items()))}))
    return name
