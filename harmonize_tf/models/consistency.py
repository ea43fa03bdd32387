"""What makes the output, degraded to 30 m, equal the measurement, whatever the generator did.

With D the degradation of the valid pixels (per-band Gaussian blur and decimation by 3, weights adding up to one), the
output `x` becomes `x + K F r + U y`:

* `r` is what D still misses of the target, K bicubic upsampling and F the separable FIR inverse of D K, which is a
  plain filter on the 30 m grid. Away from borders and gaps this alone is exact to `FIR_TOLERANCE`. K is bicubic, not
  the transpose of D: from bicubic Sentinel-2 (T32TMT, three bands) it comes 1 to 3 % closer to the truth for blurs of
  0.65 to 1.4, and the transpose of a narrow blur (short-wave infrared) would put dots into the cells' centres.
* U repeats pixels, so that U y never leaves the valid cells, and `y` solves `v D U y = v rest` on the 30 m grid.
  Cutting rows and columns out of a symmetric matrix leaves its eigenvalues within the bounds they had, so that a fixed
  number of Chebyshev steps reaches `SOLVER_TOLERANCE` for every mask.

All of it is float32, linear in x, differentiable, and local.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from harmonize_tf import degradation
from harmonize_tf.models.layers import Polyphase, masked, repeat_pixels

FIR_TOLERANCE = 1e-3
"""Error of the first step, relative to the residual, in the interior: below it the blocks of U y are invisible."""

SOLVER_TOLERANCE = 1e-3
"""Error of the second step, relative to what the first left (at most about a quarter at borders and gaps)."""

_FREQUENCIES = np.linspace(0.0, 0.5, 513)


class Consistency:
    """Back-projects an image at 10 m onto those whose degradation is the target at 30 m, within 1e-3 reflectance.

    Args:
      sigma: the blur of each band, in 10 m pixels.

    Attributes:
      blur: 30 m pixels beyond a pixel's own that it is blurred with.
      halo: 30 m pixels beyond a pixel's own that its correction depends on.
    """

    def __init__(self, sigma: Sequence[float]) -> None:
        blurs = [degradation.gaussian_weights(s) for s in sigma]
        cubic = degradation.cubic_weights()
        repeat = np.ones((1, 1, degradation.FACTOR))
        inverses = [_fir_inverse(_lags(blur, cubic)) for blur in blurs]
        self._degrade = Polyphase(blurs)
        self._upsample = Polyphase([cubic] * len(blurs))
        self._inverse = Polyphase([w[:, None, None] for w in inverses])
        self._blocks = Polyphase([_lags(blur, repeat)[:, None, None] for blur in blurs])
        # The eigenvalues lie between that of the finest pattern, along rows and columns, and that of a constant.
        lowest = min(_response(_lags(blur, repeat)).min() for blur in blurs) ** 2
        self._steps = _chebyshev(lowest, 1.0)
        self.blur = self._degrade.radius
        self.halo = (
            2 * self.blur + self._inverse.radius + self._upsample.radius + len(self._steps) * self._blocks.radius
        )

    def degrade(self, x: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Shows float32 [N, 3h, 3w, B] at 30 m, [N, h, w, B]; cells that `valid` [N, h, w, 1] leaves out become 0."""
        weight = tf.where(valid > 0, self._weight(valid), 1.0)
        return self._visible(masked(x, repeat_pixels(valid, degradation.FACTOR)), valid) / weight

    def __call__(self, x: tf.Tensor, target: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Returns `x` so changed that `degrade(x, valid)` is `target` wherever `valid` is 1; invalid cells become 0.

        Args:
          x: float32 [N, 3h, 3w, B].
          target: float32 [N, h, w, B]; what invalid pixels hold is not used.
          valid: float32 [N, h, w, 1], 0 or 1.
        """
        inside = repeat_pixels(valid, degradation.FACTOR)
        x = masked(x, inside)
        goal = self._weight(valid) * masked(target, valid)
        x += masked(self._spread(goal - self._visible(x, valid)), inside)
        return x + repeat_pixels(self._solve(goal - self._visible(x, valid), valid), degradation.FACTOR)

    def _visible(self, x: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """What is seen of masked `x` at 30 m, not yet divided by the weight of the valid pixels."""
        return self._degrade(x) * valid

    def _weight(self, valid: tf.Tensor) -> tf.Tensor:
        return self._blocks(tf.tile(valid, (1, 1, 1, self._blocks.bands))) * valid

    def _spread(self, rest: tf.Tensor) -> tf.Tensor:
        """K F of what is missing, with the margin in which F reaches out and K looks back."""
        margin = self._upsample.radius
        rest = tf.pad(rest, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        return self._upsample(self._inverse(rest), "VALID")

    def _solve(self, rest: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Chebyshev semi-iteration for `valid * blocks(y) = rest`."""
        y = step = tf.zeros_like(rest)
        for keep, gain in self._steps:
            step = keep * step + gain * rest
            y += step
            rest -= self._blocks(step) * valid
        return y


def _lags(blur: np.ndarray, upsampling: np.ndarray) -> np.ndarray:
    """The filter on the 30 m grid, [2r+1], that upsampling by [.., 1, 3] and blurring by [.., 3, 1] amounts to."""
    return sum(np.convolve(blur[:, p, 0], upsampling[:, 0, p]) for p in range(degradation.FACTOR))


def _response(symmetric: np.ndarray, frequencies: np.ndarray = _FREQUENCIES) -> np.ndarray:
    """The filter's frequency response at cycles per pixel."""
    lags = np.arange(len(symmetric)) - len(symmetric) // 2
    return np.cos(2 * np.pi * frequencies[:, None] * lags) @ symmetric


def _fir_inverse(symmetric: np.ndarray) -> np.ndarray:
    """The shortest symmetric filter that undoes `symmetric` along rows and columns within `FIR_TOLERANCE`."""
    response = _response(symmetric, np.fft.rfftfreq(1024))
    ideal = np.fft.irfft(1.0 / response)
    for radius in range(len(ideal) // 2):
        taps = np.roll(ideal, radius)[: 2 * radius + 1]
        taps = taps / taps.sum()
        if np.abs((_response(taps) * _response(symmetric)) ** 2 - 1.0).max() <= FIR_TOLERANCE:
            return taps
    raise AssertionError("a Gaussian's response has no zero, so its inverse decays")


def _chebyshev(lowest: float, highest: float) -> list[tuple[float, float]]:
    """Coefficients (keep, gain) of as many Chebyshev steps as `SOLVER_TOLERANCE` takes (Saad 2003, algorithm 12.1)."""
    centre, half = (highest + lowest) / 2, max((highest - lowest) / 2, 1e-6)
    root = math.sqrt(lowest / highest)
    rate = max((1 - root) / (1 + root), 1e-6)
    rho = half / centre
    steps = [(0.0, 1.0 / centre)]
    while 2 * rate ** len(steps) > SOLVER_TOLERANCE:
        following = 1.0 / (2.0 * centre / half - rho)
        steps.append((following * rho, 2.0 * following / half))
        rho = following
    return steps
