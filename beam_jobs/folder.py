"""A folder that a job writes into: on this machine's disk, or in a bucket such as gs://bucket/runs/one/examples."""

import contextlib
import errno
import functools
import logging
import os
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

# Read when gcsfs is first imported. For the sake of zonal buckets it asks of what kind each is, over gRPC, before every
# call until it knows; an emulator does not answer, which takes 60 s (measured with gcsfs 2026.10.1).
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from harmonize_tf.errors import FlagError, HarmonizeError

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it raises all that it logs

STAGING = "_staging"
CHUNK = 1 << 24  # bytes of a file that is put into a bucket, held in memory
AT_ONCE = 16  # requests that `read_many` and `delete` have in flight

ATTEMPTS, PAUSE_S = 4, 0.5  # of what fails for passing reasons, beside gcsfs's own; the pauses double
LASTING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip

_Result = TypeVar("_Result")


class StorageError(HarmonizeError):
    """Something cannot be read or written.

    Attributes:
      lasting: whether it has to be mended by a person, as a full disk has.
    """

    lasting = False


def _told(error: Exception, folder: "Folder", lasting: bool) -> StorageError:
    told = StorageError(
        f"{error or type(error).__name__}; mend that, then run the same command again. Received: {folder}"
    )
    told.lasting = lasting
    return told


def _lasts(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in LASTING


def _patient(method: Callable[..., _Result]) -> Callable[..., _Result]:
    """A method of `Folder` that tries again, and ends in a `StorageError`; that a file is not there is an answer."""

    @functools.wraps(method)
    def tried(self: "Folder", *args: Any) -> _Result:
        for attempt in range(ATTEMPTS):
            try:
                return method(self, *args)
            except (FileNotFoundError, StorageError):
                raise
            except Exception as error:  # each filesystem raises what it likes
                if _lasts(error) or attempt == ATTEMPTS - 1:
                    raise _told(error, self, _lasts(error)) from error
                time.sleep(PAUSE_S * 2**attempt)
        raise AssertionError

    return tried


class Folder:
    """Files by their names, such as train/00000.tfrecord.gz.

    It holds its URL and nothing else: processes may pass it around, threads may share it. Every answer is fresh.
    """

    def __init__(self, url: str | os.PathLike) -> None:
        """Takes a path, which other processes then see from the same place, or a URL."""
        scheme, remote, rest = os.fspath(url).partition("://")
        self.url = scheme + remote + rest.rstrip("/") if remote else os.path.realpath(url)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The filesystem, of which fsspec keeps one a process, and the folder's path in it."""
        try:
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:  # of no known kind, or one whose library is not installed
            raise _told(error, self, lasting=True) from error
        return fs, root.rstrip("/")

    def _find(self, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise StorageError(
                "expected the name of a file below the folder, such as train/00000.gz; rename it. "
                f"Received: name={name!r} in {self}"
            )
        fs, root = self._opened
        return fs, f"{root}/{name}"

    def check_writable(self) -> None:
        """Writes and removes a small file, and leaves nothing behind.

        Raises:
          FlagError: nothing can be written there.
        """
        try:
            fs, root = self._opened
            if fs.isfile(root):
                raise NotADirectoryError("a file has that name")
            places = pathlib.Path(root, STAGING), pathlib.Path(root), *pathlib.Path(root).parents
            new = [place for place in places if isinstance(fs, LocalFileSystem) and not place.exists()]
            probe = f"{STAGING}/{uuid.uuid4().hex}"
            self._write(probe, [b""])
            self.delete([probe])
            for place in new:
                place.rmdir()
        except Exception as error:  # each filesystem and its credentials raise what they like
            missing = isinstance(error, FileNotFoundError) and "://" in self.url
            cause = (isinstance(error, StorageError) and error.__cause__) or error
            reason = "there is no such bucket" if missing else str(cause) or type(cause).__name__
            raise FlagError(
                f"nothing can be written there ({reason}); choose another --out. Received: out={self}"
            ) from error

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Writes a file, or replaces it. Nobody ever sees half of it, whatever ends this process.

        Args:
          name: of the file.
          content: of the file; or the chunks of it, which cannot be tried a second time.

        Raises:
          StorageError: it cannot be written.
        """
        if isinstance(content, bytes):
            _patient(Folder._write)(self, name, [content])
        else:
            try:
                self._write(name, content)
            except OSError as error:
                raise _told(error, self, _lasts(error)) from error

    def _write(self, name: str, chunks: Iterable[bytes]) -> None:
        fs, path = self._find(name)
        _, staged = self._find(f"{STAGING}/{uuid.uuid4().hex}")
        local = isinstance(fs, LocalFileSystem)
        if local:
            for each in (path, staged):
                os.makedirs(os.path.dirname(each), exist_ok=True)
        try:
            with fs.open(staged, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            if local:
                os.replace(staged, path)  # fsspec's own `mv` may copy
            else:
                fs.cp_file(staged, path)  # within the bucket, by the service
        finally:
            with contextlib.suppress(Exception):  # what is left behind `tidy` removes
                fs.rm_file(staged)

    @contextlib.contextmanager
    def workplace(self, name: str) -> Iterator[pathlib.Path]:
        """A folder on this machine for files that belong below `name` here: that very folder, or one for a bucket.

        Raises:
          StorageError: the disk is full, or the like.
        """
        fs, path = self._find(name)
        with contextlib.ExitStack() as stack:
            try:
                if isinstance(fs, LocalFileSystem):
                    os.makedirs(path, exist_ok=True)
                    stack.callback(_remove_if_empty, path)
                else:
                    path = stack.enter_context(tempfile.TemporaryDirectory())
            except OSError as error:
                raise _told(error, self, lasting=True) from error
            yield pathlib.Path(path)

    def store(self, files: Mapping[str, pathlib.Path]) -> None:
        """Puts files from their workplace here; on this disk they are here already.

        Args:
          files: where each is, by its name here. The last, which describes the others, goes first and comes last.
        """
        fs, _ = self._opened
        if not isinstance(fs, LocalFileSystem):
            self.delete([*files][-1:])
            for name, path in files.items():
                self._put(name, path)

    @_patient
    def _put(self, name: str, path: pathlib.Path) -> None:
        with path.open("rb") as file:
            self._write(name, iter(lambda: file.read(CHUNK), b""))

    @_patient
    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
          FileNotFoundError: there is no such file.
        """
        fs, path = self._find(name)
        return fs.cat_file(path)

    @_patient
    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop` of a file, which has that many.

        Raises:
          FileNotFoundError: there is no such file.
        """
        fs, path = self._find(name)
        return fs.cat_file(path, start=start, end=stop)

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Content by name, read `AT_ONCE` at a time.

        Raises:
          FileNotFoundError: one of them is not there.
        """
        names = list(names)
        return dict(zip(names, _at_once(self.read, names), strict=True))

    @_patient
    def sizes(self, below: str = "") -> dict[str, int]:
        """Size in bytes of every finished file by its name, sorted, from one listing.

        Args:
          below: name of the folder in this one that is looked through, and those in it; all by default.
        """
        fs, root = self._opened
        try:
            found = fs.find(self._find(below)[1] if below else root, detail=True)
        except FileNotFoundError:
            return {}
        names = {path.removeprefix(f"{root}/"): info["size"] for path, info in found.items()}
        # In buckets, names that end in a slash are folders made by hand.
        return {name: names[name] for name in sorted(names) if name[-1] != "/" and not name.startswith(f"{STAGING}/")}

    @_patient
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        fs, path = self._find(name)
        try:
            return fs.info(path)["type"] == "file"
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files, those that are there."""

        def delete(name: str) -> None:
            fs, path = self._find(name)
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)

        _at_once(delete, list(names))

    @_patient
    def take_over(self, other: "Folder", last: str) -> None:
        """Replaces what is here by what is in another folder of the same filesystem, which is gone then.

        In a bucket files are moved one by one: `last`, which says that all are there, goes first and comes last. What
        breaks it off leaves `last` in the other folder, and it can be done again.
        """
        fs, root = self._opened
        _, theirs = other._opened
        if isinstance(fs, LocalFileSystem):
            parent, name = os.path.split(root)
            old = f"{parent}/.{name}.replaced"
            shutil.rmtree(old, ignore_errors=True)
            if os.path.exists(root):
                os.rename(root, old)
            os.rename(theirs, root)
            shutil.rmtree(old, ignore_errors=True)
            return
        names = other.sizes()
        if last in names:  # else a takeover was broken off at its end
            self.delete([last])
            self.delete(name for name in self.sizes() if name not in names)
            _at_once(lambda name: fs.cp_file(f"{theirs}/{name}", f"{root}/{name}"), [n for n in names if n != last])
            fs.cp_file(f"{theirs}/{last}", f"{root}/{last}")
            other.delete([last])
        other.delete(names)
        other.tidy()

    def tidy(self) -> None:
        """Removes what broken jobs have left. No other job may be writing into this folder."""
        fs, staging = self._find(STAGING)
        if isinstance(fs, LocalFileSystem):
            shutil.rmtree(staging, ignore_errors=True)
        else:
            self.delete(f"{STAGING}/{pathlib.PurePosixPath(path).name}" for path in fs.find(staging))


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _at_once(function: Callable[[str], _Result], names: list[str]) -> list[_Result]:
    """Results in the order of the names; the first error, when all have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, names))
