import os
import pathlib
import threading

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DebugOptions, DirectOptions, WorkerOptions
from apache_beam.runners.portability import prism_runner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_jobs import export_pairs, options
from harmonize_tf.errors import FlagError

DATAFLOW = "--runner=DataflowRunner"


def made(*argv, threads=3):
    return options.pipeline_options(argv, threads, [])


def test_beams_own_flags_reach_beam():
    given = made("--max_num_workers=7", "--experiments=a")
    assert given.view_as(WorkerOptions).max_num_workers == 7
    assert given.view_as(DirectOptions).direct_num_workers == 3


def test_beam_never_sees_a_flag_of_the_export():
    own = {prefix + name for name in export_pairs.FLAGS for prefix in ("", "no")}
    # Both plan the job and run nothing.
    assert own & options.beam_flags() <= {"dry_run"}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--mim_valid=3"], "did you mean --min_valid.*--mim_valid=3"),
        (["--nothing_like_it"], "no such flag; See"),
        (["stray"], "Received: stray"),
        (["--max_num_workers=many"], "Beam cannot use"),
    ],
)
def test_a_flag_that_nobody_knows_is_refused(argv, told):
    with pytest.raises(FlagError, match=told):
        options.pipeline_options(argv, 1, ["min_valid", "max_shift"])


@pytest.mark.parametrize("runner", [None, "DirectRunner", "directrunner", "direct", "SwitchingDirectRunner"])
def test_locally_the_job_runs_in_this_process_by_threads_and_never_on_prism(runner, monkeypatch):
    monkeypatch.setattr(prism_runner.PrismRunner, "run_pipeline", lambda *_: pytest.fail("Prism was asked"))
    given = made(*[f"--runner={runner}"] if runner else [])
    assert isinstance(options.pipeline(given).runner, FnApiRunner)
    assert len(workers(given)) == 3
    assert {process for process, _ in workers(given)} == {os.getpid()}
    assert options.processes(given) == 1


def test_in_memory_is_one_thread_of_this_process():
    given = made("--runner=DirectRunner", "--direct_running_mode=in_memory")
    assert len(workers(given)) == 1
    assert options.processes(given) == 1


@pytest.mark.parametrize("runner", [[], ["--runner=DirectRunner"]])
def test_multi_processing_is_in_as_many_processes_as_are_counted(runner, tmp_path):
    def note(_, folder):  # in here, so that it travels to processes that cannot import this file
        (pathlib.Path(folder) / str(os.getpid())).touch()

    given = made(*runner, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    with options.pipeline(given) as pipeline:
        pipeline | beam.Create(range(2)) | beam.Reshuffle() | beam.Map(note, os.fspath(tmp_path))
    seen = {path.name for path in tmp_path.iterdir()}
    assert len(seen) == options.processes(given) == 2
    assert str(os.getpid()) not in seen


def workers(given):
    """Processes and threads that work at the same time, on bundles that wait for one another."""
    count = given.view_as(DirectOptions).direct_num_workers
    if given.view_as(DirectOptions).direct_running_mode == "in_memory":
        count = 1
    seen, together = [], threading.Barrier(count, timeout=20)
    SHARED[:] = [seen, together]
    with options.pipeline(given) as pipeline:
        pipeline | beam.Create(range(count)) | beam.Reshuffle() | beam.Map(meet)
    return set(seen)


SHARED = []


def meet(_):
    seen, together = SHARED
    together.wait()
    seen.append((os.getpid(), threading.get_ident()))


@pytest.mark.parametrize(
    ("argv", "count"),
    [
        (["--direct_running_mode=multi_processing"], 3),
        (["--direct_running_mode=multi_processing", "--direct_num_workers=0"], os.cpu_count()),
        ([DATAFLOW, "--max_num_workers=5"], 5),
        ([DATAFLOW, "--max_num_workers=5", "--flexrs_goal=COST_OPTIMIZED"], 10),
        ([DATAFLOW, "--max_num_workers=5", "--num_workers=2", "--machine_type=n1-standard-4"], 20),
        ([DATAFLOW, "--max_num_workers=5", "--worker_machine_type=n2-highmem-8"], 40),
        (["--runner=dataflow", "--num_workers=3", "--autoscaling_algorithm=NONE", "--machine_type=e2-small"], 6),
        ([DATAFLOW, "--max_num_workers=2", "--machine_type=custom-6-8192"], 12),
        ([DATAFLOW, "--max_num_workers=2", "--machine_type=n2-custom-4-8192-ext"], 8),
        ([DATAFLOW, "--max_num_workers=2", "--machine_type=n2d-highcpu-16"], 32),
        ([DATAFLOW, "--max_num_workers=2", "--machine_type=c3-standard-8-lssd"], 16),
        (
            [DATAFLOW, "--max_num_workers=5", "--machine_type=n1-standard-4", "--experiments=use_sibling_sdk_workers"],
            20,
        ),
        (
            [DATAFLOW, "--max_num_workers=5", "--machine_type=any", "--experiments=no_use_multiple_sdk_containers"],
            5,
        ),
        (["--runner=PortableRunner"], 1),
        (["--runner=PortableRunner", "--sdk_worker_parallelism=4"], 4),
        (["--runner=PortableRunner", "--sdk_worker_parallelism=0"], 1),
        (["--runner=FlinkRunner"], 1),
    ],
)
def test_processes_are_counted_from_the_flags(argv, count):
    assert options.processes(made(*argv)) == count


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "give --max_num_workers. Received: max_num_workers=None"),
        (["--num_workers=4"], "give --max_num_workers. Received: max_num_workers=None"),
        (["--autoscaling_algorithm=NONE", "--max_num_workers=4"], "give --num_workers. Received: num_workers=None"),
        (["--max_num_workers=4", "--machine_type=a2-highgpu-1g"], "Received: machine_type=a2-highgpu-1g"),
        (["--max_num_workers=4", "--machine_type=n1-standard-0"], "Received: machine_type=n1-standard-0"),
    ],
)
def test_where_the_processes_cannot_be_counted_the_quota_is_not_shared_by_guess(argv, told):
    with pytest.raises(FlagError, match=told):
        options.share(made(DATAFLOW, *argv), 40)


def test_all_processes_together_stay_below_the_quota():
    for count in range(1, 41):
        share = options.share(made(DATAFLOW, f"--max_num_workers={count}"), 40)
        assert share >= 1
        assert 40 - count < share * count <= 40
    assert options.share(made(), 40) == 40


def test_more_processes_than_requests_are_refused_with_all_numbers():
    with pytest.raises(FlagError) as raised:
        options.share(made(DATAFLOW, "--max_num_workers=20", "--machine_type=n1-standard-4"), 40)
    for part in (
        "80 processes (20 by max_num_workers x 4 by machine_type=n1-standard-4)",
        "a smaller --max_num_workers or a smaller --machine_type, or a larger --ee_max_concurrent",
        "Received: ee_max_concurrent=40",
    ):
        assert part in str(raised.value)
    with pytest.raises(FlagError, match="3 by direct_num_workers.*a smaller --direct_num_workers"):
        options.share(made("--direct_running_mode=multi_processing"), 2)


def test_a_dataflow_process_holds_two_shards_at_a_time_unless_told_otherwise():
    def threads(*argv):
        return made(*argv).view_as(DebugOptions).number_of_worker_harness_threads

    assert threads(DATAFLOW) == 2
    assert threads(DATAFLOW, "--number_of_worker_harness_threads=12") == 12
    assert threads() is None
