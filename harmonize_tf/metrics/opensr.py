"""What opensr-test does before it compares: its resampling, its shift, and consistency with the input.

Defined as in opensr-test 1.3.3 (Aybar et al. 2024, "A comprehensive benchmark for optical remote sensing image
super-resolution"), whose own source was read for it: config.py, main.py, utils.py, distance.py, spatial.py, and
satalign 0.1.17's pcc.py and main.py. Where all pixels are valid its figures come out, within 1e-4. It knows no masks;
here pixels that are not valid have no part: resampling weighs the valid ones alone, as it does at an image's border.
"""

import numpy as np
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from harmonize_tf.degradation import FACTOR
from harmonize_tf.geometry import fill_gaps
from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.sums import Figured, Sums

BORDER = 15
"""Pixels of 10 m left out on each side: its 16, in whole cells of 30 m."""

MOST_SHIFT = 5.0
"""Pixels; a longer shift is not believed."""

UPSAMPLE = 50
"""Shifts are found to a fiftieth of a pixel."""

VISIBLE = 3
"""The first bands, of which the shift against the input is found; it takes the first one where there are fewer."""


def sums(reference: Reference, output: np.ndarray) -> Sums:
    """Those of one patch, of the differences between an output, resampled to 30 m, and its input.

    Args:
      reference: the patch, with its measurement.
      output: [3h, 3w, band] reflectance.
    """
    cells, pixels = slice(BORDER // FACTOR, -(BORDER // FACTOR)), slice(BORDER, -BORDER)
    there, valid = reference.measurement[cells, cells], reference.measured[cells, cells]
    seen = coarse(output[pixels, pixels], valid.repeat(FACTOR, 0).repeat(FACTOR, 1))
    a, b = seen[valid], there[valid]
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    some = lengths > 0
    cosine = np.clip((a * b).sum(-1)[some] / lengths[some], -1.0, 1.0)
    bands = VISIBLE if there.shape[-1] >= VISIBLE else 1
    length = np.hypot(*shift(there[..., :bands].mean(-1), seen[..., :bands].mean(-1), valid))
    believed = length <= MOST_SHIFT  # False where there is none, NaN
    return {
        "cells": np.float64(len(a)),
        "reflectance": np.abs(a - b).mean(-1).sum(),
        "spectra": np.float64(some.sum()),
        "spectral": np.degrees(np.arccos(cosine)).sum(),
        "shifts": np.float64(believed),
        "spatial": np.float64(length if believed else 0.0),
    }


def figures(total: Sums) -> Figured:
    """Reflectance, spectral angle in degrees and shift in pixels of 30 m, along any leading axes of the sums."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "reflectance": total["reflectance"] / total["cells"],
            "spectral": total["spectral"] / total["spectra"],
            "spatial": total["spatial"] / total["shifts"],
        }


def shift(moving: np.ndarray, fixed: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """Rows and columns by which to move an image onto another: phase correlation, NaN where there is nothing to see.

    Args:
      moving: [height, width].
      fixed: the same.
      valid: bool [height, width].
    """
    if valid.sum() < 64 or not np.minimum(moving[valid].std(), fixed[valid].std()) > 1e-6:  # flat, or no number
        return float("nan"), float("nan")
    pair = np.stack([fixed, moving])
    if not valid.all():
        pair = fill_gaps(pair - pair[:, valid].mean(1)[:, None, None], valid)
    found, _, _ = phase_cross_correlation(*pair, upsample_factor=UPSAMPLE)
    return float(found[0]), float(found[1])


def coarse(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[3h, 3w, band] at a third of the size: weights fall to none within a cell, torch's bilinear with antialias."""
    total, share = (_spread(x) for x in _weighed(image, valid))
    return _over(total[1::FACTOR, 1::FACTOR], share[1::FACTOR, 1::FACTOR])


def fine(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[h, w, band] at three times the size, bilinear."""
    spaced = []
    for x in _weighed(image, valid):
        wide = np.zeros((FACTOR * x.shape[0], FACTOR * x.shape[1], x.shape[2]))
        wide[1::FACTOR, 1::FACTOR] = x
        spaced.append(_spread(wide))
    return _over(*spaced)


def _weighed(image: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(valid[..., None], image, 0.0).astype(np.float64), valid[..., None].astype(np.float64)


def _spread(image: np.ndarray) -> np.ndarray:
    triangle = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / FACTOR
    rows = ndimage.convolve1d(image, triangle, axis=0, mode="constant")
    return ndimage.convolve1d(rows, triangle, axis=1, mode="constant")


def _over(total: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)
