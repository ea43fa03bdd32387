"""A histogram on a fixed axis, and everything that it tells: moments, quantiles, shares."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from harmonize_tf import radiometry
from harmonize_tf.sensors import CODE


@dataclasses.dataclass(frozen=True)
class Axis:
    """Equally spaced values; others are counted at the nearest of them.

    Attributes:
      low: the first value.
      step: from each value to the next.
      size: how many there are.
      unit: of the values, for people.
    """

    low: float
    step: float
    size: int
    unit: str = ""

    def counts(self, *values: float) -> np.ndarray:
        """How often each value occurs, int64 [at most size]; NaN is not counted."""
        known = np.array([value for value in values if np.isfinite(value)])
        index = np.clip(np.rint((known - self.low) / self.step), 0, self.size - 1).astype(np.intp)
        return np.bincount(index).astype(np.int64)

    def values(self, index: np.ndarray) -> np.ndarray:
        """The values at some places of the axis, float64."""
        return self.low + self.step * np.asarray(index, np.float64)


# Every code of reflectance, so that nothing about the codes is approximate. Code 0 is "no data".
CODES = Axis(CODE.offset, CODE.scale, radiometry.HIGHEST_CODE + 1, "reflectance")

# What is known of a patch as a whole. Shifts come in steps of half a metre (`geometry.estimate_shift`).
FIGURES: Mapping[str, Axis] = {
    "pair/day_gap": Axis(-60.0, 1 / 24, 2881, "days, Sentinel-2 after Landsat"),
    "pair/shift_east_m": Axis(-60.0, 0.5, 241, "m, Sentinel-2 against Landsat"),
    "pair/shift_north_m": Axis(-60.0, 0.5, 241, "m, Sentinel-2 against Landsat"),
    "pair/correlation": Axis(-1.0, 0.01, 201, "of the visible bands' mean at 30 m"),
    "pair/valid_fraction": Axis(0.0, 0.01, 101, "of a patch clear on all sides"),
    "landsat/sun_zenith": Axis(0.0, 1.0, 91, "degrees"),
    "sentinel/sun_zenith": Axis(0.0, 1.0, 91, "degrees"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Distribution:
    """How often each value of an axis occurs.

    Attributes:
      axis: of the values.
      counts: int64 [at most axis.size].
    """

    axis: Axis
    counts: np.ndarray

    @cached_property
    def _there(self) -> np.ndarray:
        return np.flatnonzero(self.counts)

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(self.counts)

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    @property
    def low(self) -> float:
        """The smallest value there is."""
        return float(self.axis.values(self._there[0]))

    @property
    def high(self) -> float:
        """The largest value there is."""
        return float(self.axis.values(self._there[-1]))

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return float(self.axis.values(self._index_mean))

    @property
    def std(self) -> float:
        """Standard deviation of the values as a population."""
        places = self._there - self._index_mean
        return float(np.sqrt(self.counts[self._there] @ places**2 / self.count)) * self.axis.step

    @cached_property
    def _index_mean(self) -> float:
        return float(self.counts[self._there] @ self._there.astype(np.float64)) / self.count

    def quantile(self, share: float | np.ndarray) -> np.ndarray:
        """The smallest value that at least this share of all does not exceed (numpy's "inverted_cdf")."""
        # A little less than asked for, lest rounding lift an exact share to the next value.
        rank = np.maximum(np.ceil(np.asarray(share) * self.count - 1e-9), 1)
        return self.axis.values(np.searchsorted(self._cumulative, rank))

    @property
    def median(self) -> float:
        """The middle value, the lower one of two."""
        return float(self.quantile(0.5))

    def share_from(self, value: float) -> float:
        """Share of the values that are not below this one."""
        first = max(round((value - self.axis.low) / self.axis.step), 0)
        return float(self.counts[first:].sum()) / max(self.count, 1)

    def buckets(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """A coarser histogram from the smallest to the largest value.

        Args:
          size: most buckets; each is a whole number of steps wide.

        Returns:
          Edges float64 [n + 1], half a step outside the outermost values; counts int64 [n].
        """
        first, last = int(self._there[0]), int(self._there[-1])
        width = -(-(last + 1 - first) // size)
        number = -(-(last + 1 - first) // width)
        padded = np.zeros(number * width, np.int64)
        padded[: last + 1 - first] = self.counts[first : last + 1]
        return self.axis.values(first - 0.5 + width * np.arange(number + 1)), padded.reshape(number, width).sum(1)
