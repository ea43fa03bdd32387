"""Teaches a trained Harmonizer to say how wrong it may be: `--uncertainty`.

It is done after the training, on the weights that are exported, so that it costs the output nothing. Errors are taken
for Laplace's. What they are at each pixel is learnt on the training split; how large they are in all is fitted to the
validation split, since errors on what was trained on are too small.
"""

import logging

import keras
import numpy as np
import tensorflow as tf

from harmonize_tf import dataset
from harmonize_tf.dataset import DatasetInfo, Tensors
from harmonize_tf.errors import DatasetError
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.models.uncertainty import QUANTILE, half_width
from trainer.adam import Adam
from trainer.config import Config
from trainer.objectives.pixelwise import masked_part

STEPS = 400
RATE = 3e-3
CALIBRATED = 64
"""Patches of the validation split, at most, that the calibration looks at."""

_log = logging.getLogger("harmonize")


def taught(trained: Harmonizer, config: Config, info: DatasetInfo, replicas: int) -> Harmonizer:
    """A Harmonizer with the weights of a trained one, which also says how wrong it may be.

    Args:
      trained: the one that is exported without.
      config: of the run.
      info: the records.
      replicas: that shared a batch; one alone has room for its part.

    Raises:
      DatasetError: there is no clear pixel in the validation split.
    """
    model = Harmonizer.from_config({**trained.get_config(), "uncertainty": True})
    model.generator.set_weights(trained.generator.get_weights())
    _teach(model, config, info, config.batch // replicas)
    _calibrate(model, config, info)
    return model


def _teach(model: Harmonizer, config: Config, info: DatasetInfo, batch: int) -> None:
    # What a method without pairs learns from says nothing of its errors.
    kind = "degraded" if config.streams == ("degraded",) else "paired"
    batches = dataset.training(
        info, kind, batch=batch, crop=config.crop, pan=config.pan, seed=config.seed, start=0,
        blur=config.blur_prior(info),
    )  # fmt: skip
    optimizer = Adam(keras.optimizers.schedules.CosineDecay(RATE, STEPS))
    variables = model.spread.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(inputs: Tensors, targets: Tensors) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = likelihood_loss(*model.judged(inputs), targets, model.std)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    for number, batch in enumerate(batches.take(STEPS), 1):
        loss = step(*batch)
        if number % (STEPS // 4) == 0:
            _log.info("uncertainty: step %d of %d, loss %.4f", number, STEPS, float(loss))


def likelihood_loss(output: tf.Tensor, sigma: tf.Tensor, targets: Tensors, std: tuple[float, ...]) -> tf.Tensor:
    """Mean negative log-likelihood of the errors as Laplace's of standard deviation sigma, up to a constant.

    Args:
      output: [N, H, W, B] reflectance.
      sigma: the same.
      targets: "sentinel_ms" and "mask".
      std: of the bands, reflectance: without units a bright band counts as much as a dark one.
    """
    scale = sigma / tf.constant(std) / tf.sqrt(2.0)
    error = tf.abs(output - targets["sentinel_ms"]) / tf.constant(std)
    loss = tf.reduce_mean(error / scale + tf.math.log(scale), -1, keepdims=True)
    return masked_part(loss, targets["mask"])


def _calibrate(model: Harmonizer, config: Config, info: DatasetInfo) -> None:
    """Makes `QUANTILE` of the validation split's errors, of each band, lie within the interval of that level."""
    judged, ratios = tf.function(model.judged), []
    chosen = spread_sample(info.counts["val"], config.seed)
    for inputs, targets, _ in dataset.described(info, "val", batch=1, pan=config.pan, chosen=chosen):
        output, sigma = judged(inputs)
        ratio = np.abs(output - targets["sentinel_ms"]) / sigma
        ratios.append(ratio[targets["mask"].numpy()[..., 0] > 0])
    if not sum(map(len, ratios)):
        raise DatasetError(f"uncertainty is calibrated on clear pixels. Received: none in {info.directory / 'val'}")
    factors = np.quantile(np.concatenate(ratios), QUANTILE, axis=0) / half_width(QUANTILE)
    model.spread.calibration.assign(factors)
    _log.info("uncertainty: calibrated by %s", ", ".join(f"{x:.2f}" for x in factors))


def spread_sample(count: int, seed: int) -> list[int]:
    """Numbers below `count`, at most `CALIBRATED`, rising: one, drawn by the seed, from each of as many equal parts."""
    edges = np.linspace(0, count, min(CALIBRATED, count) + 1).astype(int)
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()
