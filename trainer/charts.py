"""The report's charts, by matplotlib: as SVG whose text and lines take the colour of the page around them."""

import html
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from harmonize_tf.metrics.sharpness import NYQUIST
from harmonize_tf.models.baselines import BASELINES
from trainer.measure import Figures

_INK = "#010203"  # stands for the page's own colour
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
# Okabe and Ito 2008, "Color universal design", less black and yellow.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY = "#888888"


def spectra(figures: Mapping[str, Figures]) -> str:
    """Power at each frequency: what is below the reference's is soft, what is above it overdone or invented."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "spectra"}):
        figure = Figure(figsize=(7.2, 4.0))
        axis = figure.subplots()
        frequencies, reference, _ = next(iter(figures.values())).spectrum
        metres = 10 / frequencies
        axis.loglog(metres, reference, color=_INK, linewidth=2.5, label="Sentinel-2")
        models = [name for name in figures if name not in BASELINES]
        styles = {name: {"color": _COLOURS[n % len(_COLOURS)], "linewidth": 2} for n, name in enumerate(models)}
        dashes = dict(zip(BASELINES, ("dotted", "dashdot", "dashed", (0, (6, 1))), strict=True))
        for name, found in figures.items():
            style = styles.get(name) or {"color": _GREY, "linewidth": 1.2, "linestyle": dashes[name]}
            axis.loglog(metres, found.spectrum[2], label=name, **style)
        axis.axvline(10 / NYQUIST, color=_GREY, linewidth=0.8)
        axis.annotate(
            "Landsat's grid ends", (10 / NYQUIST, 0.97), (4, 0), ("data", "axes fraction"), textcoords="offset points",
            va="top",
        )  # fmt: skip
        axis.invert_xaxis()
        ticks = [480, 240, 120, 60, 40, 30, 20]
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_xlabel("wavelength, m")
        axis.set_ylabel("power, share of Sentinel-2's")
        axis.legend(fontsize=9, loc="lower left")
        return _svg(figure, "Spectra of outputs and Sentinel-2")


def scatter(name: str, found: Figures) -> str:
    """Output against target, band by band, as counts in cells; on the line the two are equal."""
    bands, cells = found.fidelity.bands, found.scatter
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": f"scatter {name}"}):
        figure = Figure(figsize=(2.4 * len(bands) + 0.4, 2.9))
        for number, axis in enumerate(figure.subplots(1, len(bands), squeeze=False)[0]):
            low, high = cells.low[number], cells.high[number]
            counts = cells.counts[number].T.astype(float)
            counts[counts == 0] = np.nan
            axis.imshow(
                np.log10(counts), origin="lower", extent=(low, high, low, high), cmap="viridis", interpolation="none",
                aspect="equal",
            )  # fmt: skip
            axis.plot([low, high], [low, high], color=_INK, linewidth=0.8)
            axis.set_title(f"{bands[number]}, RMSE {1e4 * found.fidelity.rmse[number]:.0f}", fontsize=10)
            axis.locator_params(nbins=4)
            axis.set_xlabel("Sentinel-2")
        figure.axes[0].set_ylabel(name)
        return _svg(figure, f"{name} against Sentinel-2, for each band")


def _svg(figure: Figure, label: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg ") :].replace(_INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def colour_bar(name: str, steps: int = 12) -> Sequence[str]:
    """Colours of a matplotlib colour map, from low to high, for a gradient of the page's own."""
    return [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps[name](np.linspace(0, 1, steps))]
