"""What lies in a bucket, on loopback, comes to this machine."""

import os

import cloud
import fsspec
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
    (target / "dataset_info.json").write_bytes(b"of another export")
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
    (tmp_path / "examples" / "dataset_info.json").write_bytes(b"of another export")
    source = Folder(tmp_path / "bucket")
    for name, content in FILES.items():
        source.write(name, content)

    def broken(self, name, start, stop):
        raise HarmonizeError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "read_range", broken)
        with pytest.raises(HarmonizeError, match="gone"):
            fetch.main([source.url, str(tmp_path / "examples")])
    assert contents(tmp_path / "examples") == {"dataset_info.json": b"of another export"}
    fetch.main([source.url, str(tmp_path / "examples")])
    assert contents(tmp_path / "examples") == FILES


@pytest.mark.parametrize("given", [["gs://bucket/one"], ["gs://bucket/one", "gs://bucket/two"], []])
def test_it_wants_two_folders_the_second_on_this_machine(given):
    with pytest.raises(FlagError, match="FROM TO"):
        fetch.main(given)


@pytest.fixture
def source(tmp_path):
    Folder(tmp_path / "source").write("dataset_info.json", b"{}")
    return str(tmp_path / "source")


def test_a_folder_of_ones_own_is_never_replaced(source, tmp_path, monkeypatch):
    own = tmp_path / "home"
    (own / "sub").mkdir(parents=True)
    (own / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(own)
    for target in (".", "../home", own / "thesis.txt", own / "thesis.txt" / "below"):
        with pytest.raises(HarmonizeError, match="Received: "):
            fetch.main([source, str(target)])
        assert contents(own) == {"thesis.txt": b"years of work"}
    fetch.main([source, "sub"])
    fetch.main([source, "sub"])
    assert contents(own / "sub") == {"dataset_info.json": b"{}"}


def test_what_cannot_be_a_file_here_and_what_nobody_can_read_is_told(tmp_path):
    fsspec.filesystem("memory").pipe("/bucket/odd/a//b", b"1")
    with pytest.raises(HarmonizeError, match="name='a//b'"):
        fetch.main(["memory://bucket/odd", str(tmp_path / "examples")])
    with pytest.raises(HarmonizeError, match="not known: nope"):
        fetch.main(["nope://bucket/odd", str(tmp_path / "examples")])
    assert not (tmp_path / "examples").exists()


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(FlagError, match="no files"):
        fetch.main([str(tmp_path / "nothing"), str(tmp_path / "examples")])
    assert list(tmp_path.iterdir()) == []
