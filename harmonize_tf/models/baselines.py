"""What a trained model has to beat, under the Harmonizer's contract: nearest, bicubic, bandpass, pansharpen."""

from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from harmonize_tf.degradation import FACTOR
from harmonize_tf.errors import ModelError
from harmonize_tf.models.landsat import Bicubic, Inputs, PanSharpening, prepare
from harmonize_tf.models.layers import repeat_pixels
from harmonize_tf.radiometry import Bandpass

BASELINES = ("nearest", "bicubic", "bandpass", "pansharpen")


class Baseline(keras.Model):
    """A Harmonizer without anything to train and without the consistency step.

    Args:
      method: "nearest" (pixels repeated), "bicubic", "bandpass" (bicubic, then the band-pass adjustment) or
        "pansharpen" (the same with the panchromatic band's detail injected; without that band it is "bandpass").
      bands: band names, in the order of the last axis.
      level: "toa", "sr" or "uncalibrated"; recorded.
      uses_pan: whether the panchromatic band is an input.
      bandpass: the adjustment Landsat -> Sentinel-2; "nearest" and "bicubic" leave it out.

    Attributes:
      halo: pixels of 30 m that exact tiling needs as context on each side.
      multiple: 1: a window may start anywhere.

    Raises:
      ModelError: there is no such method.
    """

    def __init__(self, method: str, bands: Sequence[str], level: str, uses_pan: bool, bandpass: Bandpass) -> None:
        if method not in BASELINES:
            raise ModelError(
                f"The baselines are {', '.join(BASELINES)}. Received: name={method!r}. Choose one of them."
            )
        super().__init__(autocast=False, name=method)
        self.method, self.bands, self.level = method, tuple(bands), level
        self.multiple = 1
        self.uses_pan = uses_pan and method == "pansharpen"
        if method == "pansharpen" and not uses_pan:
            logging.warning("pansharpen: there is no panchromatic band, so this baseline is the same as bandpass")
        self.bandpass = bandpass if method in ("bandpass", "pansharpen") else _identity(len(self.bands))
        self._bicubic = Bicubic(len(self.bands))
        self._sharpen = PanSharpening(self.bands) if self.uses_pan else None
        self.built = True
        self.halo = 0 if method == "nearest" else (self._sharpen or self._bicubic).halo

    def call(self, inputs: Inputs, training: bool | None = None) -> tf.Tensor:
        """Returns float32 reflectance [N, 3h, 3w, B]; inputs as `landsat.prepare` takes them."""
        del training
        landsat = prepare(inputs, self.bands, self.uses_pan)
        if self.method == "nearest":
            return repeat_pixels(landsat.ms, FACTOR)
        output = self.bandpass.apply(self._bicubic(landsat.ms, landsat.valid))
        return self._sharpen(output, landsat) if self._sharpen else output


def build_baseline(name: str, bands: Sequence[str], level: str, uses_pan: bool, bandpass: Bandpass) -> Baseline:
    """Returns the baseline `name`; see `Baseline` for the arguments."""
    return Baseline(name, bands, level, uses_pan, bandpass)


def _identity(bands: int) -> Bandpass:
    return Bandpass((1.0,) * bands, (0.0,) * bands, "identity: this baseline adjusts nothing")
