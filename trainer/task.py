"""Trains a Harmonizer on exported examples.

    python -m trainer.task --model=subpixel --data=RUN/examples --model_dir=RUN/training

leaves RUN/training/model.keras, the weights that did best on the validation split (with an adversary the last ones),
and summary.json. --model is subpixel, gan, cyclegan or harmonizer; docs/methods.md tells them apart. SIGINT (Ctrl-C) or
SIGTERM ends it after the step in work. The same command continues a training that was stopped, however it was, as if it
had not been; --flagfile=RUN/training/flags.txt repeats it.

--flagfile also takes the name of a preset (trainer/presets/): METHOD_small.txt, METHOD_gpu.txt, METHOD_paper.txt.
"""

import logging
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import flags

from harmonize_tf import command, dataset
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import FlagError
from harmonize_tf.models import baselines
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.models.resnet import NORMS
from harmonize_tf.precision import PRECISIONS
from trainer import config as config_lib
from trainer import loop, measure, presets, summary, uncertainty
from trainer.callbacks import Progress, Summaries
from trainer.checkpoints import Checkpoints
from trainer.config import Config
from trainer.discriminators import LOSSES
from trainer.ema import Average
from trainer.objectives import cyclegan, gan, harmonizer, subpixel
from trainer.stop import Stop
from trainer.workers import STRATEGIES, Workers, losses_named, place

OBJECTIVES = {"subpixel": subpixel, "gan": gan, "cyclegan": cyclegan, "harmonizer": harmonizer}

FLAGS = flags.FlagValues()
_BY_METHOD = "Default: the method's."
flags.DEFINE_enum("model", "subpixel", list(OBJECTIVES), "Method of training.", flag_values=FLAGS)
flags.DEFINE_string(
    "data", None, "Folder that `harmonize export` wrote, RUN/examples.", required=True, flag_values=FLAGS
)
flags.DEFINE_string("model_dir", None, "Folder to write to, RUN/training.", required=True, flag_values=FLAGS)
flags.DEFINE_enum(
    "scale", "3", ["3", "2"], "Depth-to-space from 30 m (3), or from 20 m as in the article (2).", flag_values=FLAGS
)
flags.DEFINE_integer("blocks", None, f"Residual blocks. {_BY_METHOD}", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("filters", 64, "Channels of the network.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum(
    "norm", "none", NORMS,
    "Of gan and cyclegan: instance normalization as published, with which a model cannot be tiled.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_boolean("pan", None, "Use the panchromatic band. Default: if the data has it.", flag_values=FLAGS)
flags.DEFINE_enum(
    "consistency", "exact", ["exact", "none"], "Whether the output must degrade to the input.", flag_values=FLAGS
)
flags.DEFINE_boolean("adversarial", None, f"A discriminator asks for sharpness. {_BY_METHOD}", flag_values=FLAGS)
flags.DEFINE_enum("gan_loss", config_lib.GAN_LOSS, list(LOSSES), "The adversary's loss.", flag_values=FLAGS)
flags.DEFINE_float(
    "adversarial_weight", None,
    f"What it counts, where a pixel's error of one standard deviation counts 1. {_BY_METHOD}", lower_bound=0.0,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "blur", None, "What `harmonize estimate-blur` wrote. Default: the published blur.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "batch", None, f"Patches in a step, over all replicas, of each kind. {_BY_METHOD}", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "crop", None, f"Side of the random crops, pixels of 30 m. {_BY_METHOD}", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("steps", 20000, "Optimizer steps in all.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "learning_rate", None, f"Peak of the learning rate. {_BY_METHOD}", lower_bound=0.0, flag_values=FLAGS
)
flags.DEFINE_integer("validate_every", 500, "Steps between validations.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Of weights, order and augmentation.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_float(
    "ema", 0.999, "Decay of the weights' moving average, which is validated and exported; 0: none.", flag_values=FLAGS
)
flags.DEFINE_enum(
    "precision", "auto", ["auto", *PRECISIONS],
    "What the network computes with; losses, weights and the exported model are float32. auto: bfloat16 where the "
    "hardware has it, which is faster.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_boolean(
    "uncertainty", False, "The model also tells how wrong it may be; learnt at the end, of the exported weights.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum(
    "strategy", "auto", STRATEGIES,
    "auto: all GPUs of this machine; multiworker: those of all machines that TF_CONFIG names, see docs/training.md.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_boolean(
    "overwrite", False, "Delete a training with other data or another network in --model_dir.", flag_values=FLAGS
)

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the flags say.

    Raises:
      HarmonizeError: flags, data or the model folder do not suit one another, records are damaged, or it diverges.
    """
    command.parse(FLAGS, presets.found(argv))
    with Stop() as stop:
        _main(stop)


def _main(stop: Stop) -> None:
    info = DatasetInfo.load(FLAGS.data)
    objective = OBJECTIVES[FLAGS.model]
    worker = place(FLAGS.strategy)
    config = Config.of(FLAGS.flag_values_dict(), info, objective.DEFAULTS, objective.STREAMS, worker)
    for name in ("precision", *objective.DEFAULTS):
        setattr(FLAGS, name, getattr(config, name))  # so that flags.txt repeats it anywhere
    with losses_named(worker):
        with stop.at_once():
            workers = Workers(worker)
        _with(workers, config, info, stop)


def _with(workers: Workers, config: Config, info: DatasetInfo, stop: Stop) -> None:
    told = {name: getattr(config, name) for name in (*config_lib.NETWORK, "steps", "learning_rate", "validate_every")}
    workers.check_same(told | {"counts": info.counts, "plan_sha256": info.plan_sha256})
    replicas = workers.strategy.num_replicas_in_sync
    if config.batch % replicas:
        raise FlagError(
            f"the batch is shared by {replicas} replicas, so take a multiple of that. Received: batch={config.batch}"
        )
    # Both say what is wrong with the data before anything is written.
    config.batches(info)
    validation = dataset.paired(info, "val", batch=config.batch, pan=config.pan)
    keras.utils.set_random_seed(config.seed)
    with workers.strategy.scope():
        made = OBJECTIVES[config.model].build(config, info)
    home, identity = workers.home(config.model_dir), config.identity(info, made)
    workers.check_same(identity)
    workers.chief_first(lambda: config_lib.claim(home, identity, FLAGS.overwrite))
    if workers.chief:
        command.write_flags(FLAGS, config.model_dir / "flags.txt")
    with dataset.damage_named(info, "val"), dataset.damage_named(info, "train"):
        train(config, info, workers, made, validation, stop)


def train(
    config: Config,
    info: DatasetInfo,
    workers: Workers,
    made: Harmonizer,
    validation: tf.data.Dataset,
    stop: Stop,
) -> None:
    """Trains from the last checkpoint on, or from the beginning, and writes model.keras and summary.json."""
    with workers.strategy.scope():
        model = OBJECTIVES[config.model].training(config, made)
        average = Average(made, config.ema)
    model.served = average.twin
    checkpoints = Checkpoints(config.model_dir, model.state, average.twin, workers)
    ledger, replicas = checkpoints.ledger, workers.strategy.num_replicas_in_sync
    validate = loop.validation(model, workers.shared(validation), workers)
    start = validate()["rmse"]
    callbacks = []
    if workers.chief:
        baseline = _baseline_rmse(config, info, validation)
        _log.info(
            "%s: %d weights, %s, %d replicas, halo %s px; step %d of %d; validation RMSE %.5f, bandpass baseline %.5f",
            config.model, made.count_params(), config.precision, replicas, made.halo,
            ledger.step, config.steps, start, baseline,
        )  # fmt: skip
    if workers.chief and ledger.step < config.steps:
        callbacks = [
            Progress(ledger.step, config.steps),
            Summaries(
                config.model_dir / "tensorboard", next(iter(validation)), config.steps, config.examples, baseline
            ),
        ]
    if ledger.step < config.steps:
        batches = config.batches(info, start=ledger.step)
        loop.run(
            config, model, average, checkpoints, batches, validate, callbacks, stop, lambda n: config.ids(info, n),
            workers,
        )  # fmt: skip
    if workers.chief:
        _finish(config, info, checkpoints, average, baseline, replicas)
    workers.gathered(0)  # so that a worker ends well only if all did


def _finish(
    config: Config, info: DatasetInfo, checkpoints: Checkpoints, average: Average, baseline: float, replicas: int
) -> None:
    ledger = checkpoints.ledger
    checkpoints.load_best()
    model = uncertainty.taught(average.twin, config, info, replicas) if config.uncertainty else average.twin
    path = config.model_dir / "model.keras"
    aside = path.with_name("writing.keras")
    model.save(aside)
    aside.rename(path)
    judged = {config.model: model, "bandpass": _baseline(config, info)}
    figures = measure.measure(judged, info, "val", config.batch)
    summary.write(config, ledger, figures, replicas, FLAGS.flag_values_dict())
    _log.info(
        "%s: the weights of step %d: validation RMSE %.5f, %.1f %% below the bandpass baseline's %.5f",
        path, ledger.best_step, ledger.best, 100 * (1 - ledger.best / baseline), baseline,
    )  # fmt: skip


def _baseline(config: Config, info: DatasetInfo) -> keras.Model:
    """Bicubic resampling with the band-pass adjustment."""
    return baselines.build_baseline("bandpass", info.bands, info.level, config.pan, info.bandpass)


def _baseline_rmse(config: Config, info: DatasetInfo, validation: tf.data.Dataset) -> float:
    """The baseline's validation RMSE, reflectance."""
    model = _baseline(config, info)
    squared = keras.metrics.Mean()
    for inputs, targets in validation:
        error = tf.reduce_mean(tf.square(model(inputs) - targets["sentinel_ms"]), -1, keepdims=True)
        squared.update_state(error, sample_weight=targets["mask"])
    return float(squared.result()) ** 0.5


if __name__ == "__main__":
    command.run(main)
