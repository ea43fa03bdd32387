"""Pictures of a product: its quick-look, and the panel that shows what the model added."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import Resampling

from harmonize_tf import quality, radiometry, sources, tiling
from harmonize_tf.errors import HarmonizeError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Scene, SceneSource

NATURAL = ("red", "green", "blue")
PERCENTILES = (2.0, 98.0)
SIDE = 1024  # longest side of a quick-look, pixels
CROP = 64  # side of the panels' ground, 30 m cells: a patch, small enough to see single pixels


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Which reflectance is black and which is white, for red, green and blue."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, reflectance: np.ndarray) -> "Stretch":
        """The 2 to 98 % stretch of pixels [n, 3]; everything at once when there are none."""
        if not len(reflectance):
            return cls(np.zeros(3, np.float32), np.ones(3, np.float32))
        low, high = np.percentile(reflectance, PERCENTILES, axis=0).astype(np.float32)
        return cls(low, np.maximum(high, low + 1e-3))

    def apply(self, reflectance: np.ndarray) -> np.ndarray:
        """Display values [..., 3], 0 to 1."""
        return np.clip((reflectance - self.low) / (self.high - self.low), 0.0, 1.0)


def write(product: pathlib.Path, judged: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the quick-look of a product, a PNG in natural colour that is transparent where there is no data.

    Args:
      product: the GeoTIFF.
      judged: its quality band; clear ground decides what is black and white, or all data where nothing is clear.
      path: the picture.

    Raises:
      HarmonizeError: it cannot be written.
    """
    with rasterio.open(product) as image:
        scale = min(1.0, SIDE / max(image.shape))
        shape = tuple(max(1, round(size * scale)) for size in image.shape)
        bands = [image.descriptions.index(band) + 1 for band in NATURAL]
        dn = image.read(bands, out_shape=(3, *shape), resampling=Resampling.average).transpose(1, 2, 0)
    with rasterio.open(judged) as image:
        seen = image.read(1, out_shape=shape) & quality.CLEAR_SKY != 0
    reflectance, data = radiometry.decode(dn), (dn != 0).all(-1)
    stretch = Stretch.of(reflectance[data & seen if (data & seen).any() else data])
    display = np.dstack([stretch.apply(reflectance), data])
    with _aside(path) as aside:
        # Level 1 takes a sixth of the default's time for 15 % more bytes.
        Image.fromarray(np.rint(display * 255).astype(np.uint8)).save(aside, compress_level=1)


def compare(source: SceneSource, scene: Scene, product: pathlib.Path, path: pathlib.Path) -> None:
    """Draws resampled Landsat, the product and their difference side by side, where most clear detail is.

    Args:
      source: the scene's source.
      scene: the Landsat scene.
      product: what was made of it, on the scene's pair grid.
      path: the picture to write, in a format that matplotlib knows by its suffix.

    Raises:
      HarmonizeError: it cannot be written.
    """
    with rasterio.open(product) as image:
        grid = Grid.of(image.crs, image.transform, image.shape)
        crop = _crop(source, scene, grid)
        rows, columns = crop.slices(3)
        bands = [image.descriptions.index(band) + 1 for band in NATURAL]
        dn = image.read(bands, window=((rows.start, rows.stop), (columns.start, columns.stop))).transpose(1, 2, 0)
    ground = grid.window(rows.start, columns.start, *dn.shape[:2])
    before = sources.read_onto(source, scene, NATURAL, ground)
    valid = before.valid & (dn != 0).all(-1)
    _draw(scene, before.values, radiometry.decode(dn), valid, path)


def _crop(source: SceneSource, scene: Scene, grid: Grid) -> tiling.Box:
    """Where the product of clear share and local contrast of the red band is highest."""
    cells = grid.at(30.0)

    def interest(box: tiling.Box) -> float:
        raster = sources.read_onto(source, scene, ["red"], cells.window(box.row, box.column, box.rows, box.columns))
        red = np.where(raster.clear, raster.values[..., 0], np.nan)
        steps = np.concatenate([np.abs(np.diff(red, axis=axis)).ravel() for axis in (0, 1)])
        steps = steps[np.isfinite(steps)]
        # The median: detail everywhere, not one bright roof. A crop with holes shows little, whatever is between them:
        # one that is 90 % clear counts less than half.
        return float(np.median(steps) if steps.size else 0.0) * raster.clear.mean() ** 8

    cores = (window.core for window in tiling.windows(cells.shape, CROP, 0))
    return max(cores, key=interest)


def _draw(scene: Scene, before: np.ndarray, after: np.ndarray, valid: np.ndarray, path: pathlib.Path) -> None:
    # Of the extras `train` and `serve`; workers that only write products do without it.
    from matplotlib.figure import Figure

    stretch = Stretch.of(before[valid])
    difference = np.where(valid, (after - before).mean(-1), np.nan)
    limit = max(float(np.percentile(np.abs(difference[valid]), PERCENTILES[1])), 1e-3) if valid.any() else 1.0
    height, width = valid.shape
    figure = Figure(figsize=(13.2, 4.05 * height / width + 0.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, 3)
    panels = (("Landsat, bicubic at 10 m", before), ("Harmonised, 10 m", after))
    for axis, (title, reflectance) in zip(axes, panels, strict=False):
        axis.imshow(np.where(valid[..., None], stretch.apply(reflectance), 1.0), interpolation="nearest")
        axis.set_title(title)
    # PuOr: diverging, and told apart with any colour vision (ColorBrewer).
    shown = axes[2].imshow(difference, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes[2].set_title("Difference: detail added")
    figure.colorbar(shown, ax=axes[2], label="reflectance, mean of visible bands", extend="both", shrink=0.9)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    _scale_bar(axes[0], height)
    figure.supxlabel(scene.id, fontsize="small", color="0.4")
    with _aside(path) as aside:
        figure.savefig(aside)


def _scale_bar(axis: "matplotlib.axes.Axes", height: int) -> None:  # noqa: F821
    left, length, y = 12, 50, height - 14
    axis.plot([left, left + length], [y, y], color="white", linewidth=4, solid_capstyle="butt")
    axis.text(left + length / 2, y - 5, "500 m", color="white", ha="center", va="bottom", fontsize="small")


@contextlib.contextmanager
def _aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file of the same format beside `path`, which takes its place once it is complete."""
    aside = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield aside
        aside.replace(path)
    except (OSError, ValueError) as error:
        raise HarmonizeError(
            f"the picture cannot be written ({error}); make room on that disk, or choose a folder that exists and a "
            f"suffix such as .png. Received: {path}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
