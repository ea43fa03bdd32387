"""Where a scene's files lie together: a directory, a tar file, a web server's folder, a bucket."""

import collections
import copy
import functools
import os
import pathlib
import posixpath
import tarfile
import urllib.parse
from typing import Any, Protocol

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from harmonize_tf.errors import SceneError
from harmonize_tf.sources import rasters

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Folder(Protocol):
    """A place whose files are known by name; `str` tells where it is."""

    def names(self) -> list[str] | None:
        """What is there, sorted; None where that cannot be asked.

        Raises:
          SceneError: it cannot be read.
        """

    def text(self, name: str) -> str:
        """A file's content.

        Raises:
          SceneError: it cannot be read.
        """

    def raster(self, name: str) -> str:
        """What `rasters.open_raster` opens; a name that is a URL stands for itself, in a directory a path does too."""


def locate(given: str | os.PathLike) -> tuple[Folder, str | None]:
    """The folder at a path or URL, or the one that holds the file there and the file's name.

    Raises:
      SceneError: there is nothing, or nothing that scenes can be read from.
    """
    text = os.fspath(given)
    if "://" not in text:
        return _locate_path(pathlib.Path(text))
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError as error:
        raise SceneError(f"this is no URL ({error}); correct it. Received: {rasters.shown(text)}") from error
    name = parts.path.rpartition("/")[2]
    is_file = name.lower().endswith((".json", ".txt"))
    if parts.scheme == "gs":
        return (Bucket(text.rpartition("/")[0]), name) if is_file else (Bucket(text), None)
    if parts.scheme not in ("http", "https"):
        raise SceneError(f"expected a path, or a URL with https:// or gs://. Received: {rasters.shown(text)}")
    if not is_file:
        raise SceneError(
            "a web server's folder cannot be listed; give the URL of the *_MTL.txt, *_MTL.json or manifest.json in it. "
            f"Received: {rasters.shown(text)}"
        )
    return WebFolder(text), name


def _locate_path(path: pathlib.Path) -> tuple[Folder, str | None]:
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise _unreadable(path, error) from error
    if is_folder:
        return Directory(path), None
    if not is_there:
        raise SceneError(f"there is nothing at this path; correct it. Received: {path}")
    if path.name.lower().endswith(PACKED):
        raise SceneError(
            f"windows cannot be read from the midst of a compressed tar; unpack it first. Received: {path}"
        )
    return (TarFile(path), None) if path.suffix.lower() == ".tar" else (Directory(path.parent), path.name)


def _unreadable(path: pathlib.Path, error: Exception) -> SceneError:
    reason = getattr(error, "strerror", None) or error
    return SceneError(f"{path}: cannot be read; check the path and your rights. Received: {reason}")


class Directory:
    """A directory of this machine."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Files and folders there; see `Folder`."""
        try:
            return sorted(path.name for path in self.path.iterdir())
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def text(self, name: str) -> str:
        """A file's content; see `Folder`."""
        try:
            return (self.path / name).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(self.path / name, error) from error

    def raster(self, name: str) -> str:
        """A raster's path; see `Folder`."""
        return name if "://" in name else str(self.path / name)


class TarFile:
    """A tar file as USGS delivers it, or a folder in one: not compressed, so that it is read in place.

    Attributes:
      path: the tar file's.
      inside: the folder in it, "." for the topmost.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the headers.

        Raises:
          SceneError: it is no whole tar file.
        """
        self.path, self.inside = path, pathlib.PurePosixPath()
        try:
            with tarfile.open(path, "r:") as archive:
                members = [member.name for member in archive.getmembers() if member.isfile()]
        except (OSError, tarfile.TarError) as error:
            raise self._damaged(error) from error
        self._members = {pathlib.PurePosixPath(posixpath.normpath(member)): member for member in members}
        self._names = collections.defaultdict(set)
        for member in self._members:
            for child in (member, *member.parents[:-1]):
                self._names[child.parent].add(child.name)

    def __str__(self) -> str:
        return str(self.path / self.inside)

    def folders(self) -> list["TarFile"]:
        """All folders in the tar file, the topmost first."""
        return [self._folder(inside) for inside in sorted(self._names)]

    def names(self) -> list[str]:
        """Files and folders there; see `Folder`."""
        return sorted(self._names.get(self.inside, ()))

    def text(self, name: str) -> str:
        """A file's content; see `Folder`."""
        try:
            with tarfile.open(self.path, "r:") as archive:
                return archive.extractfile(self._member(name)).read().decode()
        except (OSError, KeyError, tarfile.TarError, ValueError) as error:
            raise self._damaged(error) from error

    def raster(self, name: str) -> str:
        """A raster's name for GDAL; see `Folder`."""
        return name if "://" in name else rasters.in_tar(self.path, self._member(name).removeprefix("./"))

    def _folder(self, inside: pathlib.PurePosixPath) -> "TarFile":
        folder = copy.copy(self)
        folder.inside = inside
        return folder

    def _member(self, name: str) -> str:
        """The name that the tar file has for what lies at a path relative to this folder."""
        path = posixpath.normpath(self.inside / name)
        return self._members.get(pathlib.PurePosixPath(path), path)

    def _damaged(self, error: Exception) -> SceneError:
        return SceneError(f"{self.path}: no whole tar file; fetch it again. Received: {error}")


class WebFolder:
    """The folder of a file on a web server. What follows `?`, such as a signature, holds for its neighbours too."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return rasters.shown(self.raster(""))

    def names(self) -> None:
        """Web servers have no listing; see `Folder`."""
        return None

    def text(self, name: str) -> str:
        """A file's content; see `Folder`."""
        url = self.raster(name)
        try:
            answer = _session().get(url, timeout=(rasters.CONNECT_S, rasters.STALLED_S))
        except (requests.RequestException, ValueError) as error:  # the latter for a host that none can be
            raise rasters.unreadable(url, error) from error
        if answer.status_code != requests.codes.ok:
            raise rasters.unreadable(url, f"HTTP response code: {answer.status_code}")
        try:
            return answer.content.decode()  # JSON and MTL are UTF-8, whatever the server says of its text files
        except UnicodeDecodeError as error:
            raise rasters.unreadable(url, error) from error

    def raster(self, name: str) -> str:
        """A raster's URL; see `Folder`."""
        return name if "://" in name else _beside(self._url, name)


class Bucket:
    """A folder of a bucket of Google Cloud Storage."""

    def __init__(self, url: str) -> None:
        """Takes the folder's URL, gs://bucket or gs://bucket/folder."""
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        """The files there; see `Folder`."""
        bucket, _, prefix = self.url.removeprefix("gs://").partition("/")
        prefix = f"{prefix}/" if prefix else ""
        try:
            found = _client().list_blobs(bucket, prefix=prefix, delimiter="/")
            return sorted(name for blob in found if (name := blob.name.removeprefix(prefix)))
        except Exception as error:  # the client, its transport and its credentials raise what they like
            raise rasters.unreadable(self.url, error) from error

    def text(self, name: str) -> str:
        """A file's content; see `Folder`."""
        url = self.raster(name)
        bucket, _, path = url.removeprefix("gs://").partition("/")
        try:
            return _client().bucket(bucket).blob(path).download_as_bytes().decode()
        except Exception as error:  # as above
            raise rasters.unreadable(url, error) from error

    def raster(self, name: str) -> str:
        """A raster's URL; see `Folder`."""
        return name if "://" in name else f"{self.url}/{name}"


def _beside(url: str, name: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(path=parts.path.rpartition("/")[0] + "/" + urllib.parse.quote(name)).geturl()


@functools.cache
def _session() -> requests.Session:
    """Asks again as GDAL does for the rasters."""
    session = requests.Session()
    retry = Retry(
        rasters.RETRIES, backoff_factor=rasters.PAUSE_S, status_forcelist=rasters.PASSING, raise_on_status=False
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _client() -> Any:
    """Google's client, anonymous if GDAL's own option for that says so."""
    from google.auth.credentials import AnonymousCredentials  # with the client a second to import
    from google.cloud import storage

    anonymous = os.environ.get("GS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "ON", "1")
    return storage.Client(project="<none>", credentials=AnonymousCredentials() if anonymous else None)
