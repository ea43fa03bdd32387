"""The residual network of Johnson et al. and CycleGAN, which works on an image at full resolution."""

import math
from typing import Any

import keras
import tensorflow as tf

from harmonize_tf.degradation import FACTOR
from harmonize_tf.models.layers import HEAD_SCALE, PACKAGE, RepeatedConv2D, bent, padded, standardized

NORMS = ("none", "instance")

SLOPE = 0.2
"""Of the leaky ReLU below zero, the discriminators' too. With a plain one the generators of gan and cyclegan now and
then ended with an output that nothing changed any more (T33UUU, learning rates of 2e-4 and 1e-3)."""

INITIAL_STDDEV = 0.02
"""Of the published networks' weights: N(0, 0.02), Zhu et al. 2017 (CycleGAN, arXiv:1703.10593), section 7.1."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class ResNet(keras.layers.Layer):
    """7x7 entry, two convolutions of stride 2, residual blocks, two upsamplings, 7x7 head; linear and unbounded.

    Johnson et al. 2016 (arXiv:1603.08155) as in CycleGAN (c7s1-64, d128, d256, R256 x 9, u128, u64, c7s1-B), without
    its tanh: an image's values go in and what is to be added to them comes out.

    With `norm="none"` nothing passes through invalid pixels, which count as zero, as does the outside; the mask goes in
    as one more channel. Upsampling repeats pixels and convolves (Odena et al. 2016, doi:10.23915/distill.00003), which
    has as many weights as the published transposed convolution and none of its checkerboard.

    `norm="instance"` is for parity with the literature and has its number of weights: no mask goes in, convolutions are
    transposed, and each channel is normalised over the whole image. A pixel's detail then depends on all the others,
    so that no halo makes windows equal the whole. Here too padding is by zeros, where the published one reflects.

    Args:
      bands: how many bands come in and go out.
      blocks: residual blocks.
      filters: channels at full resolution; twice and four times as many at 20 and 40 m.
      norm: "none" or "instance".

    Attributes:
      reach: pixels of the image beyond a pixel's own that it depends on, windows starting at multiples of `STRIDE`;
        None where it depends on the whole image.
      halo: the same in 30 m pixels, for an image at 10 m.
      multiple: pixels of 30 m that a window's origin and size must be multiples of.
    """

    STRIDE = 4
    """Pixels along one side of a cell of the innermost grid."""

    def __init__(self, bands: int, blocks: int = 9, filters: int = 64, norm: str = "none", **kwargs: object) -> None:
        super().__init__(autocast=False, **kwargs)
        self.bands, self.blocks, self.filters, self.norm = bands, blocks, filters, norm
        self.multiple = self.STRIDE  # 30 m are three pixels, which share no factor with it
        # At most 3 pixels in the head, 1 in each upsampling (of 1 and 2 pixels), 2 x 4 in each block, and what the
        # convolutions of stride 2 and the entry look at; the worst of the four places that a pixel can have in a cell.
        self.reach = 8 * blocks + 15 if norm == "none" else None
        self.halo = math.ceil(self.reach / FACTOR) if norm == "none" else None
        # The entry reads float32 under every policy; see `Subpixel`.
        policy = self.dtype_policy
        self.entry = self._convolution(filters, 7, dtype="float32")
        self.down = [self._convolution(n * filters, 3, strides=2, dtype=policy) for n in (2, 4)]
        self.first = [self._convolution(4 * filters, 3, dtype=policy) for _ in range(blocks)]
        # All the blocks together add as much variance as they are given, however many they are.
        self.second = [self._convolution(4 * filters, 3, gain=1 / blocks, dtype=policy) for _ in range(blocks)]
        kind = {"kind": RepeatedConv2D} if norm == "none" else {"kind": keras.layers.Conv2DTranspose, "strides": 2}
        self.up = [self._convolution(n * filters, 3, **kind, dtype=policy) for n in (2, 1)]
        small = keras.initializers.VarianceScaling(HEAD_SCALE, "fan_in", "truncated_normal")
        self.head = keras.layers.Conv2D(bands, 7, padding="same", kernel_initializer=small, dtype=policy)

    def build(self, input_shape: object = None) -> None:
        """Creates the weights; the shapes follow from the arguments."""
        f = self.filters
        self.entry.build((None, None, None, self.bands + (self.norm == "none")))
        for layer, channels in zip([*self.down, *self.up, self.head], (f, 2 * f, 4 * f, 2 * f, f), strict=True):
            layer.build((None, None, None, channels))
        for layer in (*self.first, *self.second):
            layer.build((None, None, None, 4 * f))
        self.built = True

    def call(self, image: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Returns what is to be added to an image, finite everywhere.

        Args:
          image: float32 [N, H, W, B], normalised, 0 where not valid.
          valid: float32 [N, H, W, 1], 0 or 1.

        Returns:
          float32 [N, H, W, B], in units of the normalised bands.
        """
        height, width = tf.shape(image)[1], tf.shape(image)[2]
        image, valid = padded(image, self.STRIDE), padded(valid, self.STRIDE)
        at_20m = tf.nn.max_pool2d(valid, 2, 2, "VALID")
        at_40m = tf.nn.max_pool2d(at_20m, 2, 2, "VALID")
        x = tf.concat([image, valid], -1) if self.norm == "none" else image
        x = tf.cast(self._bent(self.entry(x), valid), self.compute_dtype)
        for layer, mask in zip(self.down, (at_20m, at_40m), strict=True):
            x = self._bent(layer(x), mask)
        for first, second in zip(self.first, self.second, strict=True):
            inner = second(self._bent(first(x), at_40m))
            inner = standardized(inner, at_40m) if self.norm == "instance" else inner
            x = (x + inner) * tf.cast(at_40m, x.dtype)
        for layer, mask in zip(self.up, (at_20m, valid), strict=True):
            x = self._bent(layer(x), mask)
        return tf.cast(self.head(x), tf.float32)[:, :height, :width]

    def _bent(self, x: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """ReLU; without normalization a leaky one, as nothing else keeps a layer from falling silent for good."""
        x = standardized(x, valid) if self.norm == "instance" else x
        return bent(x, tf.cast(valid, x.dtype), SLOPE if self.norm == "none" else 0.0)

    def _convolution(
        self,
        filters: int,
        size: int,
        *,
        gain: float = 2.0,
        kind: type[keras.layers.Layer] = keras.layers.Conv2D,
        **arguments: Any,
    ) -> keras.layers.Layer:
        """He's start, which keeps the variance through ReLUs, or the published one where variances are normalised."""
        start = keras.initializers.VarianceScaling(gain, "fan_in", "truncated_normal")
        if self.norm == "instance":
            start = keras.initializers.RandomNormal(stddev=INITIAL_STDDEV)
        return kind(filters, size, padding="same", kernel_initializer=start, **arguments)

    def get_config(self) -> dict[str, object]:
        """Returns the arguments."""
        names = ("bands", "blocks", "filters", "norm")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
