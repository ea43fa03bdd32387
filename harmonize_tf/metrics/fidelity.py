"""How near an image comes to its reference: RMSE, bias, PSNR, cPSNR, SSIM, UIQI, SAM, ERGAS and the error of NDVI.

Sums are kept instead of pixels, so that a test set of any size needs the memory of one patch. Pixels that the mask
leaves out have no part in any number, whatever they hold, NaN included.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics import structure
from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.structure import DATA_RANGE
from harmonize_tf.metrics.sums import Figured, Sums, added, plain

PIXEL_RATIO = 10.0 / 30.0
"""h/l in ERGAS: the size of an output pixel over the size of an input pixel."""

DARKEST = 0.02
"""Reflectance of red and nir together, below which NDVI is noise: the ratio's error is the error over this sum."""


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
      cpsnr: the same without each patch's bias and at the shift that suits it best, up to 3 pixels (Maertens et al.
        2019), dB; of the set's pixels less a border of 3.
      ssim: structural similarity per pixel and band (Wang et al. 2004), mean over the pixels whose whole window is
        valid; NaN where there is none.
      uiqi: universal image quality index (Wang and Bovik 2002) of windows of 8 x 8 pixels, mean over those that are
        valid as a whole; NaN where there is none.
      sam: mean spectral angle (Kruse et al. 1993), degrees; pixels that are zero in all bands have none.
      ergas: 100 h/l sqrt(mean over bands of (rmse / mean of the reference)^2), Wald 2000, "Quality of high resolution
        synthesised images: is there a simple criterion?"; of the whole set.
      ndvi_rmse: root mean square error of (nir - red) / (nir + red); NaN without these bands.
      ndvi_bias: mean of the same, prediction minus reference.
    """

    bands: tuple[str, ...]
    pixels: int
    rmse: tuple[float, ...]
    bias: tuple[float, ...]
    rmse_all: float
    bias_all: float
    psnr: float
    cpsnr: float
    ssim: float
    uiqi: float
    sam: float
    ergas: float
    ndvi_rmse: float
    ndvi_bias: float

    @classmethod
    def of(cls, bands: Sequence[str], total: Sums) -> "Fidelity":
        """From the sums of a set.

        Raises:
          DatasetError: no pixel was compared.
        """
        if not total or not total["pixels"]:
            raise DatasetError("no pixel is valid in both images, so there is nothing to compare; check the masks")
        return cls(bands=tuple(bands), pixels=int(total["pixels"]), **plain(figures(total)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the per-band figures by band name."""
        values = dataclasses.asdict(self)
        del values["bands"]
        return values | {name: dict(zip(self.bands, values[name], strict=True)) for name in ("rmse", "bias")}


def sums(reference: Reference, prediction: np.ndarray) -> Sums:
    """Those of one patch.

    Args:
      reference: the patch.
      prediction: [height, width, band] reflectance; anything where the reference does not count.

    Raises:
      DatasetError: the shapes do not agree.
    """
    image = reference.masked(prediction)
    truth, guess = reference.pixels, image[reference.mask]
    error = guess - truth
    found = {
        "pixels": np.float64(len(truth)),
        "error": error.sum(axis=0),
        "squared": (error**2).sum(axis=0),
        "reference": truth.sum(axis=0),
    }
    found |= _angles(reference, guess) | _ndvi_errors(reference, guess)
    found |= structure.similarity(reference, image) | structure.quality(reference, image)
    return found | structure.shifted(reference, image)


def figures(total: Sums) -> Figured:
    """The figures of `Fidelity` by name, along any leading axes of the sums; NaN where there is nothing to compare."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = total["pixels"][..., None]
        mse, bias, mean = (total[name] / pixels for name in ("squared", "error", "reference"))
        shifted = (total["shifted_squared"] / total["shifted_pixels"][..., None]).mean(-1)
        return {
            "rmse": np.sqrt(mse),
            "bias": bias,
            "rmse_all": np.sqrt(mse.mean(-1)),
            "bias_all": bias.mean(-1),
            "psnr": 10.0 * np.log10(DATA_RANGE**2 / mse.mean(-1)),
            "cpsnr": 10.0 * np.log10(DATA_RANGE**2 / shifted),
            "ssim": total["similarity"] / total["windows"],
            "uiqi": total["quality"] / total["quality_windows"],
            "sam": total["angle"] / total["angles"],
            "ergas": 100.0 * PIXEL_RATIO * np.sqrt((mse / mean**2).mean(-1)),
            "ndvi_rmse": np.sqrt(total["ndvi_squared"] / total["ndvi_pixels"]),
            "ndvi_bias": total["ndvi_error"] / total["ndvi_pixels"],
        }


def _angles(reference: Reference, guess: np.ndarray) -> Sums:
    truth = reference.pixels
    lengths = reference.once(_lengths) * np.sqrt((guess**2).sum(axis=-1))
    some = lengths > 0
    cosine = (truth * guess).sum(axis=-1)[some] / lengths[some]
    angles = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return {"angles": np.float64(some.sum()), "angle": angles.sum()}


def _lengths(reference: Reference) -> np.ndarray:
    return np.sqrt((reference.pixels**2).sum(axis=-1))


def _ndvi_errors(reference: Reference, guess: np.ndarray) -> Sums:
    truth = reference.once(ndvi_of)
    if truth is None:
        return dict.fromkeys(("ndvi_pixels", "ndvi_error", "ndvi_squared"), np.zeros(()))
    error = ndvi(guess, reference.bands) - truth
    error = error[np.isfinite(error)]
    return {
        "ndvi_pixels": np.float64(len(error)),
        "ndvi_error": error.sum(),
        "ndvi_squared": (error**2).sum(),
    }


def ndvi_of(reference: Reference) -> np.ndarray | None:
    """NDVI of the pixels that count, [n]; None without red and nir."""
    return ndvi(reference.pixels, reference.bands)


def ndvi(pixels: np.ndarray, bands: Sequence[str]) -> np.ndarray | None:
    """(nir - red) / (nir + red) of reflectance [..., band], clipped to -1 to 1; NaN below `DARKEST`.

    Returns:
      None without these bands.
    """
    if not {"red", "nir"} <= set(bands):
        return None
    red, nir = pixels[..., bands.index("red")], pixels[..., bands.index("nir")]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(red + nir >= DARKEST, np.clip((nir - red) / (nir + red), -1.0, 1.0), np.nan)


class FidelityMeter:
    """Adds up patches.

    Args:
      bands: names of the last axis.

    Attributes:
      bands: the same.
    """

    def __init__(self, bands: Sequence[str]) -> None:
        self.bands = tuple(bands)
        self._total: Sums = {}

    def update(self, reference: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Adds one patch.

        Args:
          reference: [height, width, band] reflectance.
          prediction: the same shape.
          mask: [height, width], true or 1 where the two are compared.

        Raises:
          DatasetError: the shapes do not agree.
        """
        one = sums(Reference(reference, mask, self.bands), prediction)
        self._total = added([self._total, one] if self._total else [one])

    def result(self) -> Fidelity:
        """The figures of all patches so far.

        Raises:
          DatasetError: no pixel was compared.
        """
        return Fidelity.of(self.bands, self._total)
