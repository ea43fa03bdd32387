"""What a model makes of a cloud that was planted into its input: the guard against saturated and invented clouds.

A style transfer that has hardly seen clouds saturates them, and a network that normalises over its whole input changes
clear sky because of a cloud far away. Both are measured on two inputs that differ by the cloud alone.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from harmonize_tf.degradation import FACTOR, PAN_FACTOR
from harmonize_tf.errors import DatasetError

RIM = 4
"""Cells of 30 m inside the cloud's edge, and the image's, that are left out: a step rings, whatever resamples it or
makes it sharp."""


@dataclasses.dataclass(frozen=True)
class PlantedCloud:
    """What became of a cloud, reflectance; each the largest of all pixels and bands.

    Attributes:
      brightness: the cloud's reflectance.
      over_cloud: change at 10 m against the band-pass of the cloud, its rim left out.
      beyond: change of what lies further than the model's halo from the cloud.
      highest: largest value in the output; below the cloud's by more than `over_cloud`, it was clipped.
    """

    brightness: float
    over_cloud: float
    beyond: float
    highest: float


def planted_cloud(
    model: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    inputs: Mapping[str, np.ndarray],
    brightness: float,
    *,
    side: int,
    halo: int,
    bandpass: Callable[[np.ndarray], np.ndarray],
) -> PlantedCloud:
    """Plants a square, opaque, uniform cloud into the corner of an image and compares the outputs.

    Args:
      model: maps the inputs of a Harmonizer to [N, 3h, 3w, band], reflectance.
      inputs: "landsat_ms" [N, h, w, band] and what else the model takes; everything valid.
      brightness: of the cloud in all bands, reflectance.
      side: of the cloud, 30 m cells; it fills rows and columns 0 to `side - 1`.
      halo: 30 m cells beyond a pixel's own that it may depend on.
      bandpass: the adjustment Landsat -> Sentinel-2 that the model assumes.

    Raises:
      DatasetError: the image is too small to have a cloud's inside and sky beyond its reach.
    """
    height, width = inputs["landsat_ms"].shape[1:3]
    beyond = side + halo
    if side <= 2 * RIM or min(height, width) <= beyond:
        raise DatasetError(
            f"a cloud needs an inside, more than {2 * RIM} cells, and sky beyond its reach, in all more than {beyond} "
            f"cells of image; give a larger image. Received: height={height}, width={width}, side={side}"
        )
    cloudy = {name: np.array(x) for name, x in inputs.items()}
    cloudy["landsat_ms"][:, :side, :side] = brightness
    if "landsat_pan" in cloudy:
        cloudy["landsat_pan"][:, : PAN_FACTOR * side, : PAN_FACTOR * side] = brightness
    clear, output = np.asarray(model(inputs)), np.asarray(model(cloudy))
    expected = bandpass(np.full(output.shape[-1:], brightness, np.float32))
    rows = slice(FACTOR * RIM, FACTOR * (side - RIM))
    inside = output[:, rows, rows]
    changed = np.abs(output - clear)
    return PlantedCloud(
        brightness=brightness,
        over_cloud=float(np.abs(inside - expected).max()),
        beyond=float(max(changed[:, FACTOR * beyond :].max(), changed[:, :, FACTOR * beyond :].max())),
        highest=float(output.max()),
    )
