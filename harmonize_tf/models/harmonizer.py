"""The one contract that is trained, exported and served: Landsat at 30 m in, Sentinel-2-like at 10 m out."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from harmonize_tf import precision
from harmonize_tf.degradation import FACTOR, MIN_SIGMA
from harmonize_tf.errors import ModelError
from harmonize_tf.models.consistency import Consistency
from harmonize_tf.models.landsat import Bicubic, Inputs, Landsat, PanSharpening, prepare
from harmonize_tf.models.layers import PACKAGE, masked, repeat_pixels
from harmonize_tf.models.resnet import NORMS, ResNet
from harmonize_tf.models.subpixel import Subpixel
from harmonize_tf.models.uncertainty import Spread
from harmonize_tf.radiometry import Bandpass

GENERATORS = ("subpixel", "resnet")
CONSISTENCY = ("exact", "none")
NIR = ("B8", "B8A")
SCALES = (3, 2)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Harmonizer(keras.Model):
    """base + detail, made consistent with the measurement.

        base    = bandpass(bicubic(ms))
        detail  = std * generator((ms - mean) / std, (pan - pan_mean) / pan_std)
        output  = consistency(base + detail, bandpass(ms))

    The generator "subpixel" works on the coarse grid. "resnet" works at 10 m, on the base, into which the panchromatic
    band's detail is injected where it is an input (`harmonize_tf.pansharpen`): it sees an image like Sentinel-2's but
    blurred, whatever Landsat it comes from, and may have learnt on such images only (`refine`):

        base    = pansharpen(bandpass(bicubic(ms)), pan)
        detail  = std * generator((base - mean) / std)

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
      scale: of "subpixel" 3 (network at 30 m) or 2 (at 20 m, as in the article); 3 with "resnet".
      blocks: residual blocks of the network.
      filters: channels of the network.
      consistency: "exact", or "none" as in the article.
      nir: Sentinel-2's band behind "nir", "B8" or "B8A"; recorded.
      generator: "subpixel" or "resnet".
      norm: "none", or with "resnet" "instance" for parity with the literature.
      uncertainty: whether it also says how wrong it may be (`judged`).

    Attributes:
      generator: the network.
      spread: the network that says it; None without.
      halo: pixels of 30 m that exact tiling needs as context on each side; None where a network with
        `norm="instance"` looks at the whole image, so that windows never equal it.
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
        generator: str = "subpixel",
        norm: str = "none",
        uncertainty: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.bands, self.level, self.nir = tuple(bands), level, nir
        self.uses_pan, self.bandpass = uses_pan, bandpass
        self.sigma, self.mean, self.std = (tuple(map(float, x)) for x in (sigma, mean, std))
        self.pan_mean, self.pan_std = float(pan_mean), float(pan_std)
        self.scale, self.blocks, self.filters, self.consistency = scale, blocks, filters, consistency
        self.kind, self.norm = generator, norm
        self._check()
        self._bicubic, self._consistency = Bicubic(len(self.bands)), Consistency(self.sigma)
        self._sharpen = PanSharpening(self.bands) if generator == "resnet" and uses_pan else None
        self.generator = self._network()
        self.generator.build()
        self.spread = Spread(len(self.bands)) if uncertainty else None
        if self.spread:
            self.spread.build()
        self.built = True
        self.multiple = self.generator.multiple
        self.halo = self._halo()

    def call(self, inputs: Inputs, training: bool | None = None) -> tf.Tensor:
        """Returns float32 reflectance [N, 3h, 3w, B], finite everywhere; see `prepare` for the inputs."""
        del training  # nothing here behaves differently in training
        landsat = prepare(inputs, self.bands, self.uses_pan)
        return self.consistent(self.base(landsat) + self.detail(landsat), landsat)

    def judged(self, inputs: Inputs) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output of `call` and the standard deviation of its error, reflectance, both [N, 3h, 3w, B].

        `uncertainty.half_width` makes intervals of it.

        Raises:
          ModelError: this model has not learnt to say it.
        """
        if not self.spread:
            raise ModelError(
                "this model does not tell how uncertain it is; train one with --uncertainty. Received: "
                f"uncertainty=False in {self.name}"
            )
        landsat = prepare(inputs, self.bands, self.uses_pan)
        base, inside = self.base(landsat), repeat_pixels(landsat.valid, FACTOR)
        output = self.consistent(base + self.detail(landsat), landsat)
        std = tf.constant(self.std)
        return output, std * self.spread((output - tf.constant(self.mean)) / std, (output - base) / std, inside)

    def base(self, landsat: Landsat) -> tf.Tensor:
        """Returns what is known without the network, reflectance, [N, 3h, 3w, B]."""
        base = self.bandpass.apply(self._bicubic(landsat.ms, landsat.valid))
        return self._sharpen(base, landsat) if self._sharpen else base

    def detail(self, landsat: Landsat) -> tf.Tensor:
        """Returns what the network adds, reflectance, before consistency; [N, 3h, 3w, B]."""
        if self.kind == "resnet":
            return self.refine(self.base(landsat), repeat_pixels(landsat.valid, FACTOR))
        ms, pan = self._normalized(landsat.ms, landsat.valid), landsat.pan
        if pan is not None:
            pan = masked((pan - self.pan_mean) / self.pan_std, repeat_pixels(landsat.valid, 2))
        return self.generator(ms, pan, landsat.valid) * tf.constant(self.std)

    def refine(self, image: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Returns what a "resnet" adds to an image at 10 m that has come another way than from Landsat.

        Args:
          image: reflectance float32 [N, H, W, B], such as Sentinel-2's, blurred; H and W of any size.
          valid: float32 [N, H, W, 1], 0 or 1; what invalid pixels hold is not used.

        Returns:
          float32 reflectance [N, H, W, B], finite everywhere.
        """
        return self.generator(self._normalized(image, valid), valid) * tf.constant(self.std)

    def consistent(self, image: tf.Tensor, landsat: Landsat) -> tf.Tensor:
        """Returns an image of the same place, reflectance [N, 3h, 3w, B], as an output must be; see `consistency`."""
        if self.consistency == "none":
            return image
        return self._consistency(image, self.bandpass.apply(landsat.ms), landsat.valid)

    def degrade(self, output: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Shows an output [N, 3h, 3w, B] at 30 m as this model assumes that Landsat sees it; 0 where not valid."""
        return self._consistency.degrade(output, valid)

    def in_precision(self, name: str) -> "Harmonizer":
        """Returns a copy, of the same weights, whose network computes in another of `precision.PRECISIONS`."""
        twin = Harmonizer.from_config({**self.get_config(), "dtype": precision.policy(name)})
        twin.set_weights(self.get_weights())
        return twin

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, as JSON has them."""
        names = ("level", "uses_pan", "pan_mean", "pan_std", "scale", "blocks", "filters", "consistency", "nir", "norm")
        lists = ("bands", "sigma", "mean", "std")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            **{name: list(getattr(self, name)) for name in lists},
            "generator": self.kind,
            "bandpass": dataclasses.asdict(self.bandpass),
            "uncertainty": self.spread is not None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Harmonizer":
        """Makes a model from `get_config`'s answer."""
        b = config["bandpass"]
        bandpass = Bandpass(tuple(b["slope"]), tuple(b["offset"]), b["source"])
        return cls(**{**config, "bandpass": bandpass})

    def _network(self) -> Subpixel | ResNet:
        bands, policy = len(self.bands), self.dtype_policy
        if self.kind == "resnet":
            return ResNet(bands, self.blocks, self.filters, self.norm, dtype=policy)
        return Subpixel(bands, self.uses_pan, self.scale, self.blocks, self.filters, dtype=policy)

    def _halo(self) -> int | None:
        if self.generator.halo is None:
            return None
        base = (self._sharpen or self._bicubic).halo
        reach = base + self.generator.halo if self.kind == "resnet" else max(base, self.generator.halo)
        reach += self._consistency.halo if self.consistency == "exact" else 0
        # What is said of an output looks at its surroundings: whether it is the measurement, and how uncertain it is.
        reach += max(self._consistency.blur, math.ceil(self.spread.reach / FACTOR) if self.spread else 0)
        return self.multiple * math.ceil(reach / self.multiple)

    def _normalized(self, x: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        return masked((x - tf.constant(self.mean)) / tf.constant(self.std), valid)

    def _check(self) -> None:
        per_band = {name: getattr(self, name) for name in ("sigma", "mean", "std")}
        per_band |= {"bandpass.slope": self.bandpass.slope, "bandpass.offset": self.bandpass.offset}
        for name, values in per_band.items():
            if len(values) != len(self.bands) or not all(map(math.isfinite, values)):
                raise ModelError(
                    f"Each of the {len(self.bands)} bands ({', '.join(self.bands)}) needs one finite number. "
                    f"Received: {name}={values}. Give as many as there are bands."
                )
        scales, norms = (SCALES[:1], NORMS) if self.kind == "resnet" else (SCALES, NORMS[:1])
        rules = (
            ("sigma", self.sigma, min(self.sigma) >= MIN_SIGMA, f"at least {MIN_SIGMA} pixels of 10 m"),
            ("std", self.std, min(self.std) > 0, "positive"),
            ("pan_std", self.pan_std, self.pan_std > 0, "positive"),
            ("generator", self.kind, self.kind in GENERATORS, f"one of {GENERATORS}"),
            ("scale", self.scale, self.scale in scales, f"one of {scales} with generator={self.kind!r}"),
            ("norm", self.norm, self.norm in norms, f"one of {norms} with generator={self.kind!r}"),
            ("consistency", self.consistency, self.consistency in CONSISTENCY, f"one of {CONSISTENCY}"),
            ("nir", self.nir, self.nir in NIR, f"one of {NIR}"),
            ("blocks", self.blocks, self.blocks >= 0, "not negative"),
            ("filters", self.filters, self.filters >= 1, "positive"),
        )
        for name, value, holds, rule in rules:
            if not holds:
                raise ModelError(f"{name} must be {rule}. Received: {name}={value}. Change it.")


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
