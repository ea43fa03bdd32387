"""Where a scene's files lie together: a directory, a tar file, a web server's folder, a bucket."""

import functools
import os
import pathlib
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
        """The files there, sorted; None where that cannot be asked.

        Raises:
          SceneError: it cannot be read.
        """

    def text(self, name: str) -> str:
        """A file's content.

        Raises:
          SceneError: it cannot be read.
        """

    def raster(self, name: str) -> str:
        """What `rasters.open_raster` opens; a name that is a URL or an absolute path stands for itself."""


def locate(given: str | os.PathLike) -> tuple[Folder, str | None]:
    """The folder at a path or URL, or the one that holds the file there and the file's name.

    Raises:
      SceneError: there is nothing, or nothing that scenes can be read from.
    """
    text = os.fspath(given)
    if "://" not in text:
        return _locate_path(pathlib.Path(text))
    parts = urllib.parse.urlsplit(text)
    name = parts.path.rpartition("/")[2]
    is_file = name.lower().endswith((".json", ".txt"))
    if parts.scheme == "gs":
        return (Bucket(text.rpartition("/")[0]), name) if is_file else (Bucket(text), None)
    if parts.scheme not in ("http", "https"):
        raise SceneError(f"expected a path, or a URL with https:// or gs://. Received: {text}")
    if not is_file:
        raise SceneError(
            "a web server's folder cannot be listed; give the URL of the *_MTL.txt, *_MTL.json or manifest.json in it. "
            f"Received: {rasters.shown(text)}"
        )
    return WebFolder(text), name


def _locate_path(path: pathlib.Path) -> tuple[Folder, str | None]:
    if path.is_dir():
        return Directory(path), None
    if not path.exists():
        raise SceneError(f"there is nothing at this path; correct it. Received: {path}")
    if path.name.lower().endswith(PACKED):
        raise SceneError(
            f"windows cannot be read from the midst of a compressed tar; unpack it first. Received: {path}"
        )
    return (TarFile(path), None) if path.suffix.lower() == ".tar" else (Directory(path.parent), path.name)


class Directory:
    """A directory of this machine."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """The files there; see `Folder`."""
        return sorted(path.name for path in self.path.iterdir())

    def text(self, name: str) -> str:
        """A file's content; see `Folder`."""
        try:
            return (self.path / name).read_text()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SceneError(f"{self.path / name}: cannot be read; check the path. Received: {reason}") from error

    def raster(self, name: str) -> str:
        """A raster's path; see `Folder`."""
        return name if "://" in name else str(self.path / name)


class TarFile:
    """A tar file as USGS delivers it: not compressed, so that it is read in place."""

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the headers.

        Raises:
          SceneError: it is no whole tar file.
        """
        self.path = path
        try:
            with tarfile.open(path, "r:") as archive:
                members = [member.name for member in archive.getmembers() if member.isfile()]
        except (OSError, tarfile.TarError) as error:
            raise self._damaged(error) from error
        self._members = {pathlib.PurePosixPath(member).name: member for member in sorted(members)}

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """The files there; see `Folder`."""
        return list(self._members)

    def text(self, name: str) -> str:
        """A file's content; see `Folder`."""
        try:
            with tarfile.open(self.path, "r:") as archive:
                return archive.extractfile(self._members[name]).read().decode()
        except (OSError, tarfile.TarError, ValueError) as error:
            raise self._damaged(error) from error

    def raster(self, name: str) -> str:
        """A raster's name for GDAL; see `Folder`."""
        return rasters.in_tar(self.path, self._members.get(name, name).removeprefix("./"))

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
        except requests.RequestException as error:
            raise rasters.unreadable(url, error) from error
        if answer.status_code != requests.codes.ok:
            raise rasters.unreadable(url, f"HTTP response code: {answer.status_code}")
        return answer.text

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
