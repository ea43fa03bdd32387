"""What every training method has in common: the network, guarded steps, and validation of what will be served.

A method is a file beside this one, with

    STREAMS     the kinds of batches that it learns from, of `dataset.KINDS`; with two, a batch is a pair of batches
    DEFAULTS    of flags that suit methods differently
    build       (config, info) -> a new Harmonizer
    training    (config, harmonizer) -> its compiled `Objective`; called inside the strategy's scope
"""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from harmonize_tf import precision
from harmonize_tf.dataset import DatasetInfo, Tensors
from harmonize_tf.degradation import FACTOR
from harmonize_tf.errors import FlagError
from harmonize_tf.models.harmonizer import Harmonizer
from trainer import loss_scaling
from trainer.adam import Adam
from trainer.config import Config
from trainer.discriminators import smallest

CLIP_NORM = 1.0


class RootMeanSquare(keras.metrics.Mean):
    """The root of the mean of squares that are handed in."""

    def result(self) -> tf.Tensor:
        """The root of the mean so far."""
        return tf.sqrt(super().result())


class Objective(keras.Model):
    """The training of a Harmonizer, by a method that says what a step is.

    A method overrides `train_step`, which returns scalars by name, the same on every replica: "loss", where there are
    pairs "rmse", what else is of interest and must be finite, and for each optimizer a "gradient_norm..." from `apply`.
    It may have further networks; what changes in training stands in `state`, every optimizer in `optimizers`.

    Args:
      harmonizer: what is trained.

    Attributes:
      harmonizer: what is trained.
      served: what is validated and exported; the moving average, once there is one.
      phase: the part of the training that `train_step` is traced for, one of those that `phase_of` names.
      keeps_best: whether the weights that did best in validation are exported; or else the last ones.
    """

    keeps_best = True

    def __init__(self, harmonizer: Harmonizer) -> None:
        super().__init__(name="training")
        self.harmonizer = self.served = harmonizer
        self.loss_mean, self.rmse = keras.metrics.Mean("loss"), RootMeanSquare("rmse")
        self.phase, self.built = "", True

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """All of them by what they train, built; the Harmonizer's first."""
        return {"harmonizer": self.optimizer}

    @property
    def state(self) -> dict[str, list[keras.Variable]]:
        """All that a step changes, by name."""
        return {
            "harmonizer": self.harmonizer.weights,
            "optimizers": [variable for optimizer in self.optimizers.values() for variable in optimizer.variables],
        }

    @property
    def loss_scale(self) -> float:
        """The lowest of the optimizers'; below one only after a step that is not finite without any scaling."""
        scales = [optimizer.dynamic_scale for optimizer in self.optimizers.values()]
        return min(float(keras.ops.convert_to_numpy(scale)) for scale in scales)

    def phase_of(self, step: int) -> str:
        """The part of the training that a step, from 1, belongs to; the steps of each have a graph of their own."""
        del step
        return ""

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What a validation resets."""
        return [self.loss_mean, self.rmse]

    def call(self, inputs: Tensors, training: bool = False) -> tf.Tensor:
        """The Harmonizer's output."""
        return self.harmonizer(inputs, training=training)

    def penalty(self, output: tf.Tensor, targets: Tensors) -> tf.Tensor:
        """What validation reports as the loss of every pixel, [batch, height, width, 1], unitless."""
        raise NotImplementedError

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        loss: tf.Tensor,
        gradients: list[tf.Tensor],
        variables: list[keras.Variable],
    ) -> tf.Tensor:
        """Applies gradients, summed over the replicas and clipped; nothing where they or the loss are not finite.

        Args:
          optimizer: from `loss_scaling.guarded`, or any other, which then is not guarded.
          loss: of the global batch, the same on every replica.
          gradients: those of `optimizer.scale_loss` of this replica's part of the loss.
          variables: what they belong to.

        Returns:
          The norm of all gradients before clipping, without the loss's scale.
        """
        replicas = tf.distribute.get_replica_context()
        gradients = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm, scale = tf.linalg.global_norm(gradients), optimizer.scale_loss(tf.constant(1.0))
        # With a norm that is not finite, clipping makes NaN of all gradients, and the optimizer leaves such a step out.
        norm = tf.where(tf.math.is_finite(loss + norm), norm, float("nan"))
        clipping = CLIP_NORM * scale / tf.maximum(norm, CLIP_NORM * scale)
        # Keras sums over the replicas once more.
        optimizer.apply([g * (clipping / replicas.num_replicas_in_sync) for g in gradients], variables)
        return norm / scale

    def minimize(
        self, optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable], loss: Callable[[], tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One step of one optimizer.

        Args:
          optimizer: as for `apply`.
          variables: what it changes.
          loss: returns this replica's part of the loss.

        Returns:
          The loss of the global batch, and the norm of the gradients.
        """
        with tf.GradientTape() as tape:
            part = loss()
            scaled = optimizer.scale_loss(part)
        gradients = tape.gradient(scaled, variables)
        (whole,) = across_replicas(part)
        return whole, self.apply(optimizer, whole, gradients, variables)

    def test_step(self, batch: tuple[Tensors, Tensors]) -> dict[str, tf.Tensor]:
        """Adds a batch to the means, as what is served does on it."""
        inputs, targets = batch
        output = self.served(inputs, training=False)
        self.loss_mean.update_state(self.penalty(output, targets), sample_weight=targets["mask"])
        self.rmse.update_state(squared_error(output, targets), sample_weight=targets["mask"])
        return {metric.name: metric.result() for metric in self.metrics}


def build(config: Config, info: DatasetInfo, generator: str) -> Harmonizer:
    """A new Harmonizer whose constants are the data's: statistics, published band-pass, and the blur to assume.

    Args:
      config: of the run.
      info: the records.
      generator: "subpixel" or "resnet".

    Raises:
      FlagError: crops are too small for a discriminator.
    """
    if config.adversarial and FACTOR * config.crop < (least := smallest()):
        raise FlagError(
            f"a discriminator judges images of at least {least} pixels of 10 m; take crops of "
            f"{math.ceil(least / FACTOR)} pixels of 30 m or more. Received: crop={config.crop}"
        )
    landsat, sentinel = info.statistics["landsat"], info.statistics["sentinel"]
    pan = info.statistics["pan"] if config.pan else None
    return Harmonizer(
        bands=info.bands,
        level=info.level,
        uses_pan=config.pan,
        bandpass=info.bandpass,
        sigma=config.blur_prior(info).sigma,
        mean=landsat.mean,
        std=[max(x, 1e-4) for x in sentinel.std],
        **({"pan_mean": pan.mean[0], "pan_std": max(pan.std[0], 1e-4)} if pan else {}),
        scale=config.scale,
        blocks=config.blocks,
        filters=config.filters,
        consistency=config.consistency,
        nir=info.nir,
        generator=generator,
        norm=config.norm,
        name=config.model,
        dtype=precision.policy(config.precision),
    )


def adam(config: Config) -> keras.optimizers.Optimizer:
    """Adam; the learning rate rises over the first twentieth of the steps and falls to zero along a cosine."""
    warmup = max(1, config.steps // 20)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, config.steps - warmup), warmup_target=config.learning_rate, warmup_steps=warmup
    )
    return Adam(rate)


def guarded(
    optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable], config: Config
) -> keras.optimizers.LossScaleOptimizer:
    """`loss_scaling.guarded`, with its variables made: under a strategy Adam cannot make them later."""
    made = loss_scaling.guarded(optimizer, config.precision)
    made.build(variables)
    return made


def across_replicas(*parts: tf.Tensor) -> list[tf.Tensor]:
    """The sums over all replicas of what each has."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(parts))


def squared_error(output: tf.Tensor, targets: Tensors) -> tf.Tensor:
    """The mean over the bands of the squared error, [batch, height, width, 1], reflectance squared."""
    return tf.reduce_mean(tf.square(output - targets["sentinel_ms"]), -1, keepdims=True)
