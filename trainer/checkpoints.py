"""The state of a training on disk: saved whole, restored whole, so that it goes on as if it had never stopped."""

import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from harmonize_tf.errors import ModelError
from harmonize_tf.models.harmonizer import Harmonizer
from trainer.workers import Workers

FOLDER = "checkpoints"
KEPT = 2  # states: workers that were killed while they saved have the one before in common
SAVE_SECONDS = 300.0
"""The most that a kill can cost, beyond one step: between validations, this long after the last save is the next."""


class Ledger(tf.train.experimental.PythonState):
    """What a training remembers besides its variables.

    Attributes:
      step: steps done, each a batch.
      best: lowest validation RMSE so far, reflectance.
      best_step: when it was reached.
      sums: by name the sum and the number of the finite values that the round's steps logged.
      seconds: what all steps together took, in every session, without validation.
    """

    def __init__(self) -> None:
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.sums: dict[str, tuple[float, int]] = {}
        self.seconds = 0.0

    def add(self, logs: Mapping[str, float]) -> None:
        """Counts a step's values towards the round's means."""
        for name, value in logs.items():
            if math.isfinite(value):
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)

    def close_round(self) -> dict[str, float]:
        """The means of the round, which begins anew."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means

    def serialize(self) -> str:
        """All of it, as text that gives every number back exactly."""
        return json.dumps(vars_of(self))

    def deserialize(self, string_value: str) -> None:
        """Takes over what `serialize` wrote."""
        for name, value in json.loads(string_value).items():
            setattr(self, name, value)


def vars_of(ledger: Ledger) -> dict[str, Any]:
    """The ledger's own attributes by name; TensorFlow adds some of its own, with an underscore."""
    return {name: value for name, value in vars(ledger).items() if not name.startswith("_")}


class Checkpoints:
    """Saves the state of a training, and the weights that are to be exported.

    A state is on disk or not: TensorFlow writes it aside and names it in the file `checkpoint` last. No step is saved
    twice, so that no state is ever overwritten by another.

    Variables are listed rather than found by TensorFlow, which sees neither the layers that a Keras layer keeps in a
    list nor the optimizer inside `LossScaleOptimizer`.

    Args:
      model_dir: RUN/training; the newest state that all workers have is restored right away.
      state: all variables that a step changes, by name.
      served: the Harmonizer that is validated and exported; its weights are saved too.
      workers: who trains together; each saves a state of its own, at the same steps.

    Attributes:
      ledger: the state that is no variable.
    """

    def __init__(
        self,
        model_dir: pathlib.Path,
        state: Mapping[str, Sequence[keras.Variable | tf.Variable]],
        served: Harmonizer,
        workers: Workers,
    ) -> None:
        self.ledger, self._served, self._workers = Ledger(), served, workers
        self._best_weights = model_dir / FOLDER / "best.weights.h5"
        variables = {**state, "served": served.weights}
        lists = {name: [_plain(variable) for variable in listed] for name, listed in variables.items()}
        checkpoint = tf.train.Checkpoint(**lists, ledger=self.ledger)
        directory = workers.home(model_dir) / FOLDER
        newest = _newest(directory, model_dir / FOLDER, workers)
        self._manager = tf.train.CheckpointManager(checkpoint, str(directory), max_to_keep=KEPT)
        if newest:
            _restore(checkpoint, newest, workers)
        self._saved = self.ledger.step
        self._saved_at = time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the last save is so long ago that the next should not wait for the round's end."""
        return time.monotonic() - self._saved_at > SAVE_SECONDS

    def save(self) -> None:
        """Saves the state as it is between two steps."""
        if self.ledger.step > self._saved:
            self._manager.save(self.ledger.step)
            self._saved = self.ledger.step
        self._saved_at = time.monotonic()

    def validated(self, rmse: float, *, anyhow: bool = False) -> None:
        """Keeps the served weights if they are the best so far, or anyhow, then saves the state of a finished round.

        A kill between the two is made good: the round is done again, comes to the same weights and keeps them again.
        """
        if anyhow or rmse < self.ledger.best:
            self.ledger.best, self.ledger.best_step = rmse, self.ledger.step
            if self._workers.chief:
                self._keep_best()
        self.save()

    def _keep_best(self) -> None:
        aside = self._best_weights.with_name("writing.weights.h5")
        aside.parent.mkdir(parents=True, exist_ok=True)
        self._served.save_weights(aside)
        aside.rename(self._best_weights)

    def load_best(self) -> None:
        """Puts the best weights into the served Harmonizer."""
        self._served.load_weights(self._best_weights)


def _plain(variable: keras.Variable | tf.Variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _restore(checkpoint: tf.train.Checkpoint, path: str, workers: Workers) -> None:
    """Raises ModelError where a state lacks images of a pool, as its worker had a smaller part of the batch."""
    try:
        checkpoint.restore(path).assert_existing_objects_matched()
    except AssertionError as error:
        raise ModelError(
            f"the state is spread over the workers that saved it; go on with as many as then, or take another "
            f"--model_dir. Received: {workers.count} workers, and in {path} not all that this one needs"
        ) from error


def _newest(directory: pathlib.Path, chiefs: pathlib.Path, workers: Workers) -> str | None:
    """The path of the state to go on from, of the newest step that all workers have; newer ones are forgotten.

    A worker that has none in common with the others, as it is new or its folder is lost, takes the chief's.

    Raises:
      ModelError: there are states, none of them of a step that all have.
    """
    own, seen = _states(directory), _states(chiefs)
    steps: set[int] = set()
    for states in (own, seen | own):
        listed = [*states][-2 * KEPT :]
        found = workers.gathered(*listed, *[-1] * (2 * KEPT - len(listed)))
        steps |= set(found.ravel()) - {-1}
        if common := set.intersection(*map(set, found)) - {-1}:
            _forget(directory, own, max(common))
            return states[max(common)]
    if steps:
        raise ModelError(
            f"the workers have no state in common to go on from; put --model_dir on a disk that all share, or copy "
            f"worker 0's there, or take another. Received: on worker {workers.number} of {workers.count} steps "
            f"{sorted(own)} in {directory}"
        )
    return None


def _states(directory: pathlib.Path) -> dict[int, str]:
    """Paths of a folder's states by their steps, in order."""
    found = tf.train.get_checkpoint_state(str(directory))
    paths = found.all_model_checkpoint_paths if found else ()
    return dict(sorted((int(path.rpartition("-")[2]), path) for path in paths))


def _forget(directory: pathlib.Path, states: Mapping[int, str], last: int) -> None:
    """Deletes the states after a step, of which `CheckpointManager` would believe that they are older than the next."""
    kept = [path for step, path in states.items() if step <= last]
    if len(kept) < len(states):
        if kept:
            tf.compat.v1.train.update_checkpoint_state(str(directory), kept[-1], kept)
        else:
            (directory / "checkpoint").unlink()
        for path in set(states.values()) - set(kept):
            for file in directory.glob(f"{pathlib.Path(path).name}.*"):
                file.unlink()
