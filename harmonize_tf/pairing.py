"""Which Landsat and Sentinel-2 scenes belong together."""

from collections.abc import Sequence

import rasterio.warp

from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid, sentinel_crs
from harmonize_tf.sources import Scene

MAX_DAYS = 5.0  # Sentinel-2's revisit time with two spacecraft, so that every Landsat scene can have a partner
DAY_MS = 86_400_000


def pair(landsat: Sequence[Scene], sentinel: Sequence[Scene], max_days: float = MAX_DAYS) -> list[tuple[Scene, Scene]]:
    """Pairs each Landsat scene with the Sentinel-2 scene nearest in time of every tile that shares ground with it.

    Scenes of one grid are of one tile. Both have to be of one level and deliver in one UTM zone. Scenes without a time
    pair with nothing. Equal distances in time are decided by the id.

    Args:
      landsat: Landsat scenes.
      sentinel: Sentinel-2 scenes; each may serve several Landsat scenes.
      max_days: greatest distance in time.

    Returns:
      Pairs in the order of `landsat`.
    """
    pairs = []
    for scene in landsat:
        tiles: dict[Grid, list[Scene]] = {}
        for other in sentinel:
            if _belong(scene, other, max_days):
                tiles.setdefault(other.grid, []).append(other)
        for near in tiles.values():
            pairs.append((scene, min(near, key=lambda other: (abs(other.time_ms - scene.time_ms), other.id))))
    return pairs


def check_pair(landsat: Scene, sentinel: Scene) -> None:
    """Refuses a pair that cannot be compared.

    Raises:
      SceneError: the levels or the UTM zones differ, or the scenes show no common ground.
    """
    names = f"pair {landsat.id}, {sentinel.id}"
    if landsat.level != sentinel.level:
        raise SceneError(
            f"{names}: both scenes of a pair must be of one level; choose products of one level. "
            f"Received: level={landsat.level}, {sentinel.level}"
        )
    if _zone(landsat) != _zone(sentinel):
        raise SceneError(
            f"{names}: both scenes of a pair must lie in one UTM zone (either hemisphere's); choose the "
            f"Sentinel-2 tile of Landsat's zone, or warp one. Received: crs={landsat.grid.crs}, {sentinel.grid.crs}"
        )
    if not overlap(landsat, sentinel):
        raise SceneError(
            f"{names}: the scenes show no common ground; check the coordinates and the choice of scenes. "
            f"Received: bounds={landsat.grid.bounds} in {landsat.grid.crs}, "
            f"{sentinel.grid.bounds} in {sentinel.grid.crs}"
        )


def overlap(first: Scene, second: Scene) -> bool:
    """Whether the footprints (bounding boxes, in the first one's CRS) have an area in common."""
    bounds = second.grid.bounds
    if second.grid.crs != first.grid.crs:
        bounds = rasterio.warp.transform_bounds(second.grid.crs, first.grid.crs, *bounds)
    left, bottom, right, top = first.grid.bounds
    return max(left, bounds[0]) < min(right, bounds[2]) and max(bottom, bounds[1]) < min(top, bounds[3])


def _zone(scene: Scene) -> str:
    """The UTM zone's number; the hemispheres are variants of one zone."""
    return sentinel_crs(scene.grid.crs, scene.grid.bounds)[-2:]


def _belong(landsat: Scene, sentinel: Scene, max_days: float) -> bool:
    if not landsat.time_ms or not sentinel.time_ms or landsat.level != sentinel.level:
        return False
    near = abs(landsat.time_ms - sentinel.time_ms) <= max_days * DAY_MS
    return near and _zone(landsat) == _zone(sentinel) and overlap(landsat, sentinel)
