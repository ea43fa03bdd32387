"""Beam's own flags, the runner, and how many processes it makes that share Earth Engine's quota."""

import argparse
import difflib
import logging
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence

import apache_beam as beam
from absl import flags
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from rasterio.errors import NotGeoreferencedWarning

from harmonize_tf.errors import FlagError

# Threads of a Dataflow worker's process, each of which holds a shard, some 120 MB, in memory. Dataflow's own choice is
# 12, in 3.75 GB on its default machine.
DATAFLOW_THREADS = 2
_LOCAL = ("direct", "switchingdirect", "fnapi")
_SHARED_CORE = {"f1-micro": 1, "g1-small": 1, "e2-micro": 2, "e2-small": 2, "e2-medium": 2}
_MACHINE = re.compile(
    r"(?:\w+-custom|custom|\w+-(?:standard|highmem|highcpu|megamem|hypermem|ultramem))-(?P<cpus>[1-9]\d*)(?:-\w+)*"
)


def pipeline_options(argv: Sequence[str], threads: int, known: Iterable[str]) -> PipelineOptions:
    """Options from the flags that are not the command's own.

    Args:
      argv: what the command's own flags left.
      threads: worker threads of the local runner, or processes of it with `--direct_running_mode=multi_processing`.
      known: names of the command's own flags, to suggest one for a misspelt flag.

    Raises:
      FlagError: Beam does not know one of them either.
    """
    try:
        _, unknown = _parser().parse_known_args(list(argv))
    except (argparse.ArgumentError, SystemExit) as error:
        raise FlagError(f"Beam cannot use its flags: {error}. Received: {' '.join(argv)}") from error
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0]
        near = difflib.get_close_matches(name, list(known), 1)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise FlagError(f"no such flag; {hint}See --help, and Beam's documentation. Received: {unknown[0]}")
    local = ["--direct_running_mode=multi_threading", f"--direct_num_workers={threads}"]
    options = PipelineOptions([*local, *argv])
    debug = options.view_as(DebugOptions)
    if on_dataflow(options) and debug.number_of_worker_harness_threads is None:
        debug.number_of_worker_harness_threads = DATAFLOW_THREADS
    return options


def as_text(own: flags.FlagValues, argv: Sequence[str]) -> str:
    """A command's own flags in force and those for Beam, as `--flagfile` reads them."""
    return own.flags_into_string() + "".join(f"{each}\n" for each in argv)


def beam_flags() -> set[str]:
    """Names of all flags of Beam, without dashes."""
    return {name.lstrip("-") for action in _parser()._actions for name in action.option_strings}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for options in {str(cls): cls for cls in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)
    return parser


def pipeline(options: PipelineOptions) -> beam.Pipeline:
    """A pipeline on the runner that the options name, or in this process.

    Beam's own default, and its DirectRunner, is Prism, which it would download, and which takes no number of threads.
    """
    if _runner(options) in _LOCAL:
        _quieten()
        return beam.Pipeline(runner=FnApiRunner(), options=options)
    return beam.Pipeline(options=options)


def in_this_process(options: PipelineOptions) -> bool:
    """Whether the job runs in this process, by threads or one after the other."""
    return _runner(options) in _LOCAL and processes(options) == 1


def on_dataflow(options: PipelineOptions) -> bool:
    """Whether the job runs on Dataflow."""
    return _runner(options) == "dataflow"


def check_given(*needed: flags.FlagHolder) -> None:
    """Refuses a command line without one of these flags.

    Raises:
      FlagError: one has no value.
    """
    for flag in needed:
        if not flag.value:
            raise FlagError(f"--{flag.name} is needed. See --help. Received: {flag.name}={flag.value}")


def check_reachable(name: str, folder: str, options: PipelineOptions) -> None:
    """Refuses a folder, a flag's value, that workers elsewhere cannot see.

    Raises:
      FlagError: it is on this machine, and they are not.
    """
    if on_dataflow(options) and "://" not in folder:
        raise FlagError(
            f"Dataflow's workers see buckets only; give --{name}=gs://BUCKET/{folder}. Received: {name}={folder}"
        )


def processes(options: PipelineOptions) -> int:
    """In how many processes a job may run at once.

    On this machine that is 1, or `--direct_num_workers` with `--direct_running_mode=multi_processing`. With the
    PortableRunner it is `--sdk_worker_parallelism`. For other runners, such as Flink's and Spark's, nothing in the
    options tells: it is taken as 1.

    On Dataflow it is the most workers times the processes of each. Python workers run a process on each vCPU: the
    SDK's environments lack the capability MULTI_CORE_BUNDLE_PROCESSING, hence `use_single_core_per_container`, and
    the experiment `use_multiple_sdk_containers` is added unless there is `no_use_multiple_sdk_containers`, which
    means one process (Beam 2.77, runners/dataflow/internal/apiclient.py, `Environment.__init__`;
    https://cloud.google.com/dataflow/docs/guides/troubleshoot-oom). `use_sibling_sdk_workers` puts the same number
    of processes into one container.

    Raises:
      FlagError: the number of workers is left to Dataflow, whose own limit is thousands, or the machine type is not
        known.
    """
    return math.prod(_factors(options).values())


def share(options: PipelineOptions, most: int) -> int:
    """Requests that one process may have in flight, so that all processes together never have more than `most`.

    Raises:
      FlagError: there are more processes than requests, or nobody knows how many there are (see `processes`).
    """
    factors = _factors(options)
    count = math.prod(factors.values())
    if count > most:
        product = " x ".join(f"{number} by {flag}" for flag, number in factors.items())
        fewer = " or ".join(f"a smaller --{flag.split('=')[0]}" for flag in factors)
        raise FlagError(
            f"expected at least one request for each process, and there may be {count} processes ({product}). Use "
            f"{fewer}, or a larger --ee_max_concurrent if the project's quota allows. Received: "
            f"ee_max_concurrent={most}"
        )
    return most // count


def _factors(options: PipelineOptions) -> dict[str, int]:
    """What the number of processes is the product of, by the flags that decide it."""
    runner, direct = _runner(options), options.view_as(DirectOptions)
    if runner in _LOCAL and direct.direct_running_mode == "multi_processing":
        return {"direct_num_workers": direct.direct_num_workers or os.cpu_count() or 1}
    if runner == "portable":
        return {"sdk_worker_parallelism": int(options.view_as(PortableOptions).sdk_worker_parallelism or 0) or 1}
    if runner == "dataflow":
        return _dataflow(options)
    return {}


def _dataflow(options: PipelineOptions) -> dict[str, int]:
    worker = options.view_as(WorkerOptions)
    flag = "num_workers" if worker.autoscaling_algorithm == "NONE" else "max_num_workers"
    workers = getattr(worker, flag)
    if not workers:
        raise FlagError(
            "without a limit Dataflow may start thousands of workers, and Earth Engine's quota cannot be shared out "
            f"among them; give --{flag}. Received: {flag}={workers}"
        )
    if "no_use_multiple_sdk_containers" in (options.view_as(DebugOptions).experiments or []):
        return {flag: workers}
    # Dataflow's own default, which is one size larger with flexible scheduling.
    default = "n1-standard-2" if options.view_as(GoogleCloudOptions).flexrs_goal else "n1-standard-1"
    machine = worker.machine_type or default
    return {flag: workers, f"machine_type={machine}": _cpus(machine)}


def _cpus(machine: str) -> int:
    """Virtual CPUs of a machine type of Compute Engine, from its name."""
    if machine in _SHARED_CORE:
        return _SHARED_CORE[machine]
    if match := _MACHINE.fullmatch(machine):
        return int(match["cpus"])
    raise FlagError(
        "the number of vCPUs, each of which runs a process, cannot be told from the machine type's name; choose one "
        f"such as n1-standard-4 or n2-custom-4-8192. Received: machine_type={machine}"
    )


def _runner(options: PipelineOptions) -> str:
    """The runner's name as Beam looks it up: in lower case, with or without `Runner` and its module."""
    name = options.view_as(StandardOptions).runner or "DirectRunner"
    return name.rsplit(".", 1)[-1].lower().removesuffix("runner")


def _quieten() -> None:
    """Silences what the local runner says of its stages."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    # rasterio silences it around its own arrays, by `warnings.catch_warnings`, which threads undo for one another.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
