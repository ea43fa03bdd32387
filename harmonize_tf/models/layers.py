"""Parts of the models: resampling between nested grids, masked residual blocks, a sub-pixel head without checkerboard.

"Outside the image" and "invalid" are one thing in all of them: both count as zero and neither is looked at. Hence a
window cut from a scene with enough context, or a scene padded with no-data, gives the same pixels as the scene itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

PACKAGE = "harmonize_tf"

HEAD_SCALE = 1e-2
"""Variance scaling of the heads: detail starts at about a tenth of the bands' spread, so that base comes first."""

EPSILON = 1e-5
"""Added to the variance in instance normalization: PyTorch's default, which the published networks take."""


class Polyphase:
    """Resamples between two grids that nest in 30 m cells: a fixed convolution between space-to-depth and its inverse.

    Args:
      weights: for each band `degradation.lattice_weights`, [2r+1, in_factor, out_factor]; applied to rows and columns.

    Attributes:
      bands: how many bands it takes.
      radius: how many 30 m cells an output pixel looks beyond its own.
    """

    def __init__(self, weights: Sequence[np.ndarray]) -> None:
        self.radius = max(len(w) for w in weights) // 2
        self._in_factor, self._out_factor = weights[0].shape[1:]
        self.bands = bands = len(weights)
        side = 2 * self.radius + 1
        kernel = np.zeros((side, side, self._in_factor**2, bands, self._out_factor**2, bands), np.float32)
        for band, w in enumerate(weights):
            w = np.pad(w, ((self.radius - len(w) // 2,) * 2, (0, 0), (0, 0)))
            both = np.einsum("apq,brs->abprqs", w, w)
            kernel[:, :, :, band, :, band] = both.reshape(side, side, self._in_factor**2, self._out_factor**2)
        self._kernel = kernel.reshape(side, side, self._in_factor**2 * bands, self._out_factor**2 * bands)

    def __call__(self, x: tf.Tensor, padding: str = "SAME") -> tf.Tensor:
        """Maps float32 [N, in_factor*h, in_factor*w, B] to [N, out_factor*h, out_factor*w, B]; zero outside.

        With padding "VALID" the outer `radius` cells of `x` are not among those that come out.
        """
        x = tf.nn.space_to_depth(x, self._in_factor) if self._in_factor > 1 else x
        x = tf.nn.conv2d(x, self._kernel, 1, padding)
        return tf.nn.depth_to_space(x, self._out_factor) if self._out_factor > 1 else x


def repeat_pixels(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Shows [..., h, w, B] as [..., factor*h, factor*w, B], each pixel repeated (nearest-neighbour upsampling)."""
    return tf.repeat(tf.repeat(x, factor, axis=-3), factor, axis=-2)


def masked(x: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Zeroes what is not valid, NaN included. `valid` is 0 or 1, [N, h, w, 1]."""
    return tf.where(valid > 0, x, tf.zeros_like(x))


def bent(x: tf.Tensor, valid: tf.Tensor | None = None, slope: float = 0.0) -> tf.Tensor:
    """Leaky ReLU, and zero where `valid` [N, h, w, 1] is; what invalid pixels hold has to be finite.

    Its gradient looks at what came out, which has the sign of what went in. So nothing else needs a convolution's sum
    before it is bent, and TensorFlow bends it inside of the convolution.

    Args:
      x: [N, h, w, C].
      valid: 0 or 1, of the type of `x`; None where everything is.
      slope: below zero.
    """
    if valid is None and not slope:
        return tf.nn.relu(x)  # whose gradient is that already

    @tf.custom_gradient
    def function(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        y = tf.nn.leaky_relu(x, slope) if slope else tf.nn.relu(x)
        y = y if valid is None else y * valid

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            if not slope:  # zero where `y` is
                return tf.raw_ops.ReluGrad(gradients=upstream, features=y)
            upstream = upstream if valid is None else upstream * valid
            return tf.raw_ops.LeakyReluGrad(gradients=upstream, features=y, alpha=slope)

        return y, gradient

    return function(x)


def padded(x: tf.Tensor, multiple: int) -> tf.Tensor:
    """Pads rows and columns at the end with zeros, which is "not valid" in all inputs, up to a multiple."""
    missing = -tf.shape(x)[1:3] % multiple
    return tf.pad(x, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])


def cropped(x: tf.Tensor, margin: int) -> tf.Tensor:
    """Leaves a margin out all around: an indexing by slices, the gradient of which takes five times as long."""
    y = tf.slice(x, (0, margin, margin, 0), tf.shape(x) - (0, 2 * margin, 2 * margin, 0))
    # Without its number of channels the next convolution would be taken for a grouped one, and compiled by XLA.
    y.set_shape([x.shape[0], *(size and size - 2 * margin for size in x.shape[1:3]), x.shape[3]])
    return y


def standardized(x: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Instance normalization without weights of its own: each channel of each image gets mean 0 and variance 1.

    Ulyanov et al. 2016 (arXiv:1607.08022). Computed in float32 whatever the type of `x`.

    Args:
      x: [N, h, w, C].
      weight: float32 [N, h, w, 1], what a pixel counts for in mean and variance: 0 where there is no data.
    """
    values = tf.cast(x, tf.float32)
    share = tf.math.divide_no_nan(weight, tf.reduce_sum(weight, (1, 2), keepdims=True))
    mean = tf.reduce_sum(share * values, (1, 2), keepdims=True)
    variance = tf.reduce_sum(share * tf.square(values - mean), (1, 2), keepdims=True)
    return tf.cast((values - mean) * tf.math.rsqrt(variance + EPSILON), x.dtype)


def resample(x: tf.Tensor, valid: tf.Tensor, operator: Polyphase, mask_operator: Polyphase) -> tf.Tensor:
    """Resamples what is valid with weights that again add up to one; 0 where nothing valid is in reach.

    Args:
      x: float32 [N, h, w, B].
      valid: float32 [N, h, w, 1], 0 or 1.
      operator: the resampling of B bands.
      mask_operator: the same of one band.
    """
    total = mask_operator(valid)
    # In a valid cell Keys' cubic leaves at least 0.36 of its weight, whatever is missing around it.
    enough = total > 0.05
    return tf.where(enough, operator(masked(x, valid)) / tf.where(enough, total, 1.0), 0.0)


@keras.saving.register_keras_serializable(package=PACKAGE)
class ICNR(keras.initializers.Initializer):
    """Starts a depth-to-space convolution as "nearest-neighbour resize, then convolve": no checkerboard at step 0.

    One kernel is drawn and given to all factor**2 sub-pixels (Aitken et al. 2017, arXiv:1707.02937).

    Args:
      factor: the block size of the depth-to-space that follows.
      scale: variance scaling (fan in, truncated normal) of the one kernel.
      seed: of the draw.
    """

    def __init__(self, factor: int, scale: float = 1.0, seed: int | None = None) -> None:
        self.factor, self.scale, self.seed = factor, scale, seed

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
        """Returns a kernel [height, width, in, factor**2 * out], sub-pixel slowest as depth-to-space reads it."""
        draw = keras.initializers.VarianceScaling(self.scale, "fan_in", "truncated_normal", seed=self.seed)
        kernel = draw((*shape[:-1], shape[-1] // self.factor**2), dtype)
        return keras.ops.tile(kernel, (1, 1, 1, self.factor**2))

    def get_config(self) -> dict[str, object]:
        """Returns the arguments."""
        return {"factor": self.factor, "scale": self.scale, "seed": self.seed}


@keras.saving.register_keras_serializable(package=PACKAGE)
class ResidualBlock(keras.layers.Layer):
    """x + conv(relu(conv(x))), 3x3, without normalization (EDSR), nothing passing through invalid pixels.

    Args:
      filters: channels of the input and of both convolutions.
    """

    def __init__(self, filters: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.first = keras.layers.Conv2D(filters, 3, padding="same", dtype=self.dtype_policy)
        self.second = keras.layers.Conv2D(filters, 3, padding="same", dtype=self.dtype_policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the weights."""
        self.first.build(input_shape)
        self.second.build(input_shape)

    def call(self, x: tf.Tensor, valid: tf.Tensor | None) -> tf.Tensor:
        """Maps [N, h, w, filters], zero where `valid` [N, h, w, 1] is, to the same; None where everything is valid."""
        x += self.second(bent(self.first(x), valid))
        return x if valid is None else x * valid

    def get_config(self) -> dict[str, object]:
        """Returns the arguments."""
        return {**super().get_config(), "filters": self.filters}


class RepeatedConv2D(keras.layers.Conv2D):
    """A convolution of 3x3 on an image whose pixels are each repeated 2 x 2, without ever making that image.

    Of the nine pixels under a kernel only four differ, so that four kernels of 2x2, sums of its weights, do the same
    with 16/36 of the multiplications. Its arguments are those of Keras's Conv2D.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, autocast=False, **kwargs)  # weights are added up in float32

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, C] to [N, 2h, 2w, filters]; zero outside."""
        # Rows 2i - 1 and 2i of the image, in this order, look at rows i - 1 and i of `x`: with these of three weights.
        shared = tf.constant([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], tf.float32)
        kernel = tf.einsum("ark,bcl,klio->rciabo", shared, shared, self.kernel)
        kernel = tf.reshape(kernel, (2, 2, -1, 4 * self.filters))
        kernel, bias = tf.cast(kernel, x.dtype), tf.cast(tf.tile(self.bias, (4,)), x.dtype)
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "VALID"), bias)
        return cropped(tf.nn.depth_to_space(x, 2), 1)  # from -1 to 2h
