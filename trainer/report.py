"""RUN/evaluation/report.html: an evaluation on one page that needs nothing else, for a screen, a phone or paper."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import markupsafe
import numpy as np

from harmonize_tf import artifacts, pages
from harmonize_tf.blessing import Blessing
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.models.baselines import BASELINES
from trainer import charts, panels
from trainer.measure import Figures

FILE = "report.html"
TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure in a table.

    Attributes:
      label: its name for readers.
      path: where it is in a model's entry of metrics.json, parts joined by dots.
      unit: of what is shown.
      better: "less", "more", or "" where that cannot be told from the figure alone.
      scale: of what is shown over what is stored.
      digits: behind the point.
      tip: what it means.
    """

    label: str
    path: str
    unit: str
    better: str
    scale: float = 1.0
    digits: int = 3
    tip: str = ""

    def value(self, entry: Mapping[str, Any]) -> float:
        """As shown; NaN where there is none."""
        for part in self.path.split("."):
            entry = entry.get(part, {}) if isinstance(entry, Mapping) else {}
        return self.scale * entry if isinstance(entry, int | float) else float("nan")

    def interval(self, entry: Mapping[str, Any]) -> tuple[float, float] | None:
        """The ends as shown, where there are some."""
        *above, name = self.path.split(".")
        intervals = entry["intervals"]
        ends = intervals.get(above[-1], {}).get(name) if above and above[-1] in intervals else intervals.get(name)
        return (self.scale * ends[0], self.scale * ends[1]) if isinstance(ends, Sequence) else None


RMSE = Column("RMSE", "rmse_all", "1e-4", "less", 1e4, 1, "Root mean square error of all bands, reflectance.")
HEADLINE = (
    RMSE,
    Column("PSNR", "psnr", "dB", "more", digits=2, tip="From RMSE, peak 1."),
    Column("SSIM", "ssim", "", "more", digits=3, tip="Structural similarity, range 1."),
    Column("SAM", "sam", "degrees", "less", digits=2, tip="Mean angle between spectra."),
    Column(
        "Sharpness",
        "sharpness.ratio_all",
        "",
        "",
        digits=2,
        tip="Detail beyond 30 m, true or not, over Sentinel-2's: 1.",
    ),
    Column("True detail", "sharpness.coherence_all", "", "more", digits=2, tip="Its correlation with Sentinel-2's."),
    Column("Hallucination", "correctness.hallucination", "%", "less", 100, 1, "Share of the detail that is invented."),
    Column("Omission", "correctness.omission", "%", "less", 100, 1, "Share of the detail that is left out."),
    Column("Improvement", "correctness.improvement", "%", "more", 100, 1, "Share of the detail that is right."),
    Column("Inconsistent", "consistency.rms_all", "1e-4", "less", 1e4, 2, "RMS at 30 m against the input."),
)
MORE = (
    Column("Bias", "bias_all", "1e-4", "", 1e4, 2, "Mean of output minus Sentinel-2."),
    Column("cPSNR", "cpsnr", "dB", "more", digits=2, tip="PSNR at the best shift, without bias."),
    Column("ERGAS", "ergas", "", "less", tip="Relative error of the bands."),
    Column("UIQI", "uiqi", "", "more", digits=4, tip="Universal image quality index."),
    Column("NDVI error", "ndvi_rmse", "1e-3", "less", 1e3, 1, "RMSE of NDVI."),
    Column("Checkerboard", "sharpness.checkerboard.3", "%", "less", 100, 3, "Pattern of 3 pixels, of the detail."),
    Column("Spectra", "distribution.spectra", "1e-4", "less", 1e4, 1, "Distance of all spectra."),
    Column("Texture", "distribution.texture", "sigma", "less", digits=3, tip="Distance of all textures."),
    Column("Input", "consistency.reflectance", "1e-4", "less", 1e4, 2, "Mean difference at 30 m, opensr-test's."),
    Column("Angle", "consistency.spectral", "degrees", "less", tip="Of spectra at 30 m, opensr-test's."),
    Column("Shift", "consistency.spatial", "m", "less", 30, 2, "Against the input, opensr-test's."),
)
TOLD = (
    Column("Within 50 %", "calibration.coverage_all.50", "%", "", 100, 1, "Errors within the 50 % interval told."),
    Column("Within 80 %", "calibration.coverage_all.80", "%", "", 100, 1, "Errors within the 80 % interval told."),
    Column("Within 90 %", "calibration.coverage_all.90", "%", "", 100, 1, "Errors within the 90 % interval told."),
    Column("Half width", "calibration.width", "1e-4", "less", 1e4, 1, "Mean of the 90 % interval's."),
)
STRATA = {"ground": "Ground", "cloud": "Not counted", "gap": "Between the passes", "spacecraft": "Spacecraft"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in a table: text, the interval under it, and whether none is better."""

    text: str
    interval: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page. `heads` are label, unit and meaning; `rows` name, whether it is a model, and cells."""

    title: str
    note: str
    heads: Sequence[tuple[str, str, str]]
    rows: Sequence[tuple[str, bool, Sequence[Cell]]]
    corner: str = ""


def write(
    path: pathlib.Path,
    values: Mapping[str, Any],
    figures: Mapping[str, Figures],
    models: Mapping[str, keras.Model],
    info: DatasetInfo,
    decided: Blessing,
) -> None:
    """Writes the page, and its charts as files beside it.

    Args:
      path: of the page.
      values: what metrics.json holds.
      figures: of each model, by name, baselines first.
      models: the same.
      info: the records.
      decided: which of the models are blessed.

    Raises:
      OSError: something cannot be written.
    """
    split, trained = values["flags"]["split"], [name for name in figures if name not in BASELINES]
    subject = trained[0] if trained else "pansharpen"
    shown = {name: models[name] for name in ("bandpass", *(trained or [subject]))}
    pictures = {"spectra": charts.spectra(figures)}
    pictures |= {f"scatter_{name}": charts.scatter(name, figures[name]) for name in shown}
    page = pages.render(
        TEMPLATE,
        values=values,
        subject=subject,
        trained=trained,
        summary=_summary(subject, values),
        verdicts=decided.verdicts,
        tables=tables(values),
        panels=panels.draw(shown, info, split, panels.chosen(figures[subject].patches)),
        shares=panels.SHARES,
        no_detail=panels.NO_DETAIL,
        errors=charts.colour_bar(panels.ERRORS),
        charts={name: markupsafe.Markup(svg) for name, svg in pictures.items()},
        facts=_facts(values, info),
    )
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in pictures.items():
        artifacts.write(folder / f"{name}.svg", svg.replace("<svg ", '<svg color="black" ', 1))
    artifacts.write(path, page)


def tables(values: Mapping[str, Any]) -> dict[str, list[Table]]:
    """The tables by their place on the page."""
    entries = values["models"]
    ordered = [*(n for n in entries if n not in BASELINES), *(n for n in BASELINES if n in entries)]
    entries = {name: entries[name] for name in ordered}
    return {
        "headline": [_columns("Every model and every baseline", "", entries, HEADLINE), _against(entries)],
        "more": [_columns("More figures", "", entries, MORE), *_told(entries)],
        "bands": [
            _bands("RMSE by band", "rmse", entries, values["bands"], "less", 1e4, "1e-4"),
            _bands("Bias by band", "bias", entries, values["bands"], "", 1e4, "1e-4"),
            _bands(
                "Sharpness by band",
                "sharpness.ratio",
                entries,
                values["bands"],
                "",
                1,
                "",
                "1 is as sharp as Sentinel-2.",
            ),
            _bands("Edge response by band", "sharpness.edge", entries, values["bands"], "", 1, "", _edges(entries)),
        ],
        "strata": [table for field, title in STRATA.items() if (table := _strata(field, title, entries))],
    }


def _columns(title: str, note: str, entries: Mapping[str, Any], columns: Sequence[Column]) -> Table:
    shown = [[column.value(entry) for column in columns] for entry in entries.values()]
    best = [_best(column, [row[n] for row in shown]) for n, column in enumerate(columns)]
    rows = []
    for (name, entry), numbers in zip(entries.items(), shown, strict=True):
        cells = [
            _cell(column, number, column.interval(entry), number in wins)
            for column, number, wins in zip(columns, numbers, best, strict=True)
        ]
        rows.append((name, name not in BASELINES, cells))
    return Table(title, note, [(c.label, c.unit, c.tip) for c in columns], rows)


def _told(entries: Mapping[str, Any]) -> list[Table]:
    """Of the models that tell how wrong they may be; none where there are none."""
    telling = {name: entry for name, entry in entries.items() if "calibration" in entry}
    note = "Errors of the pixels within the intervals that the model tells: as many as the interval's level is right."
    return [_columns("Uncertainty", note, telling, TOLD)] if telling else []


def _bands(
    title: str,
    path: str,
    entries: Mapping[str, Any],
    bands: Sequence[str],
    better: str,
    scale: float,
    unit: str,
    note: str = "",
) -> Table:
    digits = 3 if scale == 1 else 2 if path == "bias" else 1
    columns = [Column(band, f"{path}.{band}", unit, better, scale, digits) for band in bands]
    return _columns(title, note, entries, columns)


def _edges(entries: Mapping[str, Any]) -> str:
    own = next(iter(entries.values()))["sharpness"]["edge_reference"]
    return "Sentinel-2's own: " + ", ".join(f"{band} {_number(x, 3)}" for band, x in own.items()) + "."


def _against(entries: Mapping[str, Any]) -> Table:
    """RMSE of every model against every baseline's, per cent."""
    rows, bases = [], [name for name in BASELINES if name in entries]
    for name, entry in entries.items():
        cells = []
        for base in bases:
            found = entry["against"].get(base)
            ends = found and found.get("interval")
            change = [100 * (x - 1) for x in (found["rmse_ratio"], *(ends or ()))] if found else []
            # Sure where the whole interval is on one side.
            sure = len(change) == 3 and change[2] < 0
            text = f"{change[0]:+.1f}" if change else "–"
            cells.append(Cell(text, _range([f"{x:+.1f}" for x in change[1:]]), sure))
        rows.append((name, name not in BASELINES, cells))
    note = "Change of RMSE, %: below 0 is better than the baseline; marked where the whole interval is."
    return Table("Against the baselines", note, [(base, "%", "") for base in bases], rows)


def _strata(field: str, title: str, entries: Mapping[str, Any]) -> Table | None:
    """RMSE by kind of ground or pair, a row for each; none where there is only what is not known."""
    kinds = list(next(iter(entries.values()))["strata"][field])
    if kinds == ["not known"]:
        return None
    column, rows = RMSE, []
    for kind in kinds:
        found = {name: entry["strata"][field][kind] for name, entry in entries.items()}
        shown = [column.value(one) for one in found.values()]
        wins = _best(column, shown)
        cells = [Cell(f"{next(iter(found.values()))['pixels']:,}".replace(",", " "))]
        rows.append((kind, False, cells + [_cell(column, x, None, x in wins) for x in shown]))
    heads = [("pixels", "", ""), *((name, column.unit, "") for name in entries)]
    return Table(title, "RMSE.", heads, rows, "")


def _best(column: Column, shown: Sequence[float]) -> list[float]:
    """Those than which none is better, as far as is shown."""
    known = [round(x, column.digits) for x in shown if np.isfinite(x)]
    if not column.better or len(known) < 2:
        return []
    winner = min(known) if column.better == "less" else max(known)
    return [x for x in shown if np.isfinite(x) and round(x, column.digits) == winner]


def _cell(column: Column, number: float, interval: tuple[float, float] | None, best: bool) -> Cell:
    ends = [_number(end, column.digits) for end in interval] if interval else []
    return Cell(_number(number, column.digits), _range(ends), best)


def _number(x: float | None, digits: int) -> str:
    return "–" if x is None or not np.isfinite(x) else f"{round(x, digits) + 0.0:.{digits}f}"  # no -0.0


def _range(ends: Sequence[str]) -> str:
    return f"{ends[0]} to {ends[1]}" if len(ends) == 2 and "–" not in ends else ""


def _summary(subject: str, values: Mapping[str, Any]) -> str:
    """A sentence of what came out."""
    entry = values["models"][subject]
    ratio = entry["against"]["bandpass"]
    change, *ends = (f"{100 * (x - 1):+.1f}" for x in (ratio["rmse_ratio"], *ratio.get("interval", ())))
    sure = f" (95 % interval {ends[0]} to {ends[1]} %)" if ends else ""
    correct = entry["correctness"]
    return (
        f"{subject}: RMSE {1e4 * entry['rmse_all']:.1f} x 1e-4 reflectance, {change} % against the band-pass "
        f"baseline's{sure}. Of its detail {100 * correct['improvement']:.0f} % is right, "
        f"{100 * correct['omission']:.0f} % left out, {100 * correct['hallucination']:.0f} % invented."
    )


def _facts(values: Mapping[str, Any], info: DatasetInfo) -> list[tuple[str, str]]:
    """What made the evaluation."""
    craft = "; ".join(f"{n} of {name}" for side in info.spacecraft.values() for name, n in sorted(side.items()))
    return [
        ("Records", f"{values['flags']['data']}, split {values['flags']['split']}"),
        ("Patches", f"{values['patches']} in {values['blocks']} blocks of ground"),
        ("Source", f"{info.source}, level {info.level}, bands {', '.join(info.bands)}, nir {info.nir}"),
        ("Spacecraft, of all splits", craft),
        ("Plan of the export", info.plan_sha256),
        ("Band-pass", info.bandpass.source),
        *((f"Model {name}", f"{m['path']}, sha256 {m['sha256']}") for name, m in values["model_files"].items()),
        ("Flags", " ".join(f"--{name}={_flag(value)}" for name, value in sorted(values["flags"].items()))),
        ("harmonize_tf", values["package_version"]),
    ]


def _flag(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
