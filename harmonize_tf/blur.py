"""How much blurrier Landsat is than Sentinel-2, as `harmonize estimate-blur` measured it: the JSON that training reads.

    {"package_version": "0.1.0", "flags": {...}, "plan_sha256": "...", "level": "toa", "nir": "B8",
     "bands": ["blue", ...], "scene_pairs": 12, "patches": 300, "samples_of": "scene pairs",
     "pair_grid": {"blue": MEASURED, ...},      on the pair grid, what a model has to assume: warping blurs too
     "sensors":   {"blue": MEASURED, ...}}      between the sensors, Landsat on its own lattice of 30 m

where MEASURED is

    {"sigma": [1.19, 1.21],               standard deviations of the Gaussian, x and y, 10 m pixels
     "sigma_error": [0.01, 0.01],         their standard errors, if residuals were independent
     "sigma_samples": [[1.17, 1.20], ...],  of single pairs of scenes, or of patches drawn anew (`samples_of`)
     "sigma_quartiles": [[1.17, 1.19], [1.19, 1.21], [1.2, 1.22]],  of the samples
     "shift_m": {"median": [0.4, 1.9], "quartiles": [[...], [...], [...]]},  over pairs, east and north, m
     "gain": {"median": 1.01, "quartiles": [...]}, "offset": {...},  over pairs; Landsat = gain * Sentinel-2 + offset
     "residual_before": 0.0112,           RMS, reflectance: the published blur and nothing else
     "residual_after": 0.0031,            the same with all that was found
     "cells": 91146, "counted": 0.83}     cells of 30 m that were compared, and the share that was not an outlier

Sample number i is of one pair, or of one draw, in all bands and in both measures.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harmonize_tf import artifacts
from harmonize_tf.degradation import MIN_SIGMA
from harmonize_tf.errors import DatasetError

REMEDY = "run `harmonize estimate-blur` again"


@dataclasses.dataclass(frozen=True, eq=False)
class BlurEstimate:
    """The blur to assume between Sentinel-2 and Landsat on the pair grid, and how it varies.

    Attributes:
      bands: names, in the order of all that follows.
      sigma: one standard deviation for each band, 10 m pixels, the same in x and y: for what wants a single number.
      sigma_xy: [band, 2], in x and y.
      samples: [sample, band, 2], what single pairs of scenes (or patches drawn anew) gave: a distribution to draw from.
      level: "toa", "sr" or "uncalibrated".
      nir: Sentinel-2's band behind "nir", "B8" or "B8A".
      plan_sha256: of the export that was measured.
      package_version: of harmonize_tf when measuring.
    """

    bands: tuple[str, ...]
    sigma: tuple[float, ...]
    sigma_xy: np.ndarray
    samples: np.ndarray
    level: str
    nir: str
    plan_sha256: str
    package_version: str

    @classmethod
    def load(cls, path: str | os.PathLike, bands: Sequence[str] | None = None) -> "BlurEstimate":
        """Reads what `harmonize estimate-blur` wrote.

        Args:
          path: the JSON file.
          bands: those wanted, in this order; None: all that were measured.

        Raises:
          DatasetError: it is missing or damaged, a blur in it cannot be, or a band wanted was not measured.
        """
        try:
            values = json.loads(pathlib.Path(path).read_text())
            measured = values["pair_grid"]
            wanted = tuple(values["bands"] if bands is None else bands)
            missing = [band for band in wanted if band not in measured]
            if missing:
                raise DatasetError(
                    f"{path} says nothing about {', '.join(missing)}; estimate the blur from records that hold the "
                    f"bands of the training. Received: bands={','.join(measured)}"
                )
            sigma_xy = np.array([measured[band]["sigma"] for band in wanted], float)
            samples = np.array([measured[band]["sigma_samples"] for band in wanted], float).swapaxes(0, 1)
            told = {name: str(values[name]) for name in ("level", "nir", "plan_sha256", "package_version")}
        except OSError as error:
            raise DatasetError(f"expected a blur estimate; {REMEDY} ({error}). Received: {path}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"expected the JSON that `harmonize estimate-blur` writes; {REMEDY} ({error!r}). Received: {path}"
            ) from error
        if sigma_xy.shape != (len(wanted), 2) or samples.shape[1:] != sigma_xy.shape or not len(samples):
            raise DatasetError(
                f"expected x and y for each band and at least one sample; {REMEDY}. Received: sigma of shape "
                f"{sigma_xy.shape}, samples {samples.shape} in {path}"
            )
        if not (np.isfinite(samples).all() and min(sigma_xy.min(), samples.min()) >= MIN_SIGMA):
            raise DatasetError(
                f"a blur is at least {MIN_SIGMA} pixels of 10 m wide; {REMEDY}. Received: "
                f"sigma={np.nanmin([sigma_xy.min(), np.nanmin(samples)])} in {path}"
            )
        sigma = tuple(math.sqrt((x * x + y * y) / 2) for x, y in sigma_xy)
        return cls(wanted, sigma, sigma_xy, samples, **told)


def write(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes the JSON described above, aside first; makes its folder.

    Raises:
      DatasetError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise DatasetError(f"the estimate cannot be written there: {error}. Received: out={path}") from error
