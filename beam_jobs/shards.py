"""A shard on disk: one file of records for each split, and a manifest that says what became of every patch.

The manifest comes last; a shard without one was not made. A shard some of whose squares failed for passing reasons is
partial: made again, it keeps what it has and fetches those squares only.
"""

import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs import summary, tally
from beam_jobs.folder import Folder
from beam_jobs.plan import Task
from beam_jobs.squares import Square
from harmonize_tf import records

TRANSIENT, PERMANENT = "transient", "permanent"


@dataclasses.dataclass
class Harvest:
    """What became of some squares.

    Attributes:
      encoded: split, patch id and serialized record of what was exported.
      sums: of the records, see `summary`.
      rejected: a line for each patch that a gate closed on.
      dead: a line for each square that could not be fetched: the work item, its kind and the error.
      requests: what the requests came to, see `tally`.
    """

    encoded: list[tuple[str, str, bytes]] = dataclasses.field(default_factory=list)
    sums: Counter = dataclasses.field(default_factory=Counter)
    rejected: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    dead: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    requests: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, other: "Harvest") -> None:
        """Takes another one in."""
        self.encoded += other.encoded
        self.sums.update(other.sums)
        self.rejected += other.rejected
        self.dead += other.dead
        self.requests += other.requests


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a shard that was made.

    Attributes:
      files: records, bytes and sha256 of the file of every split.
      rejected: see `Harvest`.
      dead: see `Harvest`.
      sums: see `Harvest`.
      requests: see `Harvest`, added up.
    """

    files: Mapping[str, Mapping[str, Any]]
    rejected: Sequence[Mapping[str, Any]]
    dead: Sequence[Mapping[str, Any]]
    sums: Counter
    requests: Mapping[str, Any]

    def missing(self, retry_dead: bool) -> list[Mapping[str, Any]]:
        """The dead squares that are to be fetched again."""
        return [line for line in self.dead if retry_dead or line["kind"] == TRANSIENT]

    def serialized(self) -> bytes:
        """As JSON."""
        plain = vars(self) | {"sums": summary.to_json(self.sums)}
        return (json.dumps(plain, sort_keys=True) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes) -> "Manifest":
        """Out of JSON.

        Raises:
          ValueError: it was cut off.
        """
        plain = json.loads(content)
        return cls(**plain | {"sums": summary.from_json(plain["sums"])})


def manifest_name(shard: str) -> str:
    """Of the file in the folder."""
    return f"shards/{shard}.json"


def file_name(split: str, shard: str) -> str:
    """Of a split's file in the folder."""
    return f"{split}/{shard}.tfrecord.gz"


def write(folder: Folder, shard: str, splits: Iterable[str], harvest: Harvest) -> Manifest:
    """Writes a shard, its records in the order of their ids; a split of which nothing is left gets an empty file."""
    files = {}
    for split in splits:
        kept = sorted((name, serialized) for where, name, serialized in harvest.encoded if where == split)
        content = records.shard(serialized for _, serialized in kept)
        folder.write(file_name(split, shard), content)
        digest = hashlib.sha256(content).hexdigest()
        files[split] = {"records": len(kept), "bytes": len(content), "sha256": digest}
    rejected, dead = (sorted(lines, key=_first_id) for lines in (harvest.rejected, harvest.dead))
    manifest = Manifest(files, rejected, dead, harvest.sums, tally.merged(harvest.requests))
    folder.write(manifest_name(shard), manifest.serialized())
    return manifest


def _first_id(line: Mapping[str, Any]) -> str:
    """Of a rejected patch, or of a dead square's first patch."""
    return line["id"] if "id" in line else line["patches"][0]["id"]


def manifests(folder: Folder, tasks: Iterable[Task]) -> dict[str, Manifest]:
    """Manifests by shard, of the shards whose files are there as they were written."""
    sizes = folder.sizes()
    there = [task.shard for task in tasks if manifest_name(task.shard) in sizes]
    found = folder.read_many([manifest_name(shard) for shard in there])
    whole = {}
    for shard in there:
        try:
            manifest = Manifest.parse(found[manifest_name(shard)])
        except ValueError:
            continue
        files = {file_name(split, shard): entry["bytes"] for split, entry in manifest.files.items()}
        if all(sizes.get(name) == size for name, size in files.items()):
            whole[shard] = manifest
    return whole


def kept(folder: Folder, shard: str, squares: Sequence[Square], *, retry_dead: bool) -> tuple[Harvest, list[Square]]:
    """What a shard that was made before has already, and the squares that it lacks: all where there is none."""
    try:
        manifest = Manifest.parse(folder.read(manifest_name(shard)))
        contents = {split: folder.read(file_name(split, shard)) for split in manifest.files}
    except (FileNotFoundError, ValueError):
        return Harvest(), list(squares)
    if any(hashlib.sha256(contents[split]).hexdigest() != entry["sha256"] for split, entry in manifest.files.items()):
        return Harvest(), list(squares)
    missing = {_first_id(line) for line in manifest.missing(retry_dead)}
    dead = [line for line in manifest.dead if _first_id(line) not in missing]
    encoded = [
        (split, records.decode(serialized).id, serialized)
        for split, content in contents.items()
        for serialized in records.read_shard(io.BytesIO(content))
    ]
    harvest = Harvest(encoded, manifest.sums, list(manifest.rejected), dead, [manifest.requests])
    return harvest, [square for square in squares if square.id in missing]
