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
from harmonize_tf.metrics.fidelity import compared

TILE = 48
"""Side of a tile, 10 m pixels: 1/6, 1/3 and 1/2 cycles per pixel are bins 8, 16 and 24 of its spectrum."""

STRIDE = TILE // 2
"""From tile to tile, so that shifted squares of the Hann window weigh the inner pixels nearly alike."""

NYQUIST = 0.5 / FACTOR
"""Of the 30 m grid, cycles per 10 m pixel."""

PERIODS = (3, 2)
"""Blocks of depth-to-space, 10 m pixels: of networks at 30 m and of those at 20 m."""


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

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the per-band figures by band name, those of a pattern by its period."""
        values = dataclasses.asdict(self)
        bands, periods = values.pop("bands"), [str(p) for p in values.pop("periods")]
        values |= {name: dict(zip(bands, values[name], strict=True)) for name in ("detail", "ratio", "coherence")}
        return values | {name: dict(zip(periods, values[name], strict=True)) for name in ("checkerboard", "comb")}


class SharpnessMeter:
    """Adds up patches, whose first pixel is the first of a block: patterns are looked for in step from there.

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
        count = len(self.bands)
        self._tiles = 0
        self._reference, self._prediction, self._cross = np.zeros((3, count))
        self._comb = np.zeros((len(self.periods), 2))
        self._pattern = [np.zeros((p, p, count)) for p in self.periods]
        self._pixels = [np.zeros((p, p, 1), np.int64) for p in self.periods]

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
        truth, guess = (np.where(mask[..., None], x, 0.0).astype(np.float64) for x in (reference, prediction))
        self._add_spectra(truth, guess, mask)
        for sums, pixels, period in zip(self._pattern, self._pixels, self.periods, strict=True):
            _add_phases(sums, pixels, guess - truth, mask, period)

    def _add_spectra(self, truth: np.ndarray, guess: np.ndarray, mask: np.ndarray) -> None:
        corners = [
            (row, column)
            for row in range(0, mask.shape[0] - TILE + 1, STRIDE)
            for column in range(0, mask.shape[1] - TILE + 1, STRIDE)
            if mask[row : row + TILE, column : column + TILE].all()
        ]
        if not corners:
            return
        a, b = (_spectra(np.stack([x[r : r + TILE, c : c + TILE] for r, c in corners])) for x in (truth, guess))
        powers = [(x.conj() * y).real.sum(axis=0) for x, y in ((a, a), (b, b), (a, b))]
        detail = _above(NYQUIST)
        self._tiles += len(corners)
        for total, power in zip((self._reference, self._prediction, self._cross), powers, strict=True):
            total += power[detail].sum(axis=0)
        for total, period in zip(self._comb, self.periods, strict=True):
            total += [power[_teeth(period)].sum() for power in powers[:2]]

    def result(self) -> Sharpness:
        """The figures of all patches so far."""
        a, b, both = ([*x, x.sum()] for x in (self._reference, self._prediction, self._cross))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, coherence = np.sqrt(np.divide(b, a)), both / np.sqrt(np.multiply(a, b))
            # Parseval: the spectrum of noise of variance 1 has the sum of the squared window in every bin.
            variance = self._reference / (self._tiles * (_window() ** 2).sum() * TILE**2)
            means = [s / n for s, n in zip(self._pattern, self._pixels, strict=True)]
            patterns = [((m - m.mean((0, 1))) ** 2).mean((0, 1)).sum() / variance.sum() for m in means]
            comb = np.sqrt(self._comb[:, 1] / self._comb[:, 0])
        return Sharpness(
            bands=self.bands,
            periods=self.periods,
            tiles=self._tiles,
            detail=tuple(np.sqrt(variance).tolist()),
            ratio=tuple(ratio[:-1].tolist()),
            ratio_all=float(ratio[-1]),
            coherence=tuple(coherence[:-1].tolist()),
            coherence_all=float(coherence[-1]),
            checkerboard=tuple(map(float, patterns)),
            comb=tuple(comb.tolist()),
        )


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


def _add_phases(sums: np.ndarray, pixels: np.ndarray, error: np.ndarray, mask: np.ndarray, period: int) -> None:
    """Adds a patch's error, without the mean around each pixel, to the sums of its phases, [period, period, band]."""
    box = np.full(period, 1.0 / period)
    box = box if period % 2 else np.convolve(box, (0.5, 0.5))  # symmetric about the pixel
    around = ndimage.convolve1d(ndimage.convolve1d(error, box, axis=0), box, axis=1)
    whole = ndimage.binary_erosion(mask, np.ones((len(box),) * 2, bool), border_value=0)[..., None]
    high = np.where(whole, error - around, 0.0)
    for row in range(period):
        for column in range(period):
            phase = np.s_[row::period, column::period]
            sums[row, column] += high[phase].sum(axis=(0, 1))
            pixels[row, column] += whole[phase].sum()
