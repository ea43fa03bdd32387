"""`--model=subpixel`: a Harmonizer learns from pairs, pixel by pixel, without an adversary."""

import keras
import tensorflow as tf

from harmonize_tf import degradation, sensors
from harmonize_tf.dataset import DatasetInfo, Tensors
from harmonize_tf.models.harmonizer import Harmonizer
from trainer import precision
from trainer.config import Config
from trainer.objectives.base import Objective, squared_error

# Charbonnier's sqrt(x^2 + eps^2): below eps (in standard deviations of a band) it is a square, above it an L1. Lai et
# al. 2017 (LapSRN, arXiv:1704.03915) take 1e-3 for images in 0..1, which have standard deviations of about 0.2.
# Against the mean square it came out better in RMSE, SAM and ERGAS alike (600 steps, held-out blocks of T33UUU: 44.7
# against 45.9e-4; of T32TMT: 179.5 against 181.5e-4): a few bright edges do not take all of the gradient.
CHARBONNIER_EPSILON = 5e-3


def build(config: Config, info: DatasetInfo) -> Harmonizer:
    """A new Harmonizer whose constants are the data's: statistics, published band-pass and modelled blur."""
    landsat, sentinel = info.statistics["landsat"], info.statistics["sentinel"]
    pan = info.statistics["pan"] if config.pan else None
    return Harmonizer(
        bands=info.bands,
        level=info.level,
        uses_pan=config.pan,
        bandpass=info.bandpass,
        sigma=degradation.pair_grid_sigma(sensors.blur_sigma(info.bands, info.nir)),
        mean=landsat.mean,
        std=[max(x, 1e-4) for x in sentinel.std],
        **({"pan_mean": pan.mean[0], "pan_std": max(pan.std[0], 1e-4)} if pan else {}),
        scale=config.scale,
        blocks=config.blocks,
        filters=config.filters,
        consistency=config.consistency,
        nir=info.nir,
        name=config.model,
        dtype=precision.policy(config.precision),
    )


class Training(Objective):
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
        replicas, mask = tf.distribute.get_replica_context(), targets["mask"]
        valid = replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(mask))
        variables = self.harmonizer.trainable_variables
        with tf.GradientTape() as tape:
            output = self.harmonizer(inputs, training=True)
            loss = tf.math.divide_no_nan(tf.reduce_sum(self.penalty(output, targets) * mask), valid)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        squared = tf.math.divide_no_nan(tf.reduce_sum(squared_error(output, targets) * mask), valid)
        loss, squared = replicas.all_reduce(tf.distribute.ReduceOp.SUM, [loss, squared])
        norm = self.apply(self.optimizer, loss, gradients, variables)
        return {"loss": loss, "rmse": tf.sqrt(squared), "gradient_norm": norm}


def training(config: Config, harmonizer: Harmonizer) -> Training:
    """The training of a Harmonizer as the flags say, its optimizer built; call it inside the strategy's scope."""
    model = Training(harmonizer)
    guarded = precision.guarded(optimizer(config), config.precision)
    # Before anything else: under a strategy Adam cannot make its variables later.
    guarded.build(harmonizer.trainable_variables)
    model.compile(optimizer=guarded)
    return model


def optimizer(config: Config) -> keras.optimizers.Optimizer:
    """Adam; the learning rate rises over the first twentieth of the steps and falls to zero along a cosine."""
    warmup = max(1, config.steps // 20)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, config.steps - warmup), warmup_target=config.learning_rate, warmup_steps=warmup
    )
    return keras.optimizers.Adam(rate)
