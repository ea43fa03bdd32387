"""Where patches are: the ground cells of each split, and ground that more than one split has."""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping

from harmonize_tf import patches
from harmonize_tf.records import Record

Place = tuple[str, str]  # "block" or "patch", and its name
Counts = tuple[int, ...]  # patches by split, in the order of `patches.SPLITS`
BUCKETS = 256  # in which places are added up: enough for all workers
_BLOCK = re.compile(r"(?P<crs>.+)/(?P<column>-?\d+)/(?P<row>-?\d+)")


@dataclasses.dataclass(frozen=True)
class Leak:
    """Ground that more than one split has.

    Attributes:
      kind: "block" or "patch".
      name: of the ground.
      splits: those that have it.
    """

    kind: str
    name: str
    splits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """A ground cell that has a place on the map.

    Attributes:
      crs: UTM zone.
      column: counted eastwards.
      row: counted northwards.
      counts: patches by split.
    """

    crs: str
    column: int
    row: int
    counts: Counts


def of(record: Record) -> list[Place]:
    """A record's block, and its own place on the ground whatever the block is called."""
    a, _, left, _, e, top = record.transform
    side = record.sentinel.valid.shape if record.sentinel is not None else record.landsat.valid.shape
    scale = 1 if record.sentinel is not None else 3
    height, width = (scale * size for size in side)
    column, row = math.floor(left / (a * width)), math.floor((top + e * height) / -(e * height))
    return [("block", record.block), ("patch", f"{record.crs}/{column}/{row} of {a * width:g} m")]


def counts(split: str) -> Counts:
    """One patch of a split."""
    return tuple(int(split == name) for name in patches.SPLITS)


def add(found: dict[Place, Counts], more: Mapping[Place, Counts]) -> None:
    """Adds the counts of some places to those found before."""
    for place, counted in more.items():
        found[place] = tuple(map(sum, zip(found.get(place, (0,) * len(counted)), counted, strict=True)))


def bucket(place: Place) -> int:
    """A number that all processes give to a place, so that what is known of it comes together."""
    return zlib.crc32("/".join(place).encode()) % BUCKETS


def is_told(place: Place, found: Counts) -> bool:
    """Whether a place is told of: blocks are, a patch's only where it leaks."""
    return place[0] == "block" or sum(map(bool, found)) > 1


def leaks(places: Mapping[Place, Counts]) -> list[Leak]:
    """Ground that more than one split has, by name."""
    return [
        Leak(kind, name, tuple(s for s, count in zip(patches.SPLITS, places[kind, name], strict=True) if count))
        for kind, name in sorted(places)
        if sum(map(bool, places[kind, name])) > 1
    ]


def blocks(places: Mapping[Place, Counts]) -> list[Block]:
    """The blocks whose names say where they are (`patches.patch_at`)."""
    named = ((_BLOCK.fullmatch(name), places[kind, name]) for kind, name in sorted(places) if kind == "block")
    return [Block(m["crs"], int(m["column"]), int(m["row"]), found) for m, found in named if m]


def numbers(places: Mapping[Place, Counts]) -> dict[str, int]:
    """How many blocks each split has and, under "all", there are."""
    found = [counted for (kind, _), counted in places.items() if kind == "block"]
    by_split = {split: sum(counted[i] > 0 for counted in found) for i, split in enumerate(patches.SPLITS)}
    return {"all": len(found), **by_split}
