"""`training/summary.json`: what a finished training came to, and what made it."""

import pathlib
from collections.abc import Mapping
from typing import Any

import harmonize_tf
from harmonize_tf import artifacts
from trainer.checkpoints import Ledger
from trainer.config import Config
from trainer.measure import Figures

FILE = "summary.json"


def write(
    config: Config, ledger: Ledger, validation: Mapping[str, Figures], replicas: int, flags: Mapping[str, Any]
) -> pathlib.Path:
    """Writes it aside and renames it.

    Args:
      config: of the run.
      ledger: the state at its end.
      validation: figures of the best weights and of the band-pass baseline, over the validation split, by name.
      replicas: how many shared each batch.
      flags: all of the command's, by name.

    Returns:
      The file.
    """
    examples = ledger.step * config.examples
    values = {
        "package_version": harmonize_tf.__version__,
        "flags": {name: value for name, value in sorted(flags.items()) if not name.startswith("help")},
        "model": config.model,
        "precision": config.precision,
        "ema": config.ema,
        "seed": config.seed,
        "replicas": replicas,
        "steps": ledger.step,
        "examples": examples,
        "seconds": round(ledger.seconds, 3),
        "examples_per_second": round(examples / max(ledger.seconds, 1e-9), 3),
        "best_step": ledger.best_step,
        "best_rmse": ledger.best,
        "validation": {name: figures.to_dict() for name, figures in validation.items()},
    }
    path = config.model_dir / FILE
    artifacts.write(path, artifacts.to_json(values))
    return path
