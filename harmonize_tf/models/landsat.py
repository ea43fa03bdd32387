"""Landsat as the models are given it, made ready, and brought to 10 m without a network."""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf

from harmonize_tf import pansharpen
from harmonize_tf.degradation import cubic_weights, gaussian_weights
from harmonize_tf.errors import ModelError
from harmonize_tf.models.layers import Polyphase, masked, repeat_pixels, resample

Inputs = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Landsat:
    """What a Harmonizer is given, made ready: float32, 0 where there is no data.

    Attributes:
      ms: [N, h, w, B] reflectance at 30 m.
      valid: [N, h, w, 1], 0 or 1.
      pan: [N, 2h, 2w, 1] at 15 m, its gaps filled from the visible bands; None when it is not used.
    """

    ms: tf.Tensor
    valid: tf.Tensor
    pan: tf.Tensor | None


def prepare(inputs: Inputs, bands: Sequence[str], uses_pan: bool) -> Landsat:
    """Checks the inputs of a Harmonizer against what it was made for, and masks them.

    Args:
      inputs: "landsat_ms" [N, h, w, B] reflectance; "landsat_valid" [N, h, w, 1]; with `uses_pan` "landsat_pan"
        [N, 2h, 2w, 1] and, where not everything in it is valid, "landsat_pan_valid" of the same shape.
      bands: names of the bands of "landsat_ms".
      uses_pan: whether the panchromatic band is wanted.

    Raises:
      ModelError: an input is missing or has another number of bands.
    """
    wanted = {"landsat_ms": len(bands), "landsat_valid": 1} | ({"landsat_pan": 1} if uses_pan else {})
    for name, channels in wanted.items():
        shape = inputs[name].shape if name in inputs else None
        if shape is None or len(shape) != 4 or shape[-1] != channels:
            raise ModelError(
                f"This model needs {name!r} of shape [N, height, width, {channels}] for bands {', '.join(bands)}. "
                f"Received: shape={None if shape is None else tuple(shape)}. Give it data of those bands."
            )
    valid = tf.cast(tf.cast(inputs["landsat_valid"], tf.float32) > 0.5, tf.float32)
    ms = masked(tf.cast(inputs["landsat_ms"], tf.float32), valid)
    if not uses_pan:
        return Landsat(ms, valid, None)
    return Landsat(ms, valid, _filled_pan(inputs, ms, valid, bands))


def _filled_pan(inputs: Inputs, ms: tf.Tensor, valid: tf.Tensor, bands: Sequence[str]) -> tf.Tensor:
    pan, valid = tf.cast(inputs["landsat_pan"], tf.float32), repeat_pixels(valid, 2)
    if inputs.get("landsat_pan_valid") is not None:
        # The panchromatic band covers green and red (0.50 to 0.68 um), so their mean stands in for it.
        visible = [ms[..., bands.index(name), None] for name in ("green", "red")]
        gaps = repeat_pixels(tf.add_n(visible) / len(visible), 2)
        pan = tf.where(tf.cast(inputs["landsat_pan_valid"], tf.float32) > 0.5, pan, gaps)
    return masked(pan, valid)


class Bicubic:
    """Keys' bicubic from 30 to 10 m, looking at valid pixels only.

    Args:
      bands: how many.

    Attributes:
      halo: 30 m pixels beyond a pixel's own that are looked at.
    """

    def __init__(self, bands: int) -> None:
        self._operator, self._mask_operator = Polyphase([cubic_weights()] * bands), Polyphase([cubic_weights()])
        self.halo = self._operator.radius

    def __call__(self, x: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, B] to [N, 3h, 3w, B]; `valid` is [N, h, w, 1]."""
        return resample(x, valid, self._operator, self._mask_operator)


class PanSharpening:
    """Injects the panchromatic band's detail into an image at 10 m, by `pansharpen.sharpen`.

    Args:
      bands: names of the bands of the image.

    Attributes:
      halo: 30 m pixels beyond a pixel's own that are looked at.
    """

    def __init__(self, bands: Sequence[str]) -> None:
        self.bands = tuple(bands)
        self._to_10m = Polyphase([cubic_weights(2, 3)])
        self._to_30m = Polyphase([gaussian_weights(pansharpen.BLUR_SIGMA, 2, 1)])
        self._bicubic = Bicubic(1)
        self.halo = self._bicubic.halo + self._to_30m.radius

    def __call__(self, image: tf.Tensor, landsat: Landsat) -> tf.Tensor:
        """Maps reflectance [N, 3h, 3w, B], the same scene as `landsat`, to the same."""
        at_15m = repeat_pixels(landsat.valid, 2)
        pan = resample(landsat.pan, at_15m, self._to_10m, self._to_10m)
        seen = resample(landsat.pan, at_15m, self._to_30m, self._to_30m)
        return pansharpen.sharpen(image, pan, self._bicubic(seen, landsat.valid), self.bands)
