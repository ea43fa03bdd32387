"""An export as a folder: begun, continued, refused, finished.

job.json          what makes it this export; written last of all that is planned
plan.jsonl        a square of patches a line
flags.txt         repeats the run
shards/*.json     a manifest for each shard that was made
{train,val,test}/*.tfrecord.gz
rejected.jsonl    what a gate closed on
dead.jsonl        what could not be fetched, with all that is needed to fetch it
dataset_info.json what is in the records; written last: a folder without it is not finished
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs import summary, tally
from beam_jobs.folder import Folder
from beam_jobs.plan import PLAN, Plan, Task
from beam_jobs.shards import PERMANENT, TRANSIENT, Manifest
from harmonize_tf import geometry, patches, records
from harmonize_tf.errors import FlagError

JOB, INFO, FLAGS, REJECTED, DEAD = "job.json", "dataset_info.json", "flags.txt", "rejected.jsonl", "dead.jsonl"
_OURS = re.compile(
    rf"{JOB}|{INFO}|{FLAGS}|{PLAN}|{REJECTED}|{DEAD}|shards/[^/]+\.json|({'|'.join(patches.SPLITS)})/[^/]+\.tfrecord\.gz"
)


@dataclasses.dataclass(frozen=True)
class Export:
    """What was planned.

    Attributes:
      about: level, bands and so on, for dataset_info.json.
      splits: those that have patches.
      tasks: one for each shard.
    """

    about: Mapping[str, Any]
    splits: tuple[str, ...]
    tasks: tuple[Task, ...]

    @property
    def patches(self) -> int:
        """How many were planned."""
        return sum(task.patches for task in self.tasks)


def workplace(out: Folder, *, overwrite: bool) -> Folder:
    """Where to write: the folder itself, or one beside it as long as a finished export is to be overwritten.

    A finished one beside it that had not yet taken its place takes it first.

    Raises:
      FlagError: the folder holds something else than an export, or nothing can be written there.
    """
    out.check_writable()
    _check_ours(out)
    work = Folder(f"{out}.new")
    if not out.exists(INFO) and work.exists(INFO) and work.exists(JOB):
        _check_ours(work)
        out.take_over(work, INFO)  # which had been broken off
    if not (overwrite and out.exists(INFO)):
        return out
    _check_ours(work)
    return work


def _check_ours(folder: Folder) -> None:
    strange = next((name for name in folder.sizes() if not _OURS.fullmatch(name)), None)
    if strange:
        raise FlagError(
            f"expected no such folder, an empty one, or one that `harmonize export` has made; choose another --out. "
            f"Received: out={folder}, with {strange}"
        )


def find(folder: Folder, identity: Mapping[str, Any], *, overwrite: bool) -> Export | None:
    """The export that a folder holds; None where a new one is to be begun.

    Args:
      folder: from `workplace`.
      identity: what this export would be, from `settings.identity`.
      overwrite: whether another export gives way that is not finished.

    Raises:
      FlagError: the folder holds another export, or a plan that was changed.
    """
    if not folder.exists(JOB):
        if folder.exists(INFO):
            raise FlagError(
                f"{folder} holds an export of an older version; use --overwrite, or another folder. "
                f"Received: out={folder}"
            )
        return None
    stored = _load(folder, JOB)
    differences = _differences(stored["identity"], identity)
    if differences and overwrite and not folder.exists(INFO):
        return None
    if differences:
        remedy = "delete it, or choose another --out" if overwrite else "use --overwrite, or another folder"
        raise FlagError(f"{folder} holds another export ({'; '.join(differences)}); {remedy}. Received: out={folder}")
    content = folder.read(PLAN) if folder.exists(PLAN) else b""
    if hashlib.sha256(content).hexdigest() != stored["about"]["plan_sha256"]:
        if overwrite:
            return None
        raise FlagError(
            f"the plan was changed after the export had begun; use --overwrite, or another folder. "
            f"Received: {folder}/{PLAN}"
        )
    return Export(stored["about"], tuple(stored["splits"]), tuple(Task(*task) for task in stored["tasks"]))


def begin(folder: Folder, identity: Mapping[str, Any], about: Mapping[str, Any], plan: Plan, flags: str) -> Export:
    """Writes down what is to be done; whatever export the folder held is gone then."""
    folder.delete([JOB])
    folder.delete([name for name in folder.sizes() if _OURS.fullmatch(name)])
    folder.tidy()
    content, tasks = plan.written()
    about = {**about, "plan_sha256": hashlib.sha256(content).hexdigest()}
    found = {patch.split for patch in plan.patches}
    splits = tuple(split for split in patches.SPLITS if split in found)
    folder.write(PLAN, content)
    folder.write(FLAGS, flags.encode())
    rows = [dataclasses.astuple(task) for task in tasks]
    job = {"identity": identity, "about": about, "splits": splits, "tasks": rows}
    folder.write(JOB, (json.dumps(job, sort_keys=True) + "\n").encode())
    return Export(about, splits, tuple(tasks))


def is_finished(folder: Folder) -> bool:
    """Whether dataset_info.json is there and whole."""
    try:
        return folder.exists(INFO) and bool(json.loads(folder.read(INFO)))
    except ValueError:
        return False


def unfinished(export: Export, made: Mapping[str, Manifest], retry_dead: bool) -> list[Task]:
    """The shards that are not there yet, or not whole."""
    return [task for task in export.tasks if task.shard not in made or made[task.shard].missing(retry_dead)]


def finish(
    folder: Folder, export: Export, identity: Mapping[str, Any], made: Mapping[str, Manifest], max_dead: float
) -> dict[str, Any]:
    """Writes rejected.jsonl, dead.jsonl and, last, dataset_info.json, and returns what is in that.

    Args:
      folder: of the examples.
      export: what was planned.
      identity: what it was planned from.
      made: manifests by shard.
      max_dead: greatest share of the patches that may be dead.

    Raises:
      FlagError: shards are missing, more than that is dead, or a split got nothing.
    """
    ordered = [made[task.shard] for task in export.tasks if task.shard in made]
    rejected = [line for manifest in ordered for line in manifest.rejected]
    dead = [line for manifest in ordered for line in manifest.dead]
    for name, lines in ((REJECTED, rejected), (DEAD, dead)):
        folder.write(name, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())
    if len(ordered) < len(export.tasks):
        raise FlagError(
            f"{len(export.tasks) - len(ordered)} of {len(export.tasks)} shards are not there yet; run the same command "
            f"again, when no other job writes into the folder any more. Received: out={folder}"
        )
    reasons = collections.Counter(line["reason"] for line in rejected)
    counted = {kind: sum(len(x["patches"]) for x in dead if x["kind"] == kind) for kind in (TRANSIENT, PERMANENT)}
    _check_dead(folder, export, dead, counted, max_dead)
    sums: collections.Counter = collections.Counter()
    for manifest in ordered:
        sums.update(manifest.sums)
    info = {
        "schema": records.SCHEMA,
        "patch_m": geometry.PATCH,
        **identity,
        **export.about,
        **summary.described(sums),
        "rejected": dict(sorted(reasons.items())),
        "dead": counted,
        "requests": tally.merged([manifest.requests for manifest in ordered]),
    }
    _check_splits(info)
    folder.write(INFO, (json.dumps(info, indent=2, sort_keys=True) + "\n").encode())
    folder.tidy()
    return info


def _check_dead(
    folder: Folder, export: Export, dead: Sequence[Mapping], counted: Mapping[str, int], max_dead: float
) -> None:
    share = sum(counted.values()) / export.patches
    if share <= max_dead:
        return
    remedies = []
    if counted[TRANSIENT]:
        remedies.append(f"run the same command again for the {counted[TRANSIENT]} that failed for passing reasons")
    if counted[PERMANENT]:
        remedies.append(f"mend what is wrong with {counted[PERMANENT]} and add --retry_dead")
    first = dead[0]["error"].splitlines()[0]
    raise FlagError(
        f"{sum(counted.values())} of {export.patches} patches could not be fetched, as {DEAD} lists: "
        f"{'; '.join(remedies)}, or do without them by --max_dead_fraction. The first one: {first} "
        f"Received: max_dead_fraction={max_dead:g}, out={folder}"
    )


def _check_splits(info: Mapping[str, Any]) -> None:
    counted = [f"{count} by {reason}" for reason, count in info["rejected"].items()]
    counted += [f"{count} {kind} failures" for kind, count in info["dead"].items() if count]
    reasons = ", ".join(counted) or "none"
    patches.check_all_splits_filled(
        info["counts"],
        info["flags"]["split"],
        f"Left out were {reasons}: loosen --min_valid, --max_shift or --min_correlation, give more scenes, or use a "
        "smaller --split_block or another --seed; and --overwrite what is there.",
    )


def _differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, for a person."""
    names = sorted({*stored["flags"], *now["flags"]})
    there, here = (tuple(x["flags"].get(name) for name in names) for x in (stored, now))
    found = [f"{n}={_told(a)} there, {_told(b)} now" for n, a, b in zip(names, there, here, strict=True) if a != b]
    changed = [p for p, digest in now["inputs"].items() if stored["inputs"].get(p, digest) != digest]
    found += [f"what {path} holds has changed" for path in changed]
    if stored["package_version"] != now["package_version"]:
        found.append(f"made by version {stored['package_version']}, now {now['package_version']}")
    return found


def _told(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _load(folder: Folder, name: str) -> dict[str, Any]:
    try:
        return json.loads(folder.read(name))
    except ValueError as error:
        raise FlagError(
            f"the export that is there is damaged ({error}); delete it or choose another --out. "
            f"Received: {folder}/{name}"
        ) from error
