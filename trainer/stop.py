"""SIGINT and SIGTERM: a training ends after the step in work, its state saved."""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger("harmonize")


class Stop:
    """Listens for the signals while the `with` block lasts: obeys at once, or when it is asked within `deferred`.

    Only a program's main thread can listen; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferred, self._before = False, {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether a signal is waiting to be obeyed."""
        return self._received is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a first signal waits for `leave`; a second one does not."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal simply ends the program: while TensorFlow waits for something, no handler is called."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        try:
            yield
        finally:
            for number in self._before:
                signal.signal(number, self._receive)

    def leave(self) -> None:
        """Ends the program, with the status that shells give to one that the signal ended.

        Raises:
          SystemExit: always.
        """
        print("stopped; run the same command again to go on", file=sys.stderr)
        raise SystemExit(128 + (self._received or signal.SIGTERM))  # none where another worker was told to stop

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self._received = self.requested, number
        if again or not self._deferred:
            self.leave()
        _log.info("%s: stopping after this step; once more stops at once", signal.Signals(number).name)
