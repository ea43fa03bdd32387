"""Flags that suit a purpose, as files: `--flagfile=subpixel_small.txt` finds them wherever the package is installed."""

import pathlib
import sys
from collections.abc import Sequence

FOLDER = pathlib.Path(__file__).parent
_FLAG = "--flagfile="


def found(argv: Sequence[str] | None) -> list[str]:
    """The arguments (None: the program's), a preset's path in place of its name; a file of that name comes first."""
    return [_found(argument) for argument in (sys.argv[1:] if argv is None else argv)]


def _found(argument: str) -> str:
    name = argument.removeprefix(_FLAG)
    if not argument.startswith(_FLAG) or pathlib.Path(name).is_file():
        return argument
    known = {path.name: path for path in FOLDER.glob("*.txt")}
    return f"{_FLAG}{known[name]}" if name in known else argument
