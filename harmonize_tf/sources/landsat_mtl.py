"""Landsat-8/9 scene folders: the MTL file beside the bands says all that a manifest would.

Level-1 (Collection 2, or from before the collections) becomes top-of-atmosphere reflectance with the sun's elevation;
Level-2 becomes surface reflectance. USGS LSDS-1574 (Level-1) and LSDS-1619 (Level-2) name the files and the keys.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from harmonize_tf import sensors
from harmonize_tf.errors import SceneError

QUALITY = {"QA_PIXEL": "qa_pixel", "QA_RADSAT": "qa_radsat", "BQA": "bqa"}
LEVELS = {"L1": "toa", "L2": "sr"}
Groups = Mapping[str, Mapping[str, Any]]


def find(folder: pathlib.Path) -> list[pathlib.Path]:
    """The MTL files (text or JSON, one for each scene) of a folder."""
    found = sorted(p for p in folder.iterdir() if re.search(r"_MTL\.(txt|json)$", p.name, re.IGNORECASE))
    return list({p.name[:-4].rsplit("_", 1)[0]: p for p in found}.values())


def declare(mtl: pathlib.Path) -> dict[str, Any]:
    """What a manifest would say of the scene of an MTL file (`scene_manifest`); paths relative to its folder.

    Raises:
      SceneError: it is no Landsat-8/9 MTL, of Collection 1, or lacks a value or the band files.
    """
    groups = _groups(mtl)
    processing = str(_value(groups, mtl, "PROCESSING_LEVEL", "DATA_TYPE"))
    if processing[:2] not in LEVELS or int(_value(groups, mtl, "COLLECTION_NUMBER", default=0)) == 1:
        raise SceneError(
            f"{mtl}: expected Level-1 or Level-2 of Collection 2; download it from there. "
            f"Received: level={processing}, collection={_value(groups, mtl, 'COLLECTION_NUMBER', default=None)}"
        )
    spacecraft = str(_value(groups, mtl, "SPACECRAFT_ID"))
    elevation = float(_value(groups, mtl, "SUN_ELEVATION"))
    number = spacecraft[-1:].zfill(2)
    scene = {
        "id": str(_value(groups, mtl, "LANDSAT_PRODUCT_ID", "LANDSAT_SCENE_ID")),
        "sensor": "landsat",
        "level": LEVELS[processing[:2]],
        "product": f"LC{number}_{processing}",
        "spacecraft": spacecraft,
        "time": _time(groups, mtl),
        "sun": {"zenith": 90.0 - elevation, "azimuth": float(_value(groups, mtl, "SUN_AZIMUTH"))},
        "files": _files(groups, mtl, LEVELS[processing[:2]], elevation),
        "quality": [
            {"path": path.name, "kind": kind}
            for suffix, kind in QUALITY.items()
            if (path := _beside(mtl, suffix)) is not None
        ],
    }
    return scene


def _files(groups: Groups, mtl: pathlib.Path, level: str, elevation: float) -> list[dict[str, Any]]:
    """Every band's file with its factors; Level-1's are divided by the sine of the sun's elevation."""
    bands = dict(sensors.OLI) | ({"pan": sensors.OLI_PAN} if level == "toa" else {})
    scaling = next((v for k, v in groups.items() if k in _SCALING[level]), None)
    divisor = math.sin(math.radians(elevation)) if level == "toa" else 1.0
    files = []
    for name, band in bands.items():
        path = _beside(mtl, f"SR_{band.name}" if level == "sr" else band.name)
        if path is None:
            continue
        try:
            scale, offset = (float(scaling[f"REFLECTANCE_{k}_BAND_{band.name[1:]}"]) for k in ("MULT", "ADD"))
        except (KeyError, TypeError) as error:
            raise SceneError(
                f"{mtl}: no reflectance factors for {band.name}; get the MTL file that came with the bands. "
                f"Received: groups={', '.join(groups)}"
            ) from error
        code = {"scale": scale / divisor, "offset": offset / divisor, "nodata": 0}
        files.append({"path": path.name, "bands": [name], **code})
    if not files:
        raise SceneError(
            f"{mtl}: expected band files beside it, such as {_stem(mtl)}_{'SR_' * (level == 'sr')}B2.TIF; "
            f"unpack the whole scene. Received: {len(list(mtl.parent.iterdir()))} files, none of them"
        )
    return files


_SCALING = {
    "toa": ("LEVEL1_RADIOMETRIC_RESCALING", "RADIOMETRIC_RESCALING"),
    "sr": ("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS",),
}


def _groups(mtl: pathlib.Path) -> Groups:
    """The values of each group: a Level-2 MTL repeats Level-1's keys with other values in other groups."""
    try:
        text = mtl.read_text()
        if mtl.suffix.lower() == ".json":
            return next(iter(json.loads(text).values()))
    except (OSError, ValueError, AttributeError, StopIteration) as error:
        raise SceneError(f"{mtl}: cannot be read as an MTL file; fetch it again. Received: {error}") from error
    groups: dict[str, dict[str, str]] = {}
    group = ""
    for key, value in re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE):
        if key == "GROUP":
            group = value
        elif key != "END_GROUP":
            groups.setdefault(group, {})[key] = value.strip('"')
    return groups


def _value(groups: Groups, mtl: pathlib.Path, *keys: str, default: Any = ...) -> Any:
    """The first of `keys` in the first group that has it."""
    for key in keys:
        for group in groups.values():
            if key in group:
                return group[key]
    if default is ...:
        raise SceneError(f"{mtl}: expected {' or '.join(keys)}; fetch the MTL file again. Received: no such key")
    return default


def _time(groups: Groups, mtl: pathlib.Path) -> str:
    """ISO 8601; the MTL's seventh decimal of a second is more than Python reads."""
    time = re.sub(r"(\.\d{6})\d*", r"\1", str(_value(groups, mtl, "SCENE_CENTER_TIME")))
    return f"{_value(groups, mtl, 'DATE_ACQUIRED')}T{time}"


def _stem(mtl: pathlib.Path) -> str:
    return re.sub(r"_MTL\.\w+$", "", mtl.name, flags=re.IGNORECASE)


def _beside(mtl: pathlib.Path, suffix: str) -> pathlib.Path | None:
    """The file of this scene with a suffix, whatever the case of its extension."""
    wanted = f"{_stem(mtl)}_{suffix}.tif".lower()
    return next((p for p in sorted(mtl.parent.iterdir()) if p.name.lower() == wanted), None)
