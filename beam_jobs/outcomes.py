"""What became of each scene, and of all together, in the folder of products.

NAME/NAME.tif and what belongs to it
_outcomes/NAME.json  what became of that scene; written last: a scene without one was not made
dead.jsonl           what could not be made, with the reason
scenes.json          what all of it came to; written last: a folder without it is not finished
flags.txt            repeats the job
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.folder import Folder
from beam_jobs.scene_list import Task
from beam_jobs.shards import PERMANENT, TRANSIENT
from harmonize_tf import artifacts
from harmonize_tf.errors import FlagError

OUTCOMES, DEAD, SCENES, FLAGS = "_outcomes", "dead.jsonl", "scenes.json", "flags.txt"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a scene: products, or a reason why there are none; neither while they are being replaced.

    Attributes:
      scene: its path, without what is secret in a URL.
      identity: of the model (`models.identity`) that made the products; empty where it is dead.
      files: bytes of each product by its name in the folder; where it is dead, of those that an earlier job made.
      pixels: of the product, at 10 m.
      seconds: wall time from the first read to the last file stored.
      kind: "transient" or "permanent" where it is dead; empty where it was made.
      error: why it is dead.
    """

    scene: str
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pixels: int = 0
    seconds: float = 0.0
    kind: str = ""
    error: str = ""

    def stands(self, task: Task, identity: Mapping[str, str], sizes: Mapping[str, int]) -> bool:
        """Whether the scene need not be made: the same model made it from the same path, and its files are whole.

        Args:
          task: the scene.
          identity: of the model that it would be made by.
          sizes: bytes of what is there, by name.
        """
        whole = bool(self.files) and all(sizes.get(name) == size for name, size in self.files.items())
        return whole and self.scene == task.scene and self.identity == identity


def of(folder: Folder, task: Task) -> Outcome | None:
    """What is known of one scene."""
    try:
        return _parse(folder.read(_file(task)))
    except FileNotFoundError:
        return None


def survey(
    folder: Folder, tasks: Iterable[Task], identity: Mapping[str, str]
) -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """Those of the scenes that need not be made, and those that are dead, by name, from one listing."""
    sizes = folder.sizes()
    there = {_file(task): task for task in tasks if _file(task) in sizes}
    found = {there[file]: _parse(content) for file, content in folder.read_many(there).items()}
    known = {task: outcome for task, outcome in found.items() if outcome is not None}
    made = {task.name: outcome for task, outcome in known.items() if outcome.stands(task, identity, sizes)}
    return made, {task.name: one for task, one in known.items() if one.kind and one.scene == task.scene}


def _parse(content: bytes) -> Outcome | None:
    try:
        return Outcome(**json.loads(content))
    except (ValueError, TypeError):  # cut off, or of another version
        return None


def begin(folder: Folder, task: Task) -> list[str]:
    """Forgets what became of a scene but for its files, which are to be replaced, and returns their names."""
    known = of(folder, task)
    if not known or not known.files:
        folder.delete([_file(task)])
        return []
    store(folder, task, Outcome(task.scene, files=known.files))
    return list(known.files)


def store(folder: Folder, task: Task, outcome: Outcome) -> None:
    """Writes down what became of a scene."""
    folder.write(_file(task), (json.dumps(dataclasses.asdict(outcome), sort_keys=True) + "\n").encode())


def _file(task: Task) -> str:
    return f"{OUTCOMES}/{task.name}.json"


def finish(
    folder: Folder, tasks: Sequence[Task], todo: Sequence[Task], identity: Mapping[str, str], max_dead: float
) -> dict[str, Any]:
    """Writes dead.jsonl and, last, scenes.json, and returns what is in that.

    Args:
      folder: of all products.
      tasks: all scenes of the list.
      todo: those of them that this job was to make.
      identity: of the model.
      max_dead: greatest share of the scenes that may be dead.

    Raises:
      FlagError: scenes are missing, or more than that is dead.
    """
    made, lost = survey(folder, tasks, identity)
    dead = [lost[task.name] for task in tasks if task.name in lost]
    lines = [json.dumps({"scene": x.scene, "kind": x.kind, "error": x.error}, sort_keys=True) + "\n" for x in dead]
    folder.write(DEAD, "".join(lines).encode())
    if missing := len(tasks) - len(made) - len(dead):
        raise FlagError(
            f"{missing} of {len(tasks)} scenes are not there yet, or a server has meanwhile made them "
            "by another version of the model; run the same command again, when no other job writes into the folder any "
            f"more. Received: out={folder}"
        )
    counted = {kind: sum(one.kind == kind for one in dead) for kind in (TRANSIENT, PERMANENT)}
    if len(dead) > max_dead * len(tasks):
        reason, times = collections.Counter(one.error.splitlines()[0] for one in dead).most_common(1)[0]
        raise FlagError(
            f"{len(dead)} of {len(tasks)} scenes could not be made ({counted[TRANSIENT]} for passing reasons, "
            f"{counted[PERMANENT]} for good), as {DEAD} lists: mend them and run the same command again, or do without "
            f"them by --max_dead_fraction. {times} of them: {reason} "
            f"Received: max_dead_fraction={max_dead:g}, out={folder}"
        )
    now = {task.name for task in todo}
    told = {
        **identity,
        "scenes": len(tasks),
        "made": sum(name in now for name in made),
        "made_before": sum(name not in now for name in made),
        "dead": counted,
        "megapixels": round(sum(one.pixels for one in made.values()) / 1e6, 3),
        "seconds": round(sum(one.seconds for one in made.values()), 3),
        "bytes": sum(sum(one.files.values()) for one in made.values()),
    }
    folder.write(SCENES, artifacts.to_json(told).encode())
    folder.tidy()
    return told
