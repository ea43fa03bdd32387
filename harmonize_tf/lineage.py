"""`RUN/lineage.html`: from the model that is served back to the scenes that it was made of."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harmonize_tf import artifacts, blessing, pages, versions, workflow
from harmonize_tf.blessing import Blessing
from harmonize_tf.errors import ModelError
from harmonize_tf.manifest import FILE as MANIFEST_FILE
from harmonize_tf.manifest import Manifest
from harmonize_tf.workflow import Step

FILE = "lineage.html"

_TEMPLATE = pathlib.Path(__file__).with_name("lineage.html.jinja")


def write(run: pathlib.Path, name: str, steps: Sequence[Step], log_dir: pathlib.Path) -> pathlib.Path:
    """Writes the page of the newest version.

    Args:
      run: folder of `harmonize run`.
      name: the model's name on servers.
      steps: that have been run.
      log_dir: what came of them lies there.

    Returns:
      The page.

    Raises:
      ModelError: nothing has been pushed there, or blessing.json is damaged.
    """
    path = run / FILE
    sections = [*_sections(run, name), ("Steps", _steps(steps, log_dir))]
    page = pages.render(_TEMPLATE, title=f"{name}: where it comes from", sections=sections)
    artifacts.write(path, page)
    return path


def _sections(run: pathlib.Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What is told of each artifact, the served version first."""
    served = run / "serving" / name
    version = versions.newest(served)
    if version == served:
        raise ModelError(f"nothing has been pushed there. Received: {served}")
    manifest = Manifest.from_json((version / MANIFEST_FILE).read_bytes())
    made = manifest.provenance
    yield f"Served: {version.name}", {
        "bands": ", ".join(manifest.bands), "level": manifest.level, "package": manifest.package_version,
        "model": made.get("model", ""), "SHA-256 of the model": made.get("sha256", ""),
    }  # fmt: skip
    decided = run / "evaluation" / blessing.FILE
    judged = Blessing.load(decided) if decided.is_file() else None
    for verdict in judged.verdicts if judged else ():
        yield f"{'Blessed' if verdict.blessed else 'Not blessed'}: {verdict.name}", {
            "SHA-256 of the model": verdict.sha256, "split": judged.split, "records": judged.plan_sha256,
            **{f"rule {n}": rule.sentence for n, rule in enumerate(verdict.rules, 1)},
        }  # fmt: skip
    summary = _json(run / "training" / "summary.json")
    if summary:
        told = ("model", "steps", "best_step", "best_rmse", "examples", "seed", "precision", "package_version")
        flags = ", ".join(f"{flag}={value}" for flag, value in summary["flags"].items())
        yield "Trained", {key: summary[key] for key in told} | {"flags": flags}
    info = _json(run / "examples" / "dataset_info.json")
    if info:
        counts = ", ".join(f"{split} {count}" for split, count in info["counts"].items())
        yield "Learnt and judged on", {
            "source": info["source"], "patches": counts, "bands": ", ".join(info["bands"]), "level": info["level"],
            "records": info["plan_sha256"], "package": info["package_version"],
        }  # fmt: skip
    yield "Made of the scenes", _scenes(run / "examples" / "plan.jsonl")


def _steps(steps: Sequence[Step], log_dir: pathlib.Path) -> dict[str, str]:
    """When each step ended, and its command."""
    return {
        f"{number}. {step.name}": f"{ran['ended']}, harmonize {step.name} {' '.join(ran['flags'])}"
        for number, step in enumerate(steps, 1)
        if (ran := workflow.read(workflow.record(log_dir, step.label))).get("ended")
    }


def _scenes(plan: pathlib.Path) -> dict[str, str]:
    """Each scene's id and in how many patches it is."""
    counts: dict[str, list[Any]] = {}
    for line in plan.read_text().splitlines() if plan.is_file() else ():
        square = json.loads(line)
        for side in ("landsat", "sentinel"):
            if scene := square.get(side):
                counts.setdefault(scene["id"], [side, 0])[1] += len(square["patches"])
    return {name: f"{side}, {count} patches planned" for name, (side, count) in sorted(counts.items())}


def _json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
