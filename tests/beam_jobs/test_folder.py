import pathlib
import pickle
import subprocess
import sys
import threading
import uuid

import cloud
import pytest

from beam_jobs.folder import Folder, StorageError
from harmonize_tf.errors import FlagError

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 2**20


@pytest.fixture(scope="module")
def bucket():
    with cloud.storage() as url:
        yield url


@pytest.fixture(params=["disk", "bucket"])
def where(request, tmp_path):
    """A place for folders, as a URL."""
    if request.param == "disk":
        return str(tmp_path)
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@pytest.fixture
def folder(where):
    return Folder(f"{where}/runs/examples[1]")


def elsewhere(folder, code):
    """Runs code that knows `folder` in another process."""
    program = f"import os, pickle; folder = pickle.loads({pickle.dumps(folder)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode


def test_what_is_written_is_read_whole_and_in_part_and_is_replaced(folder):
    folder.write("train/a.gz", b"0123456789")
    assert folder.read("train/a.gz") == b"0123456789"
    assert folder.read_range("train/a.gz", 2, 5) == b"234"
    assert folder.read_range("train/a.gz", 3, 3) == b""
    folder.write("train/a.gz", b"new")
    folder.write("empty", b"")
    assert folder.read("train/a.gz") == b"new"
    assert folder.sizes() == {"empty": 0, "train/a.gz": 3}


def test_chunks_of_any_number_make_one_file(folder):
    folder.write("big", (bytes([number]) * MIB for number in range(13)))
    folder.write("none", iter([]))
    assert folder.read("big") == b"".join(bytes([number]) * MIB for number in range(13))
    assert folder.read_range("big", 12 * MIB - 1, 12 * MIB + 1) == b"\x0b\x0c"
    assert folder.sizes() == {"big": 13 * MIB, "none": 0}


def test_a_writer_that_fails_half_way_leaves_what_was_there(folder):
    def chunks():
        yield b"x" * 6 * MIB
        raise OSError("no more")

    folder.write("old", b"old")
    for name in ("old", "new"):
        with pytest.raises(StorageError, match="no more"):
            folder.write(name, chunks())
    assert folder.read("old") == b"old"
    assert not folder.exists("new")
    assert folder.sizes() == {"old": 3}


def test_a_process_that_dies_while_it_writes_leaves_nothing_that_counts(folder):
    code = """
def chunks():
    yield b"x" * 6 * 2**20
    os._exit(7)
folder.write("new", chunks())
"""
    assert elsewhere(folder, code) == 7
    assert folder.sizes() == {}
    assert not folder.exists("new")


def test_readers_never_see_half_a_file(folder):
    def write():
        for number in range(60):
            folder.write("a", bytes([number]) * MIB)

    folder.write("a", b"\xff" * MIB)
    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while writer.is_alive():
        content = folder.read("a")
        assert len(content) == MIB
        assert content == content[:1] * MIB
        seen.add(content[0])
    assert len(seen) > 1


def test_threads_share_a_folder(folder):
    def write(number):
        folder.write(f"{number % 2}/{number}", bytes([number]))

    threads = [threading.Thread(target=write, args=[number]) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read_many(folder.sizes()) == {f"{number % 2}/{number}": bytes([number]) for number in range(24)}


def test_another_process_is_seen_at_once(folder):
    folder.write("train/a", b"1")
    assert folder.sizes() == {"train/a": 1}
    assert not folder.exists("train/b")
    assert elsewhere(folder, 'folder.write("train/b", b"22"); folder.delete(["train/a"])') == 0
    assert folder.exists("train/b")
    assert not folder.exists("train/a")
    assert folder.sizes() == {"train/b": 2}
    assert elsewhere(folder, 'folder.delete(["train/b"])') == 0
    assert not folder.sizes("train")


def test_sizes_of_a_folder_below_do_not_include_its_neighbours(folder, where):
    for name in ("train/deep/b", "train/a", "train.json", "training/c"):
        folder.write(name, b"1")
    Folder(f"{where}/runs/examples1").write("train/z", b"1")  # what examples[1] would match as a pattern
    assert folder.sizes("train") == {"train/a": 1, "train/deep/b": 1}
    assert list(folder.sizes()) == ["train.json", "train/a", "train/deep/b", "training/c"]
    assert folder.sizes("val") == {}
    assert folder.sizes("tra") == {}


def test_what_is_not_there_is_missing_not_wrong(folder):
    assert folder.sizes() == {}
    assert folder.sizes() == {}
    assert folder.read_many([]) == {}
    folder.delete(["a", "train/b"])
    folder.tidy()
    folder.write("train/a", b"1")
    assert not folder.exists("train")
    assert not folder.exists("train/a/b")
    for read in (
        lambda: folder.read("b"),
        lambda: folder.read_range("b", 0, 1),
        lambda: folder.read_many(["train/a", "b"]),
    ):
        with pytest.raises(FileNotFoundError):
            read()


def test_only_what_is_named_is_deleted(folder, where):
    neighbour = Folder(f"{where}/runs/examples1")
    for each in (folder, neighbour):
        each.write("train/a", b"1")
        each.write("train/b", b"1")
    folder.delete(["train/a", "train/nothing"])
    assert folder.sizes() == {"train/b": 1}
    assert neighbour.sizes() == {"train/a": 1, "train/b": 1}


def test_tidying_removes_what_was_staged_and_nothing_else(folder, where):
    neighbour = Folder(f"{where}/runs/examples1")
    for each in (folder, neighbour):
        each.write("_staging/left", b"1")
        each.write("train/a", b"1")
    assert folder.exists("_staging/left")
    folder.tidy()
    assert not folder.exists("_staging/left")
    assert folder.sizes() == {"train/a": 1}
    assert neighbour.exists("_staging/left")


def test_a_folder_that_can_be_written_is_still_empty_when_it_was_checked(folder):
    folder.check_writable()
    assert folder.sizes() == {}
    folder.write("a", b"")
    folder.check_writable()
    assert folder.sizes() == {"a": 0}


@pytest.mark.parametrize("name", ["", "/a", "../a", "train/../../a", "a//b", "./a", "train/"])
def test_names_stay_below_the_folder(folder, name):
    for use in (folder.read, folder.exists, lambda name: folder.write(name, b""), lambda name: folder.delete([name])):
        with pytest.raises(StorageError, match="expected the name of a file below the folder"):
            use(name)


def test_a_scheme_that_nobody_knows_is_told_at_once():
    folder = Folder("nope://bucket/a")
    for use in (folder.sizes, lambda: folder.read("b"), lambda: folder.write("b", b""), lambda: folder.delete(["b"])):
        with pytest.raises(StorageError, match="not known: nope.*Received: nope://bucket/a"):
            use()
    with pytest.raises(FlagError, match=r"written there \(Protocol not known: nope\); choose another --out"):
        folder.check_writable()


def test_a_file_in_the_way_is_told(folder, where):
    Folder(f"{where}/runs").write("examples[1]", b"")
    with pytest.raises(FlagError, match=r"a file has that name\); choose another --out. Received: out=.*examples\[1\]"):
        folder.check_writable()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gs://no-such-bucket/examples", "there is no such bucket"),
        ("/proc/nothing/examples", "No such file"),
        ("/dev/null/examples", "Not a directory"),
        ("hdtp://bucket/examples", "Protocol not known: hdtp"),
    ],
)
def test_where_nothing_can_be_written_a_line_says_so(bucket, url, told):
    with pytest.raises(FlagError, match=rf"nothing can be written there \(.*{told}.*choose another --out. Received: "):
        Folder(url).check_writable()


def test_a_relative_folder_is_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Folder("runs/one/")
    assert str(folder) == f"{tmp_path}/runs/one"
    monkeypatch.chdir("/")
    folder.write("a", b"1")
    assert (tmp_path / "runs/one/a").read_bytes() == b"1"


def test_the_url_of_a_bucket_stays_what_it_was():
    assert str(Folder("gs://bucket/runs/one/")) == "gs://bucket/runs/one"
