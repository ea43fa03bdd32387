"""The best, the median and the worst patch of a model, as pictures for the report."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import matplotlib
import matplotlib.image
import numpy as np

from harmonize_tf import dataset, degradation, quicklook
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.metrics import hallucination
from harmonize_tf.metrics.opensr import BORDER
from harmonize_tf.metrics.reference import Reference
from trainer.measure import Patch

COLOURS = {"Natural colour": quicklook.NATURAL, "Colour infrared": ("nir", "red", "green")}

SHARES = {"improvement": "#56b4e9", "omission": "#f0e442", "hallucination": "#d55e00"}
"""Told apart with any colour vision: Okabe and Ito 2008, "Color universal design"."""

NO_DETAIL = "#2b2b2b"

ERRORS = "magma"
CLEAR = 0.5  # of a patch, below which it shows little; taken only where there is no other


@dataclasses.dataclass(frozen=True)
class Panel:
    """One patch.

    Attributes:
      title: "best", "median" or "worst".
      patch: its figures, of the model that was asked for.
      columns: what is in them.
      rows: name of a row and a picture for each column, a data URI, or "" where there is none.
      limit: error that is white, reflectance.
    """

    title: str
    patch: Patch
    columns: tuple[str, ...]
    rows: dict[str, list[str]]
    limit: float


def chosen(patches: Sequence[Patch]) -> dict[str, Patch]:
    """The best, the median and the worst of those that are clear enough; fewer where there are fewer."""
    ranked = sorted((p for p in patches if np.isfinite(p.rmse)), key=lambda p: p.rmse)
    ranked = [p for p in ranked if p.clear >= CLEAR] or ranked
    if not ranked:
        return {}
    named = {"best": ranked[0], "worst": ranked[-1], "median": ranked[(len(ranked) - 1) // 2]}
    once = {patch.number: (title, patch) for title, patch in named.items()}  # one patch is in one panel
    return {title: patch for title, patch in sorted(once.values(), key=lambda x: x[1].rmse)}


def draw(models: Mapping[str, keras.Model], info: DatasetInfo, split: str, which: Mapping[str, Patch]) -> list[Panel]:
    """Runs the models once more, on these patches alone.

    Args:
      models: those to show, by name.
      info: the records.
      split: the split.
      which: patches by title, as `chosen` gives them.
    """
    numbers = sorted(patch.number for patch in which.values())
    if not numbers:
        return []
    batches = dataset.described(info, split, batch=len(numbers), pan=info.pan, chosen=numbers)
    inputs, targets, _ = next(iter(batches))
    outputs = {name: np.asarray(model(inputs)) for name, model in models.items()}
    landsat, measured = inputs["landsat_ms"].numpy(), inputs["landsat_valid"].numpy()[..., 0] > 0
    measurement = np.asarray(info.bandpass.apply(landsat))
    panels = []
    for title, patch in which.items():
        n = numbers.index(patch.number)
        mask = targets["mask"][n, ..., 0].numpy()
        reference = Reference(targets["sentinel_ms"][n].numpy(), mask, info.bands, measurement[n], measured[n])
        low = landsat[n].repeat(degradation.FACTOR, 0).repeat(degradation.FACTOR, 1)
        seen = measured[n].repeat(degradation.FACTOR, 0).repeat(degradation.FACTOR, 1)
        panels.append(_panel(title, patch, reference, low, seen, {name: x[n] for name, x in outputs.items()}))
    return panels


def _panel(
    title: str, patch: Patch, reference: Reference, low: np.ndarray, seen: np.ndarray, outputs: Mapping[str, np.ndarray]
) -> Panel:
    rows = {}
    images = [(low, seen), *((output, seen) for output in outputs.values()), (reference.image, reference.mask)]
    for name, bands in _colours(reference.bands).items():
        places = [reference.bands.index(band) for band in bands]
        stretch = quicklook.Stretch.of(reference.pixels[:, places].astype(np.float32))
        rows[name] = [_uri(_shown(stretch.apply(image[..., places]), valid)) for image, valid in images]
    errors = [np.sqrt(((output - reference.image) ** 2).mean(-1)) for output in outputs.values()]
    first = np.nan_to_num(errors[0][reference.mask])
    limit = max(float(np.quantile(first, 0.99)), 1e-4) if first.size else 1.0
    colours = matplotlib.colormaps[ERRORS]
    rows["Error"] = ["", *(_uri(_shown(colours(e / limit)[..., :3], reference.mask)) for e in errors), ""]
    rows["Detail"] = ["", *(_uri(_detail(reference, output), lossless=True) for output in outputs.values()), ""]
    return Panel(title, patch, ("Landsat, 30 m", *outputs, "Sentinel-2"), rows, limit)


def _colours(bands: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found = {name: colours for name, colours in COLOURS.items() if set(colours) <= set(bands)}
    return found or {bands[0]: (bands[0],) * 3}


def _shown(colours: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[height, width, 4], transparent where nothing is valid."""
    return np.dstack([np.nan_to_num(colours), valid.astype(np.float64)])


def _detail(reference: Reference, output: np.ndarray) -> np.ndarray:
    """Each pixel that has detail in the colour of what that is for the most part; transparent where not valid."""
    counted, shares = hallucination.maps(reference, output)
    palette = np.array([matplotlib.colors.to_rgba(SHARES[name]) for name in hallucination.NAMES])
    drawn = np.where(
        counted[..., None], palette[np.argmax(np.nan_to_num(shares), -1)], matplotlib.colors.to_rgba(NO_DETAIL)
    )
    drawn[~reference.mask[BORDER:-BORDER, BORDER:-BORDER]] = 0
    return np.pad(drawn, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)))


def _uri(rgba: np.ndarray, **settings: Any) -> str:
    file = io.BytesIO()
    matplotlib.image.imsave(file, np.clip(rgba, 0, 1), format="webp", pil_kwargs={"quality": 90} | settings)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
