"""A training step of `--model=subpixel` against what its convolutions alone must cost, and the records' pipeline alone.

    python benchmarks/training_step.py --data=RUN/examples --precision=float32,bfloat16

The floor of a step is three times the network's forward convolutions (forward, gradient of the input, gradient of the
weights) at the rate that a plain 3x3 convolution of the same size reaches on this machine.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import statistics
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from harmonize_tf import command
from harmonize_tf.dataset import DatasetInfo
from trainer.config import Config
from trainer.objectives import subpixel

FLAGS = flags.FlagValues()
_DATA = flags.DEFINE_string("data", None, "Folder of `harmonize export`.", required=True, flag_values=FLAGS)
_BLOCKS = flags.DEFINE_integer("blocks", 16, "Residual blocks.", flag_values=FLAGS)
_FILTERS = flags.DEFINE_integer("filters", 64, "Channels of the network.", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch", 8, "Patches in a step.", flag_values=FLAGS)
_CROP = flags.DEFINE_integer("crop", 64, "Side of the crops, pixels of 30 m.", flag_values=FLAGS)
_PRECISIONS = flags.DEFINE_list(
    "precision", ["float32"], "Precisions of the network, timed one after the other.", flag_values=FLAGS
)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Steps that are timed, after two that are not.", flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the times."""
    command.parse(FLAGS, argv)
    info = DatasetInfo.load(_DATA.value)
    steps = {}
    for precision in _PRECISIONS.value:
        steps[precision] = _measure(info, precision)
    if len(steps) > 1:
        first = next(iter(steps))
        print(", ".join(f"{name} {steps[first] / step:.2f}" for name, step in steps.items()), f"times {first}'s speed")


def _measure(info: DatasetInfo, precision: str) -> float:
    """Prints the times of one precision; returns a step's, seconds."""
    config = Config.of(
        {
            "model": "subpixel", "data": _DATA.value, "model_dir": "", "scale": 3, "blocks": _BLOCKS.value,
            "filters": _FILTERS.value, "pan": None, "consistency": "exact", "batch": _BATCH.value, "crop": _CROP.value,
            "steps": 1000, "learning_rate": 1e-4, "validate_every": 1000, "seed": 0, "precision": precision,
        },
        info,
        subpixel.DEFAULTS,
        subpixel.STREAMS,
    )  # fmt: skip
    harmonizer = subpixel.build(config, info)
    model = subpixel.training(config, harmonizer)
    batch = next(iter(config.batches(info)))
    train, forward = tf.function(model.train_step), tf.function(harmonizer)
    step = _seconds(lambda: train(batch))
    inference = _seconds(lambda: forward(batch[0]))
    flop, rate = _flop(harmonizer, config), _convolution_rate(config)
    floor = 3 * flop / rate
    stream = iter(config.batches(info))
    reading = config.batch / _seconds(lambda: next(stream), 5 * _ROUNDS.value)
    size = f"{config.crop} -> {3 * config.crop} px, batch {config.batch}, {config.blocks}x{config.filters}"
    print(f"subpixel, {size}, {','.join(info.bands)}{' + pan' if config.pan else ''}, {precision}")
    print(f"step {1e3 * step:.0f} ms, forward pass {1e3 * inference:.0f} ms")
    print(f"forward convolutions {flop / 1e9:.1f} GFLOP, plain float32 convolution {rate / 1e9:.0f} GFLOP/s")
    print(f"floor of a step in float32 {1e3 * floor:.0f} ms: {floor / step:.2f} of the step")
    print(f"pipeline alone {reading:.0f} examples/s, {reading * step / config.batch:.1f} times what training consumes")
    return step


def _seconds(call: Callable[[], object], rounds: int | None = None) -> float:
    """Median wall time of a call, after two calls that trace and warm up."""
    times = []
    for _ in range((rounds or _ROUNDS.value) + 2):
        begin = time.perf_counter()
        tf.nest.map_structure(lambda x: x.numpy(), call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def _flop(harmonizer: keras.Model, config: Config) -> float:
    """Multiplications and additions of the network's convolutions for one batch, forward."""
    kernels = [np.prod(w.shape) for w in harmonizer.trainable_variables if len(w.shape) == 4]
    return 2.0 * config.batch * config.crop**2 * float(sum(kernels))


def _convolution_rate(config: Config) -> float:
    """Operations per second of one 3x3 convolution of the network's width."""
    x = tf.random.stateless_normal([config.batch, config.crop, config.crop, config.filters], [0, 0])
    kernel = tf.random.stateless_normal([3, 3, config.filters, config.filters], [0, 1])
    repeats = 16  # so that one call is long enough to time

    @tf.function
    def convolve() -> tf.Tensor:
        y = x
        for _ in range(repeats):
            y = tf.nn.conv2d(y, kernel * 0.04, 1, "SAME")
        return y[0, 0, 0]

    return repeats * 2.0 * config.batch * config.crop**2 * 9 * config.filters**2 / _seconds(convolve)


if __name__ == "__main__":
    command.run(main)
