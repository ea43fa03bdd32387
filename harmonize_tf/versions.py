"""Versions of a model, as TensorFlow Serving takes them: numbered folders in the model's, the newest the highest."""

import pathlib
from collections.abc import Iterable

SAVED_MODEL = "saved_model.pb"
_LARGEST = 2**63 - 1  # int64


def numbered(names: Iterable[str]) -> dict[int, str]:
    """Those of the folders' names that are versions', by number, oldest first."""
    decimal = (name for name in names if name.isascii() and name.isdecimal())
    return dict(sorted((int(name), name) for name in decimal if int(name) <= _LARGEST))


def complete(files: Iterable[str]) -> dict[int, str]:
    """Names of the folders of a model's versions by number, oldest first.

    A folder without a SavedModel is being copied, and is passed over until it has one.

    Args:
      files: names in the model's folder, such as 3/saved_model.pb.
    """
    parts = (name.split("/") for name in files)
    return numbered(folder for folder, *rest in parts if rest == [SAVED_MODEL])


def find(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """Folders of a model's versions on this machine by number, oldest first."""
    files = (path.relative_to(directory).as_posix() for path in directory.glob(f"*/{SAVED_MODEL}") if path.is_file())
    return {number: directory / name for number, name in complete(files).items()}


def newest(directory: pathlib.Path) -> pathlib.Path:
    """The newest version's folder; the given one where it holds no versions, as a version's own does."""
    return [directory, *find(directory).values()][-1]
