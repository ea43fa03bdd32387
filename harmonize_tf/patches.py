"""Patches of the ground: which there are under a pair of scenes, how they are named, and which split each is in.

Patches are cells of one lattice in each UTM zone, so that all dates and sensors see a place in the same patch. Blocks
are larger cells of the same lattice; a whole block goes to one split by a hash of its name, whatever else is exported.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rasterio.warp
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import geometry_mask

from harmonize_tf import geometry, pairing
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.geometry import PATCH, Grid
from harmonize_tf.pairing import Bounds
from harmonize_tf.sources import Scene, region

SPLITS = ("train", "val", "test")
PIXEL = 10.0  # m, of the grid that a patch is given by
EDGE = 0.1  # degrees, the step along a footprint's edges within which they may count as straight in UTM (1 m at most)
FINER = 4  # points along a patch's side at which a footprint is looked at
PASS_MS = 600_000  # scenes of one spacecraft that follow each other faster are of one pass; an orbit takes 99 minutes


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


@dataclasses.dataclass(frozen=True)
class _Window:
    """A window of the lattice of cells; arrays over it are [row, column], counted northwards and eastwards.

    Attributes:
      crs: UTM zone.
      column: the first.
      row: the first.
      shape: rows and columns.
    """

    crs: str
    column: int
    row: int
    shape: tuple[int, int]

    @classmethod
    def around(cls, crs: str, bounds: Bounds) -> "_Window":
        east, north = geometry.lattice_origin(crs)
        column, row = math.floor((bounds[0] - east) / PATCH), math.floor((bounds[1] - north) / PATCH)
        shape = math.ceil((bounds[3] - north) / PATCH) - row, math.ceil((bounds[2] - east) / PATCH) - column
        return cls(crs, column, row, shape)

    @property
    def corner(self) -> tuple[int, int]:
        """Easting and northing of the lower left corner, m."""
        east, north = geometry.lattice_origin(self.crs)
        return east + PATCH * self.column, north + PATCH * self.row

    def shares(self, bounds: Bounds) -> np.ndarray:
        """Which share of each cell lies within a rectangle."""
        (left, bottom), (rows, columns) = self.corner, self.shape
        wide = _overlap(left + PATCH * np.arange(columns), bounds[0], bounds[2])
        return _overlap(bottom + PATCH * np.arange(rows), bounds[1], bounds[3])[:, None] * wide

    def covered(self, footprint: Mapping[str, Any] | None) -> np.ndarray:
        """Which share of each cell, in sixteenths, a polygon covers that is given in degrees; None covers all."""
        if footprint is None:
            return np.ones(self.shape)
        polygons = [[_ring_in(self.crs, ring) for ring in polygon] for polygon in region.polygons(footprint)]
        side = PATCH / FINER
        transform = Affine(side, 0, self.corner[0], 0, side, self.corner[1])
        rows, columns = self.shape
        inside = geometry_mask([region.joined(polygons)], (rows * FINER, columns * FINER), transform, invert=True)
        return inside.reshape(rows, FINER, columns, FINER).mean(axis=(1, 3))


@functools.lru_cache(maxsize=8192)  # the windows of many tiles, each for all its dates; 4 kB each
def _wanted(window: _Window, area: str) -> np.ndarray:
    """Whether each cell's centre lies in an area, and in the window's zone by Sentinel-2's tiling."""
    (left, bottom), (row, column) = window.corner, np.indices(window.shape).reshape(2, -1)
    centres = left + PATCH * (column + 0.5), bottom + PATCH * (row + 0.5)
    longitude, latitude = map(np.array, rasterio.warp.transform(window.crs, "EPSG:4326", *centres))
    own = geometry.utm_zone(longitude, latitude) == CRS.from_user_input(window.crs).to_epsg()
    return (own & region.within(area, longitude, latitude)).reshape(window.shape)


def cells(
    landsat: Scene | None, sentinel: Scene | None, min_inside: float, area: str | None = None
) -> Iterator[tuple[str, int, int]]:
    """CRS, column and row (counted northwards) of the patches of which enough lies under both scenes.

    A patch of which too little lies in a footprint is left out. With an area, the patch's centre decides: it has to lie
    in the area, however small that is, and in the UTM zone that Sentinel-2's tiling gives to that place. At a zone's
    edge tiles of both zones show the same ground, which would else be in two blocks, and so in two splits.

    Args:
      landsat: a scene, or None to look at the other alone.
      sentinel: a scene, or None; where there is one, its UTM zone is that of the patches.
      min_inside: share of a patch's area that must lie within the scenes' common rectangle.
      area: GeoJSON geometry, as `region.parse` gives it; None: everywhere, and in any zone.

    Raises:
      SceneError: the two scenes do not overlap.
    """
    scenes = [scene for scene in (sentinel, landsat) if scene is not None]
    crs = geometry.sentinel_crs(scenes[0].grid.crs, scenes[0].grid.bounds)
    bounds = pairing.common_bounds(crs, scenes)
    if bounds is None:
        raise SceneError(
            "the scenes of a pair do not overlap; pair them anew, or check their georeference. "
            f"Received: landsat={scenes[-1].id}, sentinel={scenes[0].id}"
        )
    # All dates of a tile have one window, so that `_wanted` can be kept.
    window = _Window.around(crs, pairing.common_bounds(crs, scenes[:1]) or bounds)
    shares = window.shares(bounds)
    chosen = (shares > 0) & (shares >= min_inside)
    for scene in scenes:
        # Half of what is asked for is enough: footprints are drawn coarsely, and the gate counts pixels.
        chosen &= window.covered(scene.footprint) >= min_inside / 2
    if area is not None:
        chosen &= _wanted(window, area)
    for row, column in np.argwhere(chosen).tolist():
        yield crs, window.column + column, window.row + row


def _overlap(start: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share of the cells from `start` on that lies between `low` and `high`."""
    return np.maximum(np.minimum(start + PATCH, high) - np.maximum(start, low), 0.0) / PATCH


def _ring_in(crs: str, ring: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """A ring of degrees in a CRS; its edges, straight in degrees, get points enough to bend as they have to."""
    longitude, latitude = np.array([point[:2] for point in ring], float).T
    along = np.cumsum(np.hypot(np.diff(longitude, prepend=longitude[0]), np.diff(latitude, prepend=latitude[0])))
    dense = np.union1d(along, np.arange(0, along[-1], EDGE))
    points = np.interp(dense, along, longitude), np.interp(dense, along, latitude)
    return list(zip(*rasterio.warp.transform("EPSG:4326", crs, *points), strict=True))


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


def once(patches: Iterable[Patch], scenes: Mapping[tuple[str, str], Scene]) -> list[Patch]:
    """Leaves one of the patches that are one observation: a place as the same passes of the same spacecraft saw it.

    Neighbouring Sentinel-2 tiles of a zone overlap, and so do successive Landsat scenes of a path. The patch that lies
    most inside both scenes stays; of equal ones, that of the smaller ids. A scene without a time is a pass of its own.

    Args:
      patches: in any order.
      scenes: those of the patches, by sensor and id.

    Returns:
      Patches in the order of their ids.
    """
    passes = _passes(scenes)
    same = collections.defaultdict(list)
    for patch in patches:
        seen = (passes[key] if key[1] is not None else None for key in _seen(patch))
        same[patch.crs, patch.left, patch.top, *seen].append(patch)
    kept = (
        min(found, key=lambda patch: _rank(patch, scenes)) if len(found) > 1 else found[0] for found in same.values()
    )
    return sorted(kept)


def _seen(patch: Patch) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    """Sensor and id of both scenes, the id None where there is none."""
    return ("landsat", patch.landsat), ("sentinel", patch.sentinel)


def _rank(patch: Patch, scenes: Mapping[tuple[str, str], Scene]) -> tuple[float, str, str]:
    """What is smallest for the patch that stays."""
    window = _Window.around(patch.crs, patch.grid.bounds)
    seen = [scenes[key] for key in _seen(patch) if key[1] is not None]
    bounds = pairing.common_bounds(patch.crs, seen)
    share = 0.0 if bounds is None else float(window.shares(bounds)[0, 0])
    share *= math.prod(float(window.covered(scene.footprint)[0, 0]) for scene in seen)
    return -share, patch.landsat or "", patch.sentinel or ""


def _passes(scenes: Mapping[tuple[str, str], Scene]) -> dict[tuple[str, str], tuple[str, str]]:
    """Each scene's pass, named by its first scene."""
    passes: dict[tuple[str, str], tuple[str, str]] = {}
    latest: dict[tuple[str, str], tuple[str, str]] = {}
    for key in sorted(scenes, key=lambda key: (scenes[key].time_ms, key)):
        scene, craft = scenes[key], (key[0], scenes[key].spacecraft)
        before = latest.get(craft)
        follows = before and scenes[before].time_ms and scene.time_ms - scenes[before].time_ms < PASS_MS
        passes[key] = passes[before] if follows else key
        latest[craft] = key
    return passes


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
