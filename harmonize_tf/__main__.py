"""`harmonize COMMAND [flags]`: looks the command's module up and runs it."""

import importlib
import sys

from harmonize_tf import command
from harmonize_tf.errors import FlagError

# Each command is also `python -m MODULE`. Modules are imported only when asked for: TensorFlow takes seconds.
COMMANDS = {
    "demo": ("harmonize_tf.demo", "the whole way on real samples: export, train, evaluate, push, serve, scene"),
    "run": (
        "harmonize_tf.run",
        "from scenes to a model that a server was seen to serve, each step only if it has to be",
    ),
    "samples": ("harmonize_tf.sources.samples", "fetch real sample scenes into a cache"),
    "check": ("harmonize_tf.check", "tell what is wrong with scenes, records or a model before they are used"),
    "export": ("beam_jobs.export_pairs", "paired patches from scenes to TFRecords, by Apache Beam"),
    "fetch": ("beam_jobs.fetch", "what a job wrote into a bucket, to this machine"),
    "statistics": ("beam_jobs.compute_statistics", "what is in an export, and what is wrong with it"),
    "estimate-blur": ("harmonize_tf.estimate_blur", "measure how much blurrier than Sentinel-2 Landsat is"),
    "train": ("trainer.task", "train a model on exported patches"),
    "evaluate": ("trainer.evaluate", "judge models and baselines on the test split"),
    "push": ("serving.export", "write a trained model as a SavedModel version for TensorFlow Serving"),
    "verify": ("serving.verify", "whether an exported version, or a server of it, answers as the model did"),
    "serve": ("serving.server", "development server with TensorFlow Serving's gRPC API"),
    "scene": ("serving.scene", "a Landsat scene in, a Cloud Optimized GeoTIFF at 10 m out"),
    "scenes": ("beam_jobs.harmonize_scenes", "scenes by the thousand, by Apache Beam: a list in, GeoTIFFs out"),
}


def main() -> None:
    """Entry point of the console script."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print("usage: harmonize COMMAND [flags]      (harmonize COMMAND --help lists a command's flags)\n")
        for known, (module, summary) in COMMANDS.items():
            print(f"  {known:<14} {summary}  [python -m {module}]")
        return
    command.run(lambda: _run(name, sys.argv[2:]))


def _run(name: str, argv: list[str]) -> None:
    if name not in COMMANDS:
        raise FlagError(f"no such command; expected one of {', '.join(COMMANDS)}. Received: {name!r}")
    importlib.import_module(COMMANDS[name][0]).main(argv)


if __name__ == "__main__":
    main()
