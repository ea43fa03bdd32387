"""Quality bands: those of scenes to masks, what has data and what is clear ground; and the bits of a product's own.

Bit positions and classes: USGS LSDS-1619 (Collection 2), USGS "Landsat 8 Quality Band" (pre-collection BQA), ESA
Sentinel-2 L2A scene classification, Google Cloud Score+ (Earth Engine catalogue).
"""

from collections.abc import Callable, Mapping

import numpy as np

DATA, CONSISTENT, CLEAR_SKY = 1, 2, 4
"""Bits of a product's quality band."""
BITS: Mapping[int, tuple[str, str]] = {
    DATA: ("data", "there is data"),
    CONSISTENT: ("consistent", "seen at 30 m it is the measurement, within 0.001 reflectance in every band"),
    CLEAR_SKY: (
        "clear",
        "Landsat's quality band tells of no cloud, shadow or saturation (or there is no such band)",
    ),
}
"""Name and meaning of each."""
TOLERANCE = 1e-3  # reflectance, within which a product must be the measurement to be called consistent

CLOUD_SCORE_THRESHOLD = 0.60  # of `cs_cdf`, the catalogue's own suggestion
SCL_NOT_CLEAR = (0, 1, 3, 8, 9, 10)  # no data, saturated, shadow, cloud medium, cloud high, cirrus


def _bit(values: np.ndarray, position: int) -> np.ndarray:
    return (values >> position) & 1 == 1


def qa_pixel_clear(qa: np.ndarray) -> np.ndarray:
    """Collection 2 QA_PIXEL: true where there is data and no dilated cloud, cirrus, cloud or shadow.

    0 has no bad bit set and yet is what Earth Engine returns outside the footprint: not clear.
    """
    bad = _bit(qa, 0) | _bit(qa, 1) | _bit(qa, 2) | _bit(qa, 3) | _bit(qa, 4)
    return ~bad & (qa != 0)


def qa_radsat_clear(radsat: np.ndarray) -> np.ndarray:
    """QA_RADSAT: true where none of bands 1-7 is saturated (bits 0-6) and the terrain is not occluded (bit 11)."""
    return (radsat & (0b1111111 | 1 << 11)) == 0


def bqa_clear(bqa: np.ndarray) -> np.ndarray:
    """Pre-collection BQA: true where there is data and neither cloud (bits 14-15) nor cirrus (12-13) is likely."""
    return ~_bit(bqa, 0) & ~_bit(bqa, 1) & ((bqa >> 14) & 3 < 2) & ((bqa >> 12) & 3 < 3)


def scl_clear(scl: np.ndarray) -> np.ndarray:
    """Sentinel-2 scene classification: true where none of `SCL_NOT_CLEAR`."""
    return ~np.isin(scl, SCL_NOT_CLEAR)


def cloud_score_clear(cs_cdf: np.ndarray) -> np.ndarray:
    """Cloud Score+ `cs_cdf` in 0..1: true from `CLOUD_SCORE_THRESHOLD` on; NaN is not clear."""
    return cs_cdf >= CLOUD_SCORE_THRESHOLD


CLEAR: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "qa_pixel": qa_pixel_clear,
    "qa_radsat": qa_radsat_clear,
    "bqa": bqa_clear,
    "scl": scl_clear,
    "cloud_score": cloud_score_clear,
}
