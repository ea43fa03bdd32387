"""Compares trained models with the baselines on the test split.

    python -m trainer.evaluate --data=RUN/examples --model=RUN/training/model.keras --out=RUN/evaluation

prints a table and leaves RUN/evaluation/metrics.json. `harmonize_tf.metrics.fidelity` defines the figures.
"""

import json
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
from harmonize_tf import command, dataset, patches
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import FlagError, ModelError
from harmonize_tf.metrics.fidelity import Fidelity, FidelityMeter
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


def measure(models: Mapping[str, keras.Model], info: DatasetInfo, split: str, batch: int) -> dict[str, Fidelity]:
    """The fidelity of each model on a split, which is read once."""
    meters = {name: FidelityMeter(info.bands) for name in models}
    calls = {name: tf.function(model, reduce_retracing=True) for name, model in models.items()}
    total = -(-info.counts[split] // batch)
    for inputs, targets in tqdm(
        dataset.paired(info, split, batch=batch, pan=info.pan), "evaluate", total, disable=None
    ):
        truth, mask = targets["sentinel_ms"].numpy(), targets["mask"].numpy()[..., 0]
        for name, call in calls.items():
            for one in zip(truth, call(inputs).numpy(), mask, strict=True):
                meters[name].update(*one)
    return {name: meter.result() for name, meter in meters.items()}


def table(figures: Mapping[str, Fidelity]) -> str:
    """The figures as text: the bands' RMSE in 1e-4 reflectance (steps of the code), then the other figures."""
    bands = next(iter(figures.values())).bands
    heads = ["", "RMSE", "PSNR", "SSIM", "SAM", "ERGAS", *bands]
    units = ["", "1e-4", "dB", "", "degrees", "", *["1e-4"] * len(bands)]
    rows = [
        [
            name, f"{1e4 * f.rmse_all:.1f}", f"{f.psnr:.2f}", f"{f.ssim:.4f}", f"{f.sam:.3f}", f"{f.ergas:.3f}",
            *(f"{1e4 * x:.1f}" for x in f.rmse),
        ]
        for name, f in figures.items()
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(heads, units, *rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in (heads, units, *rows)
    )


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 2))) if n not in taken)


def _write(out: pathlib.Path, figures: Mapping[str, Fidelity], info: DatasetInfo) -> pathlib.Path:
    values = {
        "package_version": harmonize_tf.__version__,
        "flags": {
            name: value for name, value in FLAGS.flag_values_dict().items() if name in ("data", "model", "split")
        },
        "plan_sha256": info.plan_sha256,
        "patches": info.counts[FLAGS.split],
        "bands": info.bands,
        "level": info.level,
        "models": {name: _finite(f.to_dict()) for name, f in figures.items()},
    }
    path, aside = out / "metrics.json", out / "metrics.json.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")
        aside.rename(path)
    except OSError as error:
        raise FlagError(f"the evaluation cannot be written there: {error}. Received: out={out}") from error
    return path


def _finite(values: Any) -> Any:
    """JSON knows neither NaN nor infinity: null stands for them."""
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    return None if isinstance(values, float) and not np.isfinite(values) else values


if __name__ == "__main__":
    command.run(main)
