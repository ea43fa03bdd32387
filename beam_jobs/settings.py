"""What the flags decide about the records, and the source of scenes that they name."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harmonize_tf
from harmonize_tf import sensors
from harmonize_tf.errors import FlagError
from harmonize_tf.sources import SceneSource, region
from harmonize_tf.sources.degraded import DegradedSource
from harmonize_tf.sources.earth_engine import EarthEngineSource
from harmonize_tf.sources.ee_client import Connection
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags that decide what is in the records.

    Attributes:
      source: name of the source, one of `SOURCES`.
      scenes: paths that the source reads.
      bands: band names.
      level: "toa", "sr" or "uncalibrated"; None: that of all scenes.
      nir: Sentinel-2's band behind "nir", "B8" or "B8A".
      pan: whether to take the panchromatic band along; None: where every Landsat scene has one.
      split: shares of train, val and test.
      split_block: side of the ground cells that go to a split as one, m.
      seed: of the split and of a degraded source's noise.
      area: for Earth Engine: a GeoJSON file or "west,south,east,north", degrees; likewise what follows.
      start: first day of the Landsat scenes, such as "2022-06-01".
      end: the day after their last.
      landsat: which ones, such as ("8", "9").
      cloud_cover: greatest share of cloud in a scene, percent.
      max_days: greatest distance in time of a pair that the manifest does not declare.
      min_valid: smallest share of a patch that is clear on all sides.
      max_shift: greatest shift between the sensors, m.
      min_correlation: smallest correlation between the sensors.
      shard_examples: greatest number of patches in a shard, all splits together.
      request_side: side, in patches, of the squares that are read together.
    """

    source: str
    scenes: tuple[str, ...]
    bands: tuple[str, ...]
    level: str | None
    nir: str
    pan: bool | None
    split: tuple[float, ...]
    split_block: int
    seed: int
    area: str | None
    start: str | None
    end: str | None
    landsat: tuple[str, ...]
    cloud_cover: float
    max_days: float
    min_valid: float
    max_shift: float
    min_correlation: float
    shard_examples: int
    request_side: int


def _geotiff(settings: Settings) -> SceneSource:
    _require(settings, "scenes' manifests or Landsat folders")
    return GeoTiffSource(*settings.scenes, max_days=settings.max_days)


def _degraded(settings: Settings) -> SceneSource:
    return DegradedSource(_geotiff(settings), seed=settings.seed, nir=settings.nir)


def _simulated(settings: Settings) -> SceneSource:
    """The simulated source, with its attributes from a JSON object where a path to one is given."""
    options: dict[str, Any] = {"seed": settings.seed}
    if not settings.scenes:
        options["size"] = 23_040  # wide enough for every split to get a block with the flags' defaults
    for path in settings.scenes:
        try:
            options |= json.loads(pathlib.Path(path).read_text())
            options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
            SimulatedSource(**options)
        except (OSError, ValueError, TypeError) as error:
            names = ", ".join(field.name for field in dataclasses.fields(SimulatedSource))
            raise FlagError(
                f"--source=simulated takes no scenes, or a JSON object with any of {names} ({error}). "
                f"Received: scenes={path}"
            ) from error
    return SimulatedSource(**options)


def _earth_engine(settings: Settings, connection: Connection) -> SceneSource:
    for name in ("area", "start", "end"):
        if not getattr(settings, name):
            raise FlagError(
                f"--source=earthengine needs --area, --start and --end, such as --area=12.0,51.0,12.5,51.3 "
                f"--start=2022-06-01 --end=2022-09-01. Received: {name}={getattr(settings, name)}"
            )
    crafts = {name[-1]: name for name in sensors.LANDSAT_SPACECRAFT}
    if not settings.landsat or not set(settings.landsat) <= set(crafts):
        raise FlagError(f"expected some of {','.join(crafts)}. Received: landsat={','.join(settings.landsat)}")
    if settings.level not in (None, "toa", "sr"):
        raise FlagError(f"Earth Engine has the levels toa and sr. Received: level={settings.level}")
    return EarthEngineSource(
        region=region.parse(settings.area),
        start=settings.start,
        end=settings.end,
        level=settings.level or "toa",
        spacecraft=tuple(crafts[number] for number in sorted(set(settings.landsat))),
        cloud_cover=settings.cloud_cover,
        max_days=settings.max_days,
        nir=settings.nir,
        connection=connection,
    )


# How each is opened; a connection is what only Earth Engine needs.
SOURCES: Mapping[str, Callable[[Settings, Connection], SceneSource]] = {
    "earthengine": _earth_engine,
    "geotiff": lambda settings, _: _geotiff(settings),
    "degraded": lambda settings, _: _degraded(settings),
    "simulated": lambda settings, _: _simulated(settings),
}


def _require(settings: Settings, what: str) -> None:
    if not settings.scenes:
        raise FlagError(f"--source={settings.source} needs --scenes=PATH[,PATH], {what}. Received: scenes=")


def open_source(settings: Settings, connection: Connection) -> SceneSource:
    """Opens the source of scenes; Earth Engine is not asked anything yet.

    Raises:
      FlagError: it needs paths or other flags, or cannot use them.
      SceneError: a scene is not what it is declared to be.
    """
    missing = [path for path in settings.scenes if not os.path.exists(path)]
    if missing:
        raise FlagError(f"no such file or folder; check the path. Received: scenes={','.join(missing)}")
    elsewhere = ("area", "start", "end") if settings.source != "earthengine" else ("scenes",)
    for name in elsewhere:
        if value := getattr(settings, name):
            raise FlagError(f"--{name} does not go with --source={settings.source}. Received: {name}={value}")
    return SOURCES[settings.source](settings, connection)


def identity(settings: Settings) -> dict[str, Any]:
    """What makes an export this one before anything is planned, as job.json keeps it."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}
    files = [*settings.scenes, *(path for path in (settings.area,) if path and os.path.exists(path))]
    return {"flags": plain, "inputs": fingerprints(files), "package_version": harmonize_tf.__version__}


def fingerprints(paths: Sequence[str]) -> dict[str, str]:
    """What the scenes' paths hold: digests of manifests' text, and of the names and sizes of folders' files."""
    found = {}
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            content = "".join(f"{file.relative_to(path)} {file.stat().st_size}\n" for file in files).encode()
        else:
            content = path.read_bytes()
        found[os.fspath(path)] = hashlib.sha256(content).hexdigest()
    return found
