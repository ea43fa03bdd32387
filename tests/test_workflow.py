import os
import signal
import subprocess
import sys
import time

import pytest

from harmonize_tf import workflow
from harmonize_tf.errors import HarmonizeError
from harmonize_tf.workflow import Step


class PythonStep(Step):
    """A step that runs Python code, the first of its flags, instead of a command."""

    @property
    def argv(self):
        return [workflow.sys.executable, "-c", *self.flags]


def python(code, flags=(), *files, **more):
    return PythonStep("python", [code, *flags], *files, **more)


@pytest.fixture
def copy(tmp_path):
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("1")
    code = "import sys; open(sys.argv[2], 'a').write(open(sys.argv[1]).read())"
    return python(code, [str(source), str(target)], [source], [target])


def test_a_step_is_repeated_only_when_its_input_its_flags_or_its_output_changed(copy, tmp_path):
    workflow.run([copy], tmp_path / "log")
    workflow.run([copy], tmp_path / "log")
    assert copy.outputs[0].read_text() == "1"
    copy.inputs[0].write_text("23")
    workflow.run([copy], tmp_path / "log")
    assert copy.outputs[0].read_text() == "123"
    copy.outputs[0].unlink()
    workflow.run([copy], tmp_path / "log")
    assert copy.outputs[0].read_text() == "23"
    workflow.run([PythonStep(copy.name, [*copy.flags, "more"], copy.inputs, copy.outputs)], tmp_path / "log")
    assert copy.outputs[0].read_text() == "2323"


def test_a_failed_step_stops_the_run_and_is_tried_again(copy, tmp_path):
    failing = python("raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(HarmonizeError, match="status 3"):
            workflow.run([failing, copy], tmp_path / "log")
    assert not copy.outputs[0].exists()


def test_a_folder_of_its_own_is_kept_after_an_interruption_and_emptied_for_other_flags(tmp_path):
    folder = tmp_path / "training"
    code = (
        "import pathlib, sys\nfolder = pathlib.Path(sys.argv[1]); folder.mkdir(exist_ok=True)\n"
        "file = folder / 'steps'; steps = file.read_text() if file.exists() else ''\n"
        "file.write_text(steps + sys.argv[2])\n"
        "import os, signal\nif not steps and sys.argv[2] == 'a': os.kill(os.getpid(), signal.SIGKILL)"
    )

    def step(what):
        return python(code, [str(folder), what], [], [folder / "steps"], owned=folder)

    with pytest.raises(HarmonizeError, match="status -9"):
        workflow.run([step("a")], tmp_path / "log")
    workflow.run([step("a")], tmp_path / "log")
    assert (folder / "steps").read_text() == "aa"
    workflow.run([step("b")], tmp_path / "log")
    assert (folder / "steps").read_text() == "b"


def test_wrong_flags_cost_nothing_of_what_a_step_has_made(tmp_path):
    folder = tmp_path / "training"
    code = (
        "import pathlib, sys\nif sys.argv[2] == 'typo': sys.exit(2)\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir(); (folder / 'made').write_text(sys.argv[2])"
    )

    def run(what):
        step = python(code, [str(folder), what], [], [folder / "made"], owned=folder)
        workflow.run([step], tmp_path / "log")

    run("a")
    time = (folder / "made").stat().st_mtime_ns
    with pytest.raises(HarmonizeError, match="status 2"):
        run("typo")
    run("a")
    assert (folder / "made").stat().st_mtime_ns == time
    run("b")
    assert (folder / "made").read_text() == "b" and not (tmp_path / "training.before").exists()


def test_a_file_that_a_flag_names_is_an_input(copy, tmp_path):
    named = tmp_path / "flags.txt"
    named.write_text("--steps=1")
    step = PythonStep(copy.name, [*copy.flags, f"--flagfile={named}"], [], copy.outputs)
    workflow.run([step], tmp_path / "log")
    workflow.run([step], tmp_path / "log")
    assert copy.outputs[0].read_text() == "1"
    named.write_text("--steps=9999")
    workflow.run([step], tmp_path / "log")
    assert copy.outputs[0].read_text() == "11"


@pytest.fixture
def stoppable(tmp_path):
    """A run in another process, in the middle of a step that takes half a second to stop, and where that says so."""
    step = (
        "import pathlib, signal, sys, time\nseen = pathlib.Path(sys.argv[1])\n"
        "def stop(number, _):\n seen.open('a').write(f'{number} '); time.sleep(0.5); seen.open('a').write('saved '); "
        "sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)\n"
        "seen.with_suffix('.up').write_text('')\ntime.sleep(60)"
    )
    outer = (
        "import pathlib, sys\nfrom harmonize_tf import command, workflow\n"
        "class PythonStep(workflow.Step):\n argv = property(lambda self: [sys.executable, '-c', *self.flags])\n"
        "command.run(lambda: workflow.run([PythonStep('python', sys.argv[2:])], pathlib.Path(sys.argv[1])))"
    )
    seen = tmp_path / "seen.txt"
    arguments = [sys.executable, "-c", outer, str(tmp_path / "log"), step, str(seen)]
    process = subprocess.Popen(arguments, start_new_session=True)
    wait_until(seen.with_suffix(".up").exists)
    return process, seen


def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_reaches_the_step_once_and_waits_for_it(stoppable, number):
    process, seen = stoppable
    os.killpg(process.pid, number)  # as a terminal sends it: to all that are in the foreground
    assert process.wait(60) == 128 + number
    assert seen.read_text() == f"{signal.SIGTERM} saved "


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_the_step_of_a_run_that_is_killed_saves_its_work_and_ends(stoppable):
    process, seen = stoppable
    process.kill()
    process.wait(60)
    wait_until(lambda: seen.exists() and seen.read_text() == f"{signal.SIGTERM} saved ")


def test_what_a_step_says_and_what_came_of_it_is_kept(tmp_path, capfd):
    saying = python("import sys; print('to one'); print('to two', file=sys.stderr); sys.exit(int(sys.argv[1]))", ["4"])
    with pytest.raises(HarmonizeError, match="status 4"):
        workflow.run([saying], tmp_path)
    (log,) = tmp_path.glob("*.log")
    assert sorted(log.read_text().splitlines()) == ["to one", "to two"]
    assert "to one" in capfd.readouterr().out
    told = workflow.read(log.with_suffix(".json"))
    assert (told["status"], told["flags"][1:]) == (4, ["4"]) and told["began"] <= told["ended"]


def test_a_step_runs_beside_its_service_and_is_told_the_address(tmp_path):
    server = python(
        "import sys, time; print('look at this', file=sys.stderr); print('loading', flush=True)\n"
        "print('serving m at h:7', flush=True); time.sleep(60)"
    )
    out = tmp_path / "out.txt"
    step = python("import sys; open(sys.argv[1], 'a').write(sys.argv[2])", [str(out), "{address}"], [], [out], server)
    workflow.run([step], tmp_path / "log")
    workflow.run([step], tmp_path / "log")
    assert out.read_text() == "h:7"
    assert (tmp_path / "log" / "python.python.log").read_text() == "look at this\n"


def test_a_service_that_ends_before_it_is_ready_is_an_error(tmp_path):
    step = python("pass", [], service=python("raise SystemExit(4)"))
    with pytest.raises(HarmonizeError, match="status 4"):
        workflow.run([step], tmp_path / "log")
