"""That several machines, here processes, train what one would, stop together and go on together."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import runs
import tensorflow as tf
import tiny_examples

from harmonize_tf.errors import FlagError, ModelError
from trainer import checkpoints, task, workers

# Sends one worker a signal within a step.
SIGNAL = """
import json, os
from trainer import ema
updated = ema.Average.update
def signalled(self, step):
    if step == {step} and json.loads(os.environ["TF_CONFIG"])["task"]["index"] == {worker}:
        os.kill(os.getpid(), {number})
    updated(self, step)
ema.Average.update = signalled
"""
STOPPED = "stopped; run the same command again to go on"
FLAGS = ("--strategy=multiworker", "--batch=2")
STEPS = {"steps": 4, "every": 2}


def config(hosts=("a:1", "b:2"), kind="worker", index=0, **more):
    return json.dumps({"cluster": {"worker": hosts} | more, "task": {"type": kind, "index": index}})


def together(argv, prologue=""):
    """Runs a training by two workers; their exit statuses and what they print on stderr."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    hosts = [f"127.0.0.1:{server.getsockname()[1]}" for server in held]
    for server in held:
        server.close()
    code = f"import sys\n{prologue}\nfrom harmonize_tf import command\nfrom trainer import task\n"
    code += "command.run(lambda: task.main(sys.argv[1:]))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *argv], cwd=runs.ROOT, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"TF_CONFIG": config(hosts, index=index)},
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any("Traceback" in text for text in said), said
    return [process.returncode for process in started], said


def last_lines(said):
    return [text.splitlines()[-1] for text in said]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Examples, and four steps on them by one worker, "1", and by two, "2"."""
    directory = tmp_path_factory.mktemp("run")
    tiny_examples.write(directory / "examples")
    runs.train(directory / "examples", directory / "1", **STEPS)
    statuses, said = together(runs.flags(directory / "examples", directory / "2", *FLAGS, **STEPS))
    assert statuses == [0, 0], said
    return directory, said


def test_two_workers_train_and_validate_the_same_model_as_one(trained):
    directory, _ = trained
    for one, two in zip(runs.weights(directory / "1"), runs.weights(directory / "2"), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    one, two = runs.scalars(directory / "1"), runs.scalars(directory / "2")
    for name in ("loss/train", "rmse/train", "loss/validation", "rmse/validation", "rmse/validation_bandpass"):
        assert [step for step, _ in two[name]] == [2, 4]
        np.testing.assert_allclose([v for _, v in one[name]], [v for _, v in two[name]], atol=1e-5)


def test_the_first_worker_alone_tells_and_writes_and_the_other_keeps_a_state(trained):
    directory, (first, second) = trained
    assert {p.name for p in (directory / "2").iterdir()} == {p.name for p in (directory / "1").iterdir()}
    assert len(list((directory / "2" / "tensorboard").iterdir())) == 1
    home = directory / "2" / "checkpoints" / "worker-1"
    assert {p.name for p in home.iterdir()} == {"checkpoints", "training.json"}
    assert "ckpt-4.index" in {p.name for p in (home / "checkpoints").iterdir()}
    assert "step 4: loss" in first and "step" not in second
    assert json.loads((directory / "2" / "summary.json").read_text())["replicas"] == 2


def test_a_signal_to_one_worker_ends_all_after_the_same_step_and_they_go_on_bit_for_bit(trained, tmp_path):
    directory, _ = trained
    argv = runs.flags(directory / "examples", tmp_path, *FLAGS, **STEPS)
    statuses, said = together(argv, SIGNAL.format(step=1, worker=1, number=int(signal.SIGTERM)))
    assert statuses == [143, 143] and last_lines(said) == [STOPPED, STOPPED]
    for home in (tmp_path, tmp_path / "checkpoints" / "worker-1"):
        assert list(checkpoints._states(home / "checkpoints")) == [1]
    statuses, said = together(argv)
    assert statuses == [0, 0], said
    for resumed, whole in zip(runs.weights(tmp_path), runs.weights(directory / "2"), strict=True):
        np.testing.assert_array_equal(resumed, whole)


@pytest.mark.skipif("HARMONIZE_DRILLS" not in os.environ, reason="a drill of minutes; set HARMONIZE_DRILLS=1")
@pytest.mark.parametrize("killed", [0, 1])
def test_drill_of_a_worker_that_dies(trained, tmp_path, killed):
    directory, _ = trained
    argv = runs.flags(directory / "examples", tmp_path, *FLAGS, **STEPS)
    statuses, said = together(argv, SIGNAL.format(step=3, worker=killed, number=int(signal.SIGKILL)))
    assert (statuses[killed], statuses[1 - killed]) == (-signal.SIGKILL, 2)
    assert last_lines(said)[1 - killed].startswith("error: another worker has ended")
    statuses, said = together(argv)
    assert statuses == [0, 0], said
    for resumed, whole in zip(runs.weights(tmp_path), runs.weights(directory / "2"), strict=True):
        np.testing.assert_array_equal(resumed, whole)


@pytest.mark.parametrize(
    "text, rule",
    [
        ("", "needs to be told all workers"),
        ("{}", "needs to be told all workers"),
        ("{", "expected JSON such as"),
        ("[1]", "expected JSON such as"),
        ('{"cluster": {"worker": 3}, "task": {}}', "expected JSON such as"),
        (config(["a", "b"]), "every machine as HOST:PORT"),
        (config(index=2), "one of the cluster"),
        (config(kind="evaluator"), "one of the cluster"),
        (config(ps=["c:3"]), "no ps"),
        (config(evaluator=["c:3"]), "no evaluator"),
    ],
)
def test_a_tf_config_that_does_not_do_is_refused_in_a_line(tmp_path, monkeypatch, text, rule):
    tiny_examples.write(tmp_path / "examples")
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(FlagError, match=rf"{rule}(?s:.)*Received: TF_CONFIG=") as caught:
        runs.train(tmp_path / "examples", tmp_path / "training", "--strategy=multiworker")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "training").exists()


def test_workers_are_not_left_to_train_each_by_itself(tmp_path, monkeypatch):
    tiny_examples.write(tmp_path / "examples")
    monkeypatch.setenv("TF_CONFIG", config())
    with pytest.raises(FlagError, match="--strategy=multiworker.*Received: strategy=auto"):
        runs.train(tmp_path / "examples", tmp_path / "training")
    assert not (tmp_path / "training").exists()


def test_a_chief_is_the_first_worker(monkeypatch):
    for kind, index, number in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", config(kind=kind, index=index, chief=["c:3"]))
        assert workers.place("multiworker") == (number, 3)


class Fake(workers.Workers):
    """A worker of several, whose others have what it is given."""

    def __init__(self, number, *others):
        self.number, self.count, self.others = number, 1 + len(others), others

    def gathered(self, *values):
        rows = [[*own, *[-1] * (len(values) - len(own))] for own in self.others]
        rows.insert(self.number, list(values))
        return np.array(rows)


def test_the_parts_of_all_workers_are_the_batch():
    numbers = tf.data.Dataset.range(12).batch(6, drop_remainder=True)
    batches = numbers.map(lambda x: ({"x": x}, {"y": -x}))
    parts = [list(Fake(n, [], []).shared(batches).as_numpy_iterator()) for n in range(3)]
    for number, (inputs, targets) in enumerate(batches.as_numpy_iterator()):
        np.testing.assert_array_equal(np.concatenate([part[number][0]["x"] for part in parts]), inputs["x"])
        np.testing.assert_array_equal(np.concatenate([part[number][1]["y"] for part in parts]), targets["y"])


def saved(directory, *steps):
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(v=tf.Variable(0)), str(directory), max_to_keep=2)
    for step in steps:
        manager.save(step)
    return directory


def names(directory):
    return {path.stem for path in directory.glob("*.index")}


def test_workers_go_on_from_the_newest_state_that_all_have_and_forget_what_came_later(tmp_path):
    own = saved(tmp_path / "own", 10, 15)
    newest = checkpoints._newest(own, own, Fake(0, [5, 10]))
    assert newest.endswith("ckpt-10")
    assert names(own) == {"ckpt-10"} and list(checkpoints._states(own)) == [10]
    assert checkpoints._newest(own, own, Fake(0, [10, 15])).endswith("own/ckpt-10")


def test_a_worker_that_has_no_state_takes_the_chiefs(tmp_path):
    chiefs = saved(tmp_path / "chiefs", 10, 15)
    newest = checkpoints._newest(tmp_path / "own", chiefs, Fake(1, [10, 15]))
    assert newest == str(chiefs / "ckpt-15")
    assert names(chiefs) == {"ckpt-10", "ckpt-15"}
    assert checkpoints._newest(tmp_path / "own", tmp_path / "none", Fake(1, [])) is None


def test_workers_without_a_state_in_common_are_told_so(tmp_path):
    own = saved(tmp_path / "own", 10, 15)
    with pytest.raises(ModelError, match=r"no state in common.*worker 1 of 2 steps \[10, 15\] in"):
        checkpoints._newest(own, tmp_path / "none", Fake(1, [20, 25]))


def test_workers_that_were_told_different_things_are_refused():
    with pytest.raises(FlagError, match="same flags"):
        Fake(1, [7]).check_same({"filters": 8})


def test_where_the_chief_fails_the_others_do_not_begin():
    with pytest.raises(FlagError, match="another worker"):
        Fake(1, [1]).chief_first(lambda: pytest.fail("called"))


def test_without_several_workers_the_strategy_is_that_of_one_machine(trained, monkeypatch, tmp_path):
    directory, _ = trained
    monkeypatch.setenv("TF_CONFIG", config(["a:1"]))
    task.main(runs.flags(directory / "examples", tmp_path, *FLAGS, **STEPS))
    for one, again in zip(runs.weights(directory / "1"), runs.weights(tmp_path), strict=True):
        np.testing.assert_array_equal(one, again)
