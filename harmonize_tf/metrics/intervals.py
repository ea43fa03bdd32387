"""How sure a figure is: bootstrap intervals over geographic blocks.

Neighbouring patches look alike, so that they are no independent samples; blocks of ground are drawn instead, whole and
with replacement (Efron 1979, "Bootstrap methods: another look at the jackknife"; blocks of space: Lahiri 2003,
"Resampling methods for dependent data"). The interval is that of the draws' quantiles. All models see the same draws,
so that an interval of a difference or ratio of two is that of pairs.
"""

from collections.abc import Callable, Mapping

import numpy as np

from harmonize_tf.metrics.sums import Figured, Sums

DRAWS = 1000
LEVEL = 0.95
FEWEST = 3
"""Blocks, below which nothing is said: two have three draws that differ."""


def drawn(
    blocks: Mapping[str, Sums], figures: Callable[[Sums], Figured], *, draws: int = DRAWS, seed: int = 0
) -> Figured | None:
    """Figures of sets of blocks that are drawn at random.

    Args:
      blocks: sums by block; the same names in the same order give the same draws.
      figures: of sums, along leading axes.
      draws: how many sets.
      seed: of the draws.

    Returns:
      Each figure as [draw, ...]; None where there are too few blocks.
    """
    if len(blocks) < FEWEST:
        return None
    weights = np.random.default_rng(seed).multinomial(len(blocks), [1 / len(blocks)] * len(blocks), draws)
    values = list(blocks.values())
    return figures({name: np.tensordot(weights, np.stack([v[name] for v in values]), 1) for name in values[0]})


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper end that leave out as many draws on either side; draws without a value are left out.

    Args:
      values: [draw, ...].
      level: share of the draws between the ends.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    empty = np.isnan(values).all(0)
    ends = np.nanquantile(np.where(empty, 0.0, values), [(1 - level) / 2, (1 + level) / 2], axis=0)
    low, high = np.where(empty, np.nan, ends)
    return low, high
