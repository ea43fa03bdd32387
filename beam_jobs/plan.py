"""What an export will do, decided before anything is read: patches, splits, squares and shards."""

import collections
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence

from beam_jobs.settings import Settings
from beam_jobs.squares import Pair, Square, squares
from harmonize_tf import patches
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.patches import Patch
from harmonize_tf.sensors import MSI
from harmonize_tf.sources import SceneSource

PLAN = "plan.jsonl"
_log = logging.getLogger("harmonize")


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to be made: the element that goes through the pipeline.

    Attributes:
      shard: such as "00000-of-00012"; the name of its file in every split's folder.
      start: where its squares begin in plan.jsonl, bytes.
      stop: where they end.
      patches: how many they hold.
    """

    shard: str
    start: int
    stop: int
    patches: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that there is to export.

    Attributes:
      shards: the squares of every shard. Squares come in the order of hashes, so that each shard is a sample of all
        the ground.
      level: of all scenes.
      pan: whether the records hold the panchromatic band.
    """

    shards: tuple[tuple[Square, ...], ...]
    level: str
    pan: bool

    @property
    def squares(self) -> Iterator[Square]:
        """All of them."""
        return (square for shard in self.shards for square in shard)

    @property
    def patches(self) -> Iterator[Patch]:
        """All of them."""
        return (patch for square in self.squares for patch in square.patches)

    def written(self) -> tuple[bytes, list[Task]]:
        """plan.jsonl, a square a line and shard after shard; and where in it each shard's task is."""
        lines, tasks, at = [], [], 0
        for index, shard in enumerate(self.shards):
            content = "".join(square.line() for square in shard).encode()
            name, count = f"{index:05}-of-{len(self.shards):05}", sum(len(square.patches) for square in shard)
            tasks.append(Task(name, at, at + len(content), count))
            lines.append(content)
            at += len(content)
        return b"".join(lines), tasks


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
    # The source is no part of it: the same scenes give the same patches, wherever they are read from.
    content = {name: getattr(settings, name) for name in ("bands", "nir", "seed")} | {"level": level, "pan": pan}
    split = {"split_block": settings.split_block, "fractions": settings.split, "seed": settings.seed}
    area = getattr(source, "region", None)
    scenes = {(scene.sensor, scene.id): scene for pair in pairs for scene in pair if scene is not None}
    found = {
        patch.id: patch
        for pair, cell in _cells(pairs, settings.min_valid, area)
        for patch in [patches.patch_at(cell, pair, content, **split)]
    }
    if not found:
        raise FlagError(
            f"no patch of {patches.PATCH} m has its centre in the area and lies under the scenes by at least a share "
            f"of {settings.min_valid}; give larger scenes, a larger area or a smaller --min_valid. "
            f"Received: {len(pairs)} pairs of scenes"
        )
    once = patches.once(found.values(), scenes)
    if len(once) < len(found):
        _log.info("%d patches left out: neighbouring scenes of one pass show the same", len(found) - len(once))
    counts = collections.Counter(patch.split for patch in once)
    patches.check_all_splits_filled(
        counts, settings.split, "Use a smaller --split_block, another --seed, more scenes, or other shares."
    )
    side = min(settings.request_side, math.isqrt(settings.shard_examples))
    return Plan(_shards(squares(once, scenes, side), settings.shard_examples), level, pan)


def _cells(pairs: Sequence[Pair], min_valid: float, area: str | None) -> Iterator[tuple[Pair, tuple[str, int, int]]]:
    """Pairs and the cells that they show; in an area, for each Landsat scene and cell the nearest passes only.

    Pairs of files are all wanted, as they are; those of an area are all that there are, nearest in time first.
    """
    nearest: dict[tuple[str, tuple[str, int, int]], int] = {}
    for pair in pairs:
        for cell in patches.cells(*pair, min_inside=min_valid, area=area):
            landsat, sentinel = pair
            if area is not None:
                first = nearest.setdefault((landsat.id, cell), sentinel.time_ms)
                if abs(sentinel.time_ms - first) >= patches.PASS_MS:
                    continue
            yield pair, cell


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


def _shards(ordered: Sequence[Square], size: int) -> tuple[tuple[Square, ...], ...]:
    """Fills shards of at most `size` patches, one after the other."""
    shards: list[list[Square]] = [[]]
    filled = 0
    for square in ordered:
        if filled + len(square.patches) > size and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(square)
        filled += len(square.patches)
    return tuple(map(tuple, shards))
