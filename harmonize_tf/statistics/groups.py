"""The totals as figures: of one split, or of all records."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from scipy.stats import chi2

from harmonize_tf import patches, sensors
from harmonize_tf.statistics.distribution import CODES, FIGURES, Distribution
from harmonize_tf.statistics.measure import CONTRAST_STEP, MEAN_STEPS, correlation
from harmonize_tf.statistics.totals import Key, Totals

ALL = "all"
# Reflectance from which on a pixel counts as saturated. Landsat's digital numbers end at 65535: (65535 * 2e-5 - 0.1) /
# sin(sun elevation), at least 1.21, at level "toa", 65535 * 2.75e-5 - 0.2 at level "sr" (`sensors`, USGS LSDS-1574 and
# 1619). Sentinel-2's value SATURATED is 65535 (Sentinel-2 Products Specification Document), 1000 less where harmonized.
SATURATED = {
    ("landsat", "toa"): 1.2107,
    ("landsat", "sr"): 1.6022,
    ("sentinel", "toa"): 6.3535,
    ("sentinel", "sr"): 6.3535,
}
CONFIDENCE = 0.05  # one-sided, of the variance between patches, which few patches tell badly


@dataclasses.dataclass(frozen=True)
class Fit:
    """A regression of Landsat on Sentinel-2 averaged to 30 m, in HLS's direction: OLI = slope * MSI + offset.

    Attributes:
      landsat: spacecraft.
      sentinel: spacecraft.
      band: name.
      cells: how many there were, 30 m.
      slope: by least squares, unitless; shifts and noise make it smaller, slope / r is free of that to first order.
      offset: reflectance.
      r: correlation.
      means: of Landsat and of Sentinel-2, reflectance.
    """

    landsat: str
    sentinel: str
    band: str
    cells: int
    slope: float
    offset: float
    r: float
    means: tuple[float, float]


class Group:
    """Figures of some records.

    Attributes:
      name: of the split, or "all".
      blocks: how many ground cells the records are in.
    """

    def __init__(self, name: str, sums: Mapping[Key, np.ndarray], blocks: int) -> None:
        """Takes sums whose keys have lost the split."""
        self.name, self.blocks, self._sums = name, blocks, sums

    def _below(self, kind: str) -> dict[Key, np.ndarray]:
        """The sums of a kind by the rest of their keys."""
        return {key[1:]: self._sums[key] for key in sorted(self._sums) if key[0] == kind}

    @property
    def patches(self) -> int:
        """How many records there are."""
        return int(self._sums[("records",)][0])

    @property
    def months(self) -> dict[str, int]:
        """Records by month of Landsat's time, else of Sentinel-2's."""
        return {month: int(count[0]) for (month,), count in self._below("month").items()}

    @property
    def misfiled(self) -> int:
        """Records in which another split is written than that of their folder."""
        return sum(int(count[0]) for count in self._below("misfiled").values())

    @cached_property
    def texts(self) -> dict[str, dict[str, int]]:
        """Records by value, of every feature that is a text."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for (feature, value), count in self._below("text").items():
            found[feature][value] = int(count[0])
        return dict(found)

    @property
    def features(self) -> tuple[str, ...]:
        """Bands with their sensor, "landsat/blue", in the order of wavelength."""
        found = [feature for (feature,) in self._below("codes")]
        return tuple(sorted(found, key=_by_wavelength))

    @cached_property
    def bands(self) -> dict[str, Distribution]:
        """Reflectance of the valid pixels that have data, by feature; only features that have any."""
        found = {}
        for feature in self.features:
            counts = self._sums["codes", feature].copy()
            counts[:1] = 0
            if counts.any():
                found[feature] = Distribution(CODES, counts)
        return found

    def pixels(self, feature: str) -> tuple[int, int]:
        """Valid pixels, and those among them without data."""
        counts = self._sums["codes", feature]
        return int(counts.sum()), int(counts[:1].sum())

    def saturated(self, feature: str) -> float | None:
        """Share of saturated pixels; None where nobody knows at what that shows."""
        levels = self.texts["level"]
        limit = SATURATED.get((feature.split("/")[0], next(iter(levels)))) if len(levels) == 1 else None
        return None if limit is None or feature not in self.bands else self.bands[feature].share_from(limit)

    @property
    def valid(self) -> dict[str, float]:
        """Share of valid pixels by sensor."""
        return {sensor: int(valid) / int(size) for (sensor,), (valid, size) in self._below("pixels").items()}

    def seen(self, feature: str) -> int:
        """Patches that have a valid pixel with data."""
        return int(self._sums.get(("means", feature), (0,))[0])

    def effective(self, feature: str) -> float:
        """How many independent patches the pixels are worth, at most as many as blocks at a correlation of 1.

        Pixels of a patch are alike. With an intra-class correlation c, the share of the variance that lies between
        patches, n patches are worth n / c independent pixels (Kish 1965, Survey Sampling, design effect, for many
        pixels a patch). c is taken at the upper limit of its confidence, and n is the number of blocks, because
        neighbouring patches are alike too.
        """
        number, total, squares = (int(value) for value in self._sums["means", feature])
        if number < 2:
            return float(min(number, self.blocks))
        variance = (squares - total**2 / number) / (number - 1) / MEAN_STEPS**2 * CODES.step**2
        upper = variance * (number - 1) / float(chi2.ppf(CONFIDENCE, number - 1))
        share = min(upper / max(self.bands[feature].std ** 2, CODES.step**2), 1.0)
        return self.blocks / max(share, 1e-3)

    @property
    def pans(self) -> int:
        """Patches that have the panchromatic band."""
        return int(self._sums.get(("pans",), (0,))[0])

    def dead(self, feature: str) -> tuple[int, int, int, int]:
        """Patches looked at; those without data, constant at a value of clipping, constant at another."""
        return tuple(int(count) for count in self._sums.get(("dead", feature), (0, 0, 0, 0)))

    @property
    def figures(self) -> dict[str, Distribution]:
        """Of patches as a whole, by the names of `FIGURES`."""
        found = self._below("figure")
        return {name: Distribution(axis, found[(name,)]) for name, axis in FIGURES.items() if (name,) in found}

    @cached_property
    def fits(self) -> list[Fit]:
        """Regressions by spacecraft and band; bands in the order of wavelength."""
        found = self._below("fit")
        return [_fit(key, found[key]) for key in sorted(found, key=lambda key: (*key[:2], _by_wavelength(key[2])))]

    @property
    def means(self) -> dict[str, tuple[float, float]]:
        """Landsat's and Sentinel-2's mean reflectance of the same cells, by band."""
        sums: dict[str, np.ndarray] = {}
        for (_, _, band), values in self._below("fit").items():
            sums[band] = sums.get(band, 0) + values
        found = {}
        for band in sorted(sums, key=_by_wavelength):
            cells, x, y = (int(value) for value in sums[band][:3])
            if cells:
                found[band] = float(CODES.values(y / cells)), float(CODES.values(x / cells))
        return found

    @property
    def correlations(self) -> dict[tuple[str, ...], np.ndarray]:
        """Correlations [Landsat's band, Sentinel-2's band] within patches, by the bands' names."""
        found = {}
        for (names,), values in self._below("cross").items():
            bands = tuple(names.split(","))
            size = len(bands)
            landsat, sentinel, products = values[:size], values[size : 2 * size], values[2 * size :]
            found[bands] = correlation(products.reshape(size, size), landsat, sentinel)
        return found

    @property
    def contrasts(self) -> dict[tuple[str, str], tuple[int, float, float]]:
        """Patches, mean and standard deviation of `measure.contrasts` by two bands."""
        found = {}
        for (one, other), values in self._below("order").items():
            number, total, squares = (int(value) for value in values)
            variance = (squares - total**2 / number) / max(number - 1, 1)
            found[one, other] = number, total / number * CONTRAST_STEP, math.sqrt(max(variance, 0.0)) * CONTRAST_STEP
        return found

    @property
    def detail(self) -> float:
        """Sentinel-2's detail at 10 m against that at 30 m, see `measure.detail`; NaN where there is none at 30 m."""
        sums = self._sums.get(("detail",), np.zeros(4))
        return float(sums[1:].min()) / float(sums[0]) if sums[0] else float("nan")


def groups(totals: Totals, blocks: Mapping[str, int]) -> dict[str, Group]:
    """The figures of all records, "all", and of each split that has some.

    Args:
      totals: of all records.
      blocks: number of ground cells of each split and, under "all", of all.
    """
    found: dict[str, Totals] = defaultdict(Totals)
    for (kind, split, *rest), values in totals.sums.items():
        for name in (ALL, split):
            found[name].add((kind, *rest), values)
    names = [ALL, *(split for split in patches.SPLITS if split in found)]
    return {name: Group(name, found[name].sums, blocks.get(name, 0)) for name in names}


def _fit(key: Key, values: np.ndarray) -> Fit:
    cells, x, y, xx, yy, xy = (int(value) for value in values)  # exact: nothing is lost by differences
    variance_x, variance_y, shared = cells * xx - x * x, cells * yy - y * y, cells * xy - x * y
    slope = shared / variance_x if variance_x else float("nan")
    r = shared / math.sqrt(variance_x * variance_y) if variance_x and variance_y else float("nan")
    means = tuple(float(CODES.values(total / cells)) if cells else float("nan") for total in (y, x))
    return Fit(*key, cells, slope, means[0] - slope * means[1], r, means)


def _by_wavelength(feature: str) -> tuple[str, int, str]:
    sensor, _, band = feature.rpartition("/")
    return sensor, sensors.BANDS.index(band) if band in sensors.BANDS else 99, band
