"""Which Landsat and Sentinel-2 scenes belong together."""

import bisect
import operator
from collections.abc import Iterator, Sequence

from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid, bounds_in, sentinel_crs
from harmonize_tf.sources import Scene

MAX_DAYS = 5.0  # Sentinel-2's revisit time with two spacecraft, so that every Landsat scene can have a partner
DAY_MS = 86_400_000
Bounds = tuple[float, float, float, float]  # left, bottom, right, top


def pair(landsat: Sequence[Scene], sentinel: Sequence[Scene], max_days: float = MAX_DAYS) -> list[tuple[Scene, Scene]]:
    """Pairs each Landsat scene with the Sentinel-2 scene nearest in time of every tile that shares ground with it.

    Nearest in time means that a scene of the same day is preferred to any other: both sensors pass in the morning.
    Scenes of one grid are of one tile. Both have to be of one level; their UTM zones may differ, Landsat's is warped to
    Sentinel-2's. Scenes without a time pair with nothing. Equal distances in time are decided by the id.

    Args:
      landsat: Landsat scenes.
      sentinel: Sentinel-2 scenes; each may serve several Landsat scenes.
      max_days: greatest distance in time.

    Returns:
      Pairs in the order of `landsat`.
    """
    return [(scene, near[0]) for scene, near in _nearest_first(landsat, sentinel, max_days)]


def candidates(landsat: Sequence[Scene], sentinel: Sequence[Scene], max_days: float) -> list[tuple[Scene, Scene]]:
    """All pairs of which `pair` takes the first of every tile: for each Landsat scene, nearest in time first.

    A scene may show a strip of its tile only, so that which one is nearest depends on the place.
    """
    groups = _nearest_first(landsat, sentinel, max_days)
    return [(scene, other) for scene, near in groups for other in near]


def _nearest_first(
    landsat: Sequence[Scene], sentinel: Sequence[Scene], max_days: float
) -> Iterator[tuple[Scene, list[Scene]]]:
    """Each Landsat scene with each tile that it meets, and the tile's scenes, nearest in time first."""
    time = operator.attrgetter("time_ms")
    ordered = sorted((scene for scene in sentinel if scene.time_ms), key=time)
    for scene in (scene for scene in landsat if scene.time_ms):
        first = bisect.bisect_left(ordered, scene.time_ms - max_days * DAY_MS, key=time)
        last = bisect.bisect_right(ordered, scene.time_ms + max_days * DAY_MS, key=time)
        tiles: dict[Grid, list[Scene]] = {}
        for other in ordered[first:last]:
            if other.level == scene.level:
                tiles.setdefault(other.grid, []).append(other)
        for near in tiles.values():
            if overlap(scene, near[0]):
                yield scene, sorted(near, key=lambda other: (abs(other.time_ms - scene.time_ms), other.id))


def check_pair(landsat: Scene, sentinel: Scene) -> None:
    """Refuses a pair that cannot be compared.

    Raises:
      SceneError: the levels differ, or the scenes show no common ground.
    """
    names = f"pair {landsat.id}, {sentinel.id}"
    if landsat.level != sentinel.level:
        raise SceneError(
            f"{names}: both scenes of a pair must be of one level; choose products of one level. "
            f"Received: level={landsat.level}, {sentinel.level}"
        )
    if not overlap(landsat, sentinel):
        raise SceneError(
            f"{names}: the scenes show no common ground; check the coordinates and the choice of scenes. "
            f"Received: bounds={landsat.grid.bounds} in {landsat.grid.crs}, "
            f"{sentinel.grid.bounds} in {sentinel.grid.crs}"
        )


def overlap(landsat: Scene, sentinel: Scene) -> bool:
    """Whether the scenes' rectangles have an area in common, in the UTM zone in which Sentinel-2 delivers."""
    return common_bounds(sentinel_crs(sentinel.grid.crs, sentinel.grid.bounds), [landsat, sentinel]) is not None


def common_bounds(crs: str, scenes: Sequence[Scene]) -> Bounds | None:
    """The area that the scenes' rectangles have in common in a CRS; None where there is none.

    Where a scene has another CRS, such as Landsat's of the neighbouring zone, its rectangle is the one around it there.
    """
    lefts, bottoms, rights, tops = zip(*(bounds_in(crs, scene.grid) for scene in scenes), strict=True)
    left, bottom, right, top = max(lefts), max(bottoms), min(rights), min(tops)
    return (left, bottom, right, top) if left < right and bottom < top else None
