"""Scenes in raster files, here or elsewhere: by a manifest (`scene_manifest`), or by Landsat's MTL (`landsat_mtl`)."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from harmonize_tf import pairing, radiometry
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.quality import CLEAR
from harmonize_tf.sources import Raster, Scene, folders, landsat_mtl, rasters, scene_manifest
from harmonize_tf.sources.folders import Folder
from harmonize_tf.sources.scene_manifest import QualityFile, SceneFiles

MANIFEST = "manifest.json"
SATURATED = 65535  # Landsat Level-1 and Level-2, and Sentinel-2, in 16 bits
# Pixels on a side, and how many windows along each diagonal of a scene, in which its values are looked at.
PROBE, PROBES = 32, 5
# The median of a scene's band, thin air to fresh snow and cloud: beyond these its scale is wrong.
PLAUSIBLE = (-0.1, 2.0)


class GeoTiffSource:
    """Scenes in raster files.

    Headers are read, and values sampled, when it is made; so what is wrong with a scene shows before anything runs.
    Local files are opened anew for each read: windows of any size cost their own memory, and threads share nothing.

    Saturated pixels (65535 in 16 bits) are no data in Sentinel-2; in Landsat they keep their value, a lower bound,
    and are not clear: bright cloud stays cloud.
    """

    def __init__(self, *paths: str | os.PathLike, max_days: float = pairing.MAX_DAYS) -> None:
        """Opens scenes.

        Args:
          *paths: manifests (.json), Landsat's MTL files beside their bands, folders or tar files that hold one of
            these, or folders of such folders and tar files; for a manifest or an MTL its URL will do (https://, gs://),
            and for a folder in a bucket.
          max_days: greatest distance in time of scenes that are paired without a manifest's word.

        Raises:
          SceneError: a scene cannot be used as what it is declared to be.
        """
        self._max_days = max_days
        self._files: dict[str, SceneFiles] = {}
        self._pairs: list[Sequence[str]] | None = None
        for path in paths:
            declared, pairs = find(path)
            for scene, folder in declared:
                self._add(open_scene(scene, folder))
            if pairs is not None:
                self._pairs = [*(self._pairs or ()), *pairs]
        self._declared_pairs()

    def scenes(self) -> Sequence[Scene]:
        """All scenes in the order in which they were found."""
        return [files.scene for files in self._files.values()]

    def files(self, scene: Scene) -> list[str]:
        """Paths or URLs of the rasters that a scene is read from."""
        files = self._files[scene.id]
        return list(dict.fromkeys(file.path for file in (*files.bands.values(), *files.quality)))

    def pairs(self) -> Sequence[tuple[Scene | None, Scene | None]]:
        """The manifests' pairs, or else those that time and overlap suggest; then the scenes without a partner."""
        scenes = self.scenes()
        landsat, sentinel = ([s for s in scenes if s.sensor == sensor] for sensor in ("landsat", "sentinel"))
        pairs = pairing.pair(landsat, sentinel, self._max_days) if self._pairs is None else self._declared_pairs()
        paired = {scene.id for pair in pairs for scene in pair}
        alone = [(s, None) if s.sensor == "landsat" else (None, s) for s in scenes if s.id not in paired]
        return [*pairs, *alone]

    def read(self, scene: Scene, bands: Sequence[str], window: Grid) -> Raster:
        """Reads a window; see `SceneSource.read`."""
        files = self._files[scene.id]
        values = np.zeros((*window.shape, len(bands)), np.float32)
        valid, saturated = np.ones(window.shape, bool), np.zeros(window.shape, bool)
        # One opening for each file; bands of one file are read together.
        for path in dict.fromkeys(files.bands[band].path for band in bands):
            group = [band for band in bands if files.bands[band].path == path]
            dn, inside = _read(path, [files.bands[band].index for band in group], files.bands[group[0]].grid, window)
            valid &= inside
            for band, plane in zip(group, dn, strict=True):
                encoding = files.bands[band].encoding
                values[..., bands.index(band)] = radiometry.decode(plane, encoding)
                valid &= np.isfinite(plane) & (plane != encoding.nodata)
                if plane.dtype == np.uint16:
                    saturated |= plane == SATURATED
        if scene.sensor == "sentinel":
            valid &= ~saturated
        values[~valid] = 0.0
        clear = valid & ~saturated
        for quality in files.quality:
            clear &= _clear(quality, window)
        return Raster(values, valid, clear, window)

    def _add(self, files: SceneFiles) -> None:
        name = files.scene.id
        if name in self._files:
            raise SceneError(f"ids of scenes must be unique; rename one. Received: id={name} twice")
        self._files[name] = files

    def _declared_pairs(self) -> list[tuple[Scene, Scene]]:
        return [declared_pair(pair, self.scenes()) for pair in self._pairs or ()]


Declared = tuple[Mapping[str, Any], Folder]
"""A scene as a manifest declares it, and the folder that its paths are relative to."""


def find(path: str | os.PathLike) -> tuple[list[Declared], list[Sequence[str]] | None]:
    """What there is at a path of `GeoTiffSource`: scenes as declared, and the pairs of ids or None.

    Raises:
      SceneError: there is nothing, or a manifest or MTL file cannot be read.
    """
    folder, name = folders.locate(path)
    if isinstance(folder, folders.TarFile):
        folder = _scene_folder(folder)
    mtl = [name] if name and landsat_mtl.is_mtl(name) else []
    if name is None:
        names = folder.names()
        name = MANIFEST if MANIFEST in names else None
        mtl = [] if name else landsat_mtl.find(names)
    if mtl:
        return [(landsat_mtl.declare(folder, file), folder) for file in mtl], None
    if name:
        scenes, pairs = scene_manifest.load(folder, name)
        return [(scene, folder) for scene in scenes], pairs
    below = _below(folder) if isinstance(folder, folders.Directory) else []
    if not below:
        raise SceneError(
            f"{folder}: expected a manifest.json, a Landsat scene with its *_MTL.txt, or folders of these; give one of "
            f"them. Received: {', '.join(names[:5]) or 'an empty folder'}"
        )
    scenes, pairs = zip(*(find(other) for other in below), strict=True)
    declared = [pair for some in pairs for pair in some or ()]
    return [scene for some in scenes for scene in some], None if all(some is None for some in pairs) else declared


def _below(directory: folders.Directory) -> list[pathlib.Path]:
    """Folders and tar files in a directory that hold scenes; of one that was unpacked there, the folder alone."""
    paths = [directory.path / name for name in directory.names()]
    unpacked = [path for path in paths if os.path.isdir(path) and _holds_scenes(folders.Directory(path))]
    tars = [
        path
        for path in paths
        if path.suffix.lower() == ".tar" and not os.path.isdir(path) and path.with_suffix("") not in unpacked
    ]
    return sorted([*unpacked, *(path for path in tars if any(map(_holds_scenes, folders.TarFile(path).folders())))])


def _scene_folder(archive: folders.TarFile) -> folders.TarFile:
    """The folder in a tar file that holds scenes. What lies below is its own affair, as in a directory."""
    found = [folder for folder in archive.folders() if _holds_scenes(folder)]
    found = [folder for folder in found if not any(other.inside in folder.inside.parents for other in found)]
    if len(found) > 1:
        raise SceneError(
            f"{archive}: expected scenes in one folder of a tar file; unpack it, and give the folder that it becomes. "
            f"Received: scenes in {', '.join(str(folder.inside) for folder in found)}"
        )
    return found[0] if found else archive


def _holds_scenes(folder: Folder) -> bool:
    names = folder.names()
    return MANIFEST in names or bool(landsat_mtl.find(names))


def open_scene(declared: Mapping[str, Any], folder: Folder) -> SceneFiles:
    """Holds a declared scene against its files' headers and some of their values.

    Raises:
      SceneError: the scene cannot be used as what it is declared to be.
    """
    files = scene_manifest.open_scene(declared, folder)
    _probe(files)
    return files


def declared_pair(pair: Sequence[str], scenes: Sequence[Scene]) -> tuple[Scene, Scene]:
    """The scenes of a manifest's pair.

    Raises:
      SceneError: the ids name no Landsat and Sentinel-2 scene, or these two cannot be compared.
    """
    named = {scene.id: scene for scene in scenes}
    found = [named[name] for name in pair if name in named]
    if [scene.sensor for scene in found] != ["landsat", "sentinel"] or len(pair) != 2:
        raise SceneError(
            f"a pair is a Landsat scene's id and a Sentinel-2 scene's id; correct `pairs`. Received: {list(pair)}"
        )
    pairing.check_pair(*found)
    return found[0], found[1]


def _read(path: str, indexes: Sequence[int], native: Grid, window: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Digital numbers [band, height, width] of a window, and where it lies within the file; 0 beyond."""
    offset = window.offset_in(native)
    if offset is None:
        raise SceneError(
            f"{rasters.shown(path)}: a window must lie on the native grid, {native}. Received: window={window}"
        )
    start = np.maximum(offset, 0)
    stop = np.minimum(np.add(offset, window.shape), native.shape)
    inside = np.zeros(window.shape, bool)
    with rasters.open_raster(path) as raster:
        dn = np.zeros((len(indexes), *window.shape), raster.dtypes[indexes[0] - 1])
        if (start < stop).all():
            rows, columns = (slice(a - o, b - o) for a, b, o in zip(start, stop, offset, strict=True))
            try:
                part = raster.read(list(indexes), window=Window.from_slices(*zip(start, stop, strict=True)))
            except rasterio.errors.RasterioError as error:
                raise rasters.unreadable(path, error) from error
            dn[:, rows, columns], inside[rows, columns] = part, True
    return dn, inside


def _clear(quality: QualityFile, window: Grid) -> np.ndarray:
    """[height, width] of `window`: clear in every pixel of the quality band that a pixel touches, and known there."""
    native = quality.grid
    row, column = (native.top - window.top) / native.pixel[1], (window.left - native.left) / native.pixel[0]
    top, bottom = _touched(row, window.pixel[1] / native.pixel[1], window.shape[0])
    left, right = _touched(column, window.pixel[0] / native.pixel[0], window.shape[1])
    around = native.window(int(top[0]), int(left[0]), int(bottom[-1] - top[0]), int(right[-1] - left[0]))
    bits, inside = _read(quality.path, [quality.index], native, around)
    clear = CLEAR[quality.kind](bits[0]) & inside
    for axis, (first, last) in enumerate(((top - top[0], bottom - top[0]), (left - left[0], right - left[0]))):
        reach = range((last - first).max())
        clear = np.logical_and.reduce([clear.take(np.minimum(first + k, last - 1), axis) for k in reach])
    return clear


def _touched(start: float, step: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last of the native pixels that each of `count` intervals of length `step` touches."""
    edges = start + step * np.arange(count + 1)
    slack = 1e-6  # of a pixel, so that rounding touches nothing
    return np.floor(edges[:-1] + slack).astype(int), np.ceil(edges[1:] - slack).astype(int)


def sample(files: SceneFiles) -> dict[str, np.ndarray]:
    """Some reflectances of each band, [n]: the valid pixels of small windows along both diagonals.

    Raises:
      SceneError: a file cannot be read there.
    """
    samples: dict[str, list[np.ndarray]] = {band: [] for band in files.bands}
    for path in dict.fromkeys(file.path for file in files.bands.values()):
        group = {band: file for band, file in files.bands.items() if file.path == path}
        grid = next(iter(group.values())).grid
        for i, j in {(i, j) for k in range(PROBES) for i, j in ((k, k), (k, PROBES - 1 - k))}:
            row, column = ((size - PROBE) * k // (PROBES - 1) for size, k in zip(grid.shape, (i, j), strict=True))
            window = grid.window(row, column, PROBE, PROBE)
            dn, inside = _read(path, [file.index for file in group.values()], grid, window)
            for (band, file), plane in zip(group.items(), dn, strict=True):
                valid = inside & np.isfinite(plane) & (plane != file.encoding.nodata)
                samples[band].append(radiometry.decode(plane[valid], file.encoding))
    return {band: np.concatenate(parts) for band, parts in samples.items()}


def _probe(files: SceneFiles) -> None:
    """Refuses a scene whose values cannot be reflectance: 8-bit data in 16 bits, or a wrong scale."""
    for band, values in sample(files).items():
        file = files.bands[band]
        if files.scene.level == "uncalibrated" or not values.size:
            continue
        median = float(np.median(values))
        if not PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
            raise SceneError(
                f"scene {files.scene.id}, {rasters.base_name(file.path)}: the median reflectance of {band} is "
                f"{median:.4g}, expected {PLAUSIBLE[0]} to {PLAUSIBLE[1]}; correct scale and offset. "
                f"Received: scale={file.encoding.scale:g}, offset={file.encoding.offset:g}"
            )
