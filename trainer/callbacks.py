"""What is told of a training while it runs: progress, TensorBoard."""

import logging
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from harmonize_tf import degradation, quicklook
from harmonize_tf.dataset import Tensors

_log = logging.getLogger("harmonize")
LOG_SECONDS = 15.0  # between two lines where there is no terminal
SAMPLES = 4  # validation patches that TensorBoard shows
IMAGES = 10  # how often in a training it shows them
COLOURS = {"natural": quicklook.NATURAL, "infrared": ("nir", "red", "green")}
PANELS = "input | output | target | error"


class Progress(keras.callbacks.Callback):
    """A bar on a terminal and a log line now and then elsewhere.

    Args:
      done: steps done before.
      steps: steps in all.
    """

    def __init__(self, done: int, steps: int) -> None:
        super().__init__()
        self._done, self._steps, self._started = done, steps, done
        self._bar = tqdm(total=steps, initial=done, unit="step", desc="train") if sys.stderr.isatty() else None
        self._begin = self._said = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts a step."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        elif time.monotonic() - self._said > LOG_SECONDS:
            self._said = time.monotonic()
            _log.info("step %d of %d, loss %.4f, %s", self._done, self._steps, logs["loss"], self._pace())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Says what validation found."""
        line = f"step {self._done}: loss {logs['loss']:.4f}, validation RMSE {logs['val_rmse']:.5f}"
        if self._bar is None:
            _log.info("%s, %s", line, self._pace())
        else:
            self._bar.write(line, file=sys.stderr)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the terminal's line."""
        if self._bar is not None:
            self._bar.close()

    def _pace(self) -> str:
        rate = (self._done - self._started) / max(time.monotonic() - self._begin, 1e-9)
        return f"{rate:.2f} steps/s, {(self._steps - self._done) / max(rate, 1e-9):.0f} s left"


class Summaries(keras.callbacks.Callback):
    """TensorBoard: loss, errors, learning rate and speed after each round, and validation patches now and then.

    Args:
      directory: RUN/training/tensorboard.
      samples: one batch of whole validation patches; the first of them are shown.
      steps: steps in all.
      batch: patches in a step.
      baseline: validation RMSE of the band-pass baseline, reflectance.
    """

    def __init__(
        self, directory: pathlib.Path, samples: tuple[Tensors, Tensors], steps: int, batch: int, baseline: float
    ) -> None:
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(directory))
        self._samples = tf.nest.map_structure(lambda x: x[:SAMPLES], samples)
        self._steps, self._batch, self._baseline = steps, batch, baseline
        self._every, self._shown = steps / IMAGES, -math.inf
        self._counted, self._begin = 0, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts a step."""
        self._counted += 1
        self._last = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a round's figures; `epoch` is the number of steps done."""
        scalars = {
            "loss/train": logs["loss"],
            "loss/validation": logs["val_loss"],
            "rmse/validation": logs["val_rmse"],
            "rmse/validation_bandpass": self._baseline,
            "rmse/validation_over_bandpass": logs["val_rmse"] / self._baseline,
            "examples_per_second": self._batch * self._counted / max(self._last - self._begin, 1e-9),
        }
        if "rmse" in logs:  # there is none without pairs
            scalars["rmse/train"] = logs["rmse"]
        for name, optimizer in self.model.optimizers.items():
            scalars[f"learning_rate/{name}"] = float(tf.convert_to_tensor(optimizer.learning_rate))
        others = (name for name in logs if name not in ("loss", "rmse") and not name.startswith("val_"))
        scalars |= {f"train/{name}": logs[name] for name in others}
        with self._writer.as_default(epoch):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
            if epoch - self._shown >= self._every or epoch >= self._steps:
                self._shown = epoch
                for name, pictures in self._pictures().items():
                    tf.summary.image(f"{name}: {PANELS}", pictures, max_outputs=SAMPLES)
        self._writer.flush()
        self._counted, self._begin = 0, time.monotonic()

    def _pictures(self) -> dict[str, np.ndarray]:
        inputs, targets = self._samples
        served = self.model.served
        output = served(inputs).numpy()
        low = np.kron(inputs["landsat_ms"], np.ones((1, degradation.FACTOR, degradation.FACTOR, 1), np.float32))
        images = [low, output, targets["sentinel_ms"].numpy()]
        return {
            name: side_by_side([image[..., [served.bands.index(band) for band in colour]] for image in images])
            for name, colour in COLOURS.items()
            if set(colour) <= set(served.bands)
        }


def side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """Input, output, target and the output's error as pictures, uint8 [N, height, 4 width, 3].

    A row's images are stretched as its target needs. The error is signed: grey is none, black and white are half of
    that stretch too low and too high.

    Args:
      images: three times [N, height, width, 3], reflectance.
    """
    rows = []
    for low, output, target in zip(*images, strict=True):
        stretch = quicklook.Stretch.of(target.reshape(-1, 3))
        error = np.clip(0.5 + (output - target) / (stretch.high - stretch.low), 0.0, 1.0)
        rows.append(np.concatenate([*(stretch.apply(image) for image in (low, output, target)), error], axis=1))
    return np.rint(255 * np.nan_to_num(np.stack(rows))).astype(np.uint8)  # not finite where a training diverges
