"""Training steps against those of the same networks in PyTorch, on this machine, in one run.

    python benchmarks/training_peer.py --torch_python=/path/to/python [--network=subpixel] [--rounds=3]

    subpixel            --model=subpixel, 16 x 64, batch 8, 64 -> 192 px, without the panchromatic band
    cyclegan            --model=cyclegan, 9 x 64, batch 1, 192 px
    cyclegan_published  the same with --norm=instance --consistency=none

Four bands each. Ours are trained by `trainer.loop`, with all that a step of `harmonize train` has (masks, base,
consistency, the guard, the moving average); the peer is `benchmarks/peer_torch.py`, which has nothing of it. Each
trains on one batch of random images over and over, so that nobody waits for a disk. Every contender is a process of its
own that waits for its turn; they take turns, so that other work on the machine hits all of them. Given are medians of
the wall time and of the processor time. On a machine that does other work only the latter tells anything, and only with
--threads=1: there PyTorch's threads, several at a time, lost far more wall time than TensorFlow's.

Without torch it says so and measures nothing.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import json
import logging
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from harmonize_tf import command, sensors
from harmonize_tf.dataset import DatasetInfo, Statistics
from harmonize_tf.records import SCHEMA
from trainer import loop
from trainer.checkpoints import Checkpoints, Ledger
from trainer.config import Config
from trainer.ema import Average
from trainer.objectives import cyclegan, subpixel
from trainer.stop import Stop
from trainer.workers import Workers

PEER = pathlib.Path(__file__).with_name("peer_torch.py")
PRECISIONS = ("float32", "bfloat16")
BANDS = sensors.BAND_SETS["rgbn"]
CROP = 64  # pixels of 30 m
NETWORKS = {
    "subpixel": (subpixel, {"blocks": 16}),
    "cyclegan": (cyclegan, {}),
    "cyclegan_published": (cyclegan, {"norm": "instance", "consistency": "none"}),
}

_log = logging.getLogger("harmonize")

FLAGS = flags.FlagValues()
_TORCH = flags.DEFINE_string("torch_python", sys.executable, "A Python that has torch.", flag_values=FLAGS)
_NETWORKS = flags.DEFINE_multi_enum(
    "network", ["subpixel", "cyclegan"], list(NETWORKS), "What is trained; repeat it for several.", flag_values=FLAGS
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each contender.", 1, flag_values=FLAGS)
_STEPS = flags.DEFINE_integer(
    "steps", 2, "Steps in a turn; there is one before that is not counted.", 1, flag_values=FLAGS
)
_THREADS = flags.DEFINE_integer("threads", None, "Of each contender. Default: one a processor.", 1, flag_values=FLAGS)
_TRAIN = flags.DEFINE_string("train", None, "For the processes: the PRECISION to train in.", flag_values=FLAGS)


class Contender:
    """A process that trains when it is told to.

    Args:
      arguments: of the process.

    Attributes:
      seconds: of every step so far, wall time and processor time.
    """

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[tuple[float, float]] = []
        self._answer()  # not counted

    def turn(self, steps: int) -> None:
        """Trains for some steps."""
        print(steps, file=self._process.stdin, flush=True)
        self.seconds += self._answer()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> list[tuple[float, float]]:
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"it ended before it was told to: {' '.join(self._process.args)}")
        return json.loads(line)


class Paced(keras.callbacks.Callback):
    """The other end of a `Contender`: after each turn it writes the seconds of its steps, and waits for the next.

    Args:
      ledger: of the training, which adds up the seconds of all steps.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger, self._seconds, self._turn = ledger, [], 1
        self._before = 0.0, time.process_time()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Takes a step into account; ends the process when there is nobody left to tell it."""
        now = self._ledger.seconds, time.process_time()
        self._seconds.append([after - before for after, before in zip(now, self._before, strict=True)])
        if len(self._seconds) == self._turn:
            print(json.dumps(self._seconds), flush=True)
            line = sys.stdin.readline()
            if not line:
                raise SystemExit
            self._seconds, self._turn = [], int(line)
        self._before = self._ledger.seconds, time.process_time()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    command.parse(FLAGS, argv)
    if _TRAIN.value:
        train(*_NETWORKS.value, _TRAIN.value)
        return
    version = _torch_version()
    if version is None:
        print(f"skipped: {_TORCH.value} cannot import torch; give a Python that can with --torch_python=PATH")
        return
    print(f"{_processors()} processors, PyTorch {version}, TensorFlow {tf.__version__}, Keras {keras.__version__}")
    for network in _NETWORKS.value:
        _measure(network)


def _measure(network: str) -> None:
    threads = _THREADS.value or _processors()
    with contextlib.ExitStack() as stack:
        contenders = {}
        for precision in PRECISIONS:
            peer = [_TORCH.value, str(PEER), network.partition("_")[0], precision, str(threads)]
            contenders["PyTorch", precision] = stack.enter_context(Contender(*peer))
            ours = [sys.executable, __file__, f"--network={network}", f"--train={precision}", f"--threads={threads}"]
            contenders["harmonize", precision] = stack.enter_context(Contender(*ours))
        for number in range(_ROUNDS.value):
            for name, contender in contenders.items():
                contender.turn(_STEPS.value)
                wall, processor = contender.seconds[-1]
                done = f"{network}, {' '.join(name)}, turn {number + 1} of {_ROUNDS.value}"
                _log.info("%s: %.2f s a step, %.2f s of processor", done, wall, processor)
    print(f"\n{network}, {threads} threads, load {os.getloadavg()[1]:.1f}")
    for kind, number in (("wall", 0), ("processor", 1)):
        times = {name: [pair[number] for pair in contender.seconds] for name, contender in contenders.items()}
        steps = {name: statistics.median(listed) for name, listed in times.items()}
        for name in sorted(steps, reverse=True):
            spread = f"{steps[name]:7.3f} ({min(times[name]):.3f} to {max(times[name]):.3f}) s a step"
            ratios = [f"{steps['PyTorch', peer] / steps[name]:.2f} times PyTorch's {peer}" for peer in PRECISIONS]
            print(f"{kind:10}{' '.join(name):20}{spread}, {', '.join(ratios)}", flush=True)


def train(network: str, precision: str) -> None:
    """Trains for as long as standard input asks for turns."""
    method, settings = NETWORKS[network]
    tf.config.threading.set_intra_op_parallelism_threads(_THREADS.value or 0)
    tf.config.threading.set_inter_op_parallelism_threads(_THREADS.value or 0)
    info, workers = _info(), Workers()
    with tempfile.TemporaryDirectory() as folder, Stop() as stop:
        values = {
            "model": network.partition("_")[0], "data": folder, "model_dir": folder, "scale": 3, "filters": 64,
            "pan": False, "consistency": "exact", "crop": CROP, "steps": 1_000_000, "learning_rate": 1e-4,
            "validate_every": 1_000_000, "seed": 0, "ema": 0.999, "precision": precision,
        }  # fmt: skip
        config = Config.of(values | settings, info, method.DEFAULTS, method.STREAMS)
        keras.utils.set_random_seed(config.seed)
        harmonizer = method.build(config, info)
        model, average = method.training(config, harmonizer), Average(harmonizer, config.ema)
        model.served = average.twin
        checkpoints = Checkpoints(config.model_dir, model.state, average.twin, workers)
        paced = Paced(checkpoints.ledger)
        loop.run(
            config, model, average, checkpoints, _batches(config), dict, [paced], stop, lambda step: ["random"], workers
        )


def _batches(config: Config) -> tf.data.Dataset:
    rng, side = np.random.default_rng(config.seed), 3 * config.crop
    low, high = (
        rng.uniform(0.05, 0.45, (config.batch, n, n, len(BANDS))).astype(np.float32) for n in (config.crop, side)
    )
    whole = np.ones((config.batch, config.crop, config.crop, 1), np.float32)
    inputs = {"landsat_ms": low, "landsat_valid": whole}
    if config.streams == cyclegan.STREAMS:
        inputs["landsat_clear"] = whole
    targets = {"sentinel_ms": high, "mask": np.ones((config.batch, side, side, 1), np.float32)}
    return tf.data.Dataset.from_tensors((inputs, targets)).cache()


def _info() -> DatasetInfo:
    flat = Statistics((0.25,) * len(BANDS), (0.1,) * len(BANDS))
    return DatasetInfo(
        directory=pathlib.Path(), package_version="", source="random", level="toa", bands=BANDS, nir="B8", pan=False,
        patch_m=30 * CROP, counts={}, spacecraft={"landsat": {"LANDSAT_8": 1}, "sentinel": {"SENTINEL_2A": 1}},
        statistics={"landsat": flat, "sentinel": flat}, plan_sha256="", schema=SCHEMA,
    )  # fmt: skip


def _torch_version() -> str | None:
    code = "import torch; print(torch.__version__)"
    try:
        found = subprocess.run([_TORCH.value, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _processors() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    command.run(main)
