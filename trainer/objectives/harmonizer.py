"""`--model=harmonizer`: what the article could only wish for, forward by a network and backward by physics.

Forward, depth-to-space from 30 m, as `subpixel`. Backward, Sentinel-2 is shown as Landsat by what is known of the two
sensors, band-pass and MTF (`harmonize_tf.synthesis`), and by a small correction of that which is learnt from pairs.
Sentinel-2's way to Landsat and back has to end where it began, which needs no pair: that half of every batch lies
at any place of Landsat's lattice, under any light. The pairs are taken as they are. Landsat's way to Sentinel-2 and
back does end where it began, by consistency.
"""

import keras
import tensorflow as tf

from harmonize_tf.augmentation import Tensors, by_daylight
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.degradation import FACTOR
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.models.layers import masked
from trainer.adam import Adam
from trainer.config import Config
from trainer.objectives import base, pixelwise
from trainer.objectives.adversarial import Adversarial, compile_both, discriminator
from trainer.objectives.base import guarded

STREAMS = ("natural", "degraded")
DEFAULTS = {
    "adversarial": True, "adversarial_weight": 0.02, "batch": 8, "blocks": 16, "crop": 32, "learning_rate": 1e-3
}  # fmt: skip

CORRECTION_FILTERS = 16
CORRECTION_RATE = 1e-3


class Correction(keras.layers.Layer):
    """What the physical model of Landsat misses, at 30 m: two convolutions of 3x3, nothing at the start.

    Args:
      bands: how many.
    """

    def __init__(self, bands: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.first = keras.layers.Conv2D(CORRECTION_FILTERS, 3, padding="same", activation="relu")
        self.second = keras.layers.Conv2D(bands, 3, padding="same", kernel_initializer="zeros")
        self._bands = bands

    def build(self, input_shape: object = None) -> None:
        """Creates the weights."""
        self.first.build((None, None, None, self._bands))
        self.second.build((None, None, None, CORRECTION_FILTERS))
        self.built = True

    def call(self, ms: tf.Tensor) -> tf.Tensor:
        """Maps standardised [N, h, w, B] to what is to be added to it."""
        return self.second(self.first(ms))


class Closed(Adversarial):
    """The training of a Harmonizer on pairs and, at the same time, on the way from Sentinel-2 to Landsat and back.

    A batch is (paired, degraded), each a batch of `harmonize_tf.dataset`; every pixel of either counts alike.
    """

    def __init__(self, harmonizer: Harmonizer, judge: object, config: Config) -> None:
        super().__init__(harmonizer, judge, config)
        self.correction = Correction(len(harmonizer.bands), dtype="float32")
        self.correction.build()
        self.correction_optimizer = guarded(Adam(CORRECTION_RATE), self.correction.trainable_variables, config)

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """The Harmonizer's, the discriminator's and the correction's."""
        return super().optimizers | {"correction": self.correction_optimizer}

    @property
    def state(self) -> dict[str, list[keras.Variable]]:
        """All that a step changes."""
        return super().state | {"correction": self.correction.weights}

    def train_step(self, batch: tuple[tuple[Tensors, Tensors], tuple[Tensors, Tensors]]) -> dict[str, tf.Tensor]:
        """One step of all networks."""
        paired, (inputs, targets) = batch
        loss, norm = self._train_correction(*paired)
        # No gradient: a generator that could change what it is shown would hide the answer in it.
        corrected = inputs["landsat_ms"] + tf.stop_gradient(self._corrections(inputs, targets))
        paired = (
            paired[0],
            paired[1] | {"gain": tf.ones_like(targets["gain"]), "offset": tf.zeros_like(targets["offset"])},
        )
        both = tf.nest.map_structure(lambda *x: tf.concat(x, 0), paired, (inputs | {"landsat_ms": corrected}, targets))
        logs = super().train_step(both)
        return logs | {"correction_loss": loss, "gradient_norm_correction": norm}

    def _train_correction(self, inputs: Tensors, targets: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """Landsat as it is, against Sentinel-2 of the same place shown as Landsat."""
        clear = -tf.nn.max_pool2d(-targets["mask"], FACTOR, FACTOR, "VALID")  # all of a cell
        physical = self.harmonizer.bandpass.inverse().apply(self.harmonizer.degrade(targets["sentinel_ms"], clear))

        def loss() -> tf.Tensor:
            error = physical + self._correct(masked(physical, clear)) - inputs["landsat_ms"]
            squared = tf.reduce_mean(tf.square(error / tf.constant(self.harmonizer.std)), -1, keepdims=True)
            return pixelwise.masked_part(squared, clear)

        return self.minimize(self.correction_optimizer, self.correction.trainable_variables, loss)

    def _corrections(self, inputs: Tensors, targets: Tensors) -> tf.Tensor:
        """What is to be added to Sentinel-2 shown as Landsat under any light; the correction knows daylight alone."""
        bandpass = self.harmonizer.bandpass
        ms = bandpass.inverse().apply(by_daylight(bandpass.apply(inputs["landsat_ms"]), targets))
        return targets["gain"] * self._correct(masked(ms, inputs["landsat_valid"]))

    def _correct(self, ms: tf.Tensor) -> tf.Tensor:
        """What is to be added to the physical model's Landsat, reflectance."""
        mean, std = tf.constant(self.harmonizer.mean), tf.constant(self.harmonizer.std)
        return std * self.correction((ms - mean) / std)


def build(config: Config, info: DatasetInfo) -> Harmonizer:
    """A new Harmonizer whose constants are the data's."""
    return base.build(config, info, "subpixel")


def training(config: Config, harmonizer: Harmonizer) -> Closed:
    """The training of a Harmonizer as the flags say; call it inside the strategy's scope."""
    model = Closed(harmonizer, discriminator(config, harmonizer), config)
    compile_both(model, config)
    return model
