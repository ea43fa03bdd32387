"""That a training which was stopped, whenever and however, goes on as if it had not been: bit for bit."""

import collections
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
import tiny_examples

from trainer import checkpoints, loop, task

# Sends this process a signal within step 13; with 0 seconds between saves every step is saved.
SIGNAL_IN_STEP_13 = """
import os
from trainer import callbacks, checkpoints
checkpoints.SAVE_SECONDS = {seconds}
counted = callbacks.Progress.on_train_batch_end
def signalled(self, batch, logs=None):
    if batch == 13:
        os.kill(os.getpid(), {number})
    counted(self, batch, logs)
callbacks.Progress.on_train_batch_end = signalled
"""
STOPPED = "stopped; run the same command again to go on"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Examples and twenty steps on them in one go."""
    directory = tmp_path_factory.mktemp("run")
    tiny_examples.write(directory / "examples")
    runs.train(directory / "examples", directory / "training")
    return directory


def assert_equal(undisturbed, model_dir, *, first=10):
    """Weights of the best state and every logged loss and error from `first` on are the same bits."""
    for resumed, whole in zip(runs.weights(model_dir), runs.weights(undisturbed / "training"), strict=True):
        np.testing.assert_array_equal(resumed, whole)
    resumed, whole = runs.scalars(model_dir), runs.scalars(undisturbed / "training")
    for name in ("loss/train", "rmse/train", "train/gradient_norm", "loss/validation", "rmse/validation"):
        assert dict(resumed[name]) == {step: value for step, value in whole[name] if step >= first}


def last_state(model_dir):
    return (model_dir / "checkpoints" / "checkpoint").read_text().splitlines()[0].split('"')[1]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_training_after_its_step_and_it_goes_on_as_if_it_had_not(
    undisturbed, tmp_path, number, status
):
    argv = runs.flags(undisturbed / "examples", tmp_path)
    done = runs.elsewhere(SIGNAL_IN_STEP_13.format(seconds=1e9, number=int(number)), argv)
    assert done.returncode == status, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1] == STOPPED and "Traceback" not in done.stderr
    assert last_state(tmp_path) == "ckpt-13" and not (tmp_path / "model.keras").exists()
    task.main(argv)
    assert_equal(undisturbed, tmp_path)


@pytest.mark.parametrize("seconds, state", [(1e9, "ckpt-10"), (0, "ckpt-12")])
def test_a_kill_costs_what_was_not_saved_and_leaves_no_trace(undisturbed, tmp_path, seconds, state):
    argv = runs.flags(undisturbed / "examples", tmp_path)
    done = runs.elsewhere(SIGNAL_IN_STEP_13.format(seconds=seconds, number=int(signal.SIGKILL)), argv)
    assert done.returncode == -signal.SIGKILL
    assert last_state(tmp_path) == state
    task.main(argv)
    assert_equal(undisturbed, tmp_path)


@pytest.mark.parametrize("where", ["validation", "state"])
def test_what_a_kill_in_the_end_of_a_round_leaves_is_made_good(undisturbed, tmp_path, monkeypatch, where):
    def killed(*_, **__):
        raise runs.Killed

    with monkeypatch.context() as patch, pytest.raises(runs.Killed):
        if where == "validation":
            patch.setattr(loop, "_end_round", killed)
        else:  # the best weights are written, the state that knows them is not
            patch.setattr(checkpoints.Checkpoints, "save", killed)
        runs.train(undisturbed / "examples", tmp_path)
    assert (tmp_path / "checkpoints" / "best.weights.h5").exists() == (where == "state")
    runs.train(undisturbed / "examples", tmp_path)
    assert_equal(undisturbed, tmp_path)


def test_what_a_state_saves_is_every_weight_the_optimizer_and_the_average(undisturbed):
    """Keras hides layers in lists, and the optimizer inside another, from TensorFlow's own search."""
    path = str(undisturbed / "training" / "checkpoints" / "ckpt-20")
    saved = collections.Counter(tuple(shape) for _, shape in runs.tf.train.list_variables(path))
    own = collections.Counter(w.shape for w in runs.weights(undisturbed / "training"))
    # trained, average, and Adam's two moments
    assert all(saved[shape] == 4 * count for shape, count in own.items())


def test_a_signal_before_the_first_step_is_obeyed_at_once(undisturbed, tmp_path):
    code = "import os, trainer.task as t\nt.train = lambda *_: os.kill(os.getpid(), 15)"
    done = runs.elsewhere(code, runs.flags(undisturbed / "examples", tmp_path))
    assert done.returncode == 143 and done.stderr.splitlines()[-1] == STOPPED


def test_handlers_are_put_back(undisturbed, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    runs.train(undisturbed / "examples", tmp_path, steps=1, every=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.skipif("HARMONIZE_DRILLS" not in os.environ, reason="a drill of minutes; set HARMONIZE_DRILLS=1")
def test_drill_of_kills_at_any_moment(undisturbed, tmp_path):
    draw, killed = random.Random(0), 0
    command = [sys.executable, "-c", "import trainer.checkpoints as c; c.SAVE_SECONDS = 0; from trainer import task; "]
    command[-1] += "import time; f = task.Progress.on_train_batch_end; "
    command[-1] += "task.Progress.on_train_batch_end = lambda *a, **k: (time.sleep(0.2), f(*a, **k)); task.main()"
    command += runs.flags(undisturbed / "examples", tmp_path)
    while True:
        process = subprocess.Popen(command, cwd=runs.ROOT, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(draw.uniform(4, 12)) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
            process.wait()
            killed += 1
            time.sleep(0.1)
    assert killed > 0
    assert_equal(undisturbed, tmp_path)
