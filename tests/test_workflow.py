import pytest

from harmonize_tf import workflow
from harmonize_tf.errors import HarmonizeError
from harmonize_tf.workflow import Step


class PythonStep(Step):
    """A step whose `name` is Python code instead of a command."""

    @property
    def argv(self):
        return [workflow.sys.executable, "-c", self.name, *self.flags]


@pytest.fixture
def copy(tmp_path):
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("1")
    code = "import sys; open(sys.argv[2], 'a').write(open(sys.argv[1]).read())"
    return PythonStep(code, [str(source), str(target)], [source], [target])


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
    failing = PythonStep("raise SystemExit(3)", [])
    for _ in range(2):
        with pytest.raises(HarmonizeError, match="status 3"):
            workflow.run([failing, copy], tmp_path / "log")
    assert not copy.outputs[0].exists()


def test_a_step_runs_beside_its_service_and_is_told_the_address(tmp_path):
    server = PythonStep(
        "import time; print('loading', flush=True); print('serving m at h:7', flush=True); time.sleep(60)", []
    )
    out = tmp_path / "out.txt"
    step = PythonStep(
        "import sys; open(sys.argv[1], 'a').write(sys.argv[2])", [str(out), "{address}"], [], [out], server
    )
    workflow.run([step], tmp_path / "log")
    workflow.run([step], tmp_path / "log")
    assert out.read_text() == "h:7"


def test_a_service_that_ends_before_it_is_ready_is_an_error(tmp_path):
    step = PythonStep("pass", [], service=PythonStep("raise SystemExit(4)", []))
    with pytest.raises(HarmonizeError, match="status 4"):
        workflow.run([step], tmp_path / "log")
