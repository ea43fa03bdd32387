"""Learning from pairs pixel by pixel, without an adversary."""

import tensorflow as tf

from harmonize_tf.dataset import Tensors
from harmonize_tf.models.harmonizer import Harmonizer
from trainer.config import Config
from trainer.objectives.base import Objective, across_replicas, adam, guarded, squared_error

# Charbonnier's sqrt(x^2 + eps^2): below eps (in standard deviations of a band) it is a square, above it an L1. Lai et
# al. 2017 (LapSRN, arXiv:1704.03915) take 1e-3 for images in 0..1, which have standard deviations of about 0.2.
# Against the mean square it came out better in RMSE, SAM and ERGAS alike (600 steps, held-out blocks of T33UUU: 44.7
# against 45.9e-4; of T32TMT: 179.5 against 181.5e-4): a few bright edges do not take all of the gradient.
CHARBONNIER_EPSILON = 5e-3


class Pixelwise(Objective):
    """The training of a Harmonizer on batches of `harmonize_tf.dataset`.

    The loss is the mean over the global batch's valid pixels and bands, whichever replica holds them; errors are
    counted in the bands' standard deviations, so that bright bands do not drown dark ones.
    """

    def penalty(self, output: tf.Tensor, targets: Tensors) -> tf.Tensor:
        """The loss of every pixel, [batch, height, width, 1], unitless; the mask is not looked at."""
        error = (output - targets["sentinel_ms"]) / tf.constant(self.harmonizer.std)
        return tf.reduce_mean(tf.sqrt(tf.square(error) + CHARBONNIER_EPSILON**2), -1, keepdims=True)

    def train_step(self, batch: tuple[Tensors, Tensors]) -> dict[str, tf.Tensor]:
        """One step; returns the batch's loss and RMSE (reflectance), and the norm of the gradients."""
        inputs, targets = batch
        variables = self.harmonizer.trainable_variables
        with tf.GradientTape() as tape:
            output = self.harmonizer(inputs, training=True)
            loss = masked_part(self.penalty(output, targets), targets["mask"])
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        squared = masked_part(squared_error(output, targets), targets["mask"])
        loss, squared = across_replicas(loss, squared)
        norm = self.apply(self.optimizer, loss, gradients, variables)
        return {"loss": loss, "rmse": tf.sqrt(squared), "gradient_norm": norm}


def masked_part(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """This replica's part of the mean of `x` over the global batch's pixels in `mask`; the parts add up to the mean."""
    (valid,) = across_replicas(tf.reduce_sum(mask))
    return tf.math.divide_no_nan(tf.reduce_sum(x * mask), valid)


def training(config: Config, harmonizer: Harmonizer) -> Pixelwise:
    """The training of a Harmonizer as the flags say, its optimizer built; call it inside the strategy's scope."""
    model = Pixelwise(harmonizer)
    model.compile(optimizer=guarded(adam(config), harmonizer.trainable_variables, config))
    return model
