"""One set of records against another: split against split, now against earlier, and all against a schema.

Distributions are compared by the largest distance of their cumulative shares (Kolmogorov and Smirnov): the share of
pixels that would have to move. Pixels of a patch are alike, so that it is not their number that says how large a
distance chance makes, but what they are worth (`Group.effective`): with 10 patches on either side almost any distance
is chance, with 10,000 hardly any is.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from harmonize_tf.statistics.anomalies import Anomaly
from harmonize_tf.statistics.groups import ALL, Group

# Of finding a difference where there is none, in all bands together.
RISK = 0.01
# Share of pixels that may move in any case. Calibration is good to 5 % (Landsat-8: Morfitt et al. 2015; Sentinel-2: ESA
# Data Quality Report); in a band that varies by a third that moves 6 %, and by an offset of Level-2's 0.005 a few more.
LEAST = 0.1
QUANTILES = 100  # steps in which a curve is kept


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A cumulative distribution.

    Attributes:
      edges: float64 [n], reflectance, not falling.
      shares: float64 [n], of the pixels that are not above.
      count: pixels.
      effective: independent pixels that they are worth.
    """

    edges: np.ndarray
    shares: np.ndarray
    count: float
    effective: float

    def at(self, values: np.ndarray) -> np.ndarray:
        """Share of the pixels that are not above some values."""
        return np.interp(values, self.edges, self.shares, left=0.0, right=1.0)


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What statistics.pbtxt says of an earlier export.

    Attributes:
      patches: how many there were.
      curves: of every band, all splits together.
      texts: patches by value, of every text.
    """

    patches: int
    curves: Mapping[str, Curve]
    texts: Mapping[str, Mapping[str, int]]


def curve(group: Group, feature: str) -> Curve:
    """Of a band of the group."""
    band, shares = group.bands[feature], np.linspace(0, 1, QUANTILES + 1)
    edges = np.concatenate([[band.low], band.quantile(shares[1:])])
    return Curve(edges, shares, band.count, group.effective(feature))


def pooled(curves: Sequence[Curve]) -> Curve:
    """The distribution of all pixels of some."""
    edges, count = np.unique(np.concatenate([one.edges for one in curves])), sum(one.count for one in curves)
    shares = sum(one.at(edges) * one.count for one in curves) / count
    return Curve(edges, shares, count, sum(one.effective for one in curves))


def distance(one: Curve, other: Curve) -> tuple[float, float]:
    """The largest distance of two curves' shares, positive where `one` is darker, and at which reflectance it is."""
    values = np.union1d(one.edges, other.edges)
    apart = one.at(values) - other.at(values)
    at = int(np.argmax(np.abs(apart)))
    return float(apart[at]), float(values[at])


def allowed(one: Curve, other: Curve, tests: int) -> float:
    """The distance that chance exceeds in `RISK` of all cases, in any of some tests; at least `LEAST`.

    Smirnov's limit for large samples, sqrt(-ln(risk / 2) / 2 * (1/n + 1/m)).
    """
    scatter = 1 / max(one.effective, 1) + 1 / max(other.effective, 1)
    return max(math.sqrt(-math.log(RISK / tests / 2) / 2 * scatter), LEAST)


def skew(groups: Mapping[str, Group]) -> Iterator[Anomaly]:
    """Splits that are not of one distribution with train."""
    others = [split for split in ("val", "test") if split in groups and "train" in groups]
    tests = sum(len(groups[split].bands) for split in others)
    for split in others:
        for feature in groups[split].bands:
            if feature in groups["train"].bands:
                told = _apart(curve(groups[split], feature), curve(groups["train"], feature), tests, feature)
                if told:
                    yield Anomaly(
                        "skew", split, feature, f"{feature}: {split} and train differ, {told} The splits are of other "
                        "ground or seasons: export more scenes, smaller --split_block, or another --seed.",
                    )  # fmt: skip


def drift(group: Group, earlier: Earlier) -> Iterator[Anomaly]:
    """What has changed since an earlier export."""
    levels = [sorted(texts.get("level", {})) for texts in (group.texts, earlier.texts)]
    if levels[0] != levels[1]:
        yield Anomaly(
            "drift", ALL, "level", f"The level is {', '.join(levels[0])}, in the baseline {', '.join(levels[1])}: they "
            "cannot be compared. Choose a baseline of this level.",
        )  # fmt: skip
        return
    names = sorted({*group.bands, *earlier.curves})
    both = [feature for feature in names if feature in group.bands and feature in earlier.curves]
    for feature in names:
        if feature not in both:
            where, other = ("this export", "the baseline")[:: 1 if feature in group.bands else -1]
            yield Anomaly(
                "drift", ALL, feature, f"{feature} has data in {where} and none in {other}. Export the same bands."
            )
        elif told := _apart(curve(group, feature), earlier.curves[feature], len(both), feature):
            yield Anomaly(
                "drift", ALL, feature, f"{feature}: this export and the baseline differ, {told} A model that was "
                "trained on the baseline has not seen such ground: train on both, or find out what has changed.",
            )  # fmt: skip


def _apart(one: Curve, other: Curve, tests: int, feature: str) -> str | None:
    """How two curves differ, if that is not chance."""
    (apart, at), limit = distance(one, other), allowed(one, other, tests)
    if abs(apart) <= limit:
        return None
    first, second = (100 * float(each.at(np.array(at))) for each in (one, other))
    return (
        f"{first:.0f} % against {second:.0f} % of the pixels are at or below {at:.3f} reflectance; expected at most "
        f"{100 * limit:.0f} points apart for so many patches."
    )
