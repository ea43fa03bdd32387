"""`RUN/lineage.html`: from the model that is served back to the scenes that it was made of."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2

from harmonize_tf import artifacts, workflow
from harmonize_tf.errors import ModelError
from harmonize_tf.manifest import Manifest

FILE = "lineage.html"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }
th { font-weight: 600; width: 11rem; overflow-wrap: anywhere; } td { overflow-wrap: anywhere; }
</style></head><body><h1>{{ title }}</h1>
{% for title, rows in sections %}
<h2>{{ title }}</h2><table>
{% for name, value in rows.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
{% endfor %}
</body></html>
"""


def write(run: pathlib.Path, name: str) -> pathlib.Path:
    """Writes the page of the newest version.

    Args:
      run: folder of `harmonize run`.
      name: the model's name on servers.

    Returns:
      The page.

    Raises:
      ModelError: nothing has been pushed there.
    """
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    path = run / FILE
    artifacts.write(path, page.render(title=f"{name}: where it comes from", sections=_sections(run, name)))
    return path


def _sections(run: pathlib.Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What is told of each artifact, the served version first."""
    pushed = run.glob(f"serving/{name}/*/assets.extra/harmonize.json")
    found = sorted((path for path in pushed if path.parts[-3].isdecimal()), key=lambda path: int(path.parts[-3]))
    if not found:
        raise ModelError(f"nothing has been pushed there. Received: {run / 'serving' / name}")
    manifest = Manifest.from_json(found[-1].read_bytes())
    made = manifest.provenance
    yield f"Served: {found[-1].parts[-3]}", {
        "bands": ", ".join(manifest.bands), "level": manifest.level, "package": manifest.package_version,
        "model": made.get("model", ""), "SHA-256 of the model": made.get("sha256", ""),
    }  # fmt: skip
    blessing = _json(run / "evaluation" / "blessing.json")
    for verdict in blessing.get("verdicts", []):
        yield f"{'Blessed' if verdict['blessed'] else 'Not blessed'}: {verdict['name']}", {
            "SHA-256 of the model": verdict["sha256"], "split": blessing["split"], "records": blessing["plan_sha256"],
            **{f"rule {n}": rule["sentence"] for n, rule in enumerate(verdict["rules"], 1)},
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
    yield (
        "Steps",
        {
            f"{number}. {step['step']}": f"{step['ended']}, harmonize {step['step']} {' '.join(step['flags'])}"
            for number, file in enumerate(_logs(run), 1)
            if (step := workflow.read(file)).get("ended")
        },
    )


def _logs(run: pathlib.Path) -> list[pathlib.Path]:
    return sorted((run / "log").glob("*-*.json"), key=lambda path: int(path.name.split("-")[0]))


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
