"""Landsat-8/9 scenes: the MTL file beside the bands says all that a manifest would.

Level-1 (Collection 2, or from before the collections) becomes top-of-atmosphere reflectance with the sun's elevation;
Level-2 becomes surface reflectance. USGS LSDS-1574 (Level-1) and LSDS-1619 (Level-2) name the files and the keys.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from harmonize_tf import sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.sources.folders import Folder

QUALITY = {"QA_PIXEL": "qa_pixel", "QA_RADSAT": "qa_radsat", "BQA": "bqa"}
LEVELS = {"L1": "toa", "L2": "sr"}
# The key that names each file; bands have FILE_NAME_BAND_n. A Level-2 MTL repeats the keys with Level-1's names.
KEYS = {
    "QA_PIXEL": "FILE_NAME_QUALITY_L1_PIXEL",
    "QA_RADSAT": "FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION",
    "BQA": "FILE_NAME_BAND_QUALITY",
}
CONTENTS = ("PRODUCT_CONTENTS", "PRODUCT_METADATA")  # the group of these keys: Collection 2's, and of before
Groups = Mapping[str, Mapping[str, str]]


def is_mtl(name: str) -> bool:
    """Whether a file has the name of an MTL file, text or JSON."""
    return re.search(r"_MTL\.(txt|json)$", name, re.IGNORECASE) is not None


def find(names: Sequence[str]) -> list[str]:
    """The MTL files, one for each scene, among a folder's."""
    return list({_stem(name): name for name in sorted(names) if is_mtl(name)}.values())


def declare(folder: Folder, name: str) -> dict[str, Any]:
    """What a manifest would say of the scene of an MTL file (`scene_manifest`), which is beside its bands.

    Raises:
      SceneError: it is no Landsat-8/9 MTL, of Collection 1, or lacks a value or the band files.
    """
    mtl = f"{folder}/{name}"
    groups = _groups(folder.text(name), mtl)
    processing = _value(groups, mtl, "PROCESSING_LEVEL", "DATA_TYPE")
    if processing[:2] not in LEVELS or _number(groups, mtl, "COLLECTION_NUMBER", "0") == 1:
        raise SceneError(
            f"{mtl}: expected Level-1 or Level-2 of Collection 2; download it from there. "
            f"Received: level={processing}, collection={_value(groups, mtl, 'COLLECTION_NUMBER', default='none')}"
        )
    spacecraft = _value(groups, mtl, "SPACECRAFT_ID")
    elevation = _number(groups, mtl, "SUN_ELEVATION")
    if LEVELS[processing[:2]] == "toa" and elevation <= 0:
        raise SceneError(
            f"{mtl}: there is no reflectance where the sun is not above the horizon; take a scene by day. "
            f"Received: SUN_ELEVATION={elevation:g}"
        )
    number = spacecraft[-1:].zfill(2)
    beside = _Beside(groups, _stem(name), folder.names())
    scene = {
        "id": _value(groups, mtl, "LANDSAT_PRODUCT_ID", "LANDSAT_SCENE_ID"),
        "sensor": "landsat",
        "level": LEVELS[processing[:2]],
        "product": f"LC{number}_{processing}",
        "spacecraft": spacecraft,
        "time": _time(groups, mtl),
        "sun": {"zenith": 90.0 - elevation, "azimuth": _number(groups, mtl, "SUN_AZIMUTH")},
        "files": _files(groups, mtl, LEVELS[processing[:2]], elevation, beside),
        "quality": [
            {"path": path, "kind": kind}
            for suffix, kind in QUALITY.items()
            if (path := beside.find(KEYS[suffix], suffix)) is not None
        ],
    }
    return scene


class _Beside:
    """Finds the scene's files as its MTL names them; or, where it does not or they were renamed, by its own name."""

    def __init__(self, groups: Groups, stem: str, names: Sequence[str] | None) -> None:
        self._named = next((groups[group] for group in CONTENTS if group in groups), {})
        self._stem = stem
        self.there = None if names is None else {name.lower(): name for name in names}

    def find(self, key: str, suffix: str) -> str | None:
        """The file that a key names, or that has a suffix, whatever the case of its letters; None: it is not there."""
        named = self._named.get(key)
        if self.there is None:
            return named
        wanted = (named or "").lower(), f"{self._stem}_{suffix}.tif".lower()
        return next((self.there[name] for name in wanted if name in self.there), None)


def _files(groups: Groups, mtl: str, level: str, elevation: float, beside: _Beside) -> list[dict[str, Any]]:
    """Every band's file with its factors; Level-1's are divided by the sine of the sun's elevation."""
    bands = dict(sensors.OLI) | ({"pan": sensors.OLI_PAN} if level == "toa" else {})
    scaling = next((v for k, v in groups.items() if k in _SCALING[level]), {})
    divisor = math.sin(math.radians(elevation)) if level == "toa" else 1.0
    files = []
    for name, band in bands.items():
        path = beside.find(f"FILE_NAME_BAND_{band.name[1:]}", f"SR_{band.name}" if level == "sr" else band.name)
        if path is None:
            continue
        keys = [f"REFLECTANCE_{k}_BAND_{band.name[1:]}" for k in ("MULT", "ADD")]
        if not set(keys) <= set(scaling):
            raise SceneError(
                f"{mtl}: no reflectance factors for {band.name}; get the MTL file that came with the bands. "
                f"Received: groups={', '.join(groups)}"
            )
        scale, offset = (_number({"": scaling}, mtl, key) for key in keys)
        code = {"scale": scale / divisor, "offset": offset / divisor, "nodata": 0}
        files.append({"path": path, "bands": [name], **code})
    if not files:
        stem = _stem(mtl.rpartition("/")[2])
        there = "an MTL that names no files" if beside.there is None else f"{len(beside.there)} files, none of them"
        raise SceneError(
            f"{mtl}: expected band files beside it, such as {stem}_{'SR_' * (level == 'sr')}B2.TIF; "
            f"unpack the whole scene. Received: {there}"
        )
    return files


_SCALING = {
    "toa": ("LEVEL1_RADIOMETRIC_RESCALING", "RADIOMETRIC_RESCALING"),
    "sr": ("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS",),
}


def _groups(text: str, mtl: str) -> Groups:
    """The values of each group: a Level-2 MTL repeats Level-1's keys with other values in other groups."""
    if mtl.lower().endswith(".json"):
        try:
            whole = next(iter(json.loads(text).values()))
            return {group: {key: str(value) for key, value in values.items()} for group, values in whole.items()}
        except (ValueError, AttributeError, StopIteration) as error:
            raise SceneError(f"{mtl}: cannot be read as an MTL file; fetch it again. Received: {error!r}") from error
    groups: dict[str, dict[str, str]] = {}
    group = ""
    for key, value in re.findall(r"^\s*(\w+)[^\S\n]*=[^\S\n]*(.*?)\s*$", text, re.MULTILINE):
        if key == "GROUP":
            group = value
        elif key != "END_GROUP":
            groups.setdefault(group, {})[key] = value.strip('"')
    return groups


def _value(groups: Groups, mtl: str, *keys: str, default: str | None = None) -> str:
    """The first of `keys` in the first group that has it."""
    for key in keys:
        for group in groups.values():
            if key in group:
                return group[key]
    if default is None:
        raise SceneError(f"{mtl}: expected {' or '.join(keys)}; fetch the MTL file again. Received: no such key")
    return default


def _number(groups: Groups, mtl: str, key: str, default: str | None = None) -> float:
    text = _value(groups, mtl, key, default=default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SceneError(f"{mtl}: expected a number; fetch the MTL file again. Received: {key}={text}")
    return number


def _time(groups: Groups, mtl: str) -> str:
    """ISO 8601; the MTL's seventh decimal of a second is more than Python reads."""
    time = re.sub(r"(\.\d{6})\d*", r"\1", _value(groups, mtl, "SCENE_CENTER_TIME"))
    return f"{_value(groups, mtl, 'DATE_ACQUIRED')}T{time}"


def _stem(name: str) -> str:
    return re.sub(r"_MTL\.\w+$", "", name, flags=re.IGNORECASE)
