"""Figures of windows: SSIM and UIQI, and PSNR at the shift that suits best.

Windows count where they are valid as a whole; nothing is filled in.
"""

import numpy as np
import scipy.fft
from scipy import ndimage

from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.sums import Sums

DATA_RANGE = 1.0
"""Reflectance that counts as the peak in PSNR and SSIM. Fixed, so that the figures of two scenes can be compared."""

# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity": the Gaussian window, of
# 11 pixels, and the constants of luminance and contrast.
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
_C1, _C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2

UIQI_SIDE = 8
"""Pixels; Wang and Bovik 2002, "A universal image quality index"."""

MOST_SHIFT = 3
"""Pixels of 10 m: Maertens et al. 2019, "Super-resolution of PROBA-V images", tries as many."""


def similarity(reference: Reference, guess: np.ndarray) -> Sums:
    """SSIM, summed over pixels whose window is valid, mean of the bands.

    Args:
      reference: the patch.
      guess: the output as `Reference.masked` gives it.
    """
    whole, mean, square = reference.once(_gaussian_moments)
    if whole is None:
        return {"windows": np.zeros(()), "similarity": np.zeros(())}
    mine = _gaussian(guess)
    covariance = _gaussian(reference.image * guess) - mean * mine
    variance, other = square - mean**2, _gaussian(guess**2) - mine**2
    ssim = (2 * mean * mine + _C1) * (2 * covariance + _C2)
    ssim /= (mean**2 + mine**2 + _C1) * (variance + other + _C2)
    return {"windows": np.float64(whole.sum()), "similarity": ssim[whole].mean(axis=-1).sum()}


def _gaussian_moments(reference: Reference) -> tuple[np.ndarray | None, ...]:
    whole = reference.whole(2 * SSIM_RADIUS + 1)
    if not whole.any():
        return None, None, None
    return whole, _gaussian(reference.image), _gaussian(reference.image**2)


def _gaussian(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image, SSIM_SIGMA, radius=SSIM_RADIUS, axes=(0, 1))


def quality(reference: Reference, guess: np.ndarray) -> Sums:
    """UIQI, 4 cov mean mean' / ((var + var') (mean^2 + mean'^2)), summed over valid windows, mean of the bands.

    As in the authors' program a window that is flat in both has the mean's part alone, and one of zeros 1.
    """
    whole, mean, variance = reference.once(_box_moments)
    if not whole.any():
        return {"quality_windows": np.zeros(()), "quality": np.zeros(())}
    mine = _boxes(guess)
    other, covariance = _boxes(guess**2) - mine**2, _boxes(reference.image * guess) - mean * mine
    spread, level = variance + other, mean**2 + mine**2
    flat = spread < 1e-14  # rounding; a single step of the code in a window gives 1.5e-10
    with np.errstate(divide="ignore", invalid="ignore"):
        brightness = np.where(level > 0, 2 * mean * mine / level, 1.0)
        index = np.where(flat, 1.0, 2 * covariance / spread) * brightness
    return {"quality_windows": np.float64(whole.sum()), "quality": index[whole].mean(axis=-1).sum()}


def _box_moments(reference: Reference) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if min(reference.mask.shape) < UIQI_SIDE:
        return np.zeros((0, 0), bool), np.zeros(0), np.zeros(0)
    whole = _boxes(reference.mask[..., None].astype(np.float64))[..., 0] > 1 - 1e-9
    mean = _boxes(reference.image)
    return whole, mean, _boxes(reference.image**2) - mean**2


def _boxes(image: np.ndarray) -> np.ndarray:
    """Means over squares of `UIQI_SIDE`, by their first pixel: [height - 7, width - 7, band]."""
    rows = np.cumsum(image, axis=0)
    rows = np.concatenate([rows[UIQI_SIDE - 1 : UIQI_SIDE], rows[UIQI_SIDE:] - rows[:-UIQI_SIDE]])
    both = np.cumsum(rows, axis=1)
    first, rest = both[:, UIQI_SIDE - 1 : UIQI_SIDE], both[:, UIQI_SIDE:] - both[:, :-UIQI_SIDE]
    return np.concatenate([first, rest], axis=1) / UIQI_SIDE**2


def shifted(reference: Reference, guess: np.ndarray) -> Sums:
    """Squared error at the whole shift of up to `MOST_SHIFT` pixels that leaves least, without each band's mean error.

    Maertens et al. 2019. The output less a border of `MOST_SHIFT` is compared, where it and the shifted reference are
    valid. Sums over shifts are correlations: one product of Fourier transforms, taken back at the shifts alone.
    """
    inner, number, of_mask, of_reference, first, second = reference.once(_correlations)
    if not number.any():
        return {"shifted_pixels": np.zeros(()), "shifted_squared": np.zeros(len(reference.bands))}
    mine = inner * (guess - reference.once(_mean))
    once, both = _transform(mine), _lags(of_mask * np.conj(_transform(mine**2)), inner.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = (first - _lags(of_mask * np.conj(once), inner.shape)) / number
        squared = second + both - 2 * _lags(of_reference * np.conj(once), inner.shape) - number * bias**2
        left = np.nan_to_num((squared / number).mean(axis=-1), nan=np.inf)  # an output may be no number at all
        best = np.unravel_index(np.argmin(left), left.shape)
    return {"shifted_pixels": number[best][0], "shifted_squared": np.maximum(squared[best], 0.0)}


def _mean(reference: Reference) -> np.ndarray:
    return reference.pixels.mean(0) if len(reference.pixels) else np.zeros(len(reference.bands))


def _correlations(reference: Reference) -> tuple[np.ndarray, ...]:
    """What of the sums over shifts does not depend on the output: [shift, shift, 1 or band] and spectra."""
    inner = np.zeros((*reference.mask.shape, 1))
    border = slice(MOST_SHIFT, -MOST_SHIFT)
    inner[border, border, 0] = reference.mask[border, border]
    mask = reference.mask[..., None].astype(np.float64)
    image = mask * (reference.image - reference.once(_mean))
    window, of_mask, of_image = np.conj(_transform(inner)), _transform(mask), _transform(image)
    number = np.rint(_lags(of_mask * window, inner.shape))
    first = _lags(of_image * window, inner.shape)
    second = _lags(_transform(image**2) * window, inner.shape)
    return inner, number, of_mask, of_image, first, second


def _transform(image: np.ndarray) -> np.ndarray:
    return scipy.fft.rfft2(image, axes=(0, 1))


def _lags(product: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse transform at shifts of -`MOST_SHIFT` to `MOST_SHIFT` pixels: [shift, shift, band].

    Nothing wraps around, since the border of the output is left out.
    """
    lags = np.arange(-MOST_SHIFT, MOST_SHIFT + 1)
    return scipy.fft.irfft2(product, shape[:2], axes=(0, 1))[np.ix_(lags, lags)]
