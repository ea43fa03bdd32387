"""Who shares a training: the replicas of this machine, or those of several machines, workers, that TF_CONFIG names."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from harmonize_tf.errors import FlagError, HarmonizeError, TransientError

STRATEGIES = ("auto", "multiworker")
VARIABLE = "TF_CONFIG"
TASKS = ("chief", "worker")  # a cluster may call its first worker "chief"
EXAMPLE = '{"cluster":{"worker":["host1:2222","host2:2222"]},"task":{"type":"worker","index":0}}'
# What TensorFlow raises where another worker is gone.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

_log = logging.getLogger("harmonize")


def place(strategy: str) -> tuple[int, int]:
    """This worker's number and how many there are, as TF_CONFIG says; without it there is one.

    Args:
      strategy: one of `STRATEGIES`.

    Raises:
      FlagError: TF_CONFIG is malformed, or does not suit the strategy.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        values = json.loads(text or "{}")
        cluster, task = values.get("cluster") or {}, values.get("task") or {}
        hosts = {name: list(cluster[name]) for name in cluster}
        index = int(task.get("index", 0))
        addressed = all(isinstance(host, str) and ":" in host for listed in hosts.values() for host in listed)
    except (ValueError, TypeError, AttributeError) as error:
        raise _refused(text, f"expected JSON such as {EXAMPLE} ({error})") from error
    if strategy == "auto":
        if sum(map(len, hosts.values())) > 1:
            raise FlagError(
                f"{VARIABLE} names several machines; train on all together with --strategy=multiworker, or on this one "
                f"alone without {VARIABLE}. Received: strategy=auto, {VARIABLE}={text}"
            )
        return 0, 1
    if not hosts:
        raise _refused(text, f"--strategy=multiworker needs to be told all workers, and which one this is: {EXAMPLE}")
    if strangers := sorted(set(hosts) - set(TASKS)):
        raise _refused(text, f"a cluster has workers alone, and one of them may be called chief; no {strangers[0]}")
    if len(hosts.get("chief", [])) > 1 or not addressed:
        raise _refused(text, f"expected one chief at most, and every machine as HOST:PORT: {EXAMPLE}")
    if not 0 <= index < len(hosts.get(task.get("type"), [])):
        raise _refused(text, "expected the task to be one of the cluster")
    before = len(hosts.get("chief", [])) if task["type"] == "worker" else 0
    return before + index, sum(map(len, hosts.values()))


def _refused(text: str, rule: str) -> FlagError:
    return FlagError(f"{rule}; set {VARIABLE}. Received: {VARIABLE}={text}")


def replicas() -> tf.distribute.Strategy:
    """One replica a GPU; without any, one a logical CPU, of which there is one unless TensorFlow is told otherwise."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return (
        tf.distribute.MirroredStrategy([d.name for d in devices]) if len(devices) > 1 else tf.distribute.get_strategy()
    )


@contextlib.contextmanager
def losses_named(worker: tuple[int, int]) -> Iterator[None]:
    """Tells in a line that another worker is gone.

    Args:
      worker: number of this worker and of all.

    Raises:
      TransientError: it is.
    """
    try:
        yield
    except LOST as error:
        if worker[1] == 1:
            raise
        found = re.search(r"aborted by: (.*)", error.message)
        reason = found[1] if found else error.message.strip().splitlines()[-1]
        raise TransientError(
            f"another worker has ended, and its own last line says why, or cannot be reached; run the same command "
            f"again on all, they go on from the last state. Received: on worker {worker[0]} of {worker[1]}: {reason}"
        ) from error


class Workers:
    """The workers of a training, each a process that runs the same command; the first is the chief.

    What follows happens on all workers alike, in the same order: making variables of the strategy, steps, validations,
    and what this class says that they do together.

    Args:
      worker: number of this worker and of all; several wait here for one another. Only before TensorFlow has begun.

    Attributes:
      number: of this worker.
      count: of all.
      strategy: over the replicas of all workers.
    """

    def __init__(self, worker: tuple[int, int] = (0, 1)) -> None:
        self.number, self.count = worker
        if self.count > 1:
            tf.get_logger().setLevel("WARNING")  # it notes every collective
            _log.info("worker %d of %d waits for the others", self.number, self.count)
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy() if self.count > 1 else replicas()
        self._here = self.strategy.num_replicas_in_sync // self.count
        self._gather = tf.function(self._gather)

    @property
    def chief(self) -> bool:
        """Whether this worker writes what a training leaves."""
        return self.number == 0

    def home(self, model_dir: pathlib.Path) -> pathlib.Path:
        """The folder for this worker's state: the chief's is the training's."""
        return model_dir if self.chief else model_dir / "checkpoints" / f"worker-{self.number}"

    def shared(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """This worker's part of each of the batches, which all workers read whole."""
        if self.count == 1:
            return batches

        def part(x: tf.Tensor) -> tf.Tensor:
            size = x.shape[0] // self.count
            return x[self.number * size : (self.number + 1) * size]

        return batches.map(lambda *batch: tf.nest.map_structure(part, batch), tf.data.AUTOTUNE)

    def distributed(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """This worker's batches over and over, in equal parts for its replicas.

        TensorFlow's `experimental_distribute_dataset` would share them among the workers once more. Without an end
        workers need not ask one another before each batch whether there is one.
        """
        batches = batches.repeat()
        if self._here > 1:
            size = tf.nest.flatten(batches.element_spec)[0].shape[0]
            batches = batches.rebatch(size // self._here)
        return self.strategy.distribute_datasets_from_function(lambda _: batches)

    def gathered(self, *values: int) -> np.ndarray:
        """What every worker has: integers, one at least, [worker, value]. All wait for one another."""
        if self.count == 1:
            return np.array([values], np.int64)
        return self._gather(tf.constant([values], tf.int64)).numpy()[:: self._here]

    def _gather(self, row: tf.Tensor) -> tf.Tensor:
        def rows() -> tf.Tensor:
            return tf.distribute.get_replica_context().all_gather(tf.identity(row), axis=0)  # identity: on its device

        return self.strategy.experimental_local_results(self.strategy.run(rows))[0]

    def any(self, *flags: bool) -> list[bool]:
        """Which flags are set on any worker."""
        return self.gathered(*map(int, flags)).any(axis=0).tolist()

    def chief_first(self, act: Callable[[], None]) -> None:
        """Does something on the chief and then on the others; where it fails, all of them end.

        Raises:
          HarmonizeError: it failed, here or elsewhere.
        """
        for turn in (True, False):
            failure = None
            if self.chief == turn:
                try:
                    act()
                except HarmonizeError as error:
                    failure = error
            if self.any(failure is not None)[0]:
                raise failure or FlagError(
                    f"another worker cannot begin; its own last line says why. Received: worker {self.number} of "
                    f"{self.count}"
                )

    def check_same(self, told: Any) -> None:
        """Raises FlagError where workers have been told different things, which `repr` shows."""
        digest = int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:7])
        if len(set(self.gathered(digest)[:, 0])) > 1:
            raise FlagError(
                f"all workers need the same flags (and --precision, where the machines differ) and the same examples; "
                f"run the same command on each. Received: on worker {self.number} {told}"
            )
