"""Files that a command leaves: written aside and renamed, so that none is ever half there."""

import hashlib
import json
import os
import pathlib
from typing import Any


def write(path: str | os.PathLike, text: str) -> None:
    """Writes a text file; its folder has to be there.

    Raises:
      OSError: it cannot be written.
    """
    path = pathlib.Path(path)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    aside.rename(path)


def sync(*paths: str | os.PathLike) -> None:
    """Waits until files, and what folders list, are on the disk, to stay when the machine loses power.

    Raises:
      OSError: they cannot be.
    """
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def to_json(values: Any) -> str:
    """Indented JSON with sorted keys. It knows neither NaN nor infinity: null stands for them."""
    plain = json.loads(json.dumps(values), parse_constant=lambda _: None)
    return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"


def sha256(path: str | os.PathLike) -> str:
    """Fingerprint of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
