"""How many requests a process may have in flight: additive increase, multiplicative decrease, with a memory.

As TCP does it (Chiu and Jain 1989), except that the number at which requests were refused is remembered: the limit
climbs back to just below it and tries beyond only now and then, so that a quota once found is kept to.
"""

import dataclasses
import threading
import time
from collections.abc import Callable

# Seconds without a refusal until one request more is tried; doubled by every refusal, up to the second number.
PATIENCE, MOST_PATIENCE = 15.0, 600.0


@dataclasses.dataclass(frozen=True)
class Permit:
    """Leave to send one request.

    Attributes:
      level: requests in flight with this one when it was given.
      epoch: how often the limit had been cut before.
    """

    level: int
    epoch: int


class Limiter:
    """Shared by all threads of a process."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts at the full number.

        Args:
          most: greatest number of requests in flight.
          clock: seconds.
        """
        self._most, self._ceiling, self._limit = most, most, float(most)
        self._in_flight = self._epoch = 0
        self._patience, self._clock, self._quiet_since = PATIENCE, clock, clock()
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def acquire(self) -> Permit:
        """Waits for a place."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self.limit)
            self._in_flight += 1
            return Permit(self._in_flight, self._epoch)

    def release(self, permit: Permit, *, refused: bool) -> None:
        """Gives the place back, and says whether the service refused the request for want of quota."""
        with self._changed:
            level = max(permit.level, self._in_flight)
            self._in_flight -= 1
            if not refused:
                self._grow()
            elif permit.epoch == self._epoch:  # those sent before the last cut tell nothing new
                self._cut(level)
            self._changed.notify_all()

    def restrict(self) -> None:
        """Allows one request at a time from now on."""
        with self._changed:
            self._most = self._ceiling = 1
            self._limit = 1.0

    def _cut(self, level: int) -> None:
        self._epoch += 1
        self._ceiling = max(1, min(self._ceiling, level - 1))
        self._limit = max(1.0, min(self._limit, level) / 2)
        self._patience, self._quiet_since = min(2 * self._patience, MOST_PATIENCE), self._clock()

    def _grow(self) -> None:
        if self._ceiling < self._most and self._clock() - self._quiet_since > self._patience:
            self._ceiling, self._quiet_since = self._ceiling + 1, self._clock()
        self._limit = min(self._ceiling, self._limit + 1 / self._limit)
