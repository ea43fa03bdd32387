"""What tests of a training share: tiny runs, in this process or another, and what they leave."""

import pathlib
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from trainer import checkpoints, task

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ("--blocks=1", "--filters=8", "--crop=8", "--batch=2", "--learning_rate=0.005", "--precision=float32")


def flags(data, model_dir, *more, steps=20, every=10):
    return [
        f"--data={data}",
        f"--model_dir={model_dir}",
        *SMALL,
        f"--steps={steps}",
        f"--validate_every={every}",
        *more,
    ]


def train(data, model_dir, *more, steps=20, every=10):
    task.main(flags(data, model_dir, *more, steps=steps, every=every))


def elsewhere(prologue, argv):
    """Runs some lines and then `trainer.task` in another process."""
    code = f"import sys\n{prologue}\nfrom harmonize_tf import command\nfrom trainer import task\n"
    code += "command.run(lambda: task.main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)


def scalars(model_dir):
    """Every scalar of the TensorBoard files, [(step, value), ...] by name."""
    found = {}
    for path in sorted((model_dir / "tensorboard").iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if not value.metadata.plugin_data.plugin_name == "images":
                    found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return found


def weights(model_dir):
    return keras.saving.load_model(model_dir / "model.keras", compile=False).get_weights()


def everything(model_dir):
    """All of the last state by name: networks, optimizers, average, and what else a method keeps."""
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if "ledger" not in name and "save_counter" not in name]
    return {name: reader.get_tensor(name) for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"}


class Killed(BaseException):
    """Not even a HarmonizeError's `except` sees it."""


def killed_after(step, argv, monkeypatch):
    """Trains, every step being saved, and is killed in the one after `step`."""
    counted = task.Progress.on_train_batch_end

    def killed(self, batch, logs=None):
        if batch == step + 1:
            raise Killed
        counted(self, batch, logs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "SAVE_SECONDS", 0)
        patch.setattr(task.Progress, "on_train_batch_end", killed)
        task.main(argv)


TWO_REPLICAS = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from trainer import image_pool, task, workers
assert workers.replicas().num_replicas_in_sync == 2
{prologue}
task.main(sys.argv[1:])
"""


def on_two_replicas(argv, prologue=""):
    """Trains on two logical CPUs, in a process of its own, after some lines."""
    command = [sys.executable, "-c", TWO_REPLICAS.format(prologue=prologue), *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
