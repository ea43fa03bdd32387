"""Opens rasters where they lie: a path, a member of a tar file, https://, gs://.

GDAL fetches what windows need and no more. From its options for that, the ones below differ from its defaults; each
can be set in the environment as well, which then decides.
"""

import contextlib
import functools
import logging
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import rasterio

from harmonize_tf.errors import SceneError

RETRIES, PAUSE_S = 5, 0.5  # of what fails in passing; the pauses double, 15 s in sum
PASSING = (429, 500, 502, 503, 504)  # the codes that GDAL asks again for
CONNECT_S, STALLED_S = 20, 30  # s, to reach a server; without a byte from it
OPTIONS = {
    # Looks for no neighbours such as .aux.xml and .ovr, each a request and a 404.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # The directories of a Landsat COG in one request: its header and those of its overviews.
    "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
    # Where the blocks are, is read when the file is opened. Asked for later, an answer that fails is taken for blocks
    # that are not there, and the window is zeros, without an error.
    "GTIFF_USE_DEFER_STRILE_LOADING": "NO",
    "GDAL_HTTP_MAX_RETRY": RETRIES,
    "GDAL_HTTP_RETRY_DELAY": PAUSE_S,
    "GDAL_HTTP_CONNECTTIMEOUT": CONNECT_S,
    # For a window of any size a deadline would be wrong; a server that sends nothing is given up.
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_LOW_SPEED_TIME": STALLED_S,
    # Else a file that failed once fails for the rest of the process, without being asked for.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsigs/",
}
# Remote rasters that are kept open. Windows overlap and lie across blocks: opened anew for each window of 384 pixels,
# files of 256-pixel blocks were fetched 3.4 times, kept open 1.1 times. What GDAL keeps of them, in decoded blocks, is
# bounded by GDAL_CACHEMAX, by default a twentieth of the memory.
KEPT_OPEN = 32


@contextlib.contextmanager
def open_raster(path: str) -> Iterator[Any]:
    """Opens a raster for reading. Threads that open one remote raster take turns.

    Raises:
      SceneError: it is missing, truncated or no raster.
    """
    if "://" not in path:
        with _open(path) as raster:
            yield raster
        return
    with rasterio.Env(**{key: value for key, value in OPTIONS.items() if key not in os.environ}):
        kept = _kept(path)
        with kept.lock:
            try:
                kept.raster = kept.raster or _open(path)
                yield kept.raster
            except BaseException:
                if kept.raster:  # what failed is opened anew the next time
                    kept.raster.close()
                kept.raster = None
                raise


class _Kept:
    """A raster that stays open, and whose turn it is."""

    def __init__(self) -> None:
        self.lock, self.raster = threading.Lock(), None


@functools.lru_cache(KEPT_OPEN)
def _kept(path: str) -> _Kept:
    return _Kept()


def _open(path: str) -> Any:
    try:
        return rasterio.open(path)
    except (rasterio.errors.RasterioError, ValueError) as error:  # the latter for what is no URL
        raise unreadable(path, error) from error


def in_tar(archive: pathlib.Path, member: str) -> str:
    """GDAL's name of a tar file's member."""
    return f"/vsitar/{{{archive.resolve()}}}/{member}"


def shown(path: str) -> str:
    """A path as messages show it: no password, no signature, none of GDAL's prefixes."""
    if "://" in path:
        return re.sub(r"[?#].*", "", _without_user(path))
    return re.sub(r"^/vsitar/\{(.*)\}/", r"\1/", path)


def base_name(path: str) -> str:
    """The name of a raster's file."""
    return pathlib.PurePosixPath(shown(path)).name


def _unsigned(text: str) -> str:
    """A message without the passwords and signatures of the URLs in it, of which GDAL may name the last part alone."""
    return re.sub(r"(?<=[^\s?])\?\S+", "", _without_user(text))


def _without_user(text: str) -> str:
    return re.sub(r"://[^/?#\s]*@", "://", text)


def _log_unsigned(record: logging.LogRecord) -> bool:
    """GDAL and urllib3 tell what they open and ask again for, by its URL."""
    record.msg, record.args = _unsigned(record.getMessage()), ()
    return True


for _name in ("rasterio._env", "rasterio._base", "rasterio._err", "urllib3.connectionpool", "urllib3.util.retry"):
    logging.getLogger(_name).addFilter(_log_unsigned)


def unreadable(path: str, reason: Any) -> SceneError:
    """What went wrong with a file, in one line with the remedy.

    Args:
      path: a path or URL.
      reason: GDAL's, requests' or Google's error, or its text; where one caused another, the first one tells most.
    """
    while getattr(reason, "__cause__", None):
        reason = reason.__cause__
    text = " ".join(str(reason).split())
    text = _unsigned(text) if "://" in path else text
    code = int((re.search(r"(?:response code: |^)(\d{3})\b", text) or [0, 0])[1])
    if "Range downloading not supported" in text:
        remedy = "the server sends whole files only; fetch the scene and give its folder"
    elif code == 404 or re.search("No such file|does not exist in the file system", text):
        remedy = "there is no such file; check its name, and that the scene is whole"
    elif code in (401, 403) or "redentials" in text or "GS_NO_SIGN_REQUEST" in text:
        remedy = (
            "access is denied; https:// takes signed URLs, gs:// takes GOOGLE_APPLICATION_CREDENTIALS or, for public "
            "buckets, GS_NO_SIGN_REQUEST=YES in the environment"
        )
    elif code or re.search(r"CURL error|timed? ?out|onnection|Max retries", text):
        remedy = "the server does not answer; try again later"
    elif "://" in path:
        remedy = "the server stopped sending, or the file is truncated or damaged; try again, then see to the file"
    else:
        remedy = "the file is truncated or damaged; fetch it again"
    return SceneError(f"{shown(path)}: {remedy}. Received: {text}")
