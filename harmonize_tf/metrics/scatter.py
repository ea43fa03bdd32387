"""How often which value of the output meets which value of the reference: what a scatter plot of millions shows."""

from collections.abc import Sequence

import numpy as np

BINS = 64


class Scatter:
    """Counts of pairs of values, band by band.

    Args:
      low: for each band the lowest reflectance that has a bin of its own.
      high: for each band the highest.

    Attributes:
      low: the same.
      high: the same.
      counts: int [band, BINS, BINS], by reference and prediction; values beyond the ends are in the outermost bins.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        self.low, self.high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        self.counts = np.zeros((len(self.low), BINS, BINS), np.int64)

    def add(self, truth: np.ndarray, guess: np.ndarray) -> None:
        """Adds pixels [n, band]; those that are no number count as the lowest."""
        x, y = (self._bins(values) for values in (truth, guess))
        for band, counts in enumerate(self.counts):
            counts += np.bincount(x[:, band] * BINS + y[:, band], minlength=BINS**2).reshape(BINS, BINS)

    def _bins(self, values: np.ndarray) -> np.ndarray:
        scaled = np.nan_to_num((values - self.low) / (self.high - self.low) * BINS)
        return np.clip(scaled, 0, BINS - 1).astype(np.int64)
