"""The order of a run, with small programs in place of its commands; a drill runs the commands themselves."""

import json
import os
import re
import sys

import pytest

from harmonize_tf import run, workflow
from harmonize_tf.errors import FlagError, HarmonizeError
from harmonize_tf.manifest import Manifest
from harmonize_tf.radiometry import Bandpass
from harmonize_tf.workflow import Step

# Each command leaves what the real one does; "--fail" or a file named like the step makes it fail.
STUB = """
import json, pathlib, sys
name, *flags = (part.replace("file://", "") for part in sys.argv[1:])
flag = dict(f.lstrip("-").split("=", 1) for f in flags if "=" in f)
if "--fail" in flags:
    sys.exit(3)
if name == "export":
    out = pathlib.Path(flag["out"]); out.mkdir(parents=True, exist_ok=True)
    (out / "dataset_info.json").write_text(json.dumps({"source": "stub", "counts": {"train": 1}, "bands": ["red"],
        "level": "toa", "plan_sha256": "f00", "package_version": "1"}))
    (out / "plan.jsonl").write_text(json.dumps({"landsat": {"id": "L <1>"}, "sentinel": {"id": "S1"}, "patches": [{}]}))
if name == "statistics":
    out = pathlib.Path(flag["out"]); out.mkdir(exist_ok=True); (out / "statistics.pbtxt").write_text("")
if name == "fetch":
    import shutil
    shutil.copytree(flags[0], flags[1], dirs_exist_ok=True)
if name == "train":
    out = pathlib.Path(flag["model_dir"]); out.mkdir(exist_ok=True); (out / "model.keras").write_text(str(flags))
if name == "evaluate":
    out = pathlib.Path(flag["out"]); out.mkdir(exist_ok=True); (out / "report.html").write_text("")
    (out / "blessing.json").write_text(json.dumps({
        "split": "test", "plan_sha256": "f00", "thresholds": "", "package_version": "1", "last_blessed": None,
        "verdicts": [{"blessed": True, "name": "m", "path": "m.keras", "sha256": "abc", "figures": {},
        "rules": [{"sentence": "it is good", "kept": True}]}]}))
if name == "push":
    out = pathlib.Path(flag["serving_dir"]); version = out / str(len(list(out.glob("*"))) + 1) / "assets.extra"
    version.mkdir(parents=True); (version / "harmonize.json").write_text(MANIFEST)
    (version.parent / "saved_model.pb").write_text("")
if name == "serve":
    print("serving at here:1", flush=True); import time; time.sleep(60)
if name == "verify":
    assert flag["target"] == "here:1"
"""


@pytest.fixture
def commands(monkeypatch):
    manifest = Manifest("m", ("red",), "toa", False, 1, 1, (1.0,), Bandpass((1.0,), (0.0,), "identity"))
    stub = f"MANIFEST = {manifest.to_json()!r}\n{STUB}"
    monkeypatch.setattr(Step, "argv", property(lambda self: [sys.executable, "-c", stub, self.name, *self.flags]))


def done(folder, *flags):
    """Runs; the names of the steps that were not left as they were."""
    before = {path: path.read_text() for path in (folder / "log").glob("*.json")}
    run.main([f"--run={folder}", "--name=m", *flags])
    after = {path: path.read_text() for path in (folder / "log").glob("*.json")}
    ran = [workflow.read(path) for path in after if after[path] != before.get(path)]
    return [one["step"] for one in sorted(ran, key=lambda one: ORDER.index(one["step"]))]


ORDER = ["export", "statistics", "fetch", "train", "evaluate", "push", "verify"]
ALL = ["export", "statistics", "train", "evaluate", "push", "verify"]


def test_a_run_does_every_step_once_and_then_what_another_flag_or_input_changes(commands, tmp_path):
    flags = ["--export=--source=stub", "--train=--steps=1"]
    assert done(tmp_path, *flags) == ALL
    assert done(tmp_path, *flags) == []
    assert done(tmp_path, "--export=--source=stub", "--train=--steps=2") == ALL[2:]
    assert done(tmp_path, "--export=--source=other", "--train=--steps=2") == ALL
    assert done(tmp_path, f"--flagfile={tmp_path / 'flags.txt'}") == []
    assert sorted(path.name for path in (tmp_path / "serving" / "m").iterdir()) == ["1", "2", "3"]


def test_what_beam_makes_in_a_bucket_is_fetched_when_it_was_made_anew(commands, tmp_path):
    flags = [f"--bucket=file://{tmp_path / 'bucket'}", "--export=--runner=DataflowRunner"]
    through = ["export", "statistics", "fetch", "fetch"]
    assert done(tmp_path, *flags, "--export=--source=stub") == [*through, *ALL[2:]]
    assert (tmp_path / "bucket" / "examples" / "plan.jsonl").is_file()
    assert (tmp_path / "examples" / "plan.jsonl").is_file()
    assert done(tmp_path, *flags, "--export=--source=stub") == []
    assert done(tmp_path, *flags, "--export=--source=stub", "--train=--steps=2") == ALL[2:]
    assert done(tmp_path, *flags, "--export=--source=other", "--train=--steps=2") == [*through, *ALL[2:]]


@pytest.mark.parametrize("number, step", enumerate(["statistics", "evaluate", "push"]))
def test_a_step_that_refuses_ends_the_run_and_nothing_after_it_is_done(commands, tmp_path, number, step):
    with pytest.raises(HarmonizeError, match=f"{step}, ended with status 3"):
        run.main([f"--run={tmp_path}", f"--{step}=--fail"])
    ran = {path.stem for path in (tmp_path / "log").glob("*.json")}
    assert ran == set(ALL[: ALL.index(step) + 1])
    assert not (tmp_path / "lineage.html").exists()


def test_the_page_leads_from_the_version_back_to_the_scenes(commands, tmp_path):
    run.main([f"--run={tmp_path}", "--name=m", "--export=--source=stub"])
    page = (tmp_path / "lineage.html").read_text()
    for told in ("Served: 1", "Blessed: m", "it is good", "f00", "L &lt;1&gt;", "S1", "--source=stub"):
        assert told in page
    assert re.search("<(script|link|img)", page) is None


def test_a_run_that_goes_over_to_a_bucket_and_back_tells_of_its_own_steps_only(commands, tmp_path):
    flags = ["--export=--source=stub"]
    assert done(tmp_path, *flags) == ALL
    assert done(tmp_path, *flags, f"--bucket=file://{tmp_path}/bucket/") == ORDER[:3] + ORDER[2:]
    page = (tmp_path / "lineage.html").read_text()
    assert f"file://{tmp_path}/bucket/examples" in page
    assert re.findall(r">(\d)\. (\w+)<", page) == list(zip("12345678", ORDER[:3] + ORDER[2:], strict=True))
    assert done(tmp_path, *flags) == ALL
    page = (tmp_path / "lineage.html").read_text()
    assert re.findall(r">(\d)\. (\w+)<", page) == list(zip("123456", ALL, strict=True))


def test_a_folder_is_needed():
    with pytest.raises(FlagError, match="run"):
        run.main([])


@pytest.mark.skipif("HARMONIZE_DRILLS" not in os.environ, reason="a drill of minutes; set HARMONIZE_DRILLS=1")
def test_drill_of_the_commands_themselves(tmp_path):
    flags = ["--export=--source=simulated", "--train=--flagfile=subpixel_small.txt", "--train=--steps=200"]
    assert done(tmp_path, *flags) == ALL
    assert done(tmp_path, *flags) == []
    (blessing,) = json.loads((tmp_path / "evaluation" / "blessing.json").read_text())["verdicts"]
    assert blessing["blessed"]
    with pytest.raises(HarmonizeError, match="push, ended with status 2"):
        done(tmp_path, *flags[:2], "--train=--steps=2")
    assert len(list((tmp_path / "serving" / "m").iterdir())) == 1
