"""The overview's pictures as inline SVG and PNG: histograms, the map of blocks, thumbnails.

Colours are classes that the page's style gives them, so that they follow light, dark and print.
"""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from harmonize_tf import patches, radiometry
from harmonize_tf.quicklook import Stretch
from harmonize_tf.statistics.distribution import Distribution
from harmonize_tf.statistics.places import Block
from harmonize_tf.statistics.totals import Thumbnail

WIDTH, HEIGHT, FOOT = 320, 120, 18  # of a histogram, and of the labels below it
BINS = 80
TAILS = (0.001, 0.999)  # shares between which a histogram is drawn
MAP_SIDE = 64  # most cells along a map's side; more blocks are drawn several in a cell
MAPS = 6  # most zones that are drawn


def histogram(series: Mapping[str, Distribution], title: str) -> Markup:
    """Lines of density over the same values, as high as the highest of them.

    Args:
      series: distributions on one axis, by the class of their line.
      title: what it shows, for those who cannot see it.
    """
    low = min(float(values.quantile(TAILS[0])) for values in series.values())
    high = max(float(values.quantile(TAILS[1])) for values in series.values())
    step = next(iter(series.values())).axis.step
    width = max(round((high - low) / step / BINS), 1) * step
    bins = max(math.ceil((high - low) / width + 1e-9), 1) + 2  # an empty one on each side
    edges = low - 0.5 * step - width + width * np.arange(bins + 1)
    drawn = {name: _density(values, edges) for name, values in series.items()}
    top = max(float(density.max()) for density in drawn.values()) or 1.0
    x = (edges - edges[0]) / (edges[-1] - edges[0]) * WIDTH
    paths = "".join(
        f'<path class="line {escape(name)}" d="{_steps(x, HEIGHT - 1 - density / top * (HEIGHT - 8))}"/>'
        for name, density in drawn.items()
    )
    labels = "".join(_label(value, (value - edges[0]) / (edges[-1] - edges[0]) * WIDTH) for value in _ticks(low, high))
    return Markup(
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img" aria-label="{escape(title)}">'
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>{paths}{labels}</svg>'
    )


def _density(values: Distribution, edges: np.ndarray) -> np.ndarray:
    index = np.flatnonzero(values.counts)
    counts, _ = np.histogram(values.axis.values(index), edges, weights=values.counts[index])
    return counts / values.count


def _steps(x: np.ndarray, y: np.ndarray) -> str:
    """Path of a stair from left to right."""
    points = [f"M{x[0]:.1f} {y[0]:.1f}H{x[1]:.1f}"]
    points += [f"V{level:.1f}H{right:.1f}" for level, right in zip(y[1:], x[2:], strict=True)]
    return "".join(points)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values."""
    if high <= low:
        return [low]
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [float(v) for v in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step]


def _label(value: float, x: float) -> str:
    anchor = "start" if x < 12 else "end" if x > WIDTH - 12 else "middle"
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT}" y2="{HEIGHT + 4}"/>'
        f'<text x="{x:.1f}" y="{HEIGHT + 16}" text-anchor="{anchor}">{round(value, 6):g}</text>'
    )


def maps(blocks: Sequence[Block]) -> list[tuple[str, int, Markup]]:
    """CRS, number of blocks, and map of each zone, those with the most blocks first."""
    zones: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        zones[block.crs].append(block)
    ordered = sorted(zones, key=lambda crs: (-len(zones[crs]), crs))
    return [(crs, len(zones[crs]), _map(zones[crs])) for crs in ordered[:MAPS]]


def _map(blocks: Sequence[Block]) -> Markup:
    """Cells north up, each of the colour of the split that most of its patches are in; leaks have a frame."""
    columns, rows = np.array([block.column for block in blocks]), np.array([block.row for block in blocks])
    size = max(np.ptp(columns), np.ptp(rows)) + 1
    factor = math.ceil(size / MAP_SIDE)
    cells: dict[tuple[int, int], np.ndarray] = {}
    leaking: set[tuple[int, int]] = set()
    for block in blocks:
        at = (block.column - int(columns.min())) // factor, (int(rows.max()) - block.row) // factor
        cells[at] = cells.get(at, 0) + np.array(block.counts)
        if sum(map(bool, block.counts)) > 1:
            leaking.add(at)
    width, height = (max(at[axis] for at in cells) + 1 for axis in (0, 1))
    drawn = "".join(
        f'<rect class="{patches.SPLITS[int(counts.argmax())]}{" leak" if at in leaking else ""}" x="{at[0]}.05" '
        f'y="{at[1]}.05" width=".9" height=".9"><title>{_counted(counts)}</title></rect>'
        for at, counts in sorted(cells.items())
    )
    return Markup(
        f'<svg class="map" viewBox="0 0 {width} {height}" style="max-width:{min(width * 2, 40)}em" role="img" '
        f'aria-label="Map of blocks by split">{drawn}</svg>'
    )


def _counted(counts: np.ndarray) -> str:
    return ", ".join(f"{count} {split}" for split, count in zip(patches.SPLITS, counts, strict=True) if count)


def stretch(bands: Mapping[str, Distribution], sensor: str) -> Stretch | None:
    """Which reflectance of a sensor's red, green and blue is black and which is white: 2 to 98 %."""
    found = [bands.get(f"{sensor}/{band}") for band in ("red", "green", "blue")]
    if not all(found):
        return None
    low, high = (np.array([float(band.quantile(share)) for band in found], np.float32) for share in (0.02, 0.98))
    return Stretch(low, np.maximum(high, low + 1e-3))


def picture(thumbnail: Thumbnail, sensor: str, stretched: Stretch) -> str | None:
    """A patch as a PNG, transparent where there is no data, as a data URL; None where the sensor has none."""
    codes = thumbnail.sides.get(sensor)
    if codes is None:
        return None
    display = np.dstack([stretched.apply(radiometry.decode(codes)), (codes != 0).all(-1)])
    file = io.BytesIO()
    Image.fromarray(np.rint(display * 255).astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
