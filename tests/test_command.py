import subprocess
import sys

import pytest
from absl import flags

from harmonize_tf import command
from harmonize_tf.errors import FlagError, SceneError

FLAGS = flags.FlagValues()
_SIZE = flags.DEFINE_integer("size", 3, "A size.", lower_bound=1, flag_values=FLAGS)
_NAME = flags.DEFINE_string("name", None, "A name.", flag_values=FLAGS)


def test_flags_start_from_their_defaults_each_time():
    assert command.parse(FLAGS, ["--size=5", "rest"]) == ["rest"]
    assert _SIZE.value == 5
    command.parse(FLAGS, [])
    assert (_SIZE.value, _NAME.value) == (3, None)


@pytest.mark.parametrize("argv", (["--size=0"], ["--size=many"], ["--sise=4"]))
def test_a_wrong_flag_is_a_flag_error_that_names_it(argv):
    with pytest.raises(FlagError, match="si[zs]e"):
        command.parse(FLAGS, argv)


def test_the_flags_written_repeat_the_run(tmp_path):
    command.parse(FLAGS, ["--size=7", "--name=a b"])
    command.write_flags(FLAGS, tmp_path / "run" / "flags.txt")
    command.parse(FLAGS, [f"--flagfile={tmp_path}/run/flags.txt"])
    assert (_SIZE.value, _NAME.value) == (7, "a b")


def test_a_users_mistake_ends_in_one_line_and_status_2(capsys, monkeypatch):
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)  # it would outlive the test

    def main():
        raise SceneError("the file is missing. Received: path='x'")

    with pytest.raises(SystemExit) as end:
        command.run(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: the file is missing. Received: path='x'\n"


def test_an_unknown_command_is_told_in_one_line():
    result = subprocess.run([sys.executable, "-m", "harmonize_tf", "fly"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "'fly'" in result.stderr


def test_without_a_command_the_commands_are_listed():
    result = subprocess.run([sys.executable, "-m", "harmonize_tf"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "beam_jobs.export_pairs" in result.stdout
