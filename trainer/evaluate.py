"""Compares trained models with the baselines on the test split.

    python -m trainer.evaluate --data=RUN/examples --model=RUN/training/model.keras --out=RUN/evaluation

prints two tables and leaves RUN/evaluation/metrics.json. `harmonize_tf.metrics` defines the figures.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

import harmonize_tf
from harmonize_tf import artifacts, command, dataset, degradation, patches, sensors
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import FlagError, ModelError
from harmonize_tf.metrics.consistency import Consistency, ConsistencyMeter
from harmonize_tf.metrics.distribution import Distribution, DistributionMeter
from harmonize_tf.metrics.fidelity import Fidelity, FidelityMeter
from harmonize_tf.metrics.sharpness import Sharpness, SharpnessMeter
from harmonize_tf.models.baselines import BASELINES, build_baseline
from harmonize_tf.models.harmonizer import Harmonizer, load

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "data", None, "Folder that `harmonize export` wrote, RUN/examples.", required=True, flag_values=FLAGS
)
flags.DEFINE_list("model", [], "Trained models, RUN/training/model.keras, separated by commas.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "Folder to write to, RUN/evaluation.", required=True, flag_values=FLAGS)
flags.DEFINE_enum("split", "test", list(patches.SPLITS), "Which records to use.", flag_values=FLAGS)
flags.DEFINE_integer("batch", 4, "Patches at once.", lower_bound=1, flag_values=FLAGS)

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates as the flags say.

    Raises:
      HarmonizeError: a model cannot be read or does not suit the data, or records are damaged.
    """
    command.parse(FLAGS, argv)
    info = DatasetInfo.load(FLAGS.data)
    models = {name: build_baseline(name, info.bands, info.level, info.pan, info.bandpass) for name in BASELINES}
    for path in FLAGS.model:
        model = load(path)
        _check_suits(model, path, info)
        models[_unused(model.name, models)] = model
    with dataset.damage_named(info, FLAGS.split):
        figures = measure(models, info, FLAGS.split, FLAGS.batch)
    print(table(figures))
    path = _write(pathlib.Path(FLAGS.out), figures, info)
    _log.info("%s: %d patches of %s", path, info.counts[FLAGS.split], info.directory / FLAGS.split)


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


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is measured of a model.

    Attributes:
      fidelity: nearness to the reference.
      sharpness: detail beyond 30 m.
      distribution: distance of all outputs to all references, whose pairs are not looked at.
      consistency: with the input, band-pass adjusted.
    """

    fidelity: Fidelity
    sharpness: Sharpness
    distribution: Distribution
    consistency: Consistency

    def to_dict(self) -> dict[str, Any]:
        """For JSON: those of fidelity, and the others under their names."""
        others = {name: getattr(self, name).to_dict() for name in ("sharpness", "distribution", "consistency")}
        return self.fidelity.to_dict() | others


class _Meters:
    """Those of one model."""

    def __init__(self, model: keras.Model, info: DatasetInfo) -> None:
        # A model is held to the blur that it assumes; baselines assume none, and the published one serves.
        assumed = degradation.pair_grid_sigma(sensors.blur_sigma(info.bands, info.nir))
        self._fidelity, self._sharpness = FidelityMeter(info.bands), SharpnessMeter(info.bands)
        self._distribution = DistributionMeter(info.bands)
        self._consistency = ConsistencyMeter(info.bands, getattr(model, "sigma", assumed))

    def update(
        self, output: np.ndarray, truth: np.ndarray, mask: np.ndarray, measurement: np.ndarray, valid: np.ndarray
    ) -> None:
        self._fidelity.update(truth, output, mask)
        self._sharpness.update(truth, output, mask)
        self._distribution.update_reference(truth, mask)
        self._distribution.update_prediction(output, mask)
        self._consistency.update(output, measurement, valid)

    def result(self) -> Figures:
        return Figures(
            self._fidelity.result(), self._sharpness.result(), self._distribution.result(), self._consistency.result()
        )


def measure(models: Mapping[str, keras.Model], info: DatasetInfo, split: str, batch: int) -> dict[str, Figures]:
    """The figures of each model on a split, which is read once."""
    meters = {name: _Meters(model, info) for name, model in models.items()}
    calls = {name: tf.function(model, reduce_retracing=True) for name, model in models.items()}
    left, total = info.counts[split], -(-info.counts[split] // batch)
    for inputs, targets in tqdm(
        dataset.paired(info, split, batch=batch, pan=info.pan), "evaluate", total, disable=None
    ):
        measurement = info.bandpass.apply(inputs["landsat_ms"])
        given = [targets["sentinel_ms"], targets["mask"][..., 0], measurement, inputs["landsat_valid"][..., 0]]
        given = [x.numpy() for x in given]
        real = min(left, batch)  # the last batch is filled up
        for name, call in calls.items():
            for one in zip(*(x[:real] for x in (call(inputs).numpy(), *given)), strict=True):
                meters[name].update(*one)
        left -= real
    return {name: meter.result() for name, meter in meters.items()}


def table(figures: Mapping[str, Figures]) -> str:
    """The figures as text, reflectance in 1e-4 (steps of the code): those of fidelity, then the others.

    Of the checkerboards and combs the strongest is shown; "consistent" is the RMS, beside it the 99.9 % quantile.
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
    return _aligned(fidelity) + "\n\n" + _aligned(others)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 2))) if n not in taken)


def _write(out: pathlib.Path, figures: Mapping[str, Figures], info: DatasetInfo) -> pathlib.Path:
    values = {
        "package_version": harmonize_tf.__version__,
        "flags": {
            name: value for name, value in FLAGS.flag_values_dict().items() if name in ("data", "model", "split")
        },
        "plan_sha256": info.plan_sha256,
        "patches": info.counts[FLAGS.split],
        "bands": info.bands,
        "level": info.level,
        "models": {name: f.to_dict() for name, f in figures.items()},
    }
    path = out / "metrics.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        artifacts.write(path, artifacts.to_json(values))
    except OSError as error:
        raise FlagError(f"the evaluation cannot be written there: {error}. Received: out={out}") from error
    return path


if __name__ == "__main__":
    command.run(main)
