"""What is done of a product that is not finished: on disk beside it, so that the same command goes on where it was.

    OUT.tif.unfinished/
      made_of         what the product is made of; windows of anything else are of no use, and go
      windows.txt     a line for each window that is on the disk; locked by the process that is at work
      pixels.tif ...  the rasters (`cog.Pixels`)

A window's pixels reach the disk before its line does, so that neither a killed process nor a machine without power
leaves a line without pixels; a window without a line is simply made again.
"""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from harmonize_tf import artifacts, cog
from harmonize_tf.cog import Image, Pixels
from harmonize_tf.errors import HarmonizeError

SUFFIX = ".unfinished"  # after the product's name
_MADE_OF, _WINDOWS = "made_of", "windows.txt"
_LINE = re.compile(rb"(\d+) (\d+) ([01])\n")

_log = logging.getLogger("harmonize")


class Work:
    """Takes the windows of a product.

    Attributes:
      folder: where all of it lies.
      rasters: the product's rasters by name.
      windows: whether there is data in it, for each window that is done, by row and column of its core.
    """

    def __init__(self, path: pathlib.Path, journal: BinaryIO, images: Mapping[str, Image]) -> None:
        """Opens what is in a product's folder, or begins there."""
        self.folder, self._path, self._journal = _folder(path), path, journal
        self.windows = dict(_lines(journal))
        self.rasters: dict[str, Pixels] = {}
        try:
            for name, image in images.items():
                self.rasters[name] = Pixels(_raster(self.folder, name), image)
        except BaseException:
            self.close()
            raise

    def add(self, row: int, column: int, values: Mapping[str, np.ndarray], rows: slice, columns: slice) -> None:
        """Keeps a window.

        Args:
          row: row of its core.
          column: column of its core.
          values: [height, width, band] for each raster; none where the window has no data.
          rows: where they belong in the rasters.
          columns: likewise.

        Raises:
          HarmonizeError: the disk is full, or the like.
        """
        with cog.mendable(self._path):
            for name, pixels in values.items():
                self.rasters[name].write(pixels, rows, columns)
                self.rasters[name].sync()
            line = f"{row} {column} {len(values) > 0:d}\n".encode()
            if self._journal.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._journal.fileno())
        self.windows[row, column] = len(values) > 0

    def close(self) -> None:
        """Closes the rasters."""
        for raster in self.rasters.values():
            raster.close()


@contextlib.contextmanager
def work(path: pathlib.Path, made_of: str, images: Mapping[str, Image]) -> Iterator[Work]:
    """The work on a product. It goes when the block ends well, and stays when there is anything worth keeping.

    Args:
      path: the product.
      made_of: all that the pixels depend on, as text.
      images: its rasters by name.

    Raises:
      HarmonizeError: another process is at work on this product, or the disk does not allow it. An error from within
        the block is said to have left the windows that are done.
    """
    folder = _folder(path)
    with cog.mendable(path):
        journal = _lock(path)
    with journal:
        begun = None
        try:
            with cog.mendable(path):
                _begin(folder, journal, made_of, [_raster(folder, name) for name in images])
                begun = Work(path, journal, images)
                # Only now is there all that is needed to go on.
                artifacts.write(folder / _MADE_OF, made_of)
            yield begun
        except BaseException as error:
            if not (folder / _MADE_OF).exists() or (begun and not begun.windows):
                _remove(folder)
            elif begun and isinstance(error, HarmonizeError):
                kept = f"{len(begun.windows)} windows are done and kept in {folder}: the same command goes on there."
                error.args = (f"{error} {kept}",)
            raise
        finally:
            if begun is not None:
                begun.close()
        _remove(folder)


def _folder(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + SUFFIX)


def _raster(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name}.tif"


def _remove(folder: pathlib.Path) -> None:
    """Takes the folder away at once: file by file, one that was killed meanwhile would look like work to go on with."""
    gone = folder.with_name(folder.name + ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _lock(path: pathlib.Path) -> BinaryIO:
    """The journal, in the hands of this process for as long as it is open; a killed process lets go of it too."""
    folder = _folder(path)
    while True:
        folder.mkdir(exist_ok=True)
        try:
            journal = open(folder / _WINDOWS, "a+b", buffering=0)
        except FileNotFoundError:  # one that finished has just taken the folder away
            continue
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            journal.close()
            raise HarmonizeError(
                f"another process is making this product; wait for it, or choose another name. Received: out={path}"
            ) from error
        # Or it has done so since.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(journal.fileno()), os.stat(folder / _WINDOWS)):
                return journal
        journal.close()


def _begin(folder: pathlib.Path, journal: BinaryIO, made_of: str, rasters: Sequence[pathlib.Path]) -> None:
    """Clears the folder of all that does not belong to this product, or is of no use without the rasters."""
    file = folder / _MADE_OF
    same = file.is_file() and file.read_text() == made_of
    if same and all(raster.is_file() for raster in rasters):
        return
    if file.is_file() and not same:
        _log.info("%s: what was done there was made of something else, and is discarded", folder)
    file.unlink(missing_ok=True)
    for other in folder.iterdir():
        if other.name != _WINDOWS:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    journal.truncate(0)


def _lines(journal: BinaryIO) -> Iterator[tuple[tuple[int, int], bool]]:
    """Windows that are done; a line that was not written to its end, and what is behind it, is taken away."""
    journal.seek(0)
    text, end = journal.read(), 0
    while line := _LINE.match(text, end):
        row, column, data = map(int, line.groups())
        yield (row, column), bool(data)
        end = line.end()
    journal.truncate(end)
