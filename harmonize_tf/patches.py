"""Patches of the ground: which there are under a pair of scenes, how they are named, and which split each is in.

Patches are cells of one lattice in each UTM zone, so that all dates and sensors see a place in the same patch. Blocks
are larger cells of the same lattice; a whole block goes to one split by a hash of its name, whatever else is exported.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import rasterio.warp
from rasterio.crs import CRS

from harmonize_tf import geometry
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.geometry import PATCH, Grid
from harmonize_tf.sources import Scene

SPLITS = ("train", "val", "test")
PIXEL = 10.0  # m, of the grid that a patch is given by


@dataclasses.dataclass(frozen=True, order=True)
class Patch:
    """One patch to be exported: a place and the scenes to look at.

    Attributes:
      id: hash of the place, the scenes, and what else makes the content; the split is no part of it.
      split: "train", "val" or "test".
      block: name of the ground cell that decides the split, "EPSG:32633/1/-7".
      crs: UTM zone.
      left: easting of the left edge, m.
      top: northing of the upper edge, m.
      landsat: id of Landsat's scene, or None.
      sentinel: id of Sentinel-2's scene, or None.
    """

    id: str
    split: str
    block: str
    crs: str
    left: float
    top: float
    landsat: str | None
    sentinel: str | None

    @property
    def grid(self) -> Grid:
        """The patch in 10 m pixels."""
        side = round(PATCH / PIXEL)
        return Grid(self.crs, self.left, self.top, (PIXEL, PIXEL), (side, side))


def cells(landsat: Scene | None, sentinel: Scene | None, min_inside: float) -> Iterator[tuple[str, int, int]]:
    """CRS, column and row (counted northwards) of the patches of which enough lies under both scenes.

    Args:
      landsat: a scene, or None to look at the other alone.
      sentinel: a scene, or None; where there is one, its UTM zone is that of the patches.
      min_inside: share of a patch's area that must lie within the scenes' common rectangle.

    Raises:
      SceneError: the two scenes do not overlap.
    """
    scenes = [scene for scene in (sentinel, landsat) if scene is not None]
    crs = geometry.sentinel_crs(scenes[0].grid.crs, scenes[0].grid.bounds)
    footprints = [_bounds_in(crs, scene.grid) for scene in scenes]
    left, bottom = (max(values) for values in list(zip(*footprints, strict=True))[:2])
    right, top = (min(values) for values in list(zip(*footprints, strict=True))[2:])
    if left >= right or bottom >= top:
        raise SceneError(
            "the scenes of a pair do not overlap; pair them anew, or check their georeference. "
            f"Received: landsat={scenes[-1].id}, sentinel={scenes[0].id}"
        )
    east, north = geometry.lattice_origin(crs)
    for row in _cells_between(bottom, top, north):
        height = _overlap(north + row * PATCH, bottom, top)
        for column in _cells_between(left, right, east):
            if height * _overlap(east + column * PATCH, left, right) >= min_inside:
                yield crs, column, row


def _bounds_in(crs: str, grid: Grid) -> tuple[float, float, float, float]:
    if grid.crs == crs:
        return grid.bounds
    return rasterio.warp.transform_bounds(grid.crs, crs, *grid.bounds, densify_pts=51)


def _cells_between(low: float, high: float, origin: int) -> range:
    return range(math.floor((low - origin) / PATCH), math.ceil((high - origin) / PATCH))


def _overlap(start: float, low: float, high: float) -> float:
    """Share of the cell from `start` on that lies between `low` and `high`."""
    return (min(start + PATCH, high) - max(start, low)) / PATCH


def patch_at(
    cell: tuple[str, int, int],
    scenes: tuple[Scene | None, Scene | None],
    identity: Mapping[str, object],
    *,
    split_block: int,
    fractions: Sequence[float],
    seed: int,
) -> Patch:
    """Names the patch of a cell and puts it into its block's split.

    Args:
      cell: CRS, column and row, from `cells`.
      scenes: Landsat's and Sentinel-2's scene; one may be None.
      identity: what else makes the patch's content, such as source, bands and level.
      split_block: side of a block, m; a multiple of a patch's.
      fractions: shares of train, val and test.
      seed: of the split.
    """
    crs, column, row = cell
    east, north = geometry.lattice_origin(crs)
    side = split_block // PATCH
    block = f"{CRS.from_user_input(crs).to_string()}/{column // side}/{row // side}"
    place = {
        "crs": crs,
        "left": float(east + column * PATCH),
        "top": float(north + (row + 1) * PATCH),
        "landsat": scenes[0] and scenes[0].id,
        "sentinel": scenes[1] and scenes[1].id,
    }
    spec = json.dumps(dict(identity) | place, sort_keys=True, separators=(",", ":"))
    name = hashlib.sha256(spec.encode()).hexdigest()[:20]
    return Patch(id=name, split=split_of(block, fractions, seed), block=block, **place)


def split_of(block: str, fractions: Sequence[float], seed: int) -> str:
    """The split of a block: a hash of its name and the seed against the cumulated fractions.

    A block stays in its split when others are added, so that exports of one seed never leak into each other.
    """
    digest = hashlib.sha256(f"{seed}:{block}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64 * sum(fractions)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if draw < fraction:
            return split
        draw -= fraction
    return SPLITS[max(index for index, fraction in enumerate(fractions) if fraction > 0)]


def check_split(fractions: Sequence[float], split_block: int) -> None:
    """Checks the flags that decide the split.

    Raises:
      FlagError: not three shares that are not negative, or blocks that patches do not fill.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or sum(fractions) <= 0:
        raise FlagError(
            "expected three shares, of train, val and test, none negative and not all 0, such as --split=0.8,0.1,0.1. "
            f"Received: split={','.join(map(str, fractions))}"
        )
    if split_block <= 0 or split_block % PATCH:
        raise FlagError(
            f"expected a multiple of a patch's {PATCH} m, such as --split_block={2 * PATCH}. "
            f"Received: split_block={split_block}"
        )


def check_all_splits_filled(counts: Mapping[str, int], fractions: Sequence[float], remedy: str) -> None:
    """Checks that no split that should have a share got nothing.

    Raises:
      FlagError: one did.
    """
    empty = [s for s, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0 and not counts.get(s)]
    if empty:
        shares = ",".join(f"{fraction:g}" for fraction in fractions)
        got = ", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS)
        raise FlagError(f"no patch fell into {' and '.join(empty)} ({got}). {remedy} Received: split={shares}")
