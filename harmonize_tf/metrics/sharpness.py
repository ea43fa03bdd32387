"""How much detail beyond Landsat's grid an image shows, how much of it is true, and whether it has a checkerboard.

Detail is what Landsat's 30 m grid cannot carry: spatial frequencies above its Nyquist limit, 1/6 cycles per 10 m pixel,
along rows or columns. It is measured in the spectra of square tiles that are wholly valid, with their mean removed and
a Hann window over them. Sharp is not the same as true: invented detail has a `ratio` of 1 and a low `coherence`.

Depth-to-space networks may leave a checkerboard, a pattern of the period of their block. Two figures tell of it:

* `checkerboard`: the mean over all pixels of each phase (row mod p, column mod p) of the difference to the reference.
  Ground is not locked to the phases, so that its detail, blurred or invented too, averages out as 1 over the number of
  pixels, while a pattern stays. It is an energy in units of that of the reference's detail: 0 is none, 0.01 is one per
  cent, a pattern of a tenth of the detail's standard deviation. The mean of p x p pixels around is taken off before: a
  slope across a patch would count otherwise, and the pattern, whose mean over p x p pixels is zero, passes untouched.
* `comb`: amplitude at the pattern's frequencies over the reference's there, like `ratio`. A pattern that comes and goes
  with the image, of changing sign, averages out of the former, and makes `comb` stand out above `ratio`.

`edge` says the same as `ratio` in the image instead of its spectrum: how much of a step in the reference rises within
one pixel (`harmonize_tf.metrics.edges`).

Sums are kept instead of pixels. Pixels that the mask leaves out have no part in any number, NaN included.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft
from scipy import ndimage

from harmonize_tf.degradation import FACTOR
from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics import edges
from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.sums import Figured, Sums, added, plain

TILE = 48
"""Side of a tile, 10 m pixels: 1/6, 1/3 and 1/2 cycles per pixel are bins 8, 16 and 24 of its spectrum."""

STRIDE = TILE // 2
"""From tile to tile, so that shifted squares of the Hann window weigh the inner pixels nearly alike."""

NYQUIST = 0.5 / FACTOR
"""Of the 30 m grid, cycles per 10 m pixel."""

PERIODS = (3, 2)
"""Blocks of depth-to-space, 10 m pixels: of networks at 30 m and of those at 20 m."""


_PER_BAND = ("detail", "ratio", "coherence", "edge", "edge_reference")


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Figures of a set of patches. NaN where no tile is valid or the reference has no detail.

    Attributes:
      bands: band names.
      periods: of the patterns looked for, 10 m pixels.
      tiles: number of tiles compared.
      detail: standard deviation of the reference's detail per band, reflectance.
      ratio: amplitude of the prediction's detail over the reference's, per band: 1 is as sharp, below blurred, above
        overdone.
      ratio_all: the same of the bands' powers together.
      coherence: correlation of the prediction's detail with the reference's, per band; NaN where it has none.
      coherence_all: the same of the bands' powers together.
      checkerboard: for each period energy of the pattern locked to it over that of the reference's detail, of the
        bands together: 0 is none.
      comb: for each period amplitude at its frequencies over the reference's there, of the bands together.
      edge: share of the steps along the reference's edges that the prediction rises within one pixel, per band: 1 is a
        sharp step, `edge_reference` as sharp as the reference.
      edge_reference: the reference's own.
    """

    bands: tuple[str, ...]
    periods: tuple[int, ...]
    tiles: int
    detail: tuple[float, ...]
    ratio: tuple[float, ...]
    ratio_all: float
    coherence: tuple[float, ...]
    coherence_all: float
    checkerboard: tuple[float, ...]
    comb: tuple[float, ...]
    edge: tuple[float, ...]
    edge_reference: tuple[float, ...]

    @classmethod
    def of(cls, bands: Sequence[str], total: Sums, periods: Sequence[int] = PERIODS) -> "Sharpness":
        """From the sums of a set."""
        values = plain(figures(total, periods))
        return cls(bands=tuple(bands), periods=tuple(periods), tiles=int(total["tiles"]), **values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the per-band figures by band name, those of a pattern by its period."""
        values = dataclasses.asdict(self)
        bands, periods = values.pop("bands"), [str(p) for p in values.pop("periods")]
        values |= {name: dict(zip(bands, values[name], strict=True)) for name in _PER_BAND}
        return values | {name: dict(zip(periods, values[name], strict=True)) for name in ("checkerboard", "comb")}


def sums(reference: Reference, prediction: np.ndarray, periods: Sequence[int] = PERIODS) -> Sums:
    """Those of one patch, whose first pixel is the first of a block: patterns are looked for in step from there.

    Args:
      reference: the patch.
      prediction: [height, width, band] reflectance; anything where the reference does not count.
      periods: of the patterns to look for, 10 m pixels; divisors of `STRIDE`.

    Raises:
      DatasetError: the shapes do not agree.
    """
    guess = reference.masked(prediction)
    found = _spectral(reference, guess, periods) | edges.sums(reference, guess)
    for period in periods:
        found |= _phases(reference, guess - reference.image, period)
    return found


def _spectral(reference: Reference, guess: np.ndarray, periods: Sequence[int]) -> Sums:
    corners, truth = reference.once(_tiles)
    detail, zeros = _above(NYQUIST), np.zeros(len(reference.bands))
    powers = (np.zeros((TILE, TILE, len(zeros))),) * 3
    if corners:
        other = _spectra(np.stack([guess[r : r + TILE, c : c + TILE] for r, c in corners]))
        powers = reference.once(_powers), *((x.conj() * other).real.sum(axis=0) for x in (other, truth))
    names = ("detail_reference", "detail_prediction", "detail_cross")
    found = {name: power[detail].sum(axis=0) for name, power in zip(names, powers, strict=True)}
    found["comb"] = np.array([[power[_teeth(period)].sum() for power in powers[:2]] for period in periods])
    found["radial"] = np.stack([_radial(power.sum(-1)) for power in powers[:2]])
    return found | {"tiles": np.float64(len(corners))}


def _tiles(reference: Reference) -> tuple[list[tuple[int, int]], np.ndarray | None]:
    """Corners of the tiles that are wholly valid, and their spectra."""
    mask = reference.mask
    corners = [
        (row, column)
        for row in range(0, mask.shape[0] - TILE + 1, STRIDE)
        for column in range(0, mask.shape[1] - TILE + 1, STRIDE)
        if mask[row : row + TILE, column : column + TILE].all()
    ]
    if not corners:
        return [], None
    return corners, _spectra(np.stack([reference.image[r : r + TILE, c : c + TILE] for r, c in corners]))


def _powers(reference: Reference) -> np.ndarray:
    _, spectra = reference.once(_tiles)
    return (spectra.conj() * spectra).real.sum(axis=0)


def figures(total: Sums, periods: Sequence[int] = PERIODS) -> Figured:
    """The figures of `Sharpness` by name, along any leading axes of the sums; NaN where there is nothing to compare."""
    names = ("detail_reference", "detail_prediction", "detail_cross")
    a, b, both = (np.concatenate([total[n], total[n].sum(-1, keepdims=True)], -1) for n in names)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, coherence = np.sqrt(b / a), both / np.sqrt(a * b)
        # Parseval: the spectrum of noise of variance 1 has the sum of the squared window in every bin.
        tiles = total["tiles"][..., None] * (_window() ** 2).sum() * TILE**2
        variance = a[..., :-1] / tiles
        patterns = []
        for period in periods:
            mean = total[f"phases_{period}"] / total[f"phase_pixels_{period}"][..., None]
            locked = ((mean - mean.mean((-3, -2), keepdims=True)) ** 2).mean((-3, -2)).sum(-1)
            patterns.append(locked / variance.sum(-1))
        comb = np.sqrt(total["comb"][..., 1] / total["comb"][..., 0])
    return {
        "detail": np.sqrt(variance),
        "ratio": ratio[..., :-1],
        "ratio_all": ratio[..., -1],
        "coherence": coherence[..., :-1],
        "coherence_all": coherence[..., -1],
        "checkerboard": np.stack(patterns, -1),
        "comb": comb,
    } | edges.figures(total)


def spectrum(total: Sums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean power of the tiles at each frequency, of reference and prediction, in units of the former's sum.

    Returns:
      Frequencies [24], cycles per 10 m pixel, and twice [24].
    """
    reference, prediction = total["radial"] / np.bincount(_ring().ravel(), minlength=TILE // 2 + 2)[1:-1]
    whole = reference.sum() or 1.0
    return np.arange(1, TILE // 2 + 1) / TILE, reference / whole, prediction / whole


def _radial(power: np.ndarray) -> np.ndarray:
    return np.bincount(_ring().ravel(), power.ravel(), TILE // 2 + 2)[1:-1]


@functools.cache
def _ring() -> np.ndarray:
    """Int [TILE, TILE]: the distance of each bin from the mean, TILE / 2 + 1 beyond the last whole circle."""
    bins = scipy.fft.fftfreq(TILE, 1 / TILE)
    return np.minimum(np.rint(np.hypot(bins[:, None], bins)).astype(int), TILE // 2 + 1)


class SharpnessMeter:
    """Adds up patches.

    Args:
      bands: names of the last axis.
      periods: of the patterns to look for, 10 m pixels; divisors of `STRIDE`.

    Attributes:
      bands: the same.
      periods: the same.
    """

    def __init__(self, bands: Sequence[str], periods: Sequence[int] = PERIODS) -> None:
        self.bands, self.periods = tuple(bands), tuple(periods)
        if not all(p > 1 and STRIDE % p == 0 for p in self.periods):
            raise DatasetError(f"periods must be divisors of {STRIDE} above 1. Received: periods={self.periods}")
        nothing = Reference(np.zeros((0, 0, len(self.bands))), np.zeros((0, 0)), self.bands)
        self._total = sums(nothing, nothing.image, self.periods)

    def update(self, reference: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Adds one patch.

        Args:
          reference: [height, width, band] reflectance.
          prediction: the same shape.
          mask: [height, width], true or 1 where the two are compared.

        Raises:
          DatasetError: the shapes do not agree.
        """
        one = sums(Reference(reference, mask, self.bands), prediction, self.periods)
        self._total = added([self._total, one])

    def result(self) -> Sharpness:
        """The figures of all patches so far."""
        return Sharpness.of(self.bands, self._total, self.periods)


@functools.cache
def _window() -> np.ndarray:
    """Hann's, periodic, [TILE, TILE, 1]: a wave of a whole bin shows in that bin and its neighbours only."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(TILE) / TILE)
    return (hann[:, None] * hann)[..., None]


def _spectra(tiles: np.ndarray) -> np.ndarray:
    """Fourier transforms of [tile, TILE, TILE, band]."""
    return scipy.fft.fft2(_window() * (tiles - tiles.mean(axis=(1, 2), keepdims=True)), axes=(1, 2))


@functools.cache
def _above(frequency: float) -> np.ndarray:
    """Bool [TILE, TILE]: the bins beyond a frequency along rows or along columns."""
    beyond = np.abs(scipy.fft.fftfreq(TILE)) > frequency + 1e-9
    return beyond[:, None] | beyond


@functools.cache
def _teeth(period: int) -> np.ndarray:
    """Bool [TILE, TILE]: the bins of a pattern of this period, with the neighbours that the window spreads it to."""
    bins = np.arange(TILE)
    step = TILE // period
    along = np.abs((bins + step // 2) % step - step // 2) <= 1
    constant = np.minimum(bins, TILE - bins) <= 1
    return along[:, None] & along & ~(constant[:, None] & constant)


def _phases(reference: Reference, error: np.ndarray, period: int) -> Sums:
    """A patch's error, without the mean around each pixel, summed by its phase: [period, period, band]."""
    box = _box(period)
    around = ndimage.convolve1d(ndimage.convolve1d(error, box, axis=0), box, axis=1)
    whole = reference.whole(len(box))[..., None]
    high = np.where(whole, error - around, 0.0)
    total, pixels = np.zeros((period, period, error.shape[-1])), np.zeros((period, period))
    for row in range(period):
        for column in range(period):
            phase = np.s_[row::period, column::period]
            total[row, column] = high[phase].sum(axis=(0, 1))
            pixels[row, column] = whole[phase].sum()
    return {f"phases_{period}": total, f"phase_pixels_{period}": pixels}


def _box(period: int) -> np.ndarray:
    box = np.full(period, 1.0 / period)
    return box if period % 2 else np.convolve(box, (0.5, 0.5))  # symmetric about the pixel
