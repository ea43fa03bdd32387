"""That the commands of docs/export.md and docs/scaling.md run as they are written."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

from beam_jobs import export_pairs, harmonize_scenes, options
from harmonize_tf import command

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXPORT, SCALING = ((ROOT / "docs" / name).read_text() for name in ("export.md", "scaling.md"))


def commands(heading: str, text: str = EXPORT) -> list[str]:
    """The shell commands under a heading."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_a_newcomers_first_export_runs_as_written(tmp_path):
    script = "\n".join(["set -e", "trap 'kill %1' EXIT", *commands("A first export on a laptop")])
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # As for a newcomer, on whose machine another project's credentials may be.
    environment = os.environ | {"PATH": path, "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}
    run = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"requests  \d+ for .* MB of pixels", run.stdout)
    assert re.search(r"first/examples: \d+ train, \d+ val, \d+ test", run.stderr)
    assert "Traceback" not in run.stderr
    assert (tmp_path / "first" / "examples" / "dataset_info.json").exists()


def test_the_dataflow_command_is_understood_and_shares_the_quota_as_the_text_says():
    (text,) = commands("On Dataflow")
    python, _, module, *argv = shlex.split(text.replace("\\\n", " "))
    assert (python, module) == ("python", "beam_jobs.export_pairs")
    rest = command.parse(export_pairs.FLAGS, argv, known_only=True)
    assert options.share(options.pipeline_options(rest, 2, export_pairs.FLAGS), 40) == 2
    assert "40 / (10 x 2) = 2" in EXPORT


def test_the_dataflow_command_for_scenes_gives_each_worker_one_process():
    (text,) = commands("On Dataflow", SCALING)
    python, _, module, *argv = shlex.split(text.replace("\\\n", " "))
    assert (python, module) == ("python", "beam_jobs.harmonize_scenes")
    rest = command.parse(harmonize_scenes.FLAGS, argv, known_only=True)
    assert options.processes(options.pipeline_options(rest, 1, harmonize_scenes.FLAGS)) == 100
