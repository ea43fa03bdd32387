"""Ctrl-C in a job of this process: what is in work ends in order, and nothing is left half done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

cancelled = threading.Event()  # whoever works asks this between two pieces of work


@contextlib.contextmanager
def stoppable(then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lets Ctrl-C set `cancelled`.

    Left alone, Beam would break off in the middle, with a traceback of each of its threads. A second Ctrl-C does that.

    Args:
      then: called besides. It must take no lock: the thread that Ctrl-C stops may hold it.

    Raises:
      KeyboardInterrupt: at the end, if there was one.
    """
    cancelled.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        cancelled.set()
        then()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if cancelled.is_set():
        raise KeyboardInterrupt
