"""What every command shares: parsing its own flags, leaving `flags.txt`, ending with a line, not a traceback."""

import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags

from harmonize_tf import artifacts
from harmonize_tf.errors import FlagError, HarmonizeError


def parse(flag_values: flags.FlagValues, argv: Sequence[str] | None, *, known_only: bool = False) -> list[str]:
    """Sets `flag_values` from the command line, starting from the defaults each time.

    Args:
      flag_values: the flags of one command; `--flagfile` is understood too.
      argv: the arguments without the program's name; None takes them from `sys.argv`.
      known_only: return unknown flags with the positional arguments instead of refusing them.

    Returns:
      The positional arguments (and, with `known_only`, the unknown flags).

    Raises:
      FlagError: a flag is unknown, malformed or missing.
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(argument in ("--help", "-h", "-help") for argument in argv):
        print(flag_values.get_help())
        raise SystemExit(0)
    for name in flag_values:
        flag_values[name].unparse()
    try:
        return flag_values(["command", *argv], known_only=known_only)[1:]
    except flags.Error as error:
        raise FlagError(f"{error}. See --help for the flags of this command.") from error


def write_flags(flag_values: flags.FlagValues, path: str | os.PathLike) -> None:
    """Writes the flags in force, so that `--flagfile=PATH` repeats the run. Creates the folder."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write(path, flag_values.flags_into_string())


def run(main: Callable[[], None]) -> None:
    """Runs a command's `main` and exits: 0 when all was done, 2 after a user's mistake, told in one line."""
    # By force, because a library that logs while it is imported has configured logging already.
    form = {"format": "%(asctime)s %(name)s: %(message)s", "datefmt": "%H:%M:%S"}
    logging.basicConfig(level=logging.INFO, force=True, **form)
    logging.getLogger("absl").setLevel(logging.WARNING)  # TensorFlow's notes on how it saves
    try:
        main()
    except HarmonizeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
