import json

import pytest
import tiny_examples

from harmonize_tf import command
from harmonize_tf.errors import FlagError
from trainer import presets, task

NAMES = sorted(path.name for path in presets.FOLDER.glob("*.txt"))


def test_every_method_has_its_presets():
    assert NAMES == sorted(f"{method}_{kind}.txt" for method in task.OBJECTIVES for kind in ("gpu", "paper", "small"))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_understood_by_its_name_and_later_flags_win(name):
    argv = presets.found([f"--flagfile={name}", "--data=a", "--model_dir=b", "--steps=7"])
    command.parse(task.FLAGS, argv)
    assert task.FLAGS.model == name.split("_")[0] and task.FLAGS.steps == 7


def test_a_users_own_file_comes_before_a_preset_and_what_is_neither_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAMES[0]).write_text("--filters=3")
    command.parse(task.FLAGS, presets.found([f"--flagfile={NAMES[0]}", "--data=a", "--model_dir=b"]))
    assert task.FLAGS.filters == 3
    with pytest.raises(FlagError, match="nothing.txt"):
        command.parse(task.FLAGS, presets.found(["--flagfile=nothing.txt", "--data=a", "--model_dir=b"]))


def test_the_small_preset_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_examples.write(tmp_path / "examples")
    argv = ["--flagfile=subpixel_small.txt", "--data=examples", "--model_dir=training"]
    task.main([*argv, "--crop=8", "--steps=3"])
    summary = json.loads((tmp_path / "training" / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["flags"]["filters"] == 48 and summary["flags"]["blocks"] == 6


def test_the_paper_preset_is_twice_from_20_m_without_consistency():
    command.parse(task.FLAGS, presets.found(["--flagfile=subpixel_paper.txt", "--data=a", "--model_dir=b"]))
    assert (task.FLAGS.scale, task.FLAGS.consistency, task.FLAGS.ema) == ("2", "none", 0.0)


def test_the_paper_preset_of_cyclegan_is_the_authors_own_settings():
    argv = ["--flagfile=cyclegan_paper.txt", "--data=a", "--model_dir=b"]
    command.parse(task.FLAGS, presets.found(argv))
    values = [
        getattr(task.FLAGS, name) for name in ("norm", "consistency", "blocks", "filters", "batch", "learning_rate")
    ]
    assert values == ["instance", "none", 9, 64, 1, 2e-4] and task.FLAGS.ema == 0.0
