"""Compares trained models with the baselines on the test split.

    python -m trainer.evaluate --data=RUN/examples --model=RUN/training/model.keras --out=RUN/evaluation

prints three tables and leaves in RUN/evaluation the figures (metrics.json), a page to look at (report.html) and whether
the model may be served and why (blessing.json). docs/evaluation.md tells what it all means.
"""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import harmonize_tf
from harmonize_tf import artifacts, blessing, command, dataset, patches
from harmonize_tf.blessing import Blessing
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import FlagError, ModelError
from harmonize_tf.metrics import hallucination, intervals
from harmonize_tf.models.baselines import BASELINES, build_baseline
from harmonize_tf.models.harmonizer import Harmonizer, load
from trainer import bless, report
from trainer.measure import Figures, measure

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "data", None, "Folder that `harmonize export` wrote, RUN/examples.", required=True, flag_values=FLAGS
)
flags.DEFINE_list("model", [], "Trained models, RUN/training/model.keras, separated by commas.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "Folder to write to, RUN/evaluation.", required=True, flag_values=FLAGS)
flags.DEFINE_enum("split", "test", list(patches.SPLITS), "Which records to use.", flag_values=FLAGS)
flags.DEFINE_string(
    "thresholds", os.fspath(bless.DEFAULT), "What a model must reach to be blessed, TOML.", flag_values=FLAGS
)
flags.DEFINE_string(
    "last_blessed", None,
    "blessing.json of the evaluation whose blessed model to compare with. Default: the one in --out.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("batch", 4, "Patches at once.", lower_bound=1, flag_values=FLAGS)

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates as the flags say.

    Raises:
      HarmonizeError: a model cannot be read or does not suit the data, or records are damaged.
    """
    command.parse(FLAGS, argv)
    info = DatasetInfo.load(FLAGS.data)
    thresholds, out = bless.load(FLAGS.thresholds), pathlib.Path(FLAGS.out)
    before = _before(out / blessing.FILE)
    models = {name: build_baseline(name, info.bands, info.level, info.pan, info.bandpass) for name in BASELINES}
    files = {}
    for path in FLAGS.model:
        model = load(path)
        _check_suits(model, path, info)
        name = _unused(model.name, models)
        models[name] = model
        files[name] = {"path": path, "sha256": artifacts.sha256(path)}
    with dataset.damage_named(info, FLAGS.split), _told(out):
        figures = measure(models, info, FLAGS.split, FLAGS.batch)
        print(table(figures))
        values = _values(figures, info, files)
        decided = bless.judge(values, thresholds, FLAGS.thresholds, before)
        out.mkdir(parents=True, exist_ok=True)
        report.write(out / report.FILE, values, figures, models, info, decided)
        artifacts.write(out / blessing.FILE, artifacts.to_json(decided.to_dict()))
        artifacts.write(out / "metrics.json", artifacts.to_json(values))
    for verdict in decided.verdicts:
        _log.info("%s is %sblessed: %s", verdict.name, "" if verdict.blessed else "not ", verdict.reason)
    _log.info("%s: %d patches of %s", out / report.FILE, info.counts[FLAGS.split], info.directory / FLAGS.split)


def _before(path: pathlib.Path) -> Blessing | None:
    """What was decided before, in the file that was named or, if it is there, in that of an earlier evaluation."""
    if FLAGS.last_blessed:
        return Blessing.load(FLAGS.last_blessed)
    try:
        return Blessing.load(path) if path.exists() else None
    except ModelError as error:
        _log.warning("%s. It is written anew, and compared with nothing.", error)
        return None


@contextlib.contextmanager
def _told(out: pathlib.Path) -> Iterator[None]:
    """Tells in one line where nothing can be written."""
    try:
        yield
    except OSError as error:
        raise FlagError(f"the evaluation cannot be written there: {error}. Received: out={out}") from error


def _check_suits(model: Harmonizer, path: str, info: DatasetInfo) -> None:
    """Raises ModelError where a model is made for other bands, another level or a panchromatic band that is lacking."""
    if (model.bands, model.level) != (info.bands, info.level):
        raise ModelError(
            f"{path} is made for bands {','.join(model.bands)} at level {model.level}; evaluate it on such records. "
            f"Received: bands={','.join(info.bands)}, level={info.level} in {info.directory}"
        )
    if "nir" in model.bands and model.nir != info.nir:
        raise ModelError(
            f"{path} is made for nir from Sentinel-2's {model.nir}; evaluate it on records exported with "
            f"--nir={model.nir}. Received: nir={info.nir} in {info.directory}"
        )
    if model.uses_pan and not info.pan:
        raise ModelError(
            f"{path} needs the panchromatic band; evaluate it on records that hold it, or train with --nopan. "
            f"Received: {info.directory} without it"
        )


def table(figures: Mapping[str, Figures]) -> str:
    """The figures as text, reflectance in 1e-4 (steps of the code): those of fidelity, of the look, and of correctness.

    Of the checkerboards and combs the strongest is shown; "consistent" is the RMS, beside it the 99.9 % quantile. Of
    models that tell how wrong they may be, the share of errors within the intervals told.
    """
    bands = next(iter(figures.values())).fidelity.bands
    fidelity = [
        ["", "RMSE", "PSNR", "SSIM", "SAM", "ERGAS", *bands],
        ["", "1e-4", "dB", "", "degrees", "", *["1e-4"] * len(bands)],
    ]
    others = [
        ["", "sharpness", "coherence", "checkerboard", "comb", "spectra", "texture", "consistent", "99.9 %"],
        ["", "", "", "%", "", "1e-4", "sigma", "1e-4", "1e-4"],
    ]
    judged = [
        ["", "cPSNR", "UIQI", "NDVI", "edge", "reflectance", "angle", "shift", *hallucination.NAMES],
        ["", "dB", "", "1e-3", "", "1e-4", "degrees", "m", "%", "%", "%"],
    ]
    for name, figure in figures.items():
        f, s, d, c = figure.fidelity, figure.sharpness, figure.distribution, figure.consistency
        fidelity.append([
            name, f"{1e4 * f.rmse_all:.1f}", f"{f.psnr:.2f}", f"{f.ssim:.4f}", f"{f.sam:.3f}", f"{f.ergas:.3f}",
            *(f"{1e4 * x:.1f}" for x in f.rmse),
        ])  # fmt: skip
        others.append([
            name, f"{s.ratio_all:.3f}", f"{s.coherence_all:.3f}", f"{100 * max(s.checkerboard):.3f}",
            f"{max(s.comb):.3f}", f"{1e4 * d.spectra:.1f}", f"{d.texture:.4f}", f"{1e4 * c.rms_all:.2f}",
            f"{1e4 * c.quantile:.1f}",
        ])  # fmt: skip
        r = figure.resampled
        judged.append([
            name, f"{f.cpsnr:.2f}", f"{f.uiqi:.4f}", f"{1e3 * f.ndvi_rmse:.1f}", f"{np.mean(s.edge):.3f}",
            f"{1e4 * r['reflectance']:.2f}", f"{r['spectral']:.3f}", f"{30 * r['spatial']:.2f}",
            *(f"{100 * figure.correctness[share]:.1f}" for share in hallucination.NAMES),
        ])  # fmt: skip
    told = [["", "within 50 %", "80 %", "90 %", "half width"], ["", "%", "%", "%", "1e-4"]]
    for name, figure in figures.items():
        if found := figure.calibration:
            told.append([name, *(f"{100 * x:.1f}" for x in found.coverage_all), f"{1e4 * found.width:.1f}"])
    shown = (fidelity, others, judged, *([told] if len(told) > 2 else []))
    return "\n\n".join(_aligned(rows) for rows in shown)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 2))) if n not in taken)


def _values(figures: Mapping[str, Figures], info: DatasetInfo, files: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        "package_version": harmonize_tf.__version__,
        "flags": {name: getattr(FLAGS, name) for name in ("data", "model", "split", "thresholds")},
        "model_files": files,
        "plan_sha256": info.plan_sha256,
        "patches": info.counts[FLAGS.split],
        "blocks": next(iter(figures.values())).blocks,
        "intervals": {"level": intervals.LEVEL, "draws": intervals.DRAWS, "over": "blocks"},
        "bands": info.bands,
        "level": info.level,
        "models": {name: f.to_dict() for name, f in figures.items()},
    }


if __name__ == "__main__":
    command.run(main)
