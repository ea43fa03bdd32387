"""What tests of a training share: tiny runs, in this process or another, and what they leave."""

import pathlib
import subprocess
import sys

import keras
import tensorflow as tf

from trainer import task

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
