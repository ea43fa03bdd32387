"""Landsat as it might have seen a Sentinel-2 patch, made anew for every patch of a training, in TensorFlow.

An export from `--source=degraded` shows each patch once, at one place in Landsat's lattice and with one blur. Here the
lattice may lie at any of nine places, the noise is another each time, and the blur, which is not exactly known, is
drawn. It needs no Landsat imagery.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from harmonize_tf import degradation, sensors
from harmonize_tf.augmentation import Tensors
from harmonize_tf.blur import BlurEstimate
from harmonize_tf.degradation import FACTOR, PAN_FACTOR, TRUNCATE, WARP_SIGMA
from harmonize_tf.models.layers import repeat_pixels
from harmonize_tf.radiometry import Bandpass

SPREAD = 1.2
"""The blur is drawn from the prior divided to the prior times this. Sources disagree about OLI by that much: between
Landsat's 30 m bands and Sentinel-2's the published MTFs give a sigma of 1.0 pixels of 10 m, OLI's requirement 1.4."""

# The panchromatic band lies a sixth of its own pixel beside the pair grid's, as the multispectral bands do.
PAN_SIGMA = math.hypot(sensors.PAN_BLUR_SIGMA, WARP_SIGMA / PAN_FACTOR)


@dataclasses.dataclass(frozen=True, eq=False)
class BlurPrior:
    """What is known of the blur between Sentinel-2 and Landsat on the pair grid, for drawing.

    Attributes:
      sigma: for each band what a model assumes, 10 m pixels.
      samples: float32 [sample, band, 2] what was measured (`harmonize estimate-blur`), in x and y; None: each band's is
        drawn from `sigma / SPREAD` to `sigma * SPREAD`, the same in x and y.
    """

    sigma: tuple[float, ...]
    samples: np.ndarray | None = None

    @classmethod
    def published(cls, bands: Sequence[str], nir: str) -> "BlurPrior":
        """From the MTFs that `sensors` lists."""
        return cls(degradation.pair_grid_sigma(sensors.blur_sigma(bands, nir)))

    @classmethod
    def measured(cls, estimate: BlurEstimate) -> "BlurPrior":
        """From pairs of scenes."""
        return cls(estimate.sigma, estimate.samples.astype(np.float32))

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        """Returns float32 [band, 2], the blur in x and y, 10 m pixels."""
        if self.samples is not None:
            number = tf.random.stateless_uniform([], seed, maxval=len(self.samples), dtype=tf.int32)
            return tf.constant(self.samples)[number]
        factor = SPREAD ** tf.random.stateless_uniform([len(self.sigma), 1], seed, -1.0, 1.0)
        return tf.maximum(tf.constant(self.sigma)[:, None] * tf.tile(factor, (1, 2)), degradation.MIN_SIGMA)


class Synthesis:
    """Cuts crops out of Sentinel-2 patches and shows each as Landsat, too.

    Args:
      bands: names of the bands.
      bandpass: the adjustment Landsat -> Sentinel-2.
      blur: what Sentinel-2 is blurred by.
      crop: side of a crop, 30 m pixels.
      pan: whether the panchromatic band is wanted.
    """

    def __init__(self, bands: Sequence[str], bandpass: Bandpass, blur: BlurPrior, crop: int, pan: bool) -> None:
        self._blur, self._crop, self._to_landsat = blur, crop, bandpass.inverse()
        weights = sensors.pan_weights()
        self._grey = np.float32([weights.get(band, 0.0) for band in bands]) if pan else None

    def __call__(self, image: tf.Tensor, data: tf.Tensor, clear: tf.Tensor, seed: tf.Tensor) -> tuple[Tensors, Tensors]:
        """Makes an unbatched pair as `harmonize_tf.dataset` describes it.

        Args:
          image: [height, width, band] Sentinel-2's reflectance.
          data: [height, width, 1], 1 = has data.
          clear: [height, width, 1], 1 = clear ground.
          seed: [2], of the place, the blur and the noise.
        """
        where, which, pan_blur, noise, pan_noise = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
        size = FACTOR * self._crop
        free = tf.cast(tf.shape(image)[:2] - size + 1, tf.float32)
        corner = tf.cast(tf.random.stateless_uniform([2], where) * free, tf.int32)
        image = tf.where(data > 0, image, 0.0)

        def cut(x: tf.Tensor) -> tf.Tensor:
            window = x[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
            return tf.ensure_shape(window, [size, size, x.shape[-1]])

        # A cell is seen where all that it covers is.
        given = 1.0 - tf.nn.max_pool2d(1.0 - cut(data)[None], FACTOR, FACTOR, "VALID")[0]
        ms = seen(image, data, corner, self._crop, FACTOR, self._blur.draw(which))
        ms = self._to_landsat.apply(ms) + tf.random.stateless_normal(ms.shape, noise, stddev=sensors.OLI_NOISE)
        inputs = {"landsat_ms": ms, "landsat_valid": given}
        if self._grey is not None:
            # A convolution with one kernel commutes with the sum over the bands.
            grey = tf.reduce_sum(image * self._grey, -1, keepdims=True)
            sigma = PAN_SIGMA * SPREAD ** tf.random.stateless_uniform([1, 1], pan_blur, -1.0, 1.0)
            pan = seen(grey, data, corner, PAN_FACTOR * self._crop, FACTOR / PAN_FACTOR, tf.tile(sigma, (1, 2)))
            inputs["landsat_pan"] = pan + tf.random.stateless_normal(pan.shape, pan_noise, stddev=sensors.OLI_PAN_NOISE)
            inputs["landsat_pan_valid"] = repeat_pixels(given, PAN_FACTOR)
        # What a cell that is not seen covers is no output of any model, so nothing can be asked about it.
        return inputs, {"sentinel_ms": cut(image), "mask": cut(clear) * repeat_pixels(given, FACTOR)}


def seen(image: tf.Tensor, data: tf.Tensor, corner: tf.Tensor, count: int, size: float, sigma: tf.Tensor) -> tf.Tensor:
    """`degradation.sample_blurred` in TensorFlow, by dense matrices, with a blur that is a tensor.

    Args:
      image: [height, width, band]; 0 where there is no data.
      data: [height, width, 1], 0 or 1.
      corner: [2] int32, row and column of the image's pixel at whose corner the output starts.
      count: pixels of the output along one side.
      size: side of an output pixel, in pixels of the image.
      sigma: [band, 2] the Gaussian's standard deviation in x and y, in pixels of the image.

    Returns:
      float32 [count, count, band]; what has no data in reach becomes 0.
    """

    def weights(axis: int) -> tf.Tensor:
        centres = tf.cast(corner[axis], tf.float32) + (np.arange(count, dtype=np.float32) + 0.5) * size - 0.5
        distance = tf.range(tf.cast(tf.shape(image)[axis], tf.float32)) - centres[:, None]
        width = sigma[:, 1 - axis, None, None]  # x runs along the columns, which are the second axis
        gaussian = tf.exp(-0.5 * tf.square(distance / width))
        return tf.where(tf.abs(distance) <= TRUNCATE * width + 1e-6, gaussian, 0.0)

    across, down = weights(0), weights(1)

    def blurred(x: tf.Tensor) -> tf.Tensor:
        bands = tf.transpose(x, (2, 0, 1))
        return tf.transpose(across @ bands @ tf.transpose(down, (0, 2, 1)), (1, 2, 0))

    return tf.ensure_shape(tf.math.divide_no_nan(blurred(image), blurred(data)), [count, count, image.shape[-1]])
