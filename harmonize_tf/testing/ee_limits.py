"""What the emulated Earth Engine refuses: planned faults, quotas, and a log of all that was asked."""

import dataclasses
import random
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Wording as Earth Engine's own; what clients match on.
TOO_MANY = "Too Many Requests: Request was rejected because the request rate or concurrency limit was exceeded."
AGGREGATIONS = "Too many concurrent aggregations."
MEMORY = "User memory limit exceeded."


class Refusal(Exception):
    """An error response.

    Attributes:
      status: HTTP status.
      message: the text of the error.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclasses.dataclass
class Fault:
    """Something that goes wrong on purpose.

    Attributes:
      status: HTTP status of the answer; 0: the connection is cut without any.
      pattern: regular expression, searched in the request's "METHOD path" and in its body.
      count: how many requests it meets; None: all of them.
      share: share of the matching requests that it meets, 0 to 1; drawn from `seed`.
      hang: seconds to wait before the answer.
      message: text of the error.
      seed: of the draws.
    """

    status: int
    pattern: str = ""
    count: int | None = None
    share: float = 1.0
    hang: float = 0.0
    message: str = "The service is currently unavailable."
    seed: int = 0

    def __post_init__(self) -> None:
        self._left, self._random, self._lock = self.count, random.Random(self.seed), threading.Lock()

    def meets(self, line: str, body: str) -> bool:
        """Whether it happens to this request; counts it."""
        if not (re.search(self.pattern, line) or re.search(self.pattern, body)):
            return False
        with self._lock:
            if self._left == 0 or self._random.random() >= self.share:
                return False
            if self._left is not None:
                self._left -= 1
            return True


@dataclasses.dataclass(frozen=True)
class Limits:
    """Quotas and sizes.

    Attributes:
      concurrent: pixel requests at one time; None: any number.
      per_second: pixel requests in any second; None: any number.
      bytes: of one response's pixels.
      side: width and height of one response, pixels.
      bands: of one response.
      memory_pixels: pixels of all bands of one response, beyond which the user's memory is exceeded; None: never.
    """

    concurrent: int | None = None
    per_second: int | None = None
    bytes: int = 50_331_648
    side: int = 32_768
    bands: int = 1024
    memory_pixels: int | None = None

    def check(self, shape: tuple[int, int], itemsizes: Sequence[int]) -> None:
        """Refuses what is too large.

        Args:
          shape: rows and columns.
          itemsizes: bytes per pixel of each band.

        Raises:
          Refusal: it is.
        """
        if max(shape) > self.side:
            raise Refusal(
                400,
                f"Pixel grid dimensions ({shape[1]}x{shape[0]}) must be less than or equal to {self.side}.",
            )
        if len(itemsizes) > self.bands:
            raise Refusal(400, f"Number of bands ({len(itemsizes)}) must be less than or equal to {self.bands}.")
        size = shape[0] * shape[1] * sum(itemsizes)
        if size > self.bytes:
            raise Refusal(400, f"Total request size ({size} bytes) must be less than or equal to {self.bytes} bytes.")
        if self.memory_pixels is not None and shape[0] * shape[1] * len(itemsizes) > self.memory_pixels:
            raise Refusal(400, MEMORY)


@dataclasses.dataclass(frozen=True)
class Logged:
    """One request as it was answered.

    Attributes:
      method: such as "POST".
      path: with the query.
      body: as text.
      status: of the answer; 0: none was given.
      start: when it came, seconds of a monotonic clock.
      end: when it was answered.
    """

    method: str
    path: str
    body: str
    status: int
    start: float
    end: float


class Gate:
    """Counts pixel requests in flight against the quotas."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.in_flight = self.peak = 0
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def passage(self) -> Iterator[None]:
        """Holds a place for one request.

        Raises:
          Refusal: there is none, 429.
        """
        with self._lock:
            self._refuse()
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= 1

    def _refuse(self) -> None:
        limits, now = self.limits, time.monotonic()
        if limits.concurrent is not None and self.in_flight >= limits.concurrent:
            raise Refusal(429, TOO_MANY)
        if limits.per_second is not None:
            while self._recent and self._recent[0] <= now - 1:
                self._recent.popleft()
            if len(self._recent) >= limits.per_second:
                raise Refusal(429, "Quota exceeded for quota metric 'Earth Engine requests' and limit 'per second'.")
            self._recent.append(now)
