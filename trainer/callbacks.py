"""What happens beside the training steps: checkpoints, progress, TensorBoard."""

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
from harmonize_tf.errors import ModelError

_log = logging.getLogger("harmonize")
LOG_SECONDS = 15.0  # between two lines where there is no terminal
SAMPLES = 4  # validation patches that TensorBoard shows
IMAGES = 10  # how often in a training it shows them


def steps_done(model: keras.Model) -> int:
    """Optimizer steps, under any strategy."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


class Checkpoints(keras.callbacks.Callback):
    """Saves the state of the training after each round, and the weights that did best in validation.

    Args:
      directory: RUN/training/checkpoints; the newest state in it is restored right away.
      model: a training model (`harmonizer` in it is what is trained), its optimizer built.
      learning_rate: its peak, which is named if the training diverges.

    Attributes:
      step: optimizer steps done when restored.
      best: lowest validation RMSE so far, reflectance.
      best_step: when it was reached.
    """

    def __init__(self, directory: pathlib.Path, model: keras.Model, learning_rate: float) -> None:
        super().__init__()
        self._learning_rate = learning_rate
        self._best, self._best_step = (tf.Variable(value, trainable=False) for value in (math.inf, 0))
        self._best_weights = directory / "best.weights.h5"
        self._checkpoint = tf.train.Checkpoint(
            harmonizer=model.harmonizer, optimizer=model.optimizer, best=self._best, best_step=self._best_step
        )
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(directory), max_to_keep=2)
        if self._manager.latest_checkpoint:
            self._checkpoint.restore(self._manager.latest_checkpoint).assert_existing_objects_matched()
        self.step = steps_done(model)

    @property
    def best(self) -> float:
        """Lowest validation RMSE so far, reflectance."""
        return float(self._best)

    @property
    def best_step(self) -> int:
        """The step at which it was reached."""
        return int(self._best_step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keeps the weights if they are the best so far, then the state.

        Raises:
          ModelError: the training has diverged; the state of the round before stays the newest.
        """
        step = steps_done(self.model)
        if not math.isfinite(logs["val_rmse"]):
            raise ModelError(
                f"the training diverged by step {step}; run it again with a lower --learning_rate: it goes on from the "
                f"last checkpoint, if there is one (another --model_dir begins anew). "
                f"Received: learning_rate={self._learning_rate:g}, validation RMSE {logs['val_rmse']}"
            )
        if logs["val_rmse"] < self.best:
            self._best.assign(logs["val_rmse"])
            self._best_step.assign(step)
            aside = self._best_weights.with_name("writing.weights.h5")
            aside.parent.mkdir(parents=True, exist_ok=True)
            self.model.harmonizer.save_weights(aside)
            aside.rename(self._best_weights)
        self._manager.save(step)

    def load_best(self) -> None:
        """Puts the best weights into the Harmonizer."""
        self._checkpoint.harmonizer.load_weights(self._best_weights)


class Progress(keras.callbacks.Callback):
    """A bar on a terminal and a log line now and then elsewhere; ends the training after its last step.

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
        self.model.stop_training = self._done >= self._steps
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
    """TensorBoard: loss, learning rate and errors after each round, and a few validation patches now and then.

    Args:
      directory: RUN/training/tensorboard.
      samples: one batch of whole validation patches.
      steps: steps in all.
      baseline: validation RMSE of the band-pass baseline, reflectance.
    """

    def __init__(self, directory: pathlib.Path, samples: tuple[Tensors, Tensors], steps: int, baseline: float) -> None:
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(directory))
        self._samples = tf.nest.map_structure(lambda x: x[:SAMPLES], samples)
        self._baseline, self._every, self._shown = baseline, steps / IMAGES, -math.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the round's figures."""
        optimizer = self.model.optimizer
        step = steps_done(self.model)
        scalars = {"loss/train": logs["loss"], "loss/validation": logs["val_loss"], "rmse/train": logs["rmse"]}
        scalars |= {"rmse/validation": logs["val_rmse"], "rmse/validation_bandpass": self._baseline}
        scalars |= {"learning_rate": float(optimizer.learning_rate)}
        with self._writer.as_default(step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
            if step - self._shown >= self._every or self.model.stop_training:
                self._shown = step
                tf.summary.image("input | output | target", self._pictures(), max_outputs=SAMPLES)
        self._writer.flush()

    def _pictures(self) -> np.ndarray:
        inputs, targets = self._samples
        output = self.model.harmonizer(inputs).numpy()
        low = np.kron(inputs["landsat_ms"], np.ones((1, degradation.FACTOR, degradation.FACTOR, 1), np.float32))
        return side_by_side(self.model.harmonizer.bands, [low, output, targets["sentinel_ms"].numpy()])


def side_by_side(bands: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
    """Natural colour, uint8 [N, height, widths of all images, 3]; a row's images are stretched as its last one needs.

    Args:
      bands: names of the last axis.
      images: [N, height, width, band] each, reflectance.
    """
    colours = np.stack([image[..., [bands.index(name) for name in quicklook.NATURAL]] for image in images])
    stretches = [quicklook.Stretch.of(target.reshape(-1, 3)) for target in colours[-1]]
    rows = [np.concatenate(s.apply(colours[:, i]), axis=1) for i, s in enumerate(stretches)]
    return np.rint(255 * np.nan_to_num(np.stack(rows))).astype(np.uint8)  # not finite where a training diverges
