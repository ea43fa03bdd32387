"""Sums of patches, of which every figure is made: sets, blocks and strata are added up and never measured anew.

A family of figures is two functions: `sums` of one patch, a dict of arrays that may be added, and `figures` of such
sums, which works along any leading axes, so that a thousand draws of the bootstrap are one call.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping

import numpy as np

Sums = dict[str, np.ndarray]
Figured = dict[str, np.ndarray]


def added(many: Iterable[Mapping[str, np.ndarray]]) -> Sums:
    """The sums of all; empty of none."""
    total: Sums = {}
    for one in many:
        total = {name: total[name] + x for name, x in one.items()} if total else dict(one)
    return total


def plain(figures: Figured) -> dict[str, float | tuple]:
    """Figures without leading axes as Python's numbers, and tuples of them."""
    return {name: tuple(x.tolist()) if np.ndim(x) else float(x) for name, x in figures.items()}


class Tally:
    """Sums by group: as many are kept as there are groups, however many patches there are."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, Sums] = {}

    def add(self, group: Hashable, sums: Sums) -> None:
        """Adds one patch."""
        kept = self._groups.get(group)
        self._groups[group] = added([kept, sums]) if kept else sums

    def total(self) -> Sums:
        """The sums of everything."""
        return added(self._groups.values())

    def by(self, part: Callable[[Hashable], Hashable]) -> dict[Hashable, Sums]:
        """The sums of groups that have something in common, by that, in order."""
        parts: dict[Hashable, list[Sums]] = {}
        for group, sums in self._groups.items():
            parts.setdefault(part(group), []).append(sums)
        return {name: added(parts[name]) for name in sorted(parts)}
