"""What makes Sentinel-2 look like Landsat: a Gaussian blur per band (the MTF), seen from another grid.

One formula, two forms. `sample_blurred` looks at an image from any positions, with a mask (numpy; Dataflow workers
use it, so this file imports no TensorFlow). `lattice_weights` holds the same numbers for grids that nest, as the
polyphase weights from which `harmonize_tf.models.layers` builds its convolutions.

Widths (`sigma`) are always in 10 m pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from harmonize_tf.errors import HarmonizeError

FACTOR = 3
"""10 m pixels along one side of a 30 m cell."""

TRUNCATE = 4.0
"""Where the Gaussian ends, in standard deviations: scipy.ndimage's default."""

PAN_FACTOR = 2
"""15 m pixels along one side of a 30 m cell."""

MIN_SIGMA = 0.3
"""Narrower than this, a Gaussian falls between the 10 m pixels instead of weighing them."""

WARP_SIGMA = 0.6
"""Blur that Landsat's cells get on their way to the pair grid, 1/6 of a cell away, by cubic convolution.

Fitted: on Sentinel-2 (T32TMT and T33UUU, four bands) seen from Landsat's lattice and warped, what a Gaussian of 1.02 or
0.45 leaves unexplained is least when it is widened to 1.18 or 0.83, by 0.59 and 0.70; the minimum is flat.
"""

Kernel = Callable[[np.ndarray], np.ndarray]


def gaussian(sigma: float) -> tuple[Kernel, float]:
    """Returns the Gaussian of standard deviation `sigma` and the distance where it ends, both in the caller's unit."""
    radius = TRUNCATE * sigma
    return lambda d: np.where(np.abs(d) <= radius + 1e-9, np.exp(-0.5 * (d / sigma) ** 2), 0.0), radius


def keys_cubic(width: float) -> tuple[Kernel, float]:
    """Returns Keys' cubic convolution kernel for samples `width` apart and the distance where it ends.

    a = -0.5, the value that reproduces quadratics (Keys 1981, IEEE TASSP 29(6)); `tf.image.resize` and GDAL use it too.
    """

    def kernel(distance: np.ndarray) -> np.ndarray:
        d = np.abs(distance) / width
        near, far = (1.5 * d - 2.5) * d * d + 1.0, ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
        return np.where(d <= 1.0, near, np.where(d < 2.0, far, 0.0))

    return kernel, 2.0 * width


def lattice_weights(kernel: tuple[Kernel, float], in_factor: int, out_factor: int) -> np.ndarray:
    """Returns the 1-D weights that resample one grid to another when both nest in the same coarse cells.

    Args:
      kernel: a function of the distance in coarse (30 m) cells, and the distance where it ends.
      in_factor: input pixels along one side of a coarse cell: 3 for 10 m, 2 for 15 m, 1 for 30 m.
      out_factor: the same for the output.

    Returns:
      float64 [2r+1, in_factor, out_factor]: the weight of sub-pixel `p` of the cell `c - r` further on in the output
      sub-pixel `q` of this cell. For each `q` the weights add up to one.
    """
    function, end = kernel
    source, target = _centres(in_factor), _centres(out_factor)
    radius = max(math.ceil(end + target.max() - source.min() - 1e-9) - 1, 0) + 1
    cells = np.arange(-radius, radius + 1)
    weights = function(cells[:, None, None] + source[None, :, None] - target[None, None, :])
    while len(weights) > 1 and not weights[[0, -1]].any():
        weights = weights[1:-1]
    return weights / weights.sum((0, 1))


def gaussian_weights(sigma: float, in_factor: int = FACTOR, out_factor: int = 1) -> np.ndarray:
    """`lattice_weights` of the Gaussian: 3 to 1 is the degradation from 10 to 30 m, 3 to 2 shows 15 m."""
    return lattice_weights(gaussian(_checked(sigma) / FACTOR), in_factor, out_factor)


def cubic_weights(in_factor: int = 1, out_factor: int = FACTOR) -> np.ndarray:
    """`lattice_weights` of Keys' cubic, as wide as the coarser of the two grids: 1 to 3 is bicubic from 30 to 10 m."""
    return lattice_weights(keys_cubic(1.0 / min(in_factor, out_factor)), in_factor, out_factor)


def pair_grid_sigma(sigma: Sequence[float]) -> tuple[float, ...]:
    """The blur between Sentinel-2 and Landsat imagery that was warped onto the pair grid.

    Args:
      sigma: for each band the blur between Sentinel-2 and Landsat on its own lattice, `sensors.blur_sigma`.
    """
    return tuple(math.hypot(s, WARP_SIGMA) for s in sigma)


def sample_blurred(
    values: np.ndarray,
    valid: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    sigma: Sequence[float],
    footprint: float = FACTOR,
) -> tuple[np.ndarray, np.ndarray]:
    """Looks at a blurred image from a grid of positions; invalid pixels and the outside have no weight.

    Args:
      values: [height, width, band] reflectance; whatever invalid pixels hold, NaN too, is never used.
      valid: [height, width] bool.
      rows: [m] positions of the output's rows, in pixels of the input whose centres are 0, 1, 2, ...
      cols: [n] positions of the output's columns.
      sigma: the Gaussian's standard deviation for each band, in pixels of the input.
      footprint: the side of an output pixel, in pixels of the input.

    Returns:
      float32 [m, n, band], 0 where nothing valid is in reach, and bool [m, n]: whether every input pixel that the
      output pixel itself covers is there and valid.

    Raises:
      HarmonizeError: `sigma` is below `MIN_SIGMA` or not one for each band.
    """
    if len(sigma) != values.shape[-1]:
        raise HarmonizeError(
            f"One blur for each band is needed, {values.shape[-1]} in all. Received: sigma={tuple(sigma)}. "
            "Give as many as the image has bands."
        )
    valid = np.asarray(valid, bool)
    weight = valid.astype(np.float32)
    values = np.where(valid[..., None], values, np.float32(0)).astype(np.float32, copy=False)
    out = np.empty((len(rows), len(cols), values.shape[-1]), np.float32)
    total: dict[float, np.ndarray] = {}
    for band, width in enumerate(map(float, sigma)):
        _checked(width)
        across, down = (_matrix(p, n, gaussian, width) for p, n in zip((rows, cols), valid.shape, strict=True))
        if width not in total:
            total[width] = _separable(across, weight, down)
        reached = total[width] > 0
        np.divide(_separable(across, values[..., band], down), total[width], out=out[..., band], where=reached)
        out[..., band][~reached] = 0
    covered = [_matrix(p, n, _box, footprint) for p, n in zip((rows, cols), valid.shape, strict=True)]
    inside = _separable(covered[0], weight, covered[1])
    return out, inside > 1 - 1e-4


def degrade(
    values: np.ndarray,
    valid: np.ndarray,
    sigma: Sequence[float],
    *,
    factor: int = FACTOR,
    shift: tuple[float, float] = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Shows a 10 m image on the nested grid that is `factor` times coarser: `sample_blurred` at the cells' centres.

    Args:
      values: [height, width, band]; sizes that `factor` does not divide lose the remainder.
      valid: [height, width] bool.
      sigma: the Gaussian's standard deviation for each band, in pixels of the input.
      factor: input pixels along one side of an output pixel.
      shift: (row, column) by which the output looks beside its place, in pixels of the input.

    Returns:
      float32 [height // factor, width // factor, band] and its bool mask.
    """
    rows, cols = ((np.arange(n // factor) + 0.5) * factor - 0.5 + s for n, s in zip(valid.shape, shift, strict=True))
    return sample_blurred(values, valid, rows, cols, sigma, footprint=factor)


def _centres(factor: int) -> np.ndarray:
    return (np.arange(factor) + 0.5) / factor


def _checked(sigma: float) -> float:
    if not sigma >= MIN_SIGMA:
        raise HarmonizeError(
            f"A blur is at least {MIN_SIGMA} pixels of 10 m wide. Received: sigma={sigma}. "
            "Take the prior, harmonize_tf.sensors.blur_sigma, or an estimate from pairs."
        )
    return sigma


def _box(width: float) -> tuple[Kernel, float]:
    """How much of a pixel at some distance lies inside a footprint of `width`, as a share of the footprint."""
    return lambda d: np.clip((width + 1) / 2 - np.abs(d), 0.0, min(1.0, width)) / width, (width + 1) / 2


def _matrix(
    positions: np.ndarray, size: int, kernel: Callable[[float], tuple[Kernel, float]], width: float
) -> scipy.sparse.csr_array:
    """The [len(positions), size] matrix that weighs `size` pixels from each position; the outside is left out."""
    return _kept_matrix(np.asarray(positions, np.float64).tobytes(), size, kernel, float(width))


@functools.lru_cache(maxsize=64)  # an export asks for the same few again and again, patch after patch
def _kept_matrix(
    places: bytes, size: int, kernel: Callable[[float], tuple[Kernel, float]], width: float
) -> scipy.sparse.csr_array:
    positions, (function, end) = np.frombuffer(places), kernel(width)
    taps = np.arange(-math.ceil(end), math.ceil(end) + 1)
    columns = np.round(positions).astype(np.int64)[:, None] + taps
    weights = function(columns - positions[:, None])
    rows = np.broadcast_to(np.arange(len(positions))[:, None], columns.shape)
    keep = (columns >= 0) & (columns < size) & (weights != 0)
    return scipy.sparse.csr_array(
        (weights[keep].astype(np.float32), (rows[keep], columns[keep])), shape=(len(positions), size)
    )


def _separable(across: scipy.sparse.csr_array, image: np.ndarray, down: scipy.sparse.csr_array) -> np.ndarray:
    return (down @ np.ascontiguousarray((across @ image).T)).T
