"""The one contract that is trained, exported and served: Landsat at 30 m in, Sentinel-2-like at 10 m out."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from harmonize_tf.degradation import MIN_SIGMA, cubic_weights
from harmonize_tf.errors import ModelError
from harmonize_tf.models.consistency import Consistency
from harmonize_tf.models.generators import Subpixel
from harmonize_tf.models.layers import PACKAGE, Polyphase, masked, repeat_pixels, resample
from harmonize_tf.radiometry import Bandpass

Inputs = Mapping[str, tf.Tensor]

CONSISTENCY = ("exact", "none")
NIR = ("B8", "B8A")
SCALES = (3, 2)


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


@keras.saving.register_keras_serializable(package=PACKAGE)
class Harmonizer(keras.Model):
    """base + detail, made consistent with the measurement.

        base    = bandpass(bicubic(ms))
        detail  = std * generator((ms - mean) / std, (pan - pan_mean) / pan_std)
        output  = consistency(base + detail, bandpass(ms))

    Invalid pixels influence nothing but their own 3x3 output pixels, and outside the image is the same as invalid.

    Args:
      bands: band names, in the order of the last axis.
      level: "toa", "sr" or "uncalibrated"; recorded.
      uses_pan: whether the panchromatic band is an input.
      bandpass: the adjustment Landsat -> Sentinel-2.
      sigma: for each band the Gaussian blur, in 10 m pixels, that makes Sentinel-2 look like Landsat.
      mean: for each band what the network subtracts, reflectance.
      std: for each band what the network divides by and its detail is multiplied by, reflectance.
      pan_mean: the same for the panchromatic band.
      pan_std: the same for the panchromatic band.
      scale: 3 (network at 30 m) or 2 (at 20 m, as in the article).
      blocks: residual blocks of the network.
      filters: channels of the network.
      consistency: "exact", or "none" as in the article.
      nir: Sentinel-2's band behind "nir", "B8" or "B8A"; recorded.

    Attributes:
      halo: pixels of 30 m that exact tiling needs as context on each side.
      multiple: pixels of 30 m that a window's origin and size must be multiples of.

    Raises:
      ModelError: an argument is not one of those above, or not one number for each band.
    """

    def __init__(
        self,
        bands: Sequence[str],
        level: str,
        uses_pan: bool,
        bandpass: Bandpass,
        sigma: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
        pan_mean: float = 0.0,
        pan_std: float = 1.0,
        scale: int = 3,
        blocks: int = 16,
        filters: int = 64,
        consistency: str = "exact",
        nir: str = "B8",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.bands, self.level, self.nir = tuple(bands), level, nir
        self.uses_pan, self.bandpass = uses_pan, bandpass
        self.sigma, self.mean, self.std = (tuple(map(float, x)) for x in (sigma, mean, std))
        self.pan_mean, self.pan_std = float(pan_mean), float(pan_std)
        self.scale, self.blocks, self.filters, self.consistency = scale, blocks, filters, consistency
        self._check()
        self._bicubic, self._consistency = Bicubic(len(self.bands)), Consistency(self.sigma)
        self.generator = Subpixel(len(self.bands), uses_pan, scale, blocks, filters, dtype=self.dtype_policy)
        self.generator.build()
        self.built = True
        self.multiple = self.generator.multiple
        reach = max(self._bicubic.halo, self.generator.halo)
        reach += self._consistency.halo if consistency == "exact" else 0
        self.halo = self.multiple * math.ceil(reach / self.multiple)

    def call(self, inputs: Inputs, training: bool | None = None) -> tf.Tensor:
        """Returns float32 reflectance [N, 3h, 3w, B], finite everywhere; see `prepare` for the inputs."""
        del training  # nothing here behaves differently in training
        landsat = prepare(inputs, self.bands, self.uses_pan)
        target = self.bandpass.apply(landsat.ms)
        output = self.base(landsat) + self.detail(landsat)
        return self._consistency(output, target, landsat.valid) if self.consistency == "exact" else output

    def base(self, landsat: Landsat) -> tf.Tensor:
        """Returns what is known without the network: bicubic, band-pass adjusted, [N, 3h, 3w, B]."""
        return self.bandpass.apply(self._bicubic(landsat.ms, landsat.valid))

    def detail(self, landsat: Landsat) -> tf.Tensor:
        """Returns what the network adds, reflectance, before consistency; [N, 3h, 3w, B]."""
        ms = masked((landsat.ms - tf.constant(self.mean)) / tf.constant(self.std), landsat.valid)
        pan = landsat.pan
        if pan is not None:
            pan = masked((pan - self.pan_mean) / self.pan_std, repeat_pixels(landsat.valid, 2))
        return self.generator(ms, pan, landsat.valid) * tf.constant(self.std)

    def degrade(self, output: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Shows an output [N, 3h, 3w, B] at 30 m as this model assumes that Landsat sees it; 0 where not valid."""
        return self._consistency.degrade(output, valid)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, as JSON has them."""
        names = ("level", "uses_pan", "pan_mean", "pan_std", "scale", "blocks", "filters", "consistency", "nir")
        lists = ("bands", "sigma", "mean", "std")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            **{name: list(getattr(self, name)) for name in lists},
            "bandpass": dataclasses.asdict(self.bandpass),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Harmonizer":
        """Makes a model from `get_config`'s answer."""
        b = config["bandpass"]
        bandpass = Bandpass(tuple(b["slope"]), tuple(b["offset"]), b["source"])
        return cls(**{**config, "bandpass": bandpass})

    def _check(self) -> None:
        per_band = {name: getattr(self, name) for name in ("sigma", "mean", "std")}
        per_band |= {"bandpass.slope": self.bandpass.slope, "bandpass.offset": self.bandpass.offset}
        for name, values in per_band.items():
            if len(values) != len(self.bands) or not all(map(math.isfinite, values)):
                raise ModelError(
                    f"Each of the {len(self.bands)} bands ({', '.join(self.bands)}) needs one finite number. "
                    f"Received: {name}={values}. Give as many as there are bands."
                )
        rules = (
            ("sigma", min(self.sigma) >= MIN_SIGMA, f"at least {MIN_SIGMA} pixels of 10 m"),
            ("std", min(self.std) > 0, "positive"),
            ("pan_std", self.pan_std > 0, "positive"),
            ("scale", self.scale in SCALES, f"one of {SCALES}"),
            ("consistency", self.consistency in CONSISTENCY, f"one of {CONSISTENCY}"),
            ("nir", self.nir in NIR, f"one of {NIR}"),
            ("blocks", self.blocks >= 0, "not negative"),
            ("filters", self.filters >= 1, "positive"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ModelError(f"{name} must be {rule}. Received: {name}={getattr(self, name)}. Change it.")


def load(path: str | os.PathLike) -> Harmonizer:
    """Reads a trained model, in Keras's safe mode.

    Raises:
      ModelError: it is missing, damaged or no Harmonizer.
    """
    remedy = f"Received: model={os.fspath(path)}. Give the model.keras that `harmonize train` wrote."
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises ValueError, OSError, TypeError, KeyError or zipfile's own
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ModelError(f"the trained model cannot be read ({reason}). {remedy}") from error
    if not isinstance(model, Harmonizer):
        raise ModelError(f"expected a Harmonizer, found a {type(model).__name__}. {remedy}")
    return model
