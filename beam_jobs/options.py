"""Beam's own flags, the runner, and how a job ends when a scene cannot be used."""

import argparse
import difflib
import logging
import re
from collections.abc import Iterable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from harmonize_tf import errors
from harmonize_tf.errors import FlagError, HarmonizeError

# What a worker's exception looks like in the text that runners make of it.
_RAISED = re.compile(r"harmonize_tf\.errors\.(\w+): (.*?)(?: \[while running|$)", re.MULTILINE)


def pipeline_options(argv: Sequence[str], threads: int, known: Iterable[str]) -> PipelineOptions:
    """Options from the flags that are not the command's own.

    Args:
      argv: what the command's own flags left.
      threads: worker threads of the local runner.
      known: names of the command's own flags, to suggest one for a misspelt flag.

    Raises:
      FlagError: Beam does not know one of them either.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for options in {str(cls): cls for cls in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(argv))
    except (argparse.ArgumentError, SystemExit) as error:
        raise FlagError(f"Beam cannot use its flags: {error}. Received: {' '.join(argv)}") from error
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0]
        near = difflib.get_close_matches(name, list(known), 1)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise FlagError(f"no such flag; {hint}See --help, and Beam's documentation. Received: {unknown[0]}")
    local = ["--direct_running_mode=multi_threading", f"--direct_num_workers={threads}"]
    return PipelineOptions([*local, *argv])


def pipeline(options: PipelineOptions) -> beam.Pipeline:
    """A pipeline on the runner that the options name, or in this process.

    Beam's own default is Prism, which it would download, and which takes no number of threads.
    """
    if options.view_as(StandardOptions).runner is None:
        _quieten()
        return beam.Pipeline(runner=FnApiRunner(), options=options)
    return beam.Pipeline(options=options)


def _quieten() -> None:
    """The local runner logs its stages, and a traceback of every error that it raises too."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    logging.getLogger("apache_beam.runners.worker").setLevel(logging.CRITICAL)


def user_error(error: Exception) -> HarmonizeError | None:
    """The error of `harmonize_tf.errors` that a worker raised, out of what the runner made of it."""
    found = _RAISED.findall(str(error))
    if not found:
        return None
    name, message = found[-1]
    return getattr(errors, name, HarmonizeError)(message)
