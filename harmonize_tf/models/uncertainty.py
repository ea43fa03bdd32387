"""How far an output may be from what Sentinel-2 would have shown, pixel by pixel and band by band."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from harmonize_tf.models.layers import PACKAGE, bent, masked

FILTERS = 16
SMALLEST, LARGEST = 1e-3, 1e3
"""Limits of what the network may say, standard deviations of a band: nothing that is measured comes near them."""

QUANTILE = 0.9
"""Share of the errors that the calibration makes lie within the interval of that level."""


def half_width(level: float) -> float:
    """Half of a Laplace distribution's central interval, in standard deviations of it.

    Its density is exp(-|x| / b) / 2b, so that |x| < -b ln(1 - level) with probability `level`; b is the standard
    deviation over the root of two. Errors of images are closer to it than to a normal distribution: many are small, at
    edges they are large.

    Args:
      level: 0 to below 1, such as 0.9.
    """
    return -math.log1p(-level) / math.sqrt(2)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Spread(keras.layers.Layer):
    """Three convolutions that look at an output and at what is detail in it, and say how wrong it may be there.

    It looks on: what it says has no influence on the output. Nothing passes through invalid pixels, and outside the
    image is the same as invalid.

    Args:
      bands: how many.

    Attributes:
      calibration: for each band what the answer is multiplied by, fitted to data that nothing was trained on.
      reach: pixels of 10 m beyond a pixel's own that are looked at.
    """

    reach = 3

    def __init__(self, bands: int, **kwargs: object) -> None:
        super().__init__(autocast=False, **kwargs)
        self.bands = bands
        self.inner = [keras.layers.Conv2D(FILTERS, 3, padding="same", dtype="float32") for _ in range(2)]
        self.head = keras.layers.Conv2D(bands, 3, padding="same", kernel_initializer="zeros", dtype="float32")

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Creates the weights; the shapes follow from the arguments."""
        for layer, width in zip([*self.inner, self.head], (2 * self.bands + 1, FILTERS, FILTERS), strict=True):
            layer.build((None, None, None, width))
        self.calibration = self.add_weight(
            (self.bands,), keras.initializers.Ones(), "float32", trainable=False, name="calibration"
        )
        self.built = True

    def call(self, output: tf.Tensor, detail: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Returns the standard deviation of the error, [N, H, W, B], in units of the normalised bands; positive.

        Args:
          output: float32 [N, H, W, B], normalised.
          detail: float32 [N, H, W, B], what of it is not the base, in the same units.
          valid: float32 [N, H, W, 1], 0 or 1.
        """
        # A cloud is tens of standard deviations bright: nearly linear for ground, logarithmic for that.
        x = tf.concat([masked(tf.asinh(tf.concat([output, detail], -1)), valid), valid], -1)
        for layer in self.inner:
            x = bent(layer(x), valid)
        said = tf.exp(tf.clip_by_value(self.head(x), math.log(SMALLEST), math.log(LARGEST)))
        return said * tf.convert_to_tensor(self.calibration)

    def get_config(self) -> dict[str, object]:
        """Returns the arguments."""
        return {**super().get_config(), "bands": self.bands}
