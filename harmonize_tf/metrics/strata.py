"""What kinds of ground and of pairs there are, so that a figure can be told for each.

Ground is told apart pixel by pixel, by the reference; pairs are told apart as a whole, by what their records say. Every
kind is found in every table, in the order given here.
"""

import dataclasses
import math

import numpy as np

from harmonize_tf.metrics.fidelity import ndvi_of
from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.sums import Figured, Sums

# NDVI's ranges are those that Weier and Herring 2000, "Measuring vegetation", NASA Earth Observatory, give for barren
# ground (0.1 and less), shrub and grass (0.2 to 0.3) and dense vegetation (0.6 to 0.8), with limits between them; below
# 0 is water, snow or cloud. Visible reflectance of snow and cloud is above 0.3, that of ground and roofs seldom.
GROUND = ("water", "bare", "sparse vegetation", "dense vegetation", "bright")
NDVI_LIMITS = (0.0, 0.2, 0.5)
BRIGHT = 0.3
_VISIBLE = ("blue", "green", "red")

CLOUD = ("clear", "to 20 %", "to 50 %", "above 50 %")
CLOUD_LIMITS = (0.001, 0.2, 0.5)
GAP = ("same day", "1 day", "2 to 3 days", "4 days and more", "not known")
GAP_LIMITS = (0.5, 1.5, 3.5)  # days
_DAY = 86_400.0  # seconds


@dataclasses.dataclass(frozen=True)
class Kind:
    """Of a pair; each a row in a table.

    Attributes:
      cloud: share of the patch that does not count, for cloud or lack of data, one of `CLOUD`.
      gap: between the two acquisitions, one of `GAP`.
      spacecraft: such as "LANDSAT_8, SENTINEL_2A".
    """

    cloud: str
    gap: str
    spacecraft: str

    @classmethod
    def of(cls, clear: float, dt_s: float, landsat: str, sentinel: str) -> "Kind":
        """From the share of the patch that counts, the time between and the spacecraft."""
        gap = "not known" if math.isnan(dt_s) else GAP[int(np.digitize(abs(dt_s) / _DAY, GAP_LIMITS))]
        return cls(CLOUD[int(np.digitize(1 - clear, CLOUD_LIMITS))], gap, f"{landsat}, {sentinel}")


def sums(reference: Reference, guess: np.ndarray) -> Sums:
    """Errors of one patch by the kind of ground.

    Args:
      reference: the patch.
      guess: [height, width, band] reflectance; anything where the reference does not count.
    """
    ground, error = reference.once(_ground), guess[reference.mask] - reference.pixels
    bands, count = error.shape[-1], len(GROUND)

    def by_kind(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(ground, values[:, band], count) for band in range(bands)], -1)

    return {
        "ground_pixels": np.bincount(ground, minlength=count).astype(np.float64),
        "ground_error": by_kind(error),
        "ground_squared": by_kind(error**2),
    }


def figures(total: Sums) -> Figured:
    """`ground_rmse`, of all bands, and `ground_bias`, [..., kind], along any leading axes of the sums."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = total["ground_pixels"][..., None]
        return {
            "ground_rmse": np.sqrt((total["ground_squared"] / pixels).mean(-1)),
            "ground_bias": (total["ground_error"] / pixels).mean(-1),
        }


def _ground(reference: Reference) -> np.ndarray:
    """The number of the kind in `GROUND` of each pixel that counts, [n]; without red and nir all is bare or bright."""
    ndvi = reference.once(ndvi_of)
    kinds = np.full(len(reference.pixels), GROUND.index("bare"))
    if ndvi is not None:
        kinds = np.digitize(np.nan_to_num(ndvi, nan=-1.0), NDVI_LIMITS)  # too dark for NDVI: water
    visible = [reference.bands.index(band) for band in _VISIBLE if band in reference.bands]
    bright = reference.pixels[:, visible or [0]].mean(-1) > BRIGHT
    return np.where(bright, GROUND.index("bright"), kinds)
