"""One patch of Sentinel-2 that outputs are compared with: what all models' figures need of it is computed once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from harmonize_tf.errors import DatasetError


class Reference:
    """A patch and which of its pixels count.

    Args:
      image: [height, width, band] reflectance; anything, NaN included, where it does not count.
      mask: [height, width], true or 1 where it counts.
      bands: names of the last axis.
      measurement: [height / 3, width / 3, band], what Landsat measured there, band-pass adjusted; needed by
        `hallucination` and `opensr` alone.
      measured: [height / 3, width / 3], true or 1 where there is a measurement.

    Attributes:
      image: float64, 0 where it does not count.
      mask: bool.
      bands: the same.
      pixels: float64 [n, band], those that count.
      measurement: float64.
      measured: bool.
    """

    def __init__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        bands: Sequence[str],
        measurement: np.ndarray | None = None,
        measured: np.ndarray | None = None,
    ) -> None:
        self.mask, self.bands = np.asarray(mask).astype(bool), tuple(bands)
        if measurement is not None:
            self.measured = np.asarray(measured).astype(bool)
            self.measurement = np.where(self.measured[..., None], measurement, 0.0).astype(np.float64)
        self._shape_as_given = np.shape(image)
        self.pixels = np.zeros((0, len(self.bands)))
        if self._shape_as_given == (*self.mask.shape, len(self.bands)):
            self.image = np.where(self.mask[..., None], image, 0.0).astype(np.float64)
            self.pixels = self.image[self.mask]
        self._known: dict[Callable, Any] = {}
        self._whole: dict[int, np.ndarray] = {}

    def once(self, function: Callable[["Reference"], Any]) -> Any:
        """What a function makes of this patch, computed at the first call."""
        if function not in self._known:
            self._known[function] = function(self)
        return self._known[function]

    def whole(self, side: int) -> np.ndarray:
        """Bool [height, width]: pixels around which all of a square of `side` pixels counts; computed once."""
        if side not in self._whole:
            self._whole[side] = ndimage.minimum_filter(self.mask.astype(np.uint8), side, mode="constant").astype(bool)
        return self._whole[side]

    def masked(self, prediction: np.ndarray) -> np.ndarray:
        """A prediction as `image` is: float64, 0 where the reference does not count.

        Raises:
          DatasetError: the shapes do not agree.
        """
        if not self._shape_as_given == prediction.shape == (*self.mask.shape, len(self.bands)):
            raise DatasetError(
                "reference and prediction must both be [height, width, band] on the mask's pixels. Received: "
                f"reference={self._shape_as_given}, prediction={prediction.shape}, mask={self.mask.shape}, "
                f"bands={self.bands}"
            )
        return np.where(self.mask[..., None], prediction, 0.0).astype(np.float64)
