"""Edge response: how much of a step in the reference an image rises within one pixel.

Edges are the steepest places of the reference along rows and along columns, its `STEEPEST` share, where it is steepest
within `REACH` pixels to either side and rises all the way, so that a step stands alone. There

    response = (rise from pixel to pixel at the edge) / (rise over 2 REACH + 1 pixels),

summed over the edges, both in the direction in which the reference rises: the relative edge response, as in the General
Image Quality Equation (Leachtenauer et al. 1997), with a finite step for reference. A step blurred by a Gaussian of
standard deviation s pixels, its middle between two pixels, has erf(0.5 / (s sqrt 2)) / erf((REACH + 0.5) / (s sqrt 2)).
An output beside its place is soft at the reference's edges; `spatial` and `cpsnr` tell whether that is so.
"""

import numpy as np

from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.sums import Figured, Sums

REACH = 2
"""Pixels of 10 m: of Landsat's blur, 1.2 such pixels, 96 % of a step lie within."""

STEEPEST = 0.02
"""Share of the differences between neighbours, the largest, that may be edges."""

FLAT = 1e-6
"""Reflectance, a hundredth of a step of the code: smaller differences are rounding."""


def sums(reference: Reference, guess: np.ndarray) -> Sums:
    """Those of one patch.

    Args:
      reference: the patch.
      guess: the output as `Reference.masked` gives it.
    """
    own, mine = reference.once(_own), _rises(reference, guess)
    return {"edge_reference": own, "edge_prediction": mine}


def figures(total: Sums) -> Figured:
    """`edge` and `edge_reference`, each [..., band], along any leading axes of the sums."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "edge": total["edge_prediction"][..., 0, :] / total["edge_prediction"][..., 1, :],
            "edge_reference": total["edge_reference"][..., 0, :] / total["edge_reference"][..., 1, :],
        }


def _own(reference: Reference) -> np.ndarray:
    return _rises(reference, reference.image)


def _rises(reference: Reference, image: np.ndarray) -> np.ndarray:
    """At the reference's edges the rise from pixel to pixel and that over all, in its direction: [2, band]."""
    total = np.zeros((2, image.shape[-1]))
    for axis, (places, sign) in enumerate(reference.once(_edges)):
        flat = np.moveaxis(image, axis, 1)
        rows, columns, bands = places
        near = flat[rows, columns + 1, bands] - flat[rows, columns, bands]
        far = flat[rows, columns + 1 + REACH, bands] - flat[rows, columns - REACH, bands]
        for number, rise in enumerate((near, far)):
            total[number] += np.bincount(bands, sign * rise, len(total[0]))
    return total


def _edges(reference: Reference) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """For each axis the places (row, column, band) with the axis as columns, and the signs of the steps there."""
    return [_along(*(np.moveaxis(x, axis, 1) for x in (reference.image, reference.mask))) for axis in (0, 1)]


def _along(image: np.ndarray, mask: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Places and signs of the steps along the columns of an image."""
    steps = np.diff(image, axis=1)
    width = steps.shape[1] - 2 * REACH
    if width <= 0:
        return (np.zeros(0, int),) * 3, np.zeros(0)
    steep, sign, inner = np.abs(steps), np.sign(steps), np.s_[:, REACH : REACH + width]
    valid = np.ones((len(image), width, 1), bool)
    for offset in range(2 * REACH + 2):
        valid &= mask[:, offset : offset + width, None]
    edge = valid & (steep[inner] >= np.maximum(_least(steep, mask), FLAT))
    for offset in range(2 * REACH + 1):
        there = np.s_[:, offset : offset + width]
        edge &= (steep[there] <= steep[inner]) & (sign[there] == sign[inner])
    rows, columns, bands = np.nonzero(edge)
    places = rows, columns + REACH, bands
    return places, sign[places]


def _least(steep: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """For each band the step that `STEEPEST` of the steps between valid pixels exceed, [band]."""
    among = steep[mask[:, 1:] & mask[:, :-1]]
    return np.quantile(among, 1 - STEEPEST, axis=0) if len(among) else np.full(steep.shape[-1], np.inf)
