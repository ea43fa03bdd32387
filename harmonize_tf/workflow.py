"""The steps of a run as data: each a command with declared inputs and outputs, repeated only when these changed."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import harmonize_tf
from harmonize_tf.errors import HarmonizeError

_log = logging.getLogger("harmonize")


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a workflow.

    Attributes:
      name: the `harmonize` command.
      flags: its arguments.
      inputs: files and folders that it reads.
      outputs: files and folders that it writes; all exist once it has succeeded.
      service: command that serves while the step runs; "{address}" in `flags` becomes where it does.
    """

    name: str
    flags: Sequence[str]
    inputs: Sequence[pathlib.Path] = ()
    outputs: Sequence[pathlib.Path] = ()
    service: "Step | None" = None

    @property
    def argv(self) -> list[str]:
        """The command line that runs it."""
        return [sys.executable, "-m", "harmonize_tf", self.name, *self.flags]

    def run(self) -> int:
        """Runs it to its end, and returns its exit status."""
        with serving(self.service) if self.service else contextlib.nullcontext("") as address:
            return subprocess.run([part.replace("{address}", address) for part in self.argv], check=False).returncode

    def fingerprint(self) -> str:
        """Digest of the flags, the package's version, and every input file's path, size and time of change."""
        digest = hashlib.sha256(json.dumps([harmonize_tf.__version__, self.name, *self.flags]).encode())
        for path in self.inputs:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    stat = file.stat()
                    digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def run(steps: Sequence[Step], log_dir: pathlib.Path) -> None:
    """Runs steps in order; one whose fingerprint is that of its last success is left as it is.

    Args:
      steps: each may use what those before it wrote.
      log_dir: where the fingerprints are kept.

    Raises:
      HarmonizeError: a step failed; it has said why itself.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps, 1):
        done = log_dir / f"{number}-{step.name}.fingerprint"
        fingerprint = step.fingerprint()
        missing = [path for path in step.outputs if not path.exists()]
        if not missing and done.exists() and done.read_text() == fingerprint:
            _log.info("[%d/%d] %s: nothing changed", number, len(steps), step.name)
            continue
        _log.info("[%d/%d] harmonize %s %s", number, len(steps), step.name, " ".join(step.flags))
        done.unlink(missing_ok=True)
        started = time.monotonic()
        if status := step.run():
            raise HarmonizeError(
                f"step {number}, {step.name}, ended with status {status}; mend what it says above and run the same "
                f"command again, finished steps are kept. Received: {' '.join(step.flags)}"
            )
        done.write_text(fingerprint)
        _log.info("[%d/%d] %s: done in %.0f s", number, len(steps), step.name, time.monotonic() - started)


@contextlib.contextmanager
def serving(step: Step) -> Iterator[str]:
    """Runs a serving command in the background while the block lasts.

    Args:
      step: its command keeps running and prints a line ending in "at ADDRESS" once it can be used.

    Yields:
      The address.

    Raises:
      HarmonizeError: the command ended before it was ready.
    """
    process = subprocess.Popen(step.argv, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if " at " in line:
                yield line.rsplit(" at ", 1)[1].strip()
                return
        raise HarmonizeError(
            f"{step.name} ended with status {process.wait()} before it was ready; mend what it says above. "
            f"Received: {' '.join(step.flags)}"
        )
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
