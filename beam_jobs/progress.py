"""How far a local job is: a bar on a terminal, a log line for every tenth otherwise; nothing on remote workers."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

_log = logging.getLogger("harmonize")
_lock = threading.Lock()
_shown: "_Shown | None" = None


class _Shown:
    def __init__(self, job: str, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self.bar = tqdm(total=total, unit=unit, desc=job) if sys.stderr.isatty() else None

    def advance(self, count: int) -> None:
        before, self.done = self.done, self.done + count
        if self.bar is not None:
            self.bar.update(count)
        elif self.done * 10 // self.total > before * 10 // self.total:
            _log.info("%d of %d %s", self.done, self.total, self.unit)


@contextlib.contextmanager
def show(job: str, total: int, unit: str) -> Iterator[None]:
    """Shows progress while the block lasts."""
    global _shown
    _shown = _Shown(job, total, unit)
    try:
        yield
    finally:
        if _shown.bar is not None:
            _shown.bar.close()
        _shown = None


def advance(count: int) -> None:
    """Says that some more are done; any thread may."""
    with _lock:
        if _shown is not None:
            _shown.advance(count)
