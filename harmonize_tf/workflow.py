"""The steps of a run as data: each a command with declared inputs and outputs, repeated only when these changed."""

import contextlib
import ctypes
import dataclasses
import datetime
import hashlib
import json
import logging
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import harmonize_tf
from harmonize_tf import artifacts
from harmonize_tf.errors import HarmonizeError

_log = logging.getLogger("harmonize")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a workflow.

    Attributes:
      name: the `harmonize` command.
      flags: its arguments.
      inputs: files and folders that it reads.
      outputs: files and folders that it writes; all exist once it has succeeded.
      service: command that serves while the step runs; "{address}" in `flags` becomes where it does.
      owned: folder that is this step's alone. What was made there by other flags or from other inputs is put aside,
        and deleted once there is something in its place; what was only interrupted stays, to be gone on from.
      title: tells it in the log from other steps of the same command.
    """

    name: str
    flags: Sequence[str]
    inputs: Sequence[pathlib.Path] = ()
    outputs: Sequence[pathlib.Path] = ()
    service: "Step | None" = None
    owned: pathlib.Path | None = None
    title: str = ""

    @property
    def label(self) -> str:
        """Its name in the log."""
        return self.title or self.name

    @property
    def argv(self) -> list[str]:
        """The command line that runs it."""
        return [sys.executable, "-m", "harmonize_tf", self.name, *self.flags]

    def run(self, log: pathlib.Path) -> int:
        """Runs it to its end, what it says going to standard output and into a file, and returns its exit status."""
        served = self.service and serving(self.service, log.with_suffix(f".{self.service.name}.log"))
        with served or contextlib.nullcontext("") as address, log.open("ab") as file:
            argv = [part.replace("{address}", address) for part in self.argv]
            # In a session of its own, so that Ctrl-C reaches it once, from here.
            process = _started(argv, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    print(line.decode(errors="replace"), end="", flush=True)
                return process.wait()
            finally:
                process.terminate()  # after its work is saved; of one that has ended nothing comes of it
                process.wait()
                process.stdout.close()

    def fingerprint(self) -> str:
        """Digest of the flags, the package's version, and path, size and time of change of every file that is read.

        Those are the inputs and what flags name, but for what the step writes itself.
        """
        digest = hashlib.sha256(json.dumps([harmonize_tf.__version__, self.name, *self.flags]).encode())
        named = [pathlib.Path(part) for flag in self.flags for part in flag.rpartition("=")[2].split(",") if part]
        written = {place for path in self.outputs for place in (path, *path.parents)}
        for path in [*self.inputs, *(path for path in named if path not in written)]:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    stat = file.stat()
                    digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def run(steps: Sequence[Step], log_dir: pathlib.Path) -> None:
    """Runs steps in order; one whose fingerprint is that of its last success is left as it is.

    Args:
      steps: each may use what those before it wrote.
      log_dir: for each step what it said, `LABEL.log`, what its service said, `LABEL.SERVICE.log`, and what came
        of it, `LABEL.json`.

    Raises:
      HarmonizeError: a step failed; it has said why itself.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    with _stoppable():
        _run(steps, log_dir)


def _run(steps: Sequence[Step], log_dir: pathlib.Path) -> None:
    for number, step in enumerate(steps, 1):
        file, where = record(log_dir, step.label), f"[{number}/{len(steps)}]"
        fingerprint, before = step.fingerprint(), read(file)
        missing = [path for path in step.outputs if not path.exists()]
        if not missing and before.get("status") == 0 and before["fingerprint"] == fingerprint:
            _log.info("%s %s: nothing changed", where, step.name)
            continue
        _log.info("%s harmonize %s %s", where, step.name, " ".join(step.flags))
        aside = step.owned and _put_aside(step.owned, before.get("fingerprint") not in (None, fingerprint))
        begun = {"step": step.name, "flags": list(step.flags), "fingerprint": fingerprint, "began": _now()}
        artifacts.write(file, artifacts.to_json(begun | {"status": None}))
        started = time.monotonic()
        status = step.run(file.with_suffix(".log"))
        ended = begun | {"status": status, "ended": _now(), "package_version": harmonize_tf.__version__}
        artifacts.write(file, artifacts.to_json(ended))
        if status and aside and not step.owned.exists():  # it was never begun: wrong flags, say
            aside.rename(step.owned)
            artifacts.write(file, artifacts.to_json(before))
        elif not status and aside:
            shutil.rmtree(aside, ignore_errors=True)
        if status:
            raise HarmonizeError(
                f"step {number}, {step.name}, ended with status {status}; mend what it says above and run the same "
                f"command again, finished steps are kept. Received: {' '.join(step.flags)}"
            )
        _log.info("%s %s: done in %.0f s", where, step.name, time.monotonic() - started)


def _put_aside(folder: pathlib.Path, other: bool) -> pathlib.Path:
    """Where what a folder held before lies, if it has to make room for something other."""
    aside = folder.with_name(f"{folder.name}.before")
    if other and folder.exists():
        if aside.exists():
            shutil.rmtree(folder)  # an attempt that came to nothing
        else:
            folder.rename(aside)
    return aside


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Lets a signal that ends this process end the step first."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def record(log_dir: pathlib.Path, label: str) -> pathlib.Path:
    """The file that tells what came of the step of that label, wherever in a run it stands."""
    return log_dir / f"{label}.json"


def read(file: pathlib.Path) -> dict[str, Any]:
    """What came of a step when it last ran; {} where it did not, or nobody knows."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _started(argv: Sequence[str], **told: Any) -> subprocess.Popen:
    """Starts a command that ends, as by SIGTERM, when this process does, be it killed: on Linux, which can do that."""
    follow = None
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible is done

        def follow() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(argv, stdout=subprocess.PIPE, preexec_fn=follow, **told)


@contextlib.contextmanager
def serving(step: Step, log: pathlib.Path) -> Iterator[str]:
    """Runs a serving command in the background while the block lasts.

    Args:
      step: its command keeps running and prints a line ending in "at ADDRESS" once it can be used.
      log: file for what it logs, which is what it says to standard error.

    Yields:
      The address.

    Raises:
      HarmonizeError: the command ended before it was ready.
    """
    with log.open("ab") as file:
        process = _started(step.argv, stderr=file, text=True)
    try:
        for line in process.stdout:
            if " at " in line:
                yield line.rsplit(" at ", 1)[1].strip()
                return
        raise HarmonizeError(
            f"{step.name} ended with status {process.wait()} before it was ready; mend what it says in {log}. "
            f"Received: {' '.join(step.flags)}"
        )
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()
