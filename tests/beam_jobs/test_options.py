import pytest
from apache_beam.options.pipeline_options import DirectOptions, WorkerOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_jobs import options
from harmonize_tf.errors import FlagError


def test_beams_own_flags_reach_beam():
    made = options.pipeline_options(["--max_num_workers=7", "--experiments=a"], 3, [])
    assert made.view_as(WorkerOptions).max_num_workers == 7
    assert made.view_as(DirectOptions).direct_num_workers == 3


def test_without_a_runner_the_job_runs_in_this_process():
    assert isinstance(options.pipeline(options.pipeline_options([], 1, [])).runner, FnApiRunner)


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
