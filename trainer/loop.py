"""The training loop: steps, rounds of them that a validation ends, and what may end the training between two steps."""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from harmonize_tf.errors import ModelError
from trainer.checkpoints import Checkpoints
from trainer.config import Config
from trainer.ema import Average
from trainer.objectives.base import Objective
from trainer.stop import Stop
from trainer.workers import Workers

Batches = tf.data.Dataset


def run(
    config: Config,
    model: Objective,
    average: Average,
    checkpoints: Checkpoints,
    batches: Batches,
    validate: Callable[[], dict[str, float]],
    callbacks: Sequence[keras.callbacks.Callback],
    stop: Stop,
    ids: Callable[[int], list[str]],
    workers: Workers,
) -> None:
    """Trains from the restored state on until `config.steps` are done. How a training was cut up leaves no trace in it.

    It is not Keras's `fit`, whose rounds begin where it is called; here they end at multiples of
    `config.validate_every`, whichever step the training goes on from.

    Args:
      config: of the run.
      model: compiled, its optimizers built.
      average: of its Harmonizer's weights.
      checkpoints: the state, restored.
      batches: this worker's training batches from the state's step on.
      validate: from `validation`.
      callbacks: told of every step (`on_train_batch_end`) and every finished round (`on_epoch_end`).
      stop: asked after every step.
      ids: of the records in the batch of a step, for naming them.
      workers: who trains together; all end after the same step.

    Raises:
      ModelError: the training diverged.
      SystemExit: a signal ended it; the state is saved.
    """
    ledger = checkpoints.ledger
    iterator, train_step = iter(workers.distributed(batches)), _train_step(model)
    for callback in callbacks:
        callback.set_model(model)
    try:
        with stop.deferred():
            while ledger.step < config.steps:
                begin = time.monotonic()
                logs = train_step(iterator, ledger.step + 1)
                average.update(ledger.step + 1)
                ledger.seconds += time.monotonic() - begin
                ledger.step += 1
                _check(logs, model, config, ledger.step, ids)
                ledger.add(logs)
                for callback in callbacks:
                    callback.on_train_batch_end(ledger.step, logs)
                if ledger.step % config.validate_every == 0 or ledger.step == config.steps:
                    _end_round(config, model, checkpoints, validate, callbacks)
                stopping, overdue = workers.any(stop.requested, checkpoints.overdue)
                if stopping or overdue:
                    checkpoints.save()
                if stopping:
                    stop.leave()
    finally:
        for callback in callbacks:
            callback.on_train_end()


def _train_step(model: Objective) -> Callable[[Iterator, int], dict[str, float]]:
    functions = {}

    def step(iterator: Iterator, number: int) -> dict[str, float]:
        phase = model.phase_of(number)
        if phase not in functions:
            model.phase = phase
            functions[phase] = _on_replicas(model, model.train_step)
        return {name: float(value) for name, value in functions[phase](iterator).items()}

    return step


def validation(model: Objective, batches: Batches, workers: Workers) -> Callable[[], dict[str, float]]:
    """Makes a function that returns the model's metrics over this worker's and all other workers' batches."""
    test_step, distributed = _on_replicas(model, model.test_step), workers.distributed(batches)

    def validate() -> dict[str, float]:
        for metric in model.metrics:
            metric.reset_state()
        iterator = iter(distributed)
        for _ in range(int(batches.cardinality())):
            test_step(iterator)
        return {metric.name: float(metric.result()) for metric in model.metrics}

    return validate


def _on_replicas(model: Objective, step: Callable[[tuple], dict[str, tf.Tensor]]) -> Callable[[Iterator], dict]:
    """A step with an iterator's next batch on every replica. Keras's own cannot hand scalars over between workers."""
    strategy = model.distribute_strategy

    @tf.function(reduce_retracing=True, jit_compile=model.jit_compile)
    def run(batch: tuple) -> dict[str, tf.Tensor]:
        logs = strategy.run(step, (batch,))
        return {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}

    return tf.function(lambda iterator: run(next(iterator)))


def _end_round(
    config: Config,
    model: Objective,
    checkpoints: Checkpoints,
    validate: Callable[[], dict[str, float]],
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    ledger = checkpoints.ledger
    found = validate()
    if not math.isfinite(found["rmse"]):
        raise _diverged(config, ledger.step, f"validation RMSE {found['rmse']}")
    logs = ledger.close_round() | {f"val_{name}": value for name, value in found.items()}
    for callback in callbacks:
        callback.on_epoch_end(ledger.step, logs)
    checkpoints.validated(found["rmse"], anyhow=not model.keeps_best)


def _check(
    logs: dict[str, float], model: Objective, config: Config, step: int, ids: Callable[[int], list[str]]
) -> None:
    """Ends a training that a step was not applied in, being not finite; with float16 that may pass, as its scale falls.

    Raises:
      ModelError: a loss is not finite, or gradients are not although they are not scaled up.
    """
    wrong = {name: value for name, value in logs.items() if not math.isfinite(value)}
    if wrong and (model.loss_scale < 1 or not all(name.startswith("gradient_norm") for name in wrong)):
        values = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise _diverged(config, step, f"{values}, records {','.join(ids(step))}")


def _diverged(config: Config, step: int, received: str) -> ModelError:
    return ModelError(
        f"the training diverged by step {step}; run it again with a lower --learning_rate: it goes "
        f"on from the last checkpoint, if there is one (another --model_dir begins anew). "
        f"Received: learning_rate={config.learning_rate:g}, {received}"
    )
