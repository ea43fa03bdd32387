"""The work item: a square of neighbouring patches of one pair of scenes, which are read together.

A line of plan.jsonl holds all that is needed to fetch it, scenes included, and so does a dead letter.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harmonize_tf import geometry
from harmonize_tf.geometry import PATCH, Grid
from harmonize_tf.patches import Patch
from harmonize_tf.sources import Scene

Pair = tuple[Scene | None, Scene | None]


@dataclasses.dataclass(frozen=True)
class Square:
    """Neighbouring patches of one pair.

    Attributes:
      scenes: Landsat's and Sentinel-2's; one may be None.
      patches: in the order of their ids.
    """

    scenes: Pair
    patches: tuple[Patch, ...]

    @property
    def id(self) -> str:
        """The smallest of its patches' ids: a hash, so that their order has nothing to do with the ground."""
        return self.patches[0].id

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        landsat, sentinel = (scene and _plain(scene) for scene in self.scenes)
        names = ("id", "split", "block", "crs", "left", "top")
        places = [{name: getattr(patch, name) for name in names} for patch in self.patches]
        return {"landsat": landsat, "sentinel": sentinel, "patches": places}

    def line(self) -> str:
        """As a line of plan.jsonl."""
        return json.dumps(self.plain(), sort_keys=True, separators=(",", ":")) + "\n"

    @classmethod
    def parse(cls, line: str | bytes) -> "Square":
        """Out of a line of plan.jsonl, or of dead.jsonl, which says more."""
        content = json.loads(line)
        scenes = tuple(content[sensor] and _scene(content[sensor]) for sensor in ("landsat", "sentinel"))
        ids = {"landsat": scenes[0] and scenes[0].id, "sentinel": scenes[1] and scenes[1].id}
        return cls(scenes, tuple(Patch(**place, **ids) for place in content["patches"]))


def squares(patches: Iterable[Patch], scenes: Mapping[tuple[str, str], Scene], side: int) -> list[Square]:
    """Groups patches.

    Args:
      patches: any.
      scenes: by sensor and id.
      side: of a square, in patches.

    Returns:
      Squares in the order of their ids.
    """
    groups: dict[tuple, list[Patch]] = {}
    for patch in patches:
        east, north = geometry.lattice_origin(patch.crs)
        column, row = round((patch.left - east) / PATCH), round((patch.top - north) / PATCH)
        groups.setdefault((patch.landsat, patch.sentinel, patch.crs, column // side, row // side), []).append(patch)
    found = [
        Square((scenes.get(("landsat", members[0].landsat)), scenes.get(("sentinel", members[0].sentinel))),
               tuple(sorted(members)))
        for members in groups.values()
    ]  # fmt: skip
    return sorted(found, key=lambda square: square.id)


def _plain(scene: Scene) -> dict[str, Any]:
    """A scene for JSON: bands together by their grid, and null for what is not known."""
    grids = {grid: [b for b in scene.grids if scene.grids[b] == grid] for grid in dict.fromkeys(scene.grids.values())}
    plain = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}
    angles = {name: [None if math.isnan(x) else x for x in plain[name]] for name in ("sun", "view")}
    return plain | angles | {"grids": [{"bands": bands, **dataclasses.asdict(g)} for g, bands in grids.items()]}


def _scene(plain: Mapping[str, Any]) -> Scene:
    """The inverse of `_plain`, up to the order of the bands, which is that of their grids."""
    grids = {}
    for entry in plain["grids"]:
        place = {name: entry[name] for name in ("crs", "left", "top")}
        grid = Grid(**place, pixel=tuple(entry["pixel"]), shape=tuple(entry["shape"]))
        grids |= dict.fromkeys(entry["bands"], grid)
    return Scene(**{
        **plain,
        "grids": grids,
        "sun": _angles(plain["sun"]),
        "view": _angles(plain["view"]),
        "masks": tuple(plain["masks"]),
    })  # fmt: skip


def _angles(values: Sequence[float | None]) -> tuple[float, float]:
    first, second = (math.nan if value is None else value for value in values)
    return first, second
