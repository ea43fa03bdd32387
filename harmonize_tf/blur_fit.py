"""Fits what makes Sentinel-2 look like Landsat in one band: blur, shift, gain and offset.

    Landsat(place) = gain * (G * Sentinel-2)(place + shift) + offset

G is a Gaussian whose axes run with the pixels'. Blur belongs to the sensors and is one for all pairs of scenes; shift,
gain and offset are each pair's own. The parameters are found by Gauss-Newton steps with analytic derivatives under
Tukey's biweight, which gives no say to what has changed between the two scenes, or to a cloud that nobody masked.

A Gaussian is nearly linear in its variance (the heat equation), so variances are what is solved for.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion

from harmonize_tf.degradation import FACTOR, MIN_SIGMA, keys_cubic

PIXEL = 10.0  # m, of Sentinel-2's images here
# A sixth of a 30 m cell, by which Landsat's lattice lies east and north of the pair grid's (see geometry), 10 m pixels.
LATTICE = 0.5
END = 6.0  # standard deviations: far enough for smooth derivatives, and denormal numbers are slow
MARGIN = 24  # pixels beyond a patch that its weights may reach
REACH = 1.5  # pixels, the blur for which cells are chosen: wider than any that was published
LOST = 0.01  # share of a cell's weight that may fall on missing pixels
WIDEST, NARROWEST = 4.0, MIN_SIGMA  # pixels, within which a blur is looked for
BIWEIGHT = 4.685  # standard deviations beyond which a residual has no say: 95 % efficiency (Holland and Welsch 1977)
ANNEALED = 3  # steps in which that limit comes down to its place by halves, so that edges are not taken for changes
LEAP, LEAPS = 0.5, np.array([0.7, 0.7, 0.5, 0.2])  # longest steps, of a variance and of the other parameters
STEPS, STILL = 30, 3e-4  # most steps, and the change of variances, squared pixels, at which they end
QUIET = 3e-5  # reflectance, the least noise there is: codes are 1e-4 apart
# What is known before: standard deviations around the start of shift (pixels; Storey et al. 2016: 38 m, two of them),
# gain and offset (reflectance). Too wide to matter where there is anything to see, they keep the rest in place.
PRIOR = np.array([2.0, 2.0, 1.0, 0.3])


@dataclasses.dataclass(frozen=True, eq=False)
class ScenePair:
    """One band of the patches that a Landsat and a Sentinel-2 scene share.

    Attributes:
      landsat: reflectance [patch, cells, cells] on the pair grid.
      sentinel: reflectance [patch, 3 cells, 3 cells]; missing pixels hold something harmless, such as the mean.
      used: bool [patch, cells, cells], from `usable`.
      shift_m: where to start looking: Sentinel-2 against Landsat, east and north, m.
    """

    landsat: np.ndarray
    sentinel: np.ndarray
    used: np.ndarray
    shift_m: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """What was found.

    Attributes:
      sigma: standard deviations of the blur, x and y, 10 m pixels.
      error: their standard errors, if residuals were independent.
      shift_m: [pair, 2], Sentinel-2 against Landsat, east and north, m.
      gain: [pair], unitless.
      offset: [pair], reflectance.
      before: RMS residual with the blur at the start and nothing else, reflectance, over what counts in the end.
      after: the same with what was found.
      counted: share of the used cells that have a say: the weights' mean.
    """

    sigma: np.ndarray
    error: np.ndarray
    shift_m: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    before: float
    after: float
    counted: float
    _normal: Sequence[np.ndarray] = dataclasses.field(repr=False)
    _right: Sequence[np.ndarray] = dataclasses.field(repr=False)

    def resampled(self, draws: np.ndarray) -> np.ndarray:
        """The blur that patches drawn with replacement give, [draw, 2], by one step from here.

        Args:
          draws: [draw, patch], how often each patch is drawn; patches in the order of the pairs.
        """
        ends = np.cumsum([len(n) for n in self._normal])[:-1]
        steps = [_solve(*_summed(self._normal, self._right, np.split(draw, ends)))[0] for draw in draws]
        return _sigma(self.sigma**2 + np.array(steps))


def usable(landsat: np.ndarray, sentinel: np.ndarray) -> np.ndarray:
    """Which cells can be compared: clear with their neighbours in Landsat, clear in Sentinel-2 as far as weights reach.

    Args:
      landsat: [cells, cells], bool.
      sentinel: [3 cells, 3 cells], bool.
    """
    signs = (-1, 1)  # Landsat's lattice lies up and to the right
    reach = [
        np.abs(_weights(n, REACH**2, 0.0, s * LATTICE, cut=False)[0]) for n, s in zip(landsat.shape, signs, strict=True)
    ]
    clear = binary_erosion(sentinel, np.ones((3, 3))).astype(np.float64)  # a pixel of room for the shift
    seen = reach[0][:, MARGIN:-MARGIN] @ clear @ reach[1][:, MARGIN:-MARGIN].T
    kept = seen >= (1 - LOST) * np.outer(*(weights.sum(1) for weights in reach))
    return kept & binary_erosion(landsat, np.ones((3, 3)), border_value=1)


def fit(pairs: Sequence[ScenePair], start: float, *, warped: bool) -> Fit:
    """Fits blur, shift, gain and offset to one band of pairs of scenes.

    Args:
      pairs: at least one, each with used cells.
      start: standard deviation of the blur to start from, 10 m pixels.
      warped: whether the blur is that between Sentinel-2 and Landsat on its own lattice, which was then warped by cubic
        convolution; else it is what shows on the pair grid, warping included.
    """
    lattice = LATTICE if warped else 0.0
    variance = np.full(2, start**2)
    known = np.array([(-p.shift_m[1] / PIXEL, p.shift_m[0] / PIXEL, 1.0, 0.0) for p in pairs])
    own = known.copy()
    quiet = QUIET
    for step in range(STEPS):
        limit = BIWEIGHT * 2.0 ** max(ANNEALED - step, 0)
        near = [_linearised(p, variance, mine, lattice, limit, quiet) for p, mine in zip(pairs, own, strict=True)]
        # No pair counts for more than the better half do: one whose own blur was hit upon would decide alone.
        quiet = max(QUIET, float(np.median([n.noise for n in near])))
        normal, right = _summed([n.normal for n in near], [n.right for n in near])
        right[:, 2:] += (known - own) / PRIOR**2
        wider, further, error = _solve(normal, right)
        if step > ANNEALED and np.abs(wider).max() < STILL:
            break
        variance = np.clip(variance + np.clip(wider, -LEAP, LEAP), NARROWEST**2, WIDEST**2)
        own = own + np.clip(further, -LEAPS, LEAPS)
    sigma = _sigma(variance)
    plain = [_linearised(p, np.full(2, start**2), np.array([0.0, 0.0, 1.0, 0.0]), lattice, limit, quiet) for p in pairs]
    return Fit(
        sigma=sigma,
        error=error / (2 * sigma),
        shift_m=own[:, [1, 0]] * [PIXEL, -PIXEL],
        gain=own[:, 2],
        offset=own[:, 3],
        before=_rms([n.residual for n in plain], [n.weights for n in near]),
        after=_rms([n.residual for n in near], [n.weights for n in near]),
        counted=sum(n.weights.sum() for n in near) / sum(p.used.sum() for p in pairs),
        _normal=[n.normal for n in near],
        _right=[n.right for n in near],
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Linearised:
    """A pair near a point: the normal equations of every patch, in units of the noise, and what they came from.

    The parameters are the variances in x and y, the shift down and to the right, gain and offset.
    """

    normal: np.ndarray  # [patch, 6, 6]
    right: np.ndarray  # [patch, 6]
    residual: np.ndarray  # [patch, cells, cells]
    weights: np.ndarray  # [patch, cells, cells]
    noise: float  # reflectance, the residual's standard deviation, robustly


def _linearised(
    pair: ScenePair, variance: np.ndarray, own: np.ndarray, lattice: float, limit: float, quiet: float
) -> _Linearised:
    down, right, gain, offset = own
    cells = pair.landsat.shape[1]
    y = _weights(cells, variance[1], down, -lattice).astype(np.float32)  # Landsat's lattice lies north: up
    x = _weights(cells, variance[0], right, lattice).astype(np.float32)
    across = pair.sentinel @ x.reshape(3 * cells, -1).T  # [patch, rows, (value, by variance, by place) cells]
    seen, by_vy, by_down = np.split(y.reshape(3 * cells, -1) @ across[..., :cells], 3, axis=1)
    by_vx, by_right = np.split(y[0] @ across[..., cells:], 2, axis=2)
    residual = pair.landsat - (gain * seen + offset)
    own_noise = 1.4826 * float(np.median(np.abs(residual[pair.used])))
    noise = max(own_noise, quiet)
    weights = pair.used * np.clip(1 - (residual / (limit * noise)) ** 2, 0, None) ** 2
    slopes = np.stack([gain * by_vx, gain * by_vy, gain * by_down, gain * by_right, seen, np.ones_like(seen)], 1)
    slopes = slopes.reshape(len(slopes), 6, -1).astype(np.float64) / noise
    weighted = slopes * weights.reshape(len(weights), 1, -1)
    toward = weighted @ (residual.reshape(len(residual), -1, 1) / noise)
    return _Linearised(weighted @ slopes.transpose(0, 2, 1), toward[..., 0], residual, weights, own_noise)


def _rms(residuals: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> float:
    total = sum(w.sum() for w in weights)
    return float(np.sqrt(sum((w * r**2).sum() for w, r in zip(weights, residuals, strict=True)) / total))


def _summed(
    normal: Sequence[np.ndarray], right: Sequence[np.ndarray], counts: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's normal equations [pair, 6, 6] and [pair, 6] from its patches', and what is known before."""
    counts = [np.ones(len(n)) for n in normal] if counts is None else counts
    summed = np.stack([np.tensordot(c, n, 1) for c, n in zip(counts, normal, strict=True)])
    summed[:, range(2, 6), range(2, 6)] += 1 / PRIOR**2
    return summed, np.stack([c @ r for c, r in zip(counts, right, strict=True)])


def _solve(normal: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps of the two variances that all pairs share and of each pair's own four, and the variances' errors."""
    inverse = np.linalg.inv(normal[:, 2:, 2:])
    through = normal[:, :2, 2:] @ inverse
    reduced = (normal[:, :2, :2] - through @ normal[:, 2:, :2]).sum(0) + 1e-9 * np.eye(2)
    covariance = np.linalg.inv(reduced)
    shared = covariance @ (right[:, :2] - np.einsum("pij,pj->pi", through, right[:, 2:])).sum(0)
    own = np.einsum("pij,pj->pi", inverse, right[:, 2:] - normal[:, 2:, :2] @ shared)
    return shared, own, np.sqrt(np.diag(covariance))


def _sigma(variance: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip(variance, NARROWEST**2, WIDEST**2))


def _weights(cells: int, variance: float, shift: float, lattice: float, *, cut: bool = True) -> np.ndarray:
    """What 10 m pixels weigh in 30 m cells along one axis, and the derivatives by the variance and by the shift.

    Args:
      cells: how many.
      variance: of the Gaussian, squared pixels.
      shift: how much further on the pixels are looked at, pixels.
      lattice: how much further on Landsat's own cells lie, pixels; 0: no warp between them and these.
      cut: leave out the pixels beyond the patch.

    Returns:
      float64 [3, cells, 3 cells]; without `cut` [3, cells, 3 cells + 2 `MARGIN`].
    """
    native = np.arange(-3, cells + 3) if lattice else np.arange(cells)
    pixels = np.arange(-MARGIN, FACTOR * cells + MARGIN)
    d = pixels - (FACTOR * native + (FACTOR - 1) / 2 + lattice + shift)[:, None]
    exponent = np.minimum(0.5 * d**2 / variance, END**2 / 2)
    gaussian = np.where(exponent < END**2 / 2, np.exp(-exponent), 0.0)
    gaussian /= gaussian.sum(1, keepdims=True)
    slopes = [0.5 * (d / variance) ** 2, d / variance]  # of the exponent
    found = np.stack([gaussian, *(gaussian * (s - (gaussian * s).sum(1, keepdims=True)) for s in slopes)])
    if lattice:
        found = keys_cubic(1.0)[0](native - (np.arange(cells)[:, None] - lattice / FACTOR)) @ found
    return found[..., MARGIN:-MARGIN] if cut else found
