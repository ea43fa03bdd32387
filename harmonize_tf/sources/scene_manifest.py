"""The manifest of local scenes: which files hold which bands, and what their numbers mean.

A JSON object, paths relative to the manifest, or URLs (https://, gs://):

    {"version": 1,
     "scenes": [
       {"id": "S2A_MSIL1C_20170216_T33UUU", "sensor": "sentinel", "level": "toa", "spacecraft": "SENTINEL_2A",
        "product": "S2MSI1C", "time": "2017-02-16T10:21:01Z", "sun": {"zenith": 65.1, "azimuth": 164.0},
        "view": {"zenith": 3.1, "azimuth": 101.0}, "processing_baseline": "02.04",
        "files": [{"path": "ms_10m.tif", "bands": ["blue", "green", "red", "nir"], "scale": 1e-4, "offset": 0.0,
                   "nodata": 0, "crs": "EPSG:32633"}],
        "quality": [{"path": "scl.tif", "band": 1, "kind": "scl"}]}],
     "pairs": [["landsat id", "sentinel id"]]}

`bands` names every band of the raster in its order, null for one that is not used; "pan" is Landsat's panchromatic
band. `reflectance = DN * scale + offset`; `scale`, `offset` and `nodata` are numbers, or lists with one for each band.
`scale` must be given; `offset` is 0 where it is not. `nodata` defaults to the file's own, then to 0 for 16-bit
integers and to none for others (NaN is no data always); null means none. `crs` is only for files without one. `kind`
is one of `harmonize_tf.quality.CLEAR`. `time`, `sun`, `view`, `product` and `processing_baseline` may be left out. A
Sentinel-2 file of B8A makes "nir" the narrow band. Level "uncalibrated" is for display values that are no reflectance,
8-bit files above all. Without `pairs`, scenes are paired by time and overlap.
"""

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio

from harmonize_tf import sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.quality import CLEAR
from harmonize_tf.sensors import Encoding
from harmonize_tf.sources import Scene
from harmonize_tf.sources.folders import Folder
from harmonize_tf.sources.rasters import base_name, open_raster

VERSION = 1
SCENE_KEYS = {"id", "sensor", "level", "files", "spacecraft", "product", "time", "sun", "view", "processing_baseline"}
FILE_KEYS = {"path", "bands", "scale", "offset", "nodata", "crs"}
BAND_NAMES = (*sensors.BANDS, "pan")
# What the sensors call their bands, for recognising them in a file's band descriptions.
SENSOR_NAMES: Mapping[str, Mapping[str, str]] = {
    "landsat": {band.name: name for name, band in sensors.OLI.items()} | {sensors.OLI_PAN.name: "pan"},
    "sentinel": {band.name: name for name, band in sensors.MSI.items()} | {sensors.MSI_NARROW_NIR.name: "nir"},
}


@dataclasses.dataclass(frozen=True)
class BandFile:
    """Where one band is: a file, the band's number in it (from 1), its code and its grid."""

    path: str
    index: int
    encoding: Encoding
    grid: Grid


@dataclasses.dataclass(frozen=True)
class QualityFile:
    """A quality band: a file, the band's number in it, one of `quality.CLEAR`, and its grid."""

    path: str
    index: int
    kind: str
    grid: Grid


@dataclasses.dataclass(frozen=True)
class SceneFiles:
    """A scene and the files that hold it."""

    scene: Scene
    bands: Mapping[str, BandFile]
    quality: tuple[QualityFile, ...]


def load(folder: Folder, name: str) -> tuple[list[dict[str, Any]], list[list[str]] | None]:
    """Reads a manifest's JSON: the scenes as declared, and the pairs of ids or None.

    Raises:
      SceneError: the file cannot be read, is no JSON, or no manifest of this version.
    """
    path = f"{folder}/{name}"
    try:
        manifest = json.loads(folder.text(name))
    except ValueError as error:
        raise SceneError(f"{path}: expected JSON; mend it. Received: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION or not manifest.get("scenes"):
        received = {k: v for k, v in manifest.items() if k == "version"} if isinstance(manifest, dict) else "no object"
        raise SceneError(f'{path}: expected {{"version": {VERSION}, "scenes": [...]}}. Received: {received}')
    _refuse_unknown(manifest, {"version", "scenes", "pairs"}, path)
    _check_form(manifest, path)
    return manifest["scenes"], manifest.get("pairs")


def _check_form(manifest: Mapping[str, Any], path: str) -> None:
    """Holds lists and objects against the form that this file's docstring shows."""
    scenes = _are(manifest["scenes"], dict, f"{path}: scenes")
    for scene in scenes:
        where = f"{path}: scene {scene.get('id')}"
        for file in _are(scene.get("files", []), dict, f"{where}: files"):
            if not isinstance(file.get("bands", []), list) or not isinstance(file.get("path", ""), str):
                raise SceneError(f"{where}: a path is a text and bands are a list of names. Received: {file}")
        _are(scene.get("quality", []), dict, f"{where}: quality")
    for pair in _are(manifest.get("pairs") or [], list, f"{path}: pairs"):
        if len(pair) != 2:
            raise SceneError(f"{path}: a pair is [Landsat's id, Sentinel-2's id]. Received: {pair}")


def _are(values: Any, kind: type, where: str) -> list:
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        form = {dict: "objects", list: "lists"}[kind]
        raise SceneError(
            f"{where}: expected a list of {form}, [...]; see the manifest's description. Received: {values}"
        )
    return values


def open_scene(declared: Mapping[str, Any], folder: Folder) -> SceneFiles:
    """Holds a declared scene against the headers of its files.

    Args:
      declared: one scene of a manifest.
      folder: where its files are.

    Raises:
      SceneError: a key is missing or wrong, a file cannot be opened, or does not hold what is declared.
    """
    where = f"scene {declared.get('id')}"
    _refuse_unknown(declared, SCENE_KEYS | {"quality"}, where)
    _one_of(declared, "sensor", SENSOR_NAMES, where)
    _one_of(declared, "level", sensors.LEVELS, where)
    spacecraft = sensors.LANDSAT_SPACECRAFT if declared["sensor"] == "landsat" else sensors.SENTINEL_SPACECRAFT
    if declared["level"] != "uncalibrated" or "spacecraft" in declared:
        _one_of(declared, "spacecraft", spacecraft, where)
    bands: dict[str, BandFile] = {}
    for file in _required(declared, "files", where):
        for band, found in _open_file(file, declared, folder, where):
            if band in bands:
                raise SceneError(f"{where}: band {band} is declared twice, keep one. Received: {found.path}")
            bands[band] = found
    bands = {band: bands[band] for band in BAND_NAMES if band in bands}
    if not set(bands) - {"pan"}:
        raise SceneError(f"{where}: expected at least one of {', '.join(sensors.BANDS)}. Received: {', '.join(bands)}")
    quality = tuple(_open_quality(q, folder, where) for q in declared.get("quality", ()))
    grids = {band: file.grid for band, file in bands.items()}
    crs = {grid.crs for grid in (*grids.values(), *(q.grid for q in quality))}
    if len(crs) > 1:
        raise SceneError(f"{where}: all its files must have one CRS; warp the odd one. Received: crs={sorted(crs)}")
    return SceneFiles(_scene(declared, grids, where), bands, quality)


def _scene(declared: Mapping[str, Any], grids: Mapping[str, Grid], where: str) -> Scene:
    return Scene(
        id=str(_required(declared, "id", "a scene")),
        sensor=declared["sensor"],
        level=declared["level"],
        product=declared.get("product", ""),
        spacecraft=declared.get("spacecraft", ""),
        time_ms=_time_ms(declared.get("time"), where),
        grids=grids,
        sun=_angles(declared.get("sun"), where),
        view=_angles(declared.get("view"), where),
        processing_baseline=str(declared.get("processing_baseline", "")),
    )


def _open_file(
    file: Mapping[str, Any], declared: Mapping[str, Any], folder: Folder, where: str
) -> list[tuple[str, BandFile]]:
    """The used bands of one raster, after its header was held against what is declared."""
    path = folder.raster(_required(file, "path", f"{where}, a file"))
    where = f"{where}, {base_name(path)}"
    _refuse_unknown(file, FILE_KEYS, where)
    names = _required(file, "bands", where)
    _required(file, "scale", where, "give the factor from digital numbers to reflectance, such as 1e-4")
    unknown = [name for name in names if name is not None and name not in BAND_NAMES]
    if unknown:
        raise SceneError(f"{where}: bands are named {', '.join(BAND_NAMES)} or null. Received: bands={unknown}")
    with open_raster(path) as raster:
        if raster.count != len(names):
            raise SceneError(
                f"{where}: `bands` must name every band of the raster, null for those not used. "
                f"Received: {len(names)} names for {raster.count} bands"
            )
        _check_descriptions(raster.descriptions, names, declared["sensor"], where)
        grid = _grid(raster, file.get("crs"), where)
        scales, offsets = (_per_band(file.get(key, 0.0), key, names, where) for key in ("scale", "offset"))
        nodata = _nodata(file, raster, names, where)
        dtypes = raster.dtypes
    if declared["level"] != "uncalibrated" and np.dtype(dtypes[0]).itemsize == 1:
        raise SceneError(
            f"{where}: 8-bit data are display values and no reflectance; get the 16-bit product, or declare level "
            f'"uncalibrated". Received: dtype={dtypes[0]}, level={declared["level"]}'
        )
    if not all(math.isfinite(s) and s for s in scales):
        raise SceneError(f"{where}: a scale is a number other than 0. Received: scale={file['scale']}")
    return [
        (name, BandFile(path, i + 1, Encoding(scales[i], offsets[i], nodata[i]), grid))
        for i, name in enumerate(names)
        if name is not None
    ]


def _open_quality(declared: Mapping[str, Any], folder: Folder, where: str) -> QualityFile:
    path = folder.raster(_required(declared, "path", f"{where}, quality"))
    where = f"{where}, {base_name(path)}"
    _refuse_unknown(declared, {"path", "band", "kind", "crs"}, where)
    _one_of(declared, "kind", CLEAR, where)
    with open_raster(path) as raster:
        index = declared.get("band", 1)
        if index not in raster.indexes:
            raise SceneError(f"{where}: the raster has bands 1 to {raster.count}. Received: band={index}")
        dtype, integers = np.dtype(raster.dtypes[index - 1]), declared["kind"] != "cloud_score"
        if np.issubdtype(dtype, np.integer) != integers:
            form = "integers, as delivered" if integers else "floating-point numbers from 0 to 1"
            raise SceneError(f"{where}: {declared['kind']} are {form}; convert the file. Received: dtype={dtype}")
        return QualityFile(path, index, declared["kind"], _grid(raster, declared.get("crs"), where))


def _check_descriptions(
    descriptions: Sequence[str | None], names: Sequence[str | None], sensor: str, where: str
) -> None:
    """Refuses a declared order that contradicts the band descriptions in the file; unknown words are let pass."""
    for index, (description, name) in enumerate(zip(descriptions, names, strict=True), 1):
        word = (description or "").strip()
        match = re.fullmatch(r"(?:SR_)?B0*(\d+A?)", word, re.IGNORECASE)
        if name is None or not (match or word.lower() in BAND_NAMES):
            continue
        meant = SENSOR_NAMES[sensor].get(f"B{match[1].upper()}", "another band") if match else word.lower()
        if meant != name:
            raise SceneError(
                f"{where}: band {index} of the file says it is {word} ({meant}); put `bands` into the file's order. "
                f"Received: bands={json.dumps(names)}"
            )


def _grid(raster: Any, crs: str | None, where: str) -> Grid:
    try:
        return Grid.of(raster.crs or crs, raster.transform, raster.shape)
    except (SceneError, rasterio.errors.CRSError) as error:
        raise SceneError(f"{where}: {error}") from error


def _nodata(file: Mapping[str, Any], raster: Any, names: Sequence[str | None], where: str) -> list[float | None]:
    if file.get("nodata") is not None:
        return _per_band(file["nodata"], "nodata", names, where)
    if "nodata" in file:
        return [None] * len(names)
    sixteen_bit = raster.dtypes[0] in ("uint16", "int16")
    return [(0.0 if sixteen_bit else None) if value is None else float(value) for value in raster.nodatavals]


def _per_band(value: Any, key: str, names: Sequence[str | None], where: str) -> list[float]:
    values = value if isinstance(value, list) else [value] * len(names)
    if len(values) != len(names) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise SceneError(f"{where}: {key} is a number, or {len(names)} of them in a list. Received: {key}={value!r}")
    return [float(v) for v in values]


def _time_ms(time: str | None, where: str) -> int:
    if time is None:
        return 0
    try:
        moment = datetime.datetime.fromisoformat(time)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{where}: a time is such as 2023-07-23T14:12:31Z. Received: time={time!r}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return round(moment.timestamp() * 1000)


def _angles(angles: Mapping[str, float] | None, where: str) -> tuple[float, float]:
    if angles is None:
        return float("nan"), float("nan")
    try:
        return float(angles["zenith"]), float(angles["azimuth"])
    except (KeyError, TypeError, ValueError) as error:
        raise SceneError(f"{where}: expected zenith and azimuth in degrees. Received: {angles!r}") from error


def _required(mapping: Mapping[str, Any], key: str, where: str, remedy: str = "add it") -> Any:
    if key not in mapping:
        raise SceneError(f'{where} has no "{key}"; {remedy}. Received: {", ".join(mapping)}')
    return mapping[key]


def _one_of(mapping: Mapping[str, Any], key: str, choices: Any, where: str) -> None:
    value = _required(mapping, key, where, f"add one of {', '.join(choices)}")
    if value not in choices:
        raise SceneError(f"{where}: {key} is one of {', '.join(choices)}. Received: {key}={value!r}")


def _refuse_unknown(mapping: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(mapping) - known)
    if unknown:
        raise SceneError(f"{where}: known keys are {', '.join(sorted(known))}. Received: {', '.join(unknown)}")
