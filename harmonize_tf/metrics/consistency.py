"""Whether an image at 10 m, seen as Landsat sees it, is what Landsat measured: reflectance consistency.

As in opensr-test (Aybar et al. 2024, "A comprehensive benchmark for optical remote sensing image super-resolution"),
but with a blur for each band. Nothing but the input is needed as reference, so that it tells of images without a
Sentinel-2 partner too. Sums and a histogram are kept instead of cells; invalid ones have no part in any number.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonize_tf import degradation
from harmonize_tf.errors import DatasetError

QUANTILE = 0.999

# Edges of the histogram that the quantile is read from: 100 a decade, so that it is at most 2.4 % high.
_EDGES = np.logspace(-8, 2, 1001)


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Figures of a set of patches, of the output at 30 m minus the measurement, reflectance. NaN without valid cells.

    Attributes:
      bands: band names.
      cells: number of 30 m cells compared.
      rms: root mean square per band.
      rms_all: root of the mean of the bands' mean squares.
      quantile: 99.9 % of the differences of all bands are no larger.
      largest: of the differences.
    """

    bands: tuple[str, ...]
    cells: int
    rms: tuple[float, ...]
    rms_all: float
    quantile: float
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the per-band figures by band name."""
        values = dataclasses.asdict(self)
        return values | {"rms": dict(zip(values.pop("bands"), self.rms, strict=True))}


class ConsistencyMeter:
    """Adds up patches.

    Args:
      bands: names of the last axis.
      sigma: for each band the blur between output and measurement, 10 m pixels.

    Attributes:
      bands: the same.
      sigma: the same.
    """

    def __init__(self, bands: Sequence[str], sigma: Sequence[float]) -> None:
        self.bands, self.sigma = tuple(bands), tuple(map(float, sigma))
        self._cells, self._squared, self._largest = 0, np.zeros(len(self.bands)), 0.0
        self._histogram = np.zeros(len(_EDGES), np.int64)

    def update(self, output: np.ndarray, measurement: np.ndarray, valid: np.ndarray) -> None:
        """Adds one patch.

        Args:
          output: [3h, 3w, band] reflectance.
          measurement: [h, w, band], with the output's radiometry.
          valid: [h, w], true or 1 where there is a measurement; the output's pixels of other cells are not looked at.

        Raises:
          DatasetError: the shapes do not agree.
        """
        valid = np.asarray(valid).astype(bool)
        factor, (height, width) = degradation.FACTOR, valid.shape
        shapes = (factor * height, factor * width, len(self.bands)), (height, width, len(self.bands))
        if (output.shape, measurement.shape) != shapes:
            raise DatasetError(
                f"output must be [{factor}h, {factor}w, band] and measurement [h, w, band] on the mask's pixels. "
                f"Received: output={output.shape}, measurement={measurement.shape}, mask={valid.shape}, "
                f"bands={self.bands}"
            )
        seen, _ = degradation.degrade(output, valid.repeat(factor, 0).repeat(factor, 1), self.sigma)
        error = np.abs(seen[valid].astype(np.float64) - measurement[valid])
        if not error.size:
            return
        self._cells += len(error)
        self._squared += (error**2).sum(axis=0)
        self._largest = float(np.maximum(self._largest, error.max()))  # NaN stays
        places = np.minimum(np.searchsorted(_EDGES, error.ravel()), len(_EDGES) - 1)
        self._histogram += np.bincount(places, minlength=len(_EDGES))

    def result(self) -> Consistency:
        """The figures of all patches so far."""
        nothing = (float("nan"),) * len(self.bands)
        if not self._cells:
            return Consistency(self.bands, 0, nothing, *nothing[:1] * 3)
        mean = self._squared / self._cells
        place = np.searchsorted(np.cumsum(self._histogram), QUANTILE * self._histogram.sum())
        return Consistency(
            bands=self.bands,
            cells=self._cells,
            rms=tuple(np.sqrt(mean).tolist()),
            rms_all=float(np.sqrt(mean.mean())),
            quantile=float(np.minimum(_EDGES[place], self._largest)),
            largest=self._largest,
        )
