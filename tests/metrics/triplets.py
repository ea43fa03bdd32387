"""Images for comparisons with opensr-test, made from a seed: Landsat, outputs of several kinds, Sentinel-2.

    python tests/metrics/triplets.py INPUTS.npz
    PYTHON tests/metrics/opensr_figures.py INPUTS.npz > tests/metrics/opensr_figures.json

made the figures that are kept beside this file, where PYTHON is an interpreter that has opensr-test.
"""

import sys

import numpy as np
from scipy import ndimage

BANDS = ("blue", "green", "red", "nir")
CELLS = 64  # of 30 m along a side


def field(seed, size=3 * CELLS, bands=4, slope=1.6):
    """Reflectance [size, size, band] whose amplitude falls with frequency as natural imagery's does."""
    y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    falling = np.maximum(np.hypot(x, y), 1 / size)[..., None] ** -slope
    noise = np.random.default_rng(seed).standard_normal((size, size, 1 + bands))
    waves = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * falling, axes=(0, 1)).real
    waves /= waves.std((0, 1))
    shared, own = waves[..., :1], waves[..., 1:]  # bands look alike, but are not the same
    return (0.2 + 0.05 * np.arange(bands) + 0.03 * (0.9 * shared + 0.4 * own)).astype(np.float32)


def blurred(image, sigma):
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def landsat_of(image, sigma=1.2):
    """[h, w, band]: blurred and every third pixel."""
    return blurred(image, sigma)[1::3, 1::3]


def outputs_of(truth):
    """What models might make of it, by name."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[: len(truth), : len(truth)]
    puff = np.exp(-((rows - 90) ** 2 + (columns - 110) ** 2) / (2 * 12.0**2)).astype(np.float32)[..., None]
    cloud = truth + 0.5 * puff * (1 + 0.3 * field(9))
    return {
        "perfect": truth.copy(),
        "noisy": truth + rng.normal(0, 0.003, truth.shape).astype(np.float32),
        "shifted": ndimage.shift(truth, (1.0, -2.0, 0), order=1, mode="nearest"),
        "half_shifted": ndimage.shift(truth, (0.4, -0.7, 0), order=1, mode="nearest"),
        "blurred": blurred(truth, 1.5),
        "bicubic": ndimage.zoom(landsat_of(truth), (3, 3, 1), order=3, mode="nearest", grid_mode=True),
        "invented": blurred(truth, 1.2) + 0.02 * (field(11) - blurred(field(11), 1.5)) / 0.005,
        "false_cloud": cloud.astype(np.float32),
    }


def triplets():
    """Landsat, output and Sentinel-2, [row, column, band], by the output's name."""
    truth = field(0)
    found = {name: (landsat_of(truth), output, truth) for name, output in outputs_of(truth).items()}
    two = tuple(x[..., 2:] for x in found["half_shifted"])
    return found | {"two_bands": two}


def save(path):
    arrays = {}
    for name, triplet in triplets().items():
        for kind, image in zip(("lr", "sr", "hr"), triplet, strict=True):
            arrays[f"{kind}_{name}"] = np.ascontiguousarray(np.moveaxis(image, -1, 0)).astype(np.float32)
    np.savez(path, **arrays)


if __name__ == "__main__":
    save(sys.argv[1])
