"""The export into a bucket and on other engines, all of them on loopback."""

import hashlib
import json

import cloud
import pytest
from earth_engine import loopback_only  # noqa: F401

from beam_jobs import export_pairs
from beam_jobs.folder import Folder
from harmonize_tf.errors import FlagError
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.testing.earth_engine_emulator import Emulator
from harmonize_tf.testing.ee_limits import Fault

FLAGS = [
    "--source=earthengine", "--area=10,45,14,53", "--start=2022-06-01", "--end=2022-08-01", "--split_block=1920",
    "--split=0.6,0.2,0.2", "--shard_examples=6", "--request_side=2",
]  # fmt: skip
PROJECT = "--ee_project=emulator-project"


@pytest.fixture(scope="module")
def emulator():
    with Emulator(SimulatedSource(size=9600, clouds=0.7, nodata=True)) as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def no_faults(emulator):
    emulator.faults = []


def export(emulator, out, *more):
    export_pairs.main([*FLAGS, f"--ee_url={emulator.url}", f"--out={out}", *more])


def digests(out) -> dict[str, str]:
    """Of everything in an export that its flags and scenes decide."""
    folder = Folder(out)
    names = [n for n in folder.sizes() if n.endswith((".gz", "plan.jsonl", "rejected.jsonl", "dead.jsonl"))]
    return {name: hashlib.sha256(content).hexdigest() for name, content in folder.read_many(names).items()}


@pytest.fixture(scope="module")
def local(emulator, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "examples"
    export(emulator, out, PROJECT)
    return digests(out)


def test_a_portable_runner_with_its_own_worker_gives_the_same_bytes(emulator, local, tmp_path):
    with cloud.portable() as flags:
        export(emulator, tmp_path / "examples", PROJECT, *flags)
    assert digests(tmp_path / "examples") == local


@pytest.mark.parametrize("runner", [[], ["--direct_running_mode=multi_processing"]], ids=["threads", "processes"])
def test_a_bucket_gets_the_same_bytes_as_a_disk_and_an_export_there_goes_on(emulator, local, runner):
    with cloud.storage() as bucket:
        out = f"{bucket}/runs/one/examples"
        emulator.faults = [Fault(503, "computePixels", share=0.3, seed=1)]
        with pytest.raises(FlagError, match="run the same command again"):
            export(emulator, out, PROJECT, "--ee_attempts=1", *runner)
        assert not Folder(out).exists("dataset_info.json")
        emulator.faults, asked = [], len(emulator.log)
        dead = Folder(out).read("dead.jsonl").splitlines()
        export(emulator, out, PROJECT, *runner)
        pixels = [request for request in emulator.log[asked:] if "computePixels" in request.path]
        # A side that the first job no longer waited for, its square being dead, may come late.
        assert 3 * len(dead) <= len(pixels) <= 3 * len(dead) + 3 and dead
        assert digests(out) == local
        assert not [name for name in Folder(bucket).sizes() if "_staging" in name]
        asked = len(emulator.log)
        export(emulator, out, PROJECT, *runner)
        assert len(emulator.log) == asked, "it is there already"


def test_another_export_takes_a_buckets_place_only_when_asked_and_finished(emulator, local):
    with cloud.storage() as bucket:
        out = f"{bucket}/examples"
        export(emulator, out, PROJECT)
        with pytest.raises(FlagError, match="min_valid=0.5 there, 0.9 now"):
            export(emulator, out, PROJECT, "--min_valid=0.9")
        emulator.faults = [Fault(404, "computePixels")]
        with pytest.raises(FlagError, match="could not be fetched"):
            export(emulator, out, PROJECT, "--min_valid=0.9", "--overwrite")
        assert digests(out) == local
        emulator.faults = []
        export(emulator, out, PROJECT, "--min_valid=0.9", "--overwrite", "--retry_dead")
        folder = Folder(out)
        assert json.loads(folder.read("dataset_info.json"))["flags"]["min_valid"] == 0.9
        assert len(folder.sizes("shards")) == len(json.loads(folder.read("job.json"))["tasks"])
        assert all(name.startswith("examples/") for name in Folder(bucket).sizes())


def test_a_bucket_that_is_not_there_is_told(emulator):
    with cloud.storage(), pytest.raises(FlagError, match="no such bucket.*another --out"):
        export(emulator, "gs://elsewhere/examples", PROJECT)


def test_dataflow_gets_a_job_that_keeps_within_the_quota(emulator):
    with cloud.storage() as bucket, cloud.dataflow() as dataflow:
        flags = [*dataflow.flags, f"--temp_location={bucket}/tmp", f"--setup_file={cloud.ROOT / 'setup.py'}"]
        workers = ["--max_num_workers=5", "--machine_type=n1-standard-4"]
        with pytest.raises(FlagError, match="20 processes.*max_num_workers.*Received: ee_max_concurrent=10"):
            export(emulator, f"{bucket}/examples", *flags, *workers, "--ee_max_concurrent=10")
        with pytest.raises(FlagError, match="--max_num_workers"):
            export(emulator, f"{bucket}/examples", *flags)
        assert not dataflow.jobs
        # The job that this endpoint says is done has made no shard.
        with pytest.raises(FlagError, match="shards are not there yet; run the same command again"):
            export(emulator, f"{bucket}/examples", *flags, *workers, "--ee_max_concurrent=40")
        (job,) = dataflow.jobs
        (pool,) = job["environment"]["workerPools"]
        assert pool["autoscalingSettings"]["maxNumWorkers"] == 5 and pool["machineType"] == "n1-standard-4"
        assert pool["numThreadsPerWorker"] == 2
        staged = {package["name"] for package in pool["packages"]}
        assert "workflow.tar.gz" in staged
        folder = Folder(f"{bucket}/examples")
        assert folder.exists("plan.jsonl") and folder.exists("job.json")


def test_dataflow_takes_the_workers_image_that_is_given(emulator):
    with cloud.storage() as bucket, cloud.dataflow() as dataflow:
        image = "europe-docker.pkg.dev/project/images/harmonize:0.1"
        flags = [f"--temp_location={bucket}/tmp", f"--sdk_container_image={image}", "--max_num_workers=2"]
        with pytest.raises(FlagError, match="not there yet"):
            export(emulator, f"{bucket}/examples", *dataflow.flags, *flags)
        (pool,) = dataflow.jobs[0]["environment"]["workerPools"]
        assert [x["containerImage"] for x in pool["sdkHarnessContainerImages"]] == [image]
