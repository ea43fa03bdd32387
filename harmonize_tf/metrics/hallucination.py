"""Which of the output's detail is true: hallucination, omission and improvement.

Defined as in opensr-test 1.3.3 (Aybar et al. 2024; correctness.py and main.py), with its defaults: the output, its
histogram matched to Sentinel-2's and its shift taken away, is compared with Sentinel-2 (d_im) and with the resampled
input (d_om), in units of the distance between these two. Near the former it improves, near the latter it omits, and far
from both it hallucinates. The three are shares that add up to 1.

Every distance is |a - b| / |a + b|, mean of the bands. Only pixels count in which one of the three distances is larger
than what three quarters of the input's are below: elsewhere there is nothing to see.
"""

import numpy as np
from scipy import ndimage

from harmonize_tf.metrics import opensr
from harmonize_tf.metrics.opensr import BORDER, MOST_SHIFT
from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.sums import Figured, Sums

NAMES = ("improvement", "omission", "hallucination")

# opensr_test/config.py: correctness_temperature; im_score, om_score and ha_score; main.py: "auto" is "auto75".
TEMPERATURE, SOFTNESS, QUANTILE = 0.25, 0.05, 0.75

_INNER = slice(BORDER, -BORDER)


def sums(reference: Reference, prediction: np.ndarray) -> Sums:
    """Those of one patch.

    Args:
      reference: the patch, with its measurement.
      prediction: [height, width, band] reflectance; anything where the reference does not count.
    """
    counted, shares = maps(reference, prediction)
    return {"judged": np.float64(counted.sum()), "shares": shares[counted].sum(0)}


def figures(total: Sums) -> Figured:
    """The three of `NAMES`, along any leading axes of the sums."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = total["shares"] / total["judged"][..., None]
    return {name: shares[..., number] for number, name in enumerate(NAMES)}


def maps(reference: Reference, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the patch less `BORDER`: whether a pixel counts, bool [H, W], and its three shares, [H, W, 3]."""
    truth, given, d_ref, threshold = reference.once(_known)
    mask = reference.mask[_INNER, _INNER]
    if not mask.any():
        return mask, np.zeros((*mask.shape, len(NAMES)))
    moved, mask = _aligned(_matched(reference, prediction[_INNER, _INNER]), truth, mask)
    d_im, d_om = _distance(moved, truth), _distance(moved, given)
    counted = mask & (np.maximum(np.maximum(d_ref, d_im), d_om) > threshold)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        im, om = d_im / d_ref, d_om / d_ref
        gone = 1 - np.exp(-SOFTNESS * (im + om - 1))
        distances = np.stack([im + om * gone, om + im * gone, np.exp(-SOFTNESS * im * om)], -1)
        weights = np.exp(-distances / TEMPERATURE)
        shares = weights / weights.sum(-1, keepdims=True)
    return counted & np.isfinite(shares).all(-1), shares


def _known(reference: Reference) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """What does not depend on the output: Sentinel-2, the input, their distance and the threshold."""
    cells = slice(BORDER // 3, -(BORDER // 3))
    truth, mask = reference.image[_INNER, _INNER], reference.mask[_INNER, _INNER]
    given = opensr.fine(reference.measurement[cells, cells], reference.measured[cells, cells])
    distance = _distance(given, truth)
    among = distance[mask]
    place = max(int(QUANTILE * among.size) - 1, 0)  # torch's kthvalue counts from 1
    return truth, given, distance, float(np.partition(among, place)[place]) if among.size else np.inf


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.abs(a - b) / np.abs(a + b + 1e-8)).mean(-1)


def _matched(reference: Reference, image: np.ndarray) -> np.ndarray:
    """The valid pixels' values replaced, band by band, by the reference's of the same rank; ties have the last's."""
    mask, quantiles = reference.mask[_INNER, _INNER], reference.once(_quantiles)
    matched = np.zeros(image.shape)
    for band, (levels, shares) in enumerate(quantiles):
        values = image[..., band][mask]
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranked = np.interp(np.cumsum(count) / count.sum(), shares, levels)[place]
        matched[mask, band] = np.where(np.isfinite(values), ranked, np.nan)  # what is no number has no rank
    return matched


def _quantiles(reference: Reference) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each band the values of the reference, rising, and the share of pixels up to each."""
    image, mask = reference.image[_INNER, _INNER], reference.mask[_INNER, _INNER]
    found = [np.unique(image[..., band][mask], return_counts=True) for band in range(image.shape[-1])]
    return [(levels, np.cumsum(count) / count.sum()) for levels, count in found]


def _aligned(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image moved onto the truth, its border repeated, and where what it is made of is valid."""
    move = opensr.shift(image.mean(-1), truth.mean(-1), mask)
    if not 0 < np.hypot(*move) <= MOST_SHIFT:  # none, none found, or too far
        return image, mask
    moved = ndimage.shift(image, (*move, 0), order=1, mode="nearest")
    if not mask.all():
        mask = mask & (ndimage.shift(mask.astype(np.float64), move, order=1, mode="nearest") > 1 - 1e-6)
    return moved, mask
