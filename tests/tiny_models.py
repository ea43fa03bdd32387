"""Tiny models, exported as `harmonize push` does it, for tests of whatever runs or serves them."""

import pathlib
from typing import Any

from harmonize_tf.radiometry import Bandpass

BANDS = ("blue", "green", "red", "nir")


def harmonizer(**changes: Any) -> Any:
    """A tiny Harmonizer with given arguments; equal arguments give equal weights."""
    import keras

    from harmonize_tf.models.harmonizer import Harmonizer

    arguments = dict(
        bands=BANDS,
        level="sr",
        uses_pan=True,
        bandpass=Bandpass((1.01, 0.99, 1.02, 1.0), (0.001, -0.001, 0.002, 0.0), "made up"),
        sigma=(1.1, 1.1, 1.15, 1.2),
        mean=(0.05, 0.08, 0.1, 0.25),
        std=(0.05, 0.05, 0.06, 0.1),
        blocks=1,
        filters=4,
    )
    keras.utils.set_random_seed(1)
    return Harmonizer(**arguments | changes)


def export(model: Any, directory: pathlib.Path) -> pathlib.Path:
    """Exports a version into a model's folder, and returns the version's."""
    from serving.export import export_harmonizer

    return export_harmonizer(model, directory, provenance={"flags": "--model=subpixel"}, warmup_size=16)
