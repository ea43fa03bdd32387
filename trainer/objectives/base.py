"""What every training method has in common: guarded steps, and validation of what will be served."""

import keras
import tensorflow as tf

from harmonize_tf.dataset import Tensors
from harmonize_tf.models.harmonizer import Harmonizer

CLIP_NORM = 1.0


class RootMeanSquare(keras.metrics.Mean):
    """The root of the mean of squares that are handed in."""

    def result(self) -> tf.Tensor:
        """The root of the mean so far."""
        return tf.sqrt(super().result())


class Objective(keras.Model):
    """The training of a Harmonizer, by a method that says what a step is.

    A method overrides `train_step`, which returns scalars by name, the same on every replica: "loss", "rmse" and what
    else is of interest and must be finite, and for each optimizer a "gradient_norm..." from `apply`. It may have
    further networks; what changes in training stands in `state`, every optimizer in `optimizers`.

    Args:
      harmonizer: what is trained.

    Attributes:
      harmonizer: what is trained.
      served: what is validated and exported; the moving average, once there is one.
    """

    def __init__(self, harmonizer: Harmonizer) -> None:
        super().__init__(name="training")
        self.harmonizer = self.served = harmonizer
        self.loss_mean, self.rmse = keras.metrics.Mean("loss"), RootMeanSquare("rmse")
        self.built = True

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """All of them, built."""
        return [self.optimizer]

    @property
    def state(self) -> dict[str, list[keras.Variable]]:
        """All that a step changes, by name."""
        return {
            "harmonizer": self.harmonizer.weights,
            "optimizers": [variable for optimizer in self.optimizers for variable in optimizer.variables],
        }

    @property
    def loss_scale(self) -> float:
        """The lowest of the optimizers'; below one only after a step that is not finite without any scaling."""
        return min(float(keras.ops.convert_to_numpy(optimizer.dynamic_scale)) for optimizer in self.optimizers)

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
          optimizer: from `precision.guarded`, or any other, which then is not guarded.
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
        norm = tf.where(tf.math.is_finite(loss), norm, float("nan"))
        gradients, _ = tf.clip_by_global_norm(gradients, CLIP_NORM * scale, use_norm=norm)
        # Keras sums over the replicas once more.
        optimizer.apply([g / replicas.num_replicas_in_sync for g in gradients], variables)
        return norm / scale

    def test_step(self, batch: tuple[Tensors, Tensors]) -> dict[str, tf.Tensor]:
        """Adds a batch to the means, as what is served does on it."""
        inputs, targets = batch
        output = self.served(inputs, training=False)
        self.loss_mean.update_state(self.penalty(output, targets), sample_weight=targets["mask"])
        self.rmse.update_state(squared_error(output, targets), sample_weight=targets["mask"])
        return {metric.name: metric.result() for metric in self.metrics}


def squared_error(output: tf.Tensor, targets: Tensors) -> tf.Tensor:
    """The mean over the bands of the squared error, [batch, height, width, 1], reflectance squared."""
    return tf.reduce_mean(tf.square(output - targets["sentinel_ms"]), -1, keepdims=True)
