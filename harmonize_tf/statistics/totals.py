"""Sums over records: of a size that does not grow with the records, the same in whatever order they are added up.

A key says what is summed; the second part is the split:

    records     SPLIT                     [patches]
    month       SPLIT 2022-06             [patches]
    text        SPLIT feature value       [patches]
    misfiled    SPLIT split               [patches] in SPLIT's folder, in which another split is written
    pixels      SPLIT sensor              [valid, all]
    pans        SPLIT                     [patches] that have the panchromatic band
    codes       SPLIT feature             [of code 0, 1, 2, ...] valid pixels
    means       SPLIT feature             [patches, sum, sum of squares] of the patches' means, in 1/16 codes
    dead        SPLIT feature             [patches, without data, constant and clipped, constant]
    figure      SPLIT name                see `distribution.FIGURES`
    cross       SPLIT bands               [LL B, SS B, LS B*B] of 30 m cells less their patch's mean, codes squared
    order       SPLIT band band           [patches, sum, sum of squares] of `measure.contrasts`, in 1e-4
    fit         SPLIT landsat sentinel band   [cells, x, y, xx, yy, xy], x Sentinel-2's and y Landsat's codes
    detail      SPLIT                     [30 m, 10 m first, middle, last], see `measure.detail`

int64 holds the squares of 5e5 patches at the highest code, of 2e7 at a reflectance of 1.
"""

import base64
import dataclasses
import gzip
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

Key = tuple[str, ...]
KEPT = 4  # thumbnails of each split


@dataclasses.dataclass(frozen=True, eq=False)
class Thumbnail:
    """A patch to look at.

    Attributes:
      split: of the patch.
      id: of the patch.
      sides: codes uint16 [side, side, 3], red, green and blue, by sensor.
    """

    split: str
    id: str
    sides: dict[str, np.ndarray]


class Totals:
    """What some records come to.

    Attributes:
      sums: int64 arrays by key; see the module.
      thumbnails: those of the `KEPT` smallest ids of each split, which are hashes: a sample that all orders agree on.
      unreadable: what is wrong with files that cannot be read, by their names.
    """

    def __init__(self) -> None:
        self.sums: dict[Key, np.ndarray] = {}
        self.thumbnails: dict[str, list[Thumbnail]] = {}
        self.unreadable: dict[str, str] = {}

    def add(self, key: Key, values: np.ndarray | Iterable[int]) -> None:
        """Adds values to a sum, which becomes as long as they are."""
        values = np.asarray(values, np.int64)
        there = self.sums.get(key)
        if there is None:
            self.sums[key] = values.copy()
        elif len(there) >= len(values):
            there[: len(values)] += values
        else:
            grown = values.copy()
            grown[: len(there)] += there
            self.sums[key] = grown

    def wants(self, split: str, name: str) -> bool:
        """Whether a patch of this id would be among the thumbnails."""
        kept = self.thumbnails.get(split, ())
        return len(kept) < KEPT or name < kept[-1].id

    def keep(self, thumbnail: Thumbnail) -> None:
        """Adds a thumbnail; the one of the largest id gives way."""
        kept = [*self.thumbnails.get(thumbnail.split, ()), thumbnail]
        self.thumbnails[thumbnail.split] = sorted(kept, key=lambda one: one.id)[:KEPT]

    def merge(self, other: "Totals") -> None:
        """Adds another one, which stays as it is."""
        for key, values in other.sums.items():
            self.add(key, values)
        for thumbnail in (one for kept in other.thumbnails.values() for one in kept):
            self.keep(thumbnail)
        self.unreadable |= other.unreadable

    def to_bytes(self) -> bytes:
        """As gzipped JSON."""
        plain = {
            "sums": [[key, self.sums[key].tolist()] for key in sorted(self.sums)],
            "thumbnails": [
                [one.split, one.id, {sensor: _packed(codes) for sensor, codes in one.sides.items()}]
                for split in sorted(self.thumbnails)
                for one in self.thumbnails[split]
            ],
            "unreadable": self.unreadable,
        }
        return gzip.compress(json.dumps(plain).encode(), compresslevel=1, mtime=0)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Totals":
        """The inverse of `to_bytes`."""
        plain, totals = json.loads(gzip.decompress(content)), cls()
        totals.sums = {tuple(key): np.array(values, np.int64) for key, values in plain["sums"]}
        for split, name, sides in plain["thumbnails"]:
            totals.keep(Thumbnail(split, name, {sensor: _unpacked(*packed) for sensor, packed in sides.items()}))
        totals.unreadable = plain["unreadable"]
        return totals


def _packed(codes: np.ndarray) -> list[Any]:
    return [list(codes.shape), base64.b64encode(codes.astype("<u2").tobytes()).decode()]


def _unpacked(shape: list[int], packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), "<u2").reshape(shape)
