"""What is wrong with an export by itself: held against physics, and one sensor against the other.

Each rule yields an `Anomaly` with a sentence that says what was found, what was expected, and what to do. Where a rule
rests on few patches it asks for more of a difference: numbers stand here with their sources.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from harmonize_tf import sensors
from harmonize_tf.statistics.groups import ALL, Group
from harmonize_tf.statistics.measure import MOST
from harmonize_tf.statistics.places import Leak

# Share of patches from which a band that is clipped or without data in them is dead. Dark water is clipped to
# reflectance 0 over whole patches (Earth Engine's harmonized Sentinel-2), but not most of a band. A band that is
# constant at any other value has no noise; OLI's alone is three codes (`sensors.OLI_NOISE`): one patch is enough.
DEAD_SHARE = 0.5
# Reflectance that half of a band's pixels do not exceed. Fresh snow reflects 0.98 (Wiscombe and Warren 1980, Journal of
# the Atmospheric Sciences 37), slopes towards the sun somewhat more.
BRIGHTEST_MEDIAN = 1.2
# Reflectance, and the share of pixels that may be above it: Landsat's Level-2 ends there (`groups.SATURATED`), and
# glint, metal and glass are rare.
BRIGHTEST, BRIGHT_SHARE = 1.6, 0.01
# Reflectance that half of a band's pixels exceed. Black surfaces reflect 0; Level-2's errors are 0.005 + 5 %
# (Vermote et al. 2016, Remote Sensing of Environment 185). An offset taken off twice gives -0.1.
DARKEST_MEDIAN = -0.05
# Blue at the top of the atmosphere: molecules alone send back tau * P / (4 cos(sun) cos(view)) with an optical depth of
# 0.16 at 482 nm (Bodhaine et al. 1999) and P of at least 0.75, which is 0.03.
DARKEST_BLUE = 0.03
# Factor between the sensors' means. The band-pass changes a few percent (`sensors.HLS_BANDPASS`), the angles of sun and
# view some tens of percent (Roy et al. 2016, Remote Sensing of Environment 176); dark bands may differ by more than
# that, by errors of the atmosphere's correction, but not by 0.03.
FACTOR, DIFFERENCE = 2.0, 0.03
# Sentinel-2's offset since processing baseline 04.00 (BOA_ADD_OFFSET), and how near to it all bands have to be.
OFFSET, OFFSET_ERROR = abs(sensors.CODE.offset), 0.02
# Sentinel-2's detail at 10 m, as `measure.detail` has it, of the visible bands together. Real scenes have 0.14 to 0.31,
# their splits of 3 patches and more from 0.12 on; Landsat enlarged to 10 m has 0.00 (nearest, linear) to 0.07 (cubic).
# Measured on T33UUU, T32TMT and two pairs.
LEAST_DETAIL = 0.08
# Of swapped bands where there are none, in all tests of a group together.
RISK = 1e-3


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """Something that is not as it should be.

    Attributes:
      kind: what, in a word or two, for programs.
      split: in which split, or "all".
      feature: of which feature, such as "sentinel/red"; "" where it is none.
      sentence: what was found, what was expected, and what to do.
    """

    kind: str
    split: str
    feature: str
    sentence: str


def find(groups: Mapping[str, Group], leaks: Sequence[Leak], info: Mapping[str, Any]) -> list[Anomaly]:
    """All that is wrong with an export by itself.

    Args:
      groups: from `groups.groups`.
      leaks: ground that more than one split has.
      info: what dataset_info.json says.
    """
    found: list[Anomaly] = [*_counts(groups, info), *_leaks(leaks), *_mixed(groups[ALL], info)]
    for rule in (_sides, _dead, _scale, _sensors_level, _order):
        found += _without_dead(_located(rule, groups), found)
    return found


def _located(rule: Callable[[Group], Iterator[Anomaly]], groups: Mapping[str, Group]) -> list[Anomaly]:
    """What a rule finds: once where all splits have it, else in the splits that have it.

    A rule that finds something in all records and in no split needs more patches than a split has. `_order` does so
    in small splits: what it finds in all records is not looked for in them.
    """
    by_group = {name: {(one.kind, one.feature): one for one in rule(group)} for name, group in groups.items()}
    whole = by_group.pop(ALL)
    found = []
    for key, one in whole.items():
        where = sum(key in some for some in by_group.values())
        if where in (0, len(by_group)) or rule is _order:
            found.append(one)
    told = {(one.kind, one.feature) for one in found}
    return found + [one for some in by_group.values() for key, one in some.items() if key not in told]


def _without_dead(fresh: Sequence[Anomaly], found: Sequence[Anomaly]) -> list[Anomaly]:
    """Leaves out what a dead band, or swapped sensors, explain."""
    dead = {one.feature for one in found if one.kind == "dead band"}
    bands = {feature.rpartition("/")[2] for feature in dead}
    return [
        one
        for one in fresh
        if one.kind == "dead band" or not (one.feature in dead or bands & set(one.feature.split("/")))
    ]


def _counts(groups: Mapping[str, Group], info: Mapping[str, Any]) -> Iterator[Anomaly]:
    for split, told in info["counts"].items():
        there = groups[split].patches if split in groups else 0
        if there != told:
            yield Anomaly(
                "count", split, "", f"{split} holds {there} patches, dataset_info.json says {told}. Files are missing "
                "or were added by hand: run `harmonize export` again.",
            )  # fmt: skip
    for group in groups.values():
        if group.name != ALL and group.misfiled:
            yield Anomaly(
                "split", group.name, "", f"{group.misfiled} of {group.patches} patches in the folder of {group.name} "
                "say that they are of another split: files were moved by hand. Run `harmonize export` again.",
            )  # fmt: skip


def _leaks(leaks: Sequence[Leak]) -> Iterator[Anomaly]:
    for kind, what in (("block", "of the blocks of ground are"), ("patch", "of the patches' places are")):
        same = [leak for leak in leaks if leak.kind == kind]
        for splits in sorted({leak.splits for leak in same}):
            names = [leak.name for leak in same if leak.splits == splits]
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            yield Anomaly(
                "leakage", "+".join(splits), kind, f"{len(names)} {what} in {' and '.join(splits)} alike ({some}): "
                "what is measured there was seen in training. Export with one --seed and one --split_block.",
            )  # fmt: skip


def _mixed(group: Group, info: Mapping[str, Any]) -> Iterator[Anomaly]:
    """Levels and bands that are not those of the export."""
    for name, told in (("level", info["level"]), ("bands", ",".join(info["bands"]))):
        others = {value: count for value, count in group.texts[name].items() if value != told}
        for value, count in others.items():
            yield Anomaly(
                name, ALL, name, f"{count} of {group.patches} patches say {name} {value}, dataset_info.json says "
                f"{told}: exports were mixed. Keep each in a folder of its own.",
            )  # fmt: skip


def _sides(group: Group) -> Iterator[Anomaly]:
    """Sensors that stand in each other's place."""
    remedy = "Landsat's scenes were declared as Sentinel-2's or the other way round: correct the manifest's `sensor`."
    for sensor, known in (("landsat", sensors.LANDSAT_SPACECRAFT), ("sentinel", sensors.SENTINEL_SPACECRAFT)):
        for craft, count in group.texts.get(f"{sensor}/spacecraft", {}).items():
            if craft not in known:
                yield Anomaly(
                    "swapped sensors", group.name, f"{sensor}/spacecraft", f"In {count} of {group.patches} patches the "
                    f"{sensor} side is of {craft or 'no spacecraft'}, expected one of {', '.join(known)}. {remedy}",
                )  # fmt: skip
    sizes = {sensor: group.texts.get(f"{sensor}/size", {}) for sensor in ("landsat", "sentinel")}
    if sizes["landsat"] and sizes["sentinel"]:
        tripled = {"x".join(str(3 * int(side)) for side in size.split("x")): n for size, n in sizes["landsat"].items()}
        if tripled != sizes["sentinel"]:
            told = " and ".join(f"{sensor} {', '.join(found)}" for sensor, found in sizes.items())
            yield Anomaly(
                "swapped sensors", group.name, "size", f"Sentinel-2's patches should have three times Landsat's pixels "
                f"along a side. Received: {told}. {remedy}",
            )  # fmt: skip
    if group.detail < LEAST_DETAIL:
        yield Anomaly(
            "swapped sensors", group.name, "sentinel", f"The sentinel side shows no detail of 10 m: {group.detail:.3f} "
            f"of that of 30 m, expected more than {LEAST_DETAIL:g}. It looks like Landsat enlarged. {remedy}",
        )  # fmt: skip


def _dead(group: Group) -> Iterator[Anomaly]:
    for feature in group.features:
        looked_at, missing, clipped, constant = group.dead(feature)
        if "uncalibrated" in group.texts["level"]:  # 8 bits, too coarse for the noise to show
            clipped, constant = clipped + constant, 0
        for count, least, what in (
            (missing, DEAD_SHARE * looked_at, "has no data where the patch is valid"),
            (clipped, DEAD_SHARE * looked_at, "is constant"),
            (constant, 0, "is constant, without the noise that every sensor has,"),
        ):
            if count > least:
                yield Anomaly(
                    "dead band", group.name, feature, f"{feature} {what} in {count} of {looked_at} patches of "
                    f"{group.name}: a dead band. Look at the scenes' files, and at the manifest's order of bands.",
                )  # fmt: skip
                break


def _scale(group: Group) -> Iterator[Anomaly]:
    """Reflectance that no ground has."""
    levels = set(group.texts["level"])
    if "uncalibrated" in levels:
        return
    for feature, band in group.bands.items():
        darkest = DARKEST_BLUE if feature.endswith("/blue") and levels == {"toa"} else DARKEST_MEDIAN
        told = None
        if band.median > BRIGHTEST_MEDIAN:
            told = f"a median reflectance of {band.median:.3f} in {group.name}, expected less than {BRIGHTEST_MEDIAN:g}"
        elif (share := band.share_from(BRIGHTEST)) > BRIGHT_SHARE:
            told = (
                f"a reflectance of {BRIGHTEST:g} or more in {share:.1%} of the pixels of {group.name}, expected in "
                f"less than {BRIGHT_SHARE:.0%}"
            )
        elif band.median < darkest:
            told = f"a median reflectance of {band.median:.3f} in {group.name}, expected more than {darkest:g}"
        if told:
            yield Anomaly(
                "wrong scale", group.name, feature,
                f"{feature} has {told}: its scale or offset is wrong. Correct them in the scenes' manifest.",
            )  # fmt: skip


def _sensors_level(group: Group) -> Iterator[Anomaly]:
    """One sensor against the other: a wrong scale shows as a factor, a wrong offset as a difference in all bands."""
    if "uncalibrated" in group.texts["level"]:
        return
    differences = np.array([landsat - sentinel for landsat, sentinel in group.means.values()])
    middle = float(np.median(differences)) if differences.size else 0.0
    alike = np.abs(differences - middle).max(initial=0.0) < OFFSET_ERROR
    if differences.size > 1 and alike and abs(abs(middle) - OFFSET) < OFFSET_ERROR:
        yield Anomaly(
            "wrong offset", group.name, "landsat+sentinel", f"Landsat is {middle:+.3f} off Sentinel-2 in every band of "
            f"{group.name}, about the {OFFSET:g} by which Sentinel-2's numbers moved at processing baseline 04.00. "
            "Correct the offset in the scenes' manifest.",
        )  # fmt: skip
        return
    for band, (landsat, sentinel) in group.means.items():
        small, large = sorted((abs(landsat), abs(sentinel)))
        if abs(landsat - sentinel) > DIFFERENCE and large > FACTOR * small:
            yield Anomaly(
                "wrong scale", group.name, f"landsat+sentinel/{band}",
                f"{band} has a mean reflectance of {landsat:.3f} in "
                f"Landsat, {sentinel:.3f} in Sentinel-2 over the same ground of {group.name}, a factor of "
                f"{large / max(small, sensors.CODE.scale):.1f}; expected less than {FACTOR:g}. Correct the scale in "
                "the manifest of the one that is wrong.",
            )  # fmt: skip


def _order(group: Group) -> Iterator[Anomaly]:
    """Two bands whose difference the sensors see the other way round: Student's t over patches."""
    swapped = []
    for pair, (number, mean, std) in group.contrasts.items():
        if number < 3 or mean >= 0:
            continue
        least = float(student.ppf(RISK / len(group.contrasts), number - 1))  # negative
        if mean < least * max(std, 1e-3) / math.sqrt(number):
            swapped.append((pair, number))
    if swapped:
        bands = sorted({band for pair, _ in swapped for band in pair}, key=sensors.BANDS.index)
        yield Anomaly(
            "band order", group.name, "landsat+sentinel", f"{', '.join(bands)}: the sensors see their differences the "
            f"other way round in {max(number for _, number in swapped)} patches of {group.name}{_looks_like(group)}. "
            "The order of bands is wrong on one side: correct `bands` in the scenes' manifest.",
        )  # fmt: skip


def _looks_like(group: Group) -> str:
    """Which of Sentinel-2's bands each of Landsat's fits best, in words."""
    told = []
    for bands, correlations in group.correlations.items():
        _, best = linear_sum_assignment(-np.arctanh(np.clip(correlations, -MOST, MOST)))
        told += [f"Landsat's {bands[i]} looks like Sentinel-2's {bands[j]}" for i, j in enumerate(best) if i != j]
    return f" ({', '.join(dict.fromkeys(told))})" if told else ""
