"""A network on the coarse grid that adds detail by depth-to-space."""

import math

import keras
import tensorflow as tf

from harmonize_tf.degradation import FACTOR, cubic_weights
from harmonize_tf.models.layers import (
    HEAD_SCALE,
    ICNR,
    PACKAGE,
    Polyphase,
    ResidualBlock,
    bent,
    padded,
    repeat_pixels,
    resample,
)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Subpixel(keras.layers.Layer):
    """A residual network on the coarse grid and a depth-to-space head to 10 m, linear and unbounded.

    With `scale` 3 it works at 30 m, the panchromatic band folded in by space-to-depth. With `scale` 2 it works at 20 m
    as in the article: the bands are brought from 30 to 20 m and the panchromatic band from 15 to 20 m by Keys' cubic.

    Args:
      bands: how many bands come in and go out.
      uses_pan: whether the panchromatic band comes in too.
      scale: 3 or 2, the factor of the depth-to-space head.
      blocks: residual blocks.
      filters: channels of the residual blocks.

    Attributes:
      halo: 30 m pixels beyond a pixel's own that its detail depends on, windows starting at `multiple`.
      multiple: pixels of 30 m that a window's origin and size must be multiples of.
    """

    def __init__(
        self, bands: int, uses_pan: bool, scale: int = 3, blocks: int = 16, filters: int = 64, **kwargs: object
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.bands, self.uses_pan, self.scale, self.blocks, self.filters = bands, uses_pan, scale, blocks, filters
        self.multiple = 1 if scale == FACTOR else 2
        reach = 2 * blocks + 2  # a 3x3 convolution first, two in each block, and the head
        if scale == FACTOR:
            self.halo = reach
        else:
            # 20 m pixels start every 20 m and cubic convolution reaches two pixels further.
            self.halo = 2 * math.ceil((math.ceil(reach * 2 / 3) + 1 + 2) / 2)
            self._to_20m, self._mask_to_20m = Polyphase([cubic_weights(2, 3)] * bands), Polyphase([cubic_weights(2, 3)])
            self._pan_to_20m = Polyphase([cubic_weights(4, 3)])
        # The entry reads float32 under every policy: with the 8 bits of bfloat16 the gradients' error is 2.7 times that
        # of a network whose other layers alone have them (16 x 64, T33UUU: 0.077 against 0.029 of their norm).
        policy = self.dtype_policy
        self.entry = keras.layers.Conv2D(filters, 3, padding="same", dtype="float32")
        self.body = [ResidualBlock(filters, dtype=policy) for _ in range(blocks)]
        self.head = keras.layers.Conv2D(
            scale**2 * bands, 3, padding="same", kernel_initializer=ICNR(scale, HEAD_SCALE), dtype=policy
        )

    def build(self, input_shape: object = None) -> None:
        """Creates the weights; the shapes follow from the arguments."""
        folded = (4 if self.scale == FACTOR else 1) * self.uses_pan
        self.entry.build((None, None, None, self.bands + folded + 1))
        for layer in (*self.body, self.head):
            layer.build((None, None, None, self.filters))
        self.built = True

    def call(self, ms: tf.Tensor, pan: tf.Tensor | None, valid: tf.Tensor) -> tf.Tensor:
        """Returns the detail at 10 m, finite everywhere.

        Args:
          ms: float32 [N, h, w, B] at 30 m, normalised, 0 where not valid.
          pan: float32 [N, 2h, 2w, 1] at 15 m, normalised, 0 where not valid; None without.
          valid: float32 [N, h, w, 1], 0 or 1.

        Returns:
          float32 [N, 3h, 3w, B], in units of the normalised bands.
        """
        if self.scale == FACTOR:
            folded = [tf.nn.space_to_depth(pan, 2)] if self.uses_pan else []
            return tf.nn.depth_to_space(self._network([ms, *folded], valid), FACTOR)
        height, width = tf.shape(ms)[1], tf.shape(ms)[2]
        detail = self._at_20m(padded(ms, 2), padded(pan, 4) if self.uses_pan else None, padded(valid, 2))
        return detail[:, : FACTOR * height, : FACTOR * width]

    def _at_20m(self, ms: tf.Tensor, pan: tf.Tensor | None, valid: tf.Tensor) -> tf.Tensor:
        inputs = [resample(ms, valid, self._to_20m, self._mask_to_20m)]
        if pan is not None:
            inputs.append(resample(pan, repeat_pixels(valid, 2), self._pan_to_20m, self._pan_to_20m))
        anywhere = tf.nn.max_pool2d(repeat_pixels(valid, FACTOR), 2, 2, "VALID")
        return tf.nn.depth_to_space(self._network([x * anywhere for x in inputs], anywhere), 2)

    def _network(self, inputs: list[tf.Tensor], valid: tf.Tensor) -> tf.Tensor:
        x = tf.concat([*inputs, valid], -1)
        # Most images have no gaps, and multiplying by ones takes a fifteenth of a step of training.
        return tf.cond(tf.reduce_all(valid > 0), lambda: self._convolved(x, None), lambda: self._convolved(x, valid))

    def _convolved(self, x: tf.Tensor, valid: tf.Tensor | None) -> tf.Tensor:
        x = tf.cast(bent(self.entry(x), valid), self.compute_dtype)
        mask = None if valid is None else tf.cast(valid, self.compute_dtype)
        for block in self.body:
            x = block(x, mask)
        return tf.cast(self.head(x), tf.float32)

    def get_config(self) -> dict[str, object]:
        """Returns the arguments."""
        names = ("bands", "uses_pan", "scale", "blocks", "filters")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
