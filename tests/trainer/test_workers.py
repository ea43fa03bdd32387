"""Several machines train one model: here processes on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import runs
import tiny_examples

from harmonize_tf.errors import FlagError
from trainer import task, workers

STEPS, EVERY = 8, 4


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "examples"
    tiny_examples.write(directory)
    return directory


def argv(examples, model_dir, *more):
    return [*runs.flags(examples, model_dir, *more, steps=STEPS, every=EVERY), "--crop=16", "--filters=4"]


def begun(flags, prologue=""):
    """Two workers, begun."""
    with socket.socket() as one, socket.socket() as two:
        for s in (one, two):
            s.bind(("localhost", 0))
        hosts = [f"localhost:{s.getsockname()[1]}" for s in (one, two)]
    code = f"import sys\n{prologue}\nfrom harmonize_tf import command\nfrom trainer import task\n"
    code += "command.run(lambda: task.main(sys.argv[1:]))"
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(config)}
        command = [sys.executable, "-c", code, *flags, "--strategy=multiworker"]
        processes.append(subprocess.Popen(command, cwd=runs.ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    return processes


def ended(processes):
    """Their last lines, by worker."""
    try:
        return [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


STOPPED_AT_6 = """
import os
from trainer import callbacks
counted = callbacks.Progress.on_train_batch_end
def signalled(self, batch, logs=None):
    if batch == 6:
        os.kill(os.getpid(), 15)
    counted(self, batch, logs)
callbacks.Progress.on_train_batch_end = signalled
"""


def test_two_workers_train_the_same_model_as_one_and_a_signal_to_one_stops_both_in_the_same_step(examples, tmp_path):
    flags = argv(examples, tmp_path / "two", "--model=subpixel", "--adversarial")
    processes = begun(flags, STOPPED_AT_6)  # the first of them alone shows progress
    lines = ended(processes)
    assert [process.returncode for process in processes] == [143, 143], lines
    folders = [tmp_path / "two" / "checkpoints", tmp_path / "two" / "checkpoints" / "worker-1" / "checkpoints"]
    for folder in folders:
        assert (folder / "checkpoint").read_text().splitlines()[0].split('"')[1] == "ckpt-6"
    processes = begun(flags)
    lines = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], lines
    task.main(argv(examples, tmp_path / "one", "--model=subpixel", "--adversarial"))
    for one, two in zip(runs.weights(tmp_path / "one"), runs.weights(tmp_path / "two"), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    alone, together = runs.scalars(tmp_path / "one"), runs.scalars(tmp_path / "two")
    assert alone.keys() == together.keys()
    for name in alone:
        if name != "examples_per_second":
            np.testing.assert_allclose(together[name], alone[name], atol=1e-5, err_msg=name)
    figures = [json.loads((tmp_path / n / "summary.json").read_text())["validation"] for n in ("one", "two")]
    assert figures[0]["bandpass"] == figures[1]["bandpass"]


def test_a_worker_that_is_gone_ends_the_others_with_a_line(examples, tmp_path):
    killed = STOPPED_AT_6.replace("15", str(int(signal.SIGKILL)))
    processes = begun(argv(examples, tmp_path), killed)
    lines = ended(processes)
    assert processes[0].returncode == -signal.SIGKILL
    assert processes[1].returncode not in (0, -signal.SIGKILL)
    assert "run the same command again on all" in lines[1].splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "needs to be told all workers"),
        ("{", "expected JSON such as"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "no ps"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "one of the cluster"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_is_told_in_a_line(monkeypatch, given, told):
    monkeypatch.setenv("TF_CONFIG", given)
    with pytest.raises(FlagError, match=told) as caught:
        workers.place("multiworker")
    assert "\n" not in str(caught.value) and "Received: TF_CONFIG=" in str(caught.value)


def test_a_cluster_without_the_strategy_for_it_is_no_accident(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}')
    with pytest.raises(FlagError, match="--strategy=multiworker"):
        workers.place("auto")


def test_a_chief_is_the_first_of_the_workers(monkeypatch):
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    for kind, index, number in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        assert workers.place("multiworker") == (number, 3)
