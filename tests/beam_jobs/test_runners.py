"""That tests/cloud.py stands in for what it says, with pipelines of a line."""

import io
import os
import pathlib
import tarfile

import apache_beam as beam
import cloud
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.runners.runner import PipelineState

from beam_jobs import options
from beam_jobs.folder import Folder


def sent(argv, values, function):
    """The result of a pipeline that applies a function to values."""
    pipeline = options.pipeline(options.pipeline_options(argv, 2, []))
    pipeline | beam.Create(values) | beam.Reshuffle() | beam.Map(function)
    result = pipeline.run()
    result.wait_until_finish()
    return result


def counters(result):
    counted = result.metrics().query(MetricsFilter().with_namespace("test"))["counters"]
    return {counter.key.metric.name: counter.committed for counter in counted}


def writer(folder):
    """A function that travels to processes that cannot import this file."""

    def write(value):
        Metrics.counter("test", "written").inc()
        Metrics.counter("test", "sum").inc(value)
        folder.write(f"{value}", f"{os.getpid()} {os.environ.get('FROM_THE_TEST')}".encode())

    return write


@pytest.mark.parametrize(
    "flags", [[], ["--direct_running_mode=multi_processing"], ["--runner=PortableRunner"]], ids=str
)
def test_wherever_workers_run_they_write_to_the_bucket_and_counters_come_back(flags, monkeypatch):
    monkeypatch.setenv("FROM_THE_TEST", "seen")
    with cloud.storage() as bucket, cloud.portable() as portable:
        folder = Folder(f"{bucket}/out")
        result = sent(portable if "--runner=PortableRunner" in flags else flags, [1, 2, 3], writer(folder))
        assert result.state == PipelineState.DONE
        assert counters(result) == {"written": 3, "sum": 6}
        written = folder.read_many(["1", "2", "3"])
    assert {content.split()[1] for content in written.values()} == {b"seen"}
    assert (str(os.getpid()).encode() in {content.split()[0] for content in written.values()}) == (not flags)


def test_a_portable_worker_that_fails_fails_the_job():
    def fail(value):
        raise ValueError(f"not {value}")

    with cloud.portable() as flags, pytest.raises(RuntimeError, match="not 7"):
        sent(flags, [7], fail)


def test_dataflow_gets_the_job_as_the_flags_describe_it():
    flags = ["--max_num_workers=4", "--machine_type=n1-standard-2"]
    with cloud.storage() as bucket, cloud.dataflow() as dataflow:
        more = [f"--temp_location={bucket}/tmp", f"--setup_file={cloud.ROOT / 'setup.py'}"]
        result = sent([*dataflow.flags, *flags, *more], [1], print)
        assert result.state == PipelineState.DONE
        folder = Folder(f"{bucket}/tmp")
        staged = {pathlib.PurePath(name).name: name for name in folder.sizes()}
        with tarfile.open(fileobj=io.BytesIO(folder.read(staged["workflow.tar.gz"]))) as package:
            shipped = {name.partition("/")[2] for name in package.getnames()}
    (job,) = dataflow.jobs
    environment = job["environment"]
    (pool,) = environment["workerPools"]
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 4
    assert pool["machineType"] == "n1-standard-2"
    assert pool["numThreadsPerWorker"] == options.DATAFLOW_THREADS
    # What `options.processes` counts with: a process on each vCPU.
    assert [image["useSingleCorePerContainer"] for image in pool["sdkHarnessContainerImages"]] == [True]
    assert "use_multiple_sdk_containers" in environment["experiments"]
    assert {"pipeline.pb", *(package["name"] for package in pool["packages"])} <= set(staged)
    assert {"setup.py", "pyproject.toml", "beam_jobs/folder.py", "harmonize_tf/records.py"} <= shipped


def test_nothing_is_left_behind():
    before = dict(os.environ)
    with cloud.storage("one") as first:
        Folder(f"{first}/x").write("a", b"1")
        assert FileSystems.exists(f"{first}/x/a")
    with cloud.storage("two") as second, cloud.portable(), cloud.dataflow():
        assert Folder(f"{first}/x").sizes() == {}
        Folder(f"{second}/x").write("a", b"2")
        assert FileSystems.exists(f"{second}/x/a")
        assert not FileSystems.exists(f"{first}/x/a")
    assert dict(os.environ) == before
