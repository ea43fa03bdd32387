"""One connection to Earth Engine for each process, and what is done about every class of failure.

refused   429, too many concurrent aggregations: fewer requests at a time, wait, within a budget of time
failed    5xx, time-outs, broken connections: a number of attempts, with growing jittered pauses
too_large size, memory and computation time: `TooLargeError`, the caller asks for less
denied    every other answer: `PermanentError`, at once; where the credentials or the project are refused, so that
          nothing else would be granted either, `FlagError`
"""

import dataclasses
import ipaddress
import logging
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

import ee
import google.auth
import google.auth.exceptions
from googleapiclient import errors as api_errors

from harmonize_tf.errors import FlagError, PermanentError, TransientError
from harmonize_tf.sources.ee_limiter import Limiter
from harmonize_tf.sources.ee_transport import Transport

Result = TypeVar("Result")
_log = logging.getLogger("harmonize")

_REFUSED = re.compile(r"too many concurrent aggregations|rate limit|rate or concurrency limit|quota exceeded", re.I)
_TOO_LARGE = re.compile(
    r"total request size|memory limit exceeded|computation timed out|must be less than or equal to", re.I
)
PAUSE, LONGEST_PAUSE = 0.5, 32.0  # s, before the first repetition and at most; each is drawn from half of it upwards


class _CredentialsError(FlagError):
    """Nobody is who the credentials say, or they have ended."""


class TooLargeError(PermanentError):
    """Earth Engine refuses a request for its size; a part of it may be granted."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """Where Earth Engine is and how it is asked.

    Attributes:
      project: Google Cloud project that is registered for Earth Engine; None: that of the credentials.
      url: of the endpoint; by default that for many small requests. Plain http, without credentials unless they are
        asked for, on loopback only.
      max_concurrent: greatest number of requests of this process in flight.
      deadline_s: seconds for one answer.
      attempts: how often a request that fails is sent.
      throttle_budget_s: seconds for which a request goes on asking that is refused for want of quota.
      workload_tag: label of the computations in the project's accounting.
    """

    project: str | None = None
    url: str = ee.data.HIGH_VOLUME_API_BASE_URL
    max_concurrent: int = 40
    deadline_s: float = 120.0
    attempts: int = 5
    throttle_budget_s: float = 900.0
    workload_tag: str = "harmonize"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What became of one request, for those that count.

    Attributes:
      outcome: "ok", "refused", "failed", "too_large" or "denied".
      seconds: until the answer.
      bytes: received.
      pause: seconds waited for a place before it was sent, and because it was refused after.
    """

    outcome: str
    seconds: float
    bytes: int
    pause: float


# Called with every attempt, in the thread that made it.
observers: list[Callable[[Attempt], None]] = []


class Client:
    """Sends requests of the `ee` module, which knows one connection at a time."""

    def __init__(self, connection: Connection) -> None:
        """Initializes `ee`.

        Raises:
          FlagError: there are no credentials, no project, or an address that cannot be used; or Earth Engine refuses
            the project or the credentials.
          TransientError: Earth Engine cannot be reached.
        """
        self._connection, self._warned = connection, False
        self.limiter = Limiter(connection.max_concurrent)
        self._transport = Transport(connection.deadline_s, connection.max_concurrent, self._restricted)
        self._initialize()

    def call(self, request: Callable[[], Result]) -> Result:
        """Sends a request until it is answered.

        Args:
          request: makes one call of the `ee` module.

        Raises:
          TooLargeError: it asks for too much at a time.
          PermanentError: it is refused for good.
          FlagError: the credentials are refused.
          TransientError: attempts or time have run out.
        """
        failures, refusals, first = 0, 0, None
        while True:
            begin = time.monotonic()
            outcome, result = self._attempt(request, refusals if refusals else failures)
            if outcome == "ok":
                return result
            if not isinstance(result, TransientError):
                raise result from result.__cause__
            if outcome == "refused":
                refusals, first = refusals + 1, begin if first is None else first
                if time.monotonic() - first > self._connection.throttle_budget_s:
                    raise result from result.__cause__
            else:
                failures += 1
                if failures >= self._connection.attempts:
                    raise result from result.__cause__

    def _attempt(self, request: Callable[[], Any], before: int) -> tuple[str, Any]:
        """Sends a request once; the outcome, and the result or the error. Pauses after what may be repeated."""
        asked = time.monotonic()
        permit = self.limiter.acquire()
        begin, outcome = time.monotonic(), "denied"
        try:
            outcome, result = "ok", request()
        except Exception as error:
            outcome, result = _classify(error)
        finally:
            end = time.monotonic()
            self.limiter.release(permit, refused=outcome == "refused")
        pause = 0.0
        if isinstance(result, TransientError):
            pause = min(LONGEST_PAUSE, PAUSE * 2**before) * random.uniform(0.5, 1.0)
        waited = begin - asked + (pause if outcome == "refused" else 0.0)
        self._report(Attempt(outcome, end - begin, self._transport.received, waited))
        if pause:  # sleeping for 0 s gives the processor away
            time.sleep(pause)
        return outcome, result

    def _report(self, attempt: Attempt) -> None:
        for observer in tuple(observers):
            observer(attempt)

    def _restricted(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("restricted mode: the project's compute quota is used up; one request at a time from now on")
        self.limiter.restrict()

    def _initialize(self) -> None:
        connection = self._connection
        loopback = _check_url(connection.url)
        if loopback:
            try:
                return self.call(lambda: self._ee_initialize(None))
            except _CredentialsError:
                pass
        credentials = _credentials()
        try:
            return self.call(lambda: self._ee_initialize(credentials))
        except PermanentError as error:
            raise FlagError(f"the project cannot use Earth Engine; register it, or give another. {error}") from error

    def _ee_initialize(self, credentials: Any) -> None:
        connection = self._connection
        ee.Reset()
        ee.data.setMaxRetries(0)  # the client's own repetitions would hold their place and be counted nowhere
        # It looks for a list of deprecated assets elsewhere, without any deadline; nothing here needs that.
        ee.deprecation._FetchDataCatalogStac = dict
        place = {"url": connection.url, "project": connection.project, "http_transport": self._transport}
        ee.Initialize(credentials=credentials, **place)
        try:
            ee.data.setDefaultWorkloadTag(connection.workload_tag)
        except ValueError as error:
            raise FlagError(f"{error} Received: workload_tag={connection.workload_tag}") from error


_lock = threading.Lock()
_current: tuple[int, Connection, Client] | None = None


def client(connection: Connection) -> Client:
    """The process's client of a connection, made when it is first asked for.

    The `ee` module holds one connection: another one replaces it, so a process uses one at a time.

    Raises:
      FlagError, TransientError: see `Client`.
    """
    global _current
    with _lock:
        # A forked process must not share its parent's sockets.
        if _current is None or _current[:2] != (os.getpid(), connection):
            _current = os.getpid(), connection, Client(connection)
        return _current[2]


def _credentials() -> Any:
    """Those of `earthengine authenticate`, or else Google's application default ones."""
    try:
        return ee.data.get_persistent_credentials()
    except ee.EEException:
        pass  # it asks for no scopes, without which a service account gets no token
    try:
        return google.auth.default(scopes=ee.oauth.SCOPES)[0]
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise FlagError(
            "Earth Engine needs credentials; run `earthengine authenticate`, or name a service account's key file by "
            f"GOOGLE_APPLICATION_CREDENTIALS. Received: {error}"
        ) from error


def _check_url(url: str) -> bool:
    """Whether an address is plain http on loopback; any other has to be https."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise FlagError(f"expected an https address, or http on loopback. Received: ee_url={url}")
    return parts.scheme == "http"


def _classify(error: Exception) -> tuple[str, Exception]:
    """The class of a failure, and the error to raise in the end; what is none of the service's is itself."""
    google_auth = google.auth.exceptions
    # The client hides the status in what it translated.
    http_error = error if isinstance(error, api_errors.Error) else error.__context__
    status, text = getattr(getattr(http_error, "resp", None), "status", 0), str(error)
    received = f"Received: {status or type(error).__name__}, {text}"
    unreachable = isinstance(error, TimeoutError | ConnectionError | google_auth.TransportError)
    if isinstance(error, google_auth.RefreshError):
        # On Google's machines a metadata server that does not answer comes wrapped, as what is not to be repeated.
        causes = (error.__cause__, *error.args)
        unreachable = error.retryable or any(isinstance(cause, google_auth.TransportError) for cause in causes)
    if unreachable:
        return "failed", _caused(TransientError, f"Earth Engine cannot be reached; run again later. {received}", error)
    if isinstance(error, google_auth.GoogleAuthError):
        return "denied", _caused(
            _CredentialsError, f"Google refuses the credentials; authenticate anew. {received}", error
        )
    if not isinstance(error, ee.EEException | api_errors.Error):
        return "denied", error
    if status == 429 or _REFUSED.search(text):
        remedy = "raise the quota or --ee_throttle_budget_s"
        return "refused", _caused(TransientError, f"Earth Engine had no quota left; {remedy}. {received}", error)
    if status == 401:
        message = f"Earth Engine refuses the credentials; authenticate anew. {received}"
        return "denied", _caused(_CredentialsError, message, error)
    if status >= 500 and status != 501:
        return "failed", _caused(TransientError, f"Earth Engine fails; run again later. {received}", error)
    if status == 400 and _TOO_LARGE.search(text):
        return "too_large", _caused(TooLargeError, f"Earth Engine finds a request too large. {received}", error)
    if not status and "project" in text:
        message = f"Earth Engine needs a Google Cloud project; give --ee_project. {received}"
        return "denied", _caused(FlagError, message, error)
    return "denied", _caused(PermanentError, f"Earth Engine refuses a request. {received}", error)


def _caused(kind: type[Exception], message: str, cause: Exception) -> Exception:
    error = kind(message)
    error.__cause__ = cause
    return error
