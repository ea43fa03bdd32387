"""Beam's own flags and the runner."""

import argparse
import difflib
import logging
import warnings
from collections.abc import Iterable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from rasterio.errors import NotGeoreferencedWarning

from harmonize_tf.errors import FlagError


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
    """Silences what the local runner says of its stages."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    # rasterio silences it around its own arrays, by `warnings.catch_warnings`, which threads undo for one another.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
