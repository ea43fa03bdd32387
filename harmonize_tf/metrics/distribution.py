"""How far the look of one set of images is from that of another: sliced Wasserstein distances, without pairs.

The sets need not show the same places. Two kinds of descriptors are compared:

* spectra: the bands of single pixels, reflectance;
* texture: neighbourhoods of 7 x 7 pixels and all bands in the finest level of a Laplacian pyramid, as Karras et al.
  2018, "Progressive growing of GANs", measure it. Each band is divided by the standard deviation of the reference's
  descriptors and not, as there, of its own set: a blurred set is as far away as it is blurred.

A distance is the mean over random directions of the Wasserstein-1 distance between the projections on it (Rabin et al.
2011, "Wasserstein barycenter and its application to texture mixing"), directions having length 1.

A bounded number of descriptors is drawn from each patch, and kept of each set. Places depend on a fixed seed and the
mask alone: a prediction and its reference give the same places, and equal sets the distance 0. Sets of different places
have a distance that falls with the number of descriptors n as n^-1/2 at best: compare with that of two halves of the
reference. Pixels that the mask leaves out have no part in any descriptor.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.stats import wasserstein_distance

from harmonize_tf.errors import DatasetError

SIDE = 7
"""Of a texture descriptor, 10 m pixels: Karras et al. 2018."""

PER_PATCH = 1024
"""Descriptors drawn from a patch."""

KEPT = 2**14
"""Descriptors kept of a set, each of those drawn with the same chance."""

DIRECTIONS = 128
"""Karras et al. 2018 draw as many, four times."""

# Burt and Adelson 1983, "The Laplacian pyramid as a compact image code", a = 0.375: the binomial filter.
_FILTER = np.array([1, 4, 6, 4, 1]) / 16
_FLAT = 1e-6  # reflectance; a hundredth of a step of the code: below it there is no texture but rounding
_REACH = 4  # pixels of the image to each side that a pixel of the finest level may depend on


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Distances between two sets.

    Attributes:
      bands: band names.
      descriptors: numbers of spectra compared, of the reference and of the other set.
      spectra: distance of the spectra, reflectance.
      texture: distance of the textures, in standard deviations of the reference's; NaN where a set has no
        neighbourhood that is wholly valid, or the reference no texture.
    """

    bands: tuple[str, ...]
    descriptors: tuple[int, int]
    spectra: float
    texture: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = dataclasses.asdict(self)
        del values["bands"]
        return values


class DistributionMeter:
    """Draws descriptors from the patches of two sets.

    Args:
      bands: names of the last axis.
      seed: of the places and the directions.
      reference: a meter of the same bands and seed, whose reference is this one's too: for several sets that are
        compared with one.

    Attributes:
      bands: the same.
      seed: the same.
    """

    def __init__(self, bands: Sequence[str], seed: int = 0, reference: "DistributionMeter | None" = None) -> None:
        self.bands, self.seed = tuple(bands), seed
        # The same draws for both sets.
        self._prediction = _Descriptors(len(self.bands), seed)
        self._reference = reference._reference if reference else _Descriptors(len(self.bands), seed)

    def update_reference(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Adds one patch of the reference.

        Args:
          image: [height, width, band] reflectance.
          mask: [height, width], true or 1 where it counts.

        Raises:
          DatasetError: the shapes do not agree.
        """
        self._add(self._reference, image, mask)

    def update_prediction(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Adds one patch of the other set; see `update_reference`."""
        self._add(self._prediction, image, mask)

    def _add(self, descriptors: "_Descriptors", image: np.ndarray, mask: np.ndarray) -> None:
        mask = np.asarray(mask).astype(bool)
        if image.shape != (*mask.shape, len(self.bands)):
            raise DatasetError(
                "an image must be [height, width, band] on the mask's pixels. Received: "
                f"image={image.shape}, mask={mask.shape}, bands={self.bands}"
            )
        descriptors.add(image, mask)

    def result(self) -> Distribution:
        """The distances of what has been added so far.

        Raises:
          DatasetError: a set has no valid pixel.
        """
        ours, theirs = self._reference, self._prediction
        counts = len(ours.spectra.rows), len(theirs.spectra.rows)
        if not all(counts):
            raise DatasetError("a set has no valid pixel, so there is nothing to compare; check the masks")
        spectra = _distance(*(x.spectra.along(None, self.seed) for x in (ours, theirs)))
        scale, texture = ours.texture_scale(), float("nan")
        if scale is not None and len(theirs.texture.rows):
            texture = _distance(*(x.texture.along(scale, self.seed) for x in (ours, theirs)))
        return Distribution(self.bands, counts, spectra, texture)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """The mean over random directions of the Wasserstein-1 distance between the projections of two sets of vectors.

    Args:
      a: [n, dimension].
      b: [m, dimension].
      directions: how many.
      seed: of the directions.

    Returns:
      The distance, in the unit of the vectors.
    """
    return _distance(*(_projected(x, directions, seed) for x in (a, b)))


def _projected(rows: np.ndarray, directions: int, seed: int) -> np.ndarray:
    """Projections on each direction, sorted: [direction, n]."""
    axes = np.random.default_rng(seed).standard_normal((rows.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    # One by one: the product of two matrices rounds a row by where it stands.
    return np.sort([rows @ axis for axis in axes.T.astype(rows.dtype)], axis=1)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float(np.mean([wasserstein_distance(x, y) for x, y in zip(a, b, strict=True)]))
    return float(np.abs(a - b).mean(dtype=np.float64))  # the same, sooner


def finest_level(image: np.ndarray) -> np.ndarray:
    """The finest level of the Laplacian pyramid of [height, width, band], mirrored at its borders."""
    coarse = np.zeros_like(image)
    coarse[::2, ::2] = _smooth(image)[::2, ::2]
    return image - 4 * _smooth(coarse)


def _smooth(image: np.ndarray) -> np.ndarray:
    return ndimage.convolve1d(ndimage.convolve1d(image, _FILTER, axis=0, mode="mirror"), _FILTER, axis=1, mode="mirror")


class _Descriptors:
    """Those drawn from one set."""

    def __init__(self, bands: int, seed: int) -> None:
        self._seed = seed
        self.spectra = _Sample(bands, seed)
        self.texture = _Sample(SIDE * SIDE * bands, seed)

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        image = np.where(mask[..., None], image, 0.0).astype(np.float32)
        self.spectra.add(image[self._places(mask)])
        # A neighbourhood is named by its centre.
        half = SIDE // 2
        reach = half + _REACH
        centres = ndimage.binary_erosion(mask, np.ones((2 * reach + 1,) * 2, bool), border_value=0)
        rows, columns = self._places(centres)
        if len(rows):
            near = np.lib.stride_tricks.sliding_window_view(finest_level(image), (SIDE, SIDE), axis=(0, 1))
            found = near[rows - half, columns - half]  # [n, band, SIDE, SIDE]
            self.texture.add(np.moveaxis(found, 1, -1).reshape(len(rows), -1))

    def texture_scale(self) -> np.ndarray | None:
        """One over the standard deviation of each number of a texture descriptor; None where there is no texture."""
        if not len(self.texture.rows):
            return None
        bands = self.spectra.rows.shape[1]
        std = self.texture.rows.reshape(-1, SIDE * SIDE, bands).std(axis=(0, 1), dtype=np.float64)
        return np.tile(1 / std, SIDE * SIDE).astype(np.float32) if std.min() > _FLAT else None

    def _places(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = np.flatnonzero(mask)
        drawn = np.random.default_rng(self._seed).permutation(len(places))[:PER_PATCH]
        return np.unravel_index(places[drawn], mask.shape)


class _Sample:
    """At most `KEPT` of the rows that were added, each with the same chance: Vitter 1985, algorithm R."""

    def __init__(self, width: int, seed: int) -> None:
        self._rows, self._count = np.empty((KEPT, width), np.float32), 0
        self._random = np.random.default_rng(seed)
        self._along: np.ndarray | None = None

    def along(self, scale: np.ndarray | None, seed: int) -> np.ndarray:
        """The rows, scaled, sorted along `DIRECTIONS`; kept until rows are added."""
        if self._along is None:
            rows = self.rows if scale is None else self.rows * scale
            self._along = _projected(rows, DIRECTIONS, seed)
        return self._along

    @property
    def rows(self) -> np.ndarray:
        """[n, width] float32."""
        return self._rows[: min(self._count, KEPT)]

    def add(self, rows: np.ndarray) -> None:
        self._along = None
        numbers = self._count + np.arange(len(rows))
        places = np.where(numbers < KEPT, numbers, self._random.integers(0, numbers + 1))
        kept = places < KEPT
        self._rows[places[kept]] = rows[kept]  # of two for one place, NumPy keeps the later
        self._count += len(rows)
