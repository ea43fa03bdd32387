"""How near an image comes to its reference: RMSE, bias, PSNR, SSIM, SAM and ERGAS over any number of masked patches.

Sums are kept instead of pixels, so that a test set of any size needs the memory of one patch. Pixels that the mask
leaves out have no part in any number, whatever they hold, NaN included.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity

from harmonize_tf.errors import DatasetError

DATA_RANGE = 1.0
"""Reflectance that counts as the peak in PSNR and SSIM. Fixed, so that the figures of two scenes can be compared."""

PIXEL_RATIO = 10.0 / 30.0
"""h/l in ERGAS: the size of an output pixel over the size of an input pixel."""

# The Gaussian window of Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Figures of a set of patches. Means are over the set's pixels, not over its patches.

    Attributes:
      bands: band names.
      pixels: number of pixels compared.
      rmse: root mean square error per band, reflectance.
      bias: mean of prediction minus reference per band, reflectance.
      rmse_all: root of the mean of the bands' mean square errors, reflectance.
      bias_all: mean of `bias`.
      psnr: 10 log10(DATA_RANGE^2 / rmse_all^2), dB.
      ssim: structural similarity per pixel and band (Wang et al. 2004), mean over the pixels whose whole window is
        valid; NaN where there is none.
      sam: mean spectral angle (Kruse et al. 1993), degrees; pixels that are zero in all bands have none.
      ergas: 100 h/l sqrt(mean over bands of (rmse / mean of the reference)^2), Wald 2000, "Quality of high resolution
        synthesised images: is there a simple criterion?"; of the whole set.
    """

    bands: tuple[str, ...]
    pixels: int
    rmse: tuple[float, ...]
    bias: tuple[float, ...]
    rmse_all: float
    bias_all: float
    psnr: float
    ssim: float
    sam: float
    ergas: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the per-band figures by band name."""
        values = dataclasses.asdict(self)
        del values["bands"]
        return values | {name: dict(zip(self.bands, values[name], strict=True)) for name in ("rmse", "bias")}


def compared(bands: Sequence[str], reference: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask as bool, once the shapes of a patch agree.

    Args:
      bands: names of the last axis.
      reference: [height, width, band].
      prediction: the same shape.
      mask: [height, width], true or 1 where the two are compared.

    Raises:
      DatasetError: they do not.
    """
    mask = np.asarray(mask).astype(bool)
    if not reference.shape == prediction.shape == (*mask.shape, len(bands)):
        raise DatasetError(
            "reference and prediction must both be [height, width, band] on the mask's pixels. Received: "
            f"reference={reference.shape}, prediction={prediction.shape}, mask={mask.shape}, bands={tuple(bands)}"
        )
    return mask


class FidelityMeter:
    """Adds up patches.

    Args:
      bands: names of the last axis.

    Attributes:
      bands: the same.
    """

    def __init__(self, bands: Sequence[str]) -> None:
        self.bands = tuple(bands)
        zeros = np.zeros(len(self.bands), np.float64)
        self._pixels, self._error, self._squared, self._reference = 0, zeros.copy(), zeros.copy(), zeros.copy()
        self._angles, self._angle = 0, 0.0
        self._windows, self._similarity = 0, 0.0

    def update(self, reference: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Adds one patch.

        Args:
          reference: [height, width, band] reflectance.
          prediction: the same shape.
          mask: [height, width], true or 1 where the two are compared.

        Raises:
          DatasetError: the shapes do not agree.
        """
        mask = compared(self.bands, reference, prediction, mask)
        truth, guess = reference[mask].astype(np.float64), prediction[mask].astype(np.float64)
        error = guess - truth
        self._pixels += len(truth)
        self._error += error.sum(axis=0)
        self._squared += (error**2).sum(axis=0)
        self._reference += truth.sum(axis=0)
        self._add_angles(truth, guess)
        self._add_similarity(reference, prediction, mask)

    def _add_angles(self, truth: np.ndarray, guess: np.ndarray) -> None:
        lengths = np.linalg.norm(truth, axis=-1) * np.linalg.norm(guess, axis=-1)
        some = lengths > 0
        cosine = (truth * guess).sum(axis=-1)[some] / lengths[some]
        self._angles += int(some.sum())
        self._angle += float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).sum())

    def _add_similarity(self, reference: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> None:
        window = np.ones((2 * SSIM_RADIUS + 1,) * 2, bool)
        whole = ndimage.binary_erosion(mask, window, border_value=0)
        if not whole.any():
            return
        _, similarity = structural_similarity(
            np.where(mask[..., None], reference, 0.0).astype(np.float64),
            np.where(mask[..., None], prediction, 0.0).astype(np.float64),
            channel_axis=-1,
            data_range=DATA_RANGE,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            full=True,
        )
        self._windows += int(whole.sum())
        self._similarity += float(similarity[whole].mean(axis=-1).sum())

    def result(self) -> Fidelity:
        """The figures of all patches so far.

        Raises:
          DatasetError: no pixel was compared.
        """
        if not self._pixels:
            raise DatasetError("no pixel is valid in both images, so there is nothing to compare; check the masks")
        mse, bias = self._squared / self._pixels, self._error / self._pixels
        mean = self._reference / self._pixels
        with np.errstate(divide="ignore", invalid="ignore"):
            psnr = 10.0 * np.log10(DATA_RANGE**2 / mse.mean())
            ergas = 100.0 * PIXEL_RATIO * np.sqrt((mse / mean**2).mean())
        return Fidelity(
            bands=self.bands,
            pixels=self._pixels,
            rmse=tuple(np.sqrt(mse).tolist()),
            bias=tuple(bias.tolist()),
            rmse_all=float(np.sqrt(mse.mean())),
            bias_all=float(bias.mean()),
            psnr=float(psnr),
            ssim=self._similarity / self._windows if self._windows else float("nan"),
            sam=self._angle / self._angles if self._angles else float("nan"),
            ergas=float(ergas),
        )
