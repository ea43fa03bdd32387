import json
import pathlib
import re
import subprocess
import sys

import cloud
import ground_pairs
import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from beam_jobs import compute_statistics, export_pairs
from beam_jobs.folder import Folder
from harmonize_tf import records
from harmonize_tf.errors import DatasetError, FlagError, HarmonizeError, RecordError

SHARDS = 3
WRITTEN = {"anomalies.json", "flags.txt", "overview.html", "schema.pbtxt", "statistics.pbtxt"}


def write(folder, by_split) -> str:
    """An export of records, in shards, into a path or a bucket; returns where."""
    out = Folder(folder)
    for split, some in by_split.items():
        for shard in range(SHARDS):
            content = records.shard(records.encode(record) for record in some[shard::SHARDS])
            out.write(f"{split}/{shard:05}-of-{SHARDS:05}.tfrecord.gz", content)
    out.write("dataset_info.json", json.dumps(ground_pairs.info(by_split)).encode())
    return str(folder)


def test_a_simulated_export_raises_nothing(tmp_path):
    (tmp_path / "small.json").write_text('{"size": 7200}')
    flags = [f"--scenes={tmp_path / 'small.json'}", "--source=simulated", "--split=0.6,0.2,0.2", "--split_block=1920"]
    export_pairs.main([*flags, f"--out={tmp_path / 'examples'}"])
    assert run(tmp_path / "examples", tmp_path / "statistics")["anomalies"] == []


def run(data, out, *flags) -> dict:
    """Runs the job; returns anomalies.json with the exit status."""
    status = 0
    try:
        compute_statistics.main([f"--data={data}", f"--out={out}", *flags])
    except SystemExit as end:
        status = end.code
    return json.loads(Folder(out).read("anomalies.json")) | {"status": status}


@pytest.fixture(scope="module")
def by_split():
    return ground_pairs.splits(6, 4, 3)


@pytest.fixture(scope="module")
def data(by_split, tmp_path_factory):
    return write(tmp_path_factory.mktemp("run") / "examples", by_split)


@pytest.fixture(scope="module")
def done(data):
    out = pathlib.Path(data).parent / "statistics"
    return out, run(data, out)


def content(out) -> dict[str, bytes]:
    """What is written, without where it was read and written."""
    folder = Folder(out)
    found = {name: folder.read(name) for name in folder.sizes()}
    assert set(found) == WRITTEN
    del found["flags.txt"]
    return {name: re.sub(rb'[^\s"<>]*/examples', b"DATA", text) for name, text in found.items()}


def test_clean_records_end_well_and_all_files_are_there(done):
    out, told = done
    assert (told["status"], told["anomalies"]) == (0, [])
    assert {path.name for path in out.iterdir()} == WRITTEN
    assert told["counts"] == {"train": 6, "val": 4, "test": 3} and told["plan_sha256"] == "0" * 64
    datasets = text_format.Parse(
        (out / "statistics.pbtxt").read_text(), statistics_pb2.DatasetFeatureStatisticsList()
    ).datasets
    assert {one.name: one.num_examples for one in datasets} == {"train": 6, "val": 4, "test": 3}
    text_format.Parse((out / "schema.pbtxt").read_text(), schema_pb2.Schema())
    assert "No anomalies" in (out / "overview.html").read_text()


def test_the_number_of_threads_does_not_show(data, done, tmp_path):
    run(data, tmp_path / "out", "--direct_num_workers=5", "--runner=DirectRunner")
    assert content(tmp_path / "out") == content(done[0])


def test_a_bucket_gets_the_same_bytes_as_a_disk(by_split, done):
    with cloud.storage() as bucket:
        examples = write(f"{bucket}/run/examples", by_split)
        assert run(examples, f"{bucket}/run/statistics")["status"] == 0
        assert content(f"{bucket}/run/statistics") == content(done[0])
        assert not [name for name in Folder(bucket).sizes() if "_staging" in name]


def test_its_flags_repeat_it_and_what_was_there_is_replaced(done):
    before = content(done[0])
    (done[0] / "anomalies.json").write_text("old")
    compute_statistics.main([f"--flagfile={done[0] / 'flags.txt'}"])
    assert content(done[0]) == before


def test_a_leak_ends_with_status_3_and_is_written_down(by_split, tmp_path):
    write(tmp_path / "examples", {**by_split, "val": [*by_split["val"], ground_pairs.record(0, "val")]})
    told = run(tmp_path / "examples", tmp_path / "out")
    assert told["status"] == 3 and {one["kind"] for one in told["anomalies"]} == {"leakage"}
    assert told["anomalies"][0]["sentence"] in (tmp_path / "out" / "overview.html").read_text().replace("&#39;", "'")


def test_an_export_is_held_against_an_earlier_one(by_split, done, tmp_path):
    def brighter(record):
        return ground_pairs.with_codes(record, "sentinel", lambda codes: codes + 3000)

    write(tmp_path / "examples", ground_pairs.changed(by_split, brighter))
    told = run(tmp_path / "examples", tmp_path / "out", f"--baseline={done[0]}")
    assert ("drift", "sentinel/red") in {(one["kind"], one["feature"]) for one in told["anomalies"]}
    assert told["baseline"] == str(done[0])


def test_an_export_is_held_against_a_schema(data, done, tmp_path):
    schema = done[0] / "schema.pbtxt"
    assert run(data, tmp_path / "same", f"--schema={schema}")["anomalies"] == []
    (tmp_path / "schema.pbtxt").write_text(schema.read_text().replace("LANDSAT_8", "LANDSAT_9"))
    told = run(data, tmp_path / "out", f"--schema={tmp_path / 'schema.pbtxt'}")
    assert [one["feature"] for one in told["anomalies"]] == ["landsat/spacecraft"]


def test_a_damaged_file_is_named_in_one_line_and_nothing_is_written(by_split, tmp_path):
    write(tmp_path / "examples", by_split)
    path = tmp_path / "examples" / "val" / "00001-of-00003.tfrecord.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecordError, match=rf"cannot be read.*Received: {re.escape(str(path))}$") as error:
        compute_statistics.main([f"--data={tmp_path / 'examples'}", f"--out={tmp_path / 'out'}"])
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("flags", "error", "told"),
    [
        ([], FlagError, "--data is needed.*Received: data=None"),
        (["--data=D"], FlagError, "--out is needed"),
        (["--data=nowhere", "--out=O"], DatasetError, "dataset_info.json in it. Received: data=.*nowhere"),
        (["--data=D", "--out=D"], FlagError, "another --out"),
        (["--data=D", "--out=D/statistics"], FlagError, "another --out"),
        (["--data=D", "--out=O", "--baseline=O"], FlagError, "baseline would be overwritten"),
        (["--data=D", "--out=O", "--baseline=nowhere"], DatasetError, "no such file.*baseline=nowhere/stat"),
        (["--data=D", "--out=O", "--schema=nowhere.pbtxt"], DatasetError, "Received: schema=nowhere.pbtxt"),
        (["--data=D", "--out=O", "--schema=a", "--baseline=b"], FlagError, "one of them.*schema=a, baseline=b"),
        (["--data=D", "--out=O", "--schem=a"], FlagError, "did you mean --schema"),
        (["--data=D", "--out=O", "--runner=DataflowRunner"], FlagError, "buckets only"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_told_in_one_line(data, tmp_path, monkeypatch, flags, error, told):
    monkeypatch.chdir(tmp_path)
    flags = [
        flag.replace("=D", f"={data}").replace("=O", f"={tmp_path}/out") for flag in flags if "Dataflow" not in flag
    ]
    flags += ["--runner=DataflowRunner"] if "buckets" in told else []
    with pytest.raises(error, match=told) as caught:
        compute_statistics.main(flags)
    assert isinstance(caught.value, HarmonizeError) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "records of schema 1.*Received: schema=2"),
        ({"counts": None}, "expected the JSON that `harmonize export` writes"),
    ],
)
def test_an_export_of_another_kind_is_refused(tmp_path, change, told):
    write(tmp_path / "examples", {"train": []})
    info = tmp_path / "examples" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | change))
    with pytest.raises(DatasetError, match=told):
        compute_statistics.main([f"--data={tmp_path / 'examples'}", f"--out={tmp_path / 'out'}"])


def test_files_without_records_are_refused(tmp_path):
    write(tmp_path / "examples", {"train": []})
    with pytest.raises(DatasetError, match="hold none"):
        compute_statistics.main([f"--data={tmp_path / 'examples'}", f"--out={tmp_path / 'out'}"])


def test_a_workflow_sees_anomalies_by_an_exit_status_of_their_own(by_split, tmp_path):
    write(tmp_path / "examples", {"train": by_split["train"], "val": [ground_pairs.record(0, "val")]})
    flags = [f"--data={tmp_path / 'examples'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "harmonize_tf", "statistics", *flags]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == compute_statistics.ANOMALOUS == 3, found.stderr
    assert "leakage" in found.stderr and "Traceback" not in found.stderr
