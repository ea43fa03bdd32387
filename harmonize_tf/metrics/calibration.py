"""Whether a model knows how wrong it is: how many of its errors lie within the intervals that it gives.

An interval of level p around an output is `uncertainty.half_width(p)` of the standard deviations that the model tells
for that pixel and band. Of a calibrated model a share p of the errors lies within. That alone a constant can do: how
small the intervals are (`width`) tells what it is worth to look at the pixel.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonize_tf.errors import DatasetError
from harmonize_tf.models.uncertainty import half_width

LEVELS = (0.5, 0.8, 0.9)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Figures of a set of patches. NaN without clear pixels.

    Attributes:
      bands: band names.
      pixels: number of 10 m pixels compared.
      coverage: for each level the share of the errors within it, per band.
      coverage_all: the same of all bands together.
      width: mean over the bands of the 90 % interval's mean half width, reflectance.
    """

    bands: tuple[str, ...]
    pixels: int
    coverage: tuple[tuple[float, ...], ...]
    coverage_all: tuple[float, ...]
    width: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: figures by level in per cent, and those of bands by band name."""
        names = [f"{100 * level:g}" for level in LEVELS]
        by_band = [dict(zip(self.bands, shares, strict=True)) for shares in self.coverage]
        return {
            "pixels": self.pixels,
            "coverage": dict(zip(names, by_band, strict=True)),
            "coverage_all": dict(zip(names, self.coverage_all, strict=True)),
            "width": self.width,
        }


class CalibrationMeter:
    """Adds up patches.

    Args:
      bands: names of the last axis.
    """

    def __init__(self, bands: Sequence[str]) -> None:
        self.bands = tuple(bands)
        self._pixels, self._widths = 0, np.zeros(len(self.bands))
        self._within = np.zeros((len(LEVELS), len(self.bands)))

    def update(self, truth: np.ndarray, output: np.ndarray, sigma: np.ndarray, mask: np.ndarray) -> None:
        """Adds one patch.

        Args:
          truth: [height, width, band] reflectance.
          output: the model's, of the same shape.
          sigma: standard deviation of its error that the model tells, of the same shape, reflectance.
          mask: [height, width], true or 1 where pixels count; others are not looked at.

        Raises:
          DatasetError: the shapes do not agree.
        """
        mask = np.asarray(mask).astype(bool)
        shape = (*mask.shape, len(self.bands))
        if not truth.shape == output.shape == sigma.shape == shape:
            raise DatasetError(
                f"truth, output and sigma must be [height, width, band] on the mask's pixels, {shape}. "
                f"Received: truth={truth.shape}, output={output.shape}, sigma={sigma.shape}"
            )
        error, sigma = np.abs(output[mask].astype(np.float64) - truth[mask]), sigma[mask].astype(np.float64)
        self._pixels += len(error)
        self._widths += half_width(LEVELS[-1]) * sigma.sum(0)
        self._within += [(error < half_width(level) * sigma).sum(0) for level in LEVELS]

    def result(self) -> Calibration:
        """The figures of all patches so far."""
        pixels = self._pixels or np.nan
        shares = self._within / pixels
        return Calibration(
            bands=self.bands,
            pixels=self._pixels,
            coverage=tuple(map(tuple, shares.tolist())),
            coverage_all=tuple(shares.mean(1).tolist()),
            width=float(np.mean(self._widths / pixels)),
        )
