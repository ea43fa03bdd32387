"""The scenes that are to be made: a text file with one a line, and the name that each has in the folder of products."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator

from beam_jobs.folder import Folder, StorageError
from harmonize_tf.errors import FlagError
from harmonize_tf.mgrs import mgrs_tile

# What a path may end in that is no part of a scene's name; so no scene has the name of a file of the job's own either.
_ENDINGS = re.compile(r"(/manifest\.json|_MTL\.(txt|json)|\.(txt|jsonl?|tar|tar\.gz|tgz))+$", re.IGNORECASE)
_SECRETS = re.compile(r"(?<=://)[^/?]*@|(?<=\?).+")  # of a URL: user and password, signature
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST = 100  # characters of a name, of the 255 that filesystems take, endings and what is written aside included


@dataclasses.dataclass(frozen=True)
class Task:
    """A scene to be made: the element that goes through the pipeline.

    Attributes:
      name: of its products, unique in the list and safe as a file's name.
      path: where it is, as `harmonize scene` takes it; absolute or a URL.
      tile: Sentinel-2 tile to write, such as 33UUU; empty: all of the scene.
    """

    name: str
    path: str
    tile: str = ""

    @property
    def scene(self) -> str:
        """Its line, without what nobody else should see of a URL, and which changes."""
        path = _SECRETS.sub("", self.path).removesuffix("?") if "://" in self.path else self.path
        return f"{path}\t{self.tile}" if self.tile else path

    @property
    def secrets(self) -> list[str]:
        """Parts of the path that must not be written down where they stay."""
        return _SECRETS.findall(self.path) if "://" in self.path else []


def read(path: str) -> list[Task]:
    """Reads a list with a scene a line: a path or URL, perhaps a tab and a tile. Lines that begin with # are comments.

    Args:
      path: of the list, on this machine or in a bucket. Relative paths in it start at the working directory.

    Raises:
      FlagError: there is no such list, no scene in it, or two of its scenes would have one name.
      SceneError: there is no such tile.
    """
    parent, _, name = path.rpartition("/")
    try:
        content = Folder(parent or ("/" if path.startswith("/") else ".")).read(name).decode()
    except (OSError, StorageError, ValueError) as error:
        raise FlagError(
            f"expected a text file with a scene a line ({error or type(error).__name__}). Received: scenes={path}"
        ) from error
    tasks: dict[str, Task] = {}
    for line in content.splitlines():
        if not (line := line.strip()) or line.startswith("#"):
            continue
        task = _task(line)
        other = tasks.setdefault(task.name, task)
        if other.scene != task.scene:
            raise FlagError(
                f"two scenes would be {task.name} in the folder of products; leave one out, or rename it. Received: "
                f"{other.scene} and {task.scene} in scenes={path}"
            )
    if not tasks:
        raise FlagError(f"expected a text file with a scene a line, and no line has one. Received: scenes={path}")
    return list(tasks.values())


def write(folder: Folder, name: str, tasks: Iterable[Task]) -> None:
    """Writes scenes down for the workers: a year's list is larger than what a job may be described by."""
    folder.write(name, "".join(json.dumps(dataclasses.astuple(task)) + "\n" for task in tasks).encode())


def written(name: str, folder: Folder) -> Iterator[Task]:
    """What `write` has written."""
    return (Task(*json.loads(line)) for line in folder.read(name).splitlines())


def _task(line: str) -> Task:
    given, _, tile = (part.strip() for part in line.partition("\t"))
    task = Task("", given.rstrip("/") if "://" in given else os.path.abspath(given))
    last = _ENDINGS.sub("", task.scene).rpartition("/")[2]
    name = _UNSAFE.sub("_", last).lstrip("._-")[:LONGEST]
    if not name:
        raise FlagError(f"expected a path whose last part can name the products; rename it. Received: {task.scene}")
    if tile:
        mgrs_tile(tile)
    return dataclasses.replace(task, name=f"{name}_{tile}" if tile else name, tile=tile)
