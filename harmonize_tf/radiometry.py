"""Digital numbers to reflectance and back, and the band-pass adjustment: one formula for numpy arrays and tensors."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonize_tf import sensors
from harmonize_tf.sensors import CODE, Encoding

# Code 0 is "no data", so that the lowest reflectance there is a code for is 1e-4 - 0.1.
LOWEST_CODE, HIGHEST_CODE = 1, 65535


def _backend(array: Any) -> Any:
    """Numpy for arrays and TensorFlow for tensors; TensorFlow is never imported for the sake of an array."""
    return np if isinstance(array, np.ndarray | np.generic) else sys.modules["tensorflow"]


def decode(dn: Any, encoding: Encoding = CODE) -> Any:
    """Reflectance (float32, unitless) of digital numbers; no-data pixels get a value too, mask them by `is_data`.

    Args:
      dn: array or tensor of any shape; integers up to 2**24 are exact.
      encoding: the code it is in; by default this project's own.
    """
    values = dn.astype(np.float32) if isinstance(dn, np.ndarray | np.generic) else _backend(dn).cast(dn, "float32")
    return values * np.float32(encoding.scale) + np.float32(encoding.offset)


def encode(reflectance: Any, valid: Any = None) -> Any:
    """uint16 codes of float32 reflectance: rounded half to even, limited to the code's range, 0 where not valid.

    Args:
      reflectance: array or tensor [..., band], float32, unitless.
      valid: mask that broadcasts against it, true or 1 where there is data; None: everywhere.
    """
    scaled = (reflectance - np.float32(CODE.offset)) * np.float32(1.0 / CODE.scale)
    if isinstance(reflectance, np.ndarray | np.generic):
        dn = np.clip(np.rint(scaled), LOWEST_CODE, HIGHEST_CODE)
        dn = dn if valid is None else np.where(np.asarray(valid).astype(bool), dn, 0)
        return np.nan_to_num(dn).astype(np.uint16)
    tf = _backend(reflectance)
    dn = tf.clip_by_value(tf.round(scaled), float(LOWEST_CODE), float(HIGHEST_CODE))
    dn = dn if valid is None else tf.where(tf.cast(valid, tf.bool), dn, tf.zeros_like(dn))
    return tf.cast(dn, tf.uint16)


@dataclasses.dataclass(frozen=True)
class Bandpass:
    """A linear adjustment per band, `out = slope * in + offset`, last axis = band.

    Attributes:
      slope: one factor per band, unitless.
      offset: one reflectance per band.
      source: where the numbers come from, in words; kept in a model's manifest.
    """

    slope: tuple[float, ...]
    offset: tuple[float, ...]
    source: str

    def apply(self, reflectance: Any) -> Any:
        """Adjusts an array or tensor [..., band]."""
        return reflectance * np.float32(self.slope) + np.float32(self.offset)

    def inverse(self) -> "Bandpass":
        """The adjustment that undoes this one exactly: (rho - offset) / slope."""
        slope = tuple(1.0 / s for s in self.slope)
        offset = tuple(-o / s for o, s in zip(self.offset, self.slope, strict=True))
        return Bandpass(slope, offset, f"inverse of {self.source}")


def sentinel_to_landsat(bands: Sequence[str], level: str, spacecraft: str, nir: str = "B8") -> Bandpass:
    """The band-pass adjustment MSI -> OLI as HLS publishes it, identity where nothing is published.

    Coefficients exist for surface reflectance only, and for B8A only among the near-infrared bands; for level "toa"
    and for B8 the identity is used and said.

    Args:
      bands: band names.
      level: "toa" or "sr".
      spacecraft: "SENTINEL_2A", "SENTINEL_2B" or "SENTINEL_2C".
      nir: Sentinel-2's band behind "nir", "B8" or "B8A".
    """
    if level != "sr":
        return Bandpass((1.0,) * len(bands), (0.0,) * len(bands), f"identity: none published for level {level}")
    published = sensors.HLS_BANDPASS[spacecraft]
    pairs = [(1.0, 0.0) if b == "nir" and nir == "B8" else published[b] for b in bands]
    exception = "; nir (B8) identity, none published" if "nir" in bands and nir == "B8" else ""
    slope, offset = zip(*pairs, strict=True)
    return Bandpass(slope, offset, f"HLS v2.0 {spacecraft}{exception}")


def landsat_to_sentinel(bands: Sequence[str], level: str, spacecraft: str, nir: str = "B8") -> Bandpass:
    """The same in this project's direction, OLI -> MSI: the published adjustment inverted."""
    return sentinel_to_landsat(bands, level, spacecraft, nir).inverse()
