"""What lies in a bucket, on loopback, comes to this machine."""

import os

import cloud
import pytest

from beam_jobs import fetch
from beam_jobs.folder import Folder
from harmonize_tf.errors import FlagError, HarmonizeError

FILES = {"dataset_info.json": b"{}", "train/00000.tfrecord.gz": os.urandom(3_000_000), "val/empty.gz": b""}


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_folder_of_a_bucket_is_fetched_whole_and_replaces_what_was_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "CHUNK", 1 << 20)
    target = tmp_path / "run" / "examples"
    target.mkdir(parents=True)
    (target / "old.gz").write_bytes(b"of another export")
    with cloud.storage() as bucket:
        for name, content in FILES.items():
            Folder(f"{bucket}/one/examples").write(name, content)
        fetch.main([f"{bucket}/one/examples", str(target)])
        assert contents(target) == FILES
        assert [path.name for path in target.parent.iterdir()] == ["examples"]
        assert "3 files, 3 MB" in capsys.readouterr().out


def test_a_fetch_that_breaks_off_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "old.gz").write_bytes(b"of another export")
    source = Folder(tmp_path / "bucket")
    for name, content in FILES.items():
        source.write(name, content)

    def broken(self, name, start, stop):
        raise HarmonizeError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "read_range", broken)
        with pytest.raises(HarmonizeError, match="gone"):
            fetch.main([source.url, str(tmp_path / "examples")])
    assert contents(tmp_path / "examples") == {"old.gz": b"of another export"}
    fetch.main([source.url, str(tmp_path / "examples")])
    assert contents(tmp_path / "examples") == FILES


@pytest.mark.parametrize("given", [["gs://bucket/one"], ["gs://bucket/one", "gs://bucket/two"], []])
def test_it_wants_two_folders_the_second_on_this_machine(given):
    with pytest.raises(FlagError, match="FROM TO"):
        fetch.main(given)


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(FlagError, match="no files"):
        fetch.main([str(tmp_path / "nothing"), str(tmp_path / "examples")])
    assert list(tmp_path.iterdir()) == []
