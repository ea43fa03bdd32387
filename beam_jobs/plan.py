"""What an export will do, decided before anything is read: settings, scenes, patches, splits and shards."""

import collections
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harmonize_tf import patches
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.patches import Patch
from harmonize_tf.sensors import MSI
from harmonize_tf.sources import Scene, SceneSource
from harmonize_tf.sources.degraded import DegradedSource
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource

Pair = tuple[Scene | None, Scene | None]
_log = logging.getLogger("harmonize")


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
      max_days: greatest distance in time of a pair that the manifest does not declare.
      min_valid: smallest share of a patch that is clear on all sides.
      max_shift: greatest shift between the sensors, m.
      min_correlation: smallest correlation between the sensors.
      shard_examples: greatest number of records in a shard.
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
    max_days: float
    min_valid: float
    max_shift: float
    min_correlation: float
    shard_examples: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All patches to export.

    Attributes:
      patches: in the order of their ids.
      shards: each patch's shard by its id, such as "train/00000-of-00002".
      level: of all scenes.
      pan: whether the records hold the panchromatic band.
    """

    patches: tuple[Patch, ...]
    shards: Mapping[str, str]
    level: str
    pan: bool

    def lines(self) -> str:
        """The plan as plan.jsonl, one patch a line."""
        rows = (dataclasses.asdict(patch) | {"shard": self.shards[patch.id]} for patch in self.patches)
        return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)

    def sha256(self) -> str:
        """Fingerprint of the plan."""
        return hashlib.sha256(self.lines().encode()).hexdigest()


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


# Earth Engine will take its place here.
SOURCES: Mapping[str, Callable[[Settings], SceneSource]] = {
    "geotiff": _geotiff,
    "degraded": _degraded,
    "simulated": _simulated,
}


def _require(settings: Settings, what: str) -> None:
    if not settings.scenes:
        raise FlagError(f"--source={settings.source} needs --scenes=PATH[,PATH], {what}. Received: scenes=")


def open_source(settings: Settings) -> SceneSource:
    """Opens the source of scenes.

    Raises:
      FlagError: it needs paths, or cannot use them.
      SceneError: a scene is not what it is declared to be.
    """
    missing = [path for path in settings.scenes if not os.path.exists(path)]
    if missing:
        raise FlagError(f"no such file or folder; check the path. Received: scenes={','.join(missing)}")
    return SOURCES[settings.source](settings)


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


def make(source: SceneSource, settings: Settings) -> Plan:
    """Plans an export.

    Raises:
      FlagError: the flags do not fit the scenes, or leave a split empty.
      SceneError: a scene lacks bands, or the two of a pair do not overlap.
    """
    patches.check_split(settings.split, settings.split_block)
    pairs, level = _of_one_level(_of_one_kind(source.pairs()), settings.level)
    _check_bands(pairs, settings)
    pan = _with_pan(pairs, settings)
    identity = {name: getattr(settings, name) for name in ("source", "bands", "nir", "seed")}
    identity |= {"level": level, "pan": pan}
    split = {"split_block": settings.split_block, "fractions": settings.split, "seed": settings.seed}
    found = {
        patch.id: patch
        for pair in pairs
        for cell in patches.cells(*pair, min_inside=settings.min_valid)
        for patch in [patches.patch_at(cell, pair, identity, **split)]
    }
    if not found:
        raise FlagError(
            f"no patch of {patches.PATCH} m lies under the scenes by at least a share of {settings.min_valid}; give "
            f"larger scenes or a smaller --min_valid. Received: {len(pairs)} pairs of scenes"
        )
    counts = collections.Counter(patch.split for patch in found.values())
    patches.check_all_splits_filled(
        counts, settings.split, "Use a smaller --split_block, another --seed, more scenes, or other shares."
    )
    ordered = tuple(sorted(found.values()))
    return Plan(ordered, _shards(ordered, settings.shard_examples), level, pan)


def _of_one_kind(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """Pairs where there are any; scenes without a partner only when there is no pair at all."""
    whole = [pair for pair in pairs if None not in pair]
    if whole and len(whole) < len(pairs):
        _log.info("%d scenes have no partner and are left out", len(pairs) - len(whole))
    if not pairs:
        raise SceneError("the source has no scenes; name some by --scenes. Received: no scenes")
    return whole or pairs


def _of_one_level(pairs: Sequence[Pair], level: str | None) -> tuple[Sequence[Pair], str]:
    levels = {scene.level for pair in pairs for scene in pair if scene is not None}
    if level is None and len(levels) > 1:
        raise FlagError(
            f"scenes of several levels are never mixed in one export; choose one by --level. "
            f"Received: {', '.join(sorted(levels))}"
        )
    level = level or levels.pop()
    chosen = [pair for pair in pairs if all(scene is None or scene.level == level for scene in pair)]
    if not chosen:
        raise FlagError(f"no pair is of that level, but {', '.join(sorted(levels))}. Received: level={level}")
    return chosen, level


def _check_bands(pairs: Sequence[Pair], settings: Settings) -> None:
    for scene in (scene for pair in pairs for scene in pair if scene is not None):
        missing = [band for band in settings.bands if band not in scene.bands]
        if missing:
            raise SceneError(
                f"scene {scene.id} has no {', '.join(missing)}; choose a band set within what it has, "
                f"{', '.join(scene.bands)}. Received: bands={','.join(settings.bands)}"
            )
        if scene.sensor == "sentinel" and "nir" in settings.bands and settings.nir == "B8":
            pixel = scene.grids["nir"].pixel[0]
            if pixel > MSI["nir"].gsd and scene.grids["nir"].crs.startswith("EPSG:32"):
                raise FlagError(
                    f"scene {scene.id}: its nir has pixels of {pixel:g} m, which makes it B8A; say so by --nir=B8A. "
                    "Received: nir=B8"
                )


def _with_pan(pairs: Sequence[Pair], settings: Settings) -> bool:
    without = [landsat.id for landsat, _ in pairs if landsat is not None and "pan" not in landsat.grids]
    if settings.pan and without:
        raise FlagError(
            f"not every Landsat scene has a panchromatic band; use --nopan. Received: pan=true, scene {without[0]}"
        )
    if settings.pan is None and without:
        _log.info("no panchromatic band is exported: scene %s has none", without[0])
    return settings.pan is not False and not without and any(landsat is not None for landsat, _ in pairs)


def _shards(ordered: Sequence[Patch], size: int) -> dict[str, str]:
    """Shards of equal length in each split; ids are hashes, so every shard is a sample of all the ground."""
    shards = {}
    for split in patches.SPLITS:
        chosen = [patch for patch in ordered if patch.split == split]
        count = math.ceil(len(chosen) / size)
        for rank, patch in enumerate(chosen):
            shards[patch.id] = f"{split}/{rank * count // len(chosen):05}-of-{count:05}"
    return shards
