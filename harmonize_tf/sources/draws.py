"""Random numbers by place: the draw for a pixel depends on the seed and the pixel, not on the window it is read in."""

from typing import Any

import numpy as np


def bits(key: int, *places: Any) -> np.ndarray:
    """64 random bits for every place: splitmix64 (Steele et al. 2014, OOPSLA) folded over the coordinates.

    Args:
      key: the seed.
      *places: integer arrays that broadcast against one another, such as rows [height, 1] and columns [1, width].

    Returns:
      uint64, of the places' common shape.
    """
    state = _mix(np.uint64(key % 2**64))
    for place in places:
        state = _mix(state ^ np.asarray(place).astype(np.int64).astype(np.uint64))
    return state


def uniform(key: int, *places: Any) -> np.ndarray:
    """Float64 in [0, 1) for every place; arguments as for `bits`."""
    return (bits(key, *places) >> np.uint64(11)) * 2.0**-53


def normal(key: int, *places: Any) -> np.ndarray:
    """Standard normal float64 for every place (Box and Muller's transform); arguments as for `bits`."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(key, *places, 0)))
    return radius * np.cos(2.0 * np.pi * uniform(key, *places, 1))


def _mix(state: Any) -> Any:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
