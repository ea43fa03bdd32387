"""HTTP to Earth Engine with a deadline for the whole answer and a pool as large as the number of threads.

The client's own transport has no deadline, so that a server that hangs hangs the worker, and a pool of 10.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import httplib2
import requests
from requests.adapters import HTTPAdapter

QUOTA_HEADER, RESTRICTED = "x-earth-engine-quota-status", "parallelism_restricted=true"
CONNECT_S = 20.0  # s, to reach the server at all
CHUNK = 1 << 18  # bytes


class Transport:
    """What google-api-python-client asks of a httplib2.Http."""

    def __init__(self, deadline_s: float, connections: int, on_restricted: Callable[[], None]) -> None:
        """Opens a pool.

        Args:
          deadline_s: seconds for one request and the whole of its answer.
          connections: how many are kept open.
          on_restricted: called with every answer that says the project is in restricted mode.
        """
        self._deadline_s, self._on_restricted = deadline_s, on_restricted
        self._session, self._answer = requests.Session(), threading.local()
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=connections)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, adapter)

    @property
    def received(self) -> int:
        """Bytes of this thread's last answer."""
        return getattr(self._answer, "size", 0)

    def request(
        self,
        uri: str,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        redirections: int | None = None,
        connection_type: Any = None,
    ) -> tuple[httplib2.Response, bytes]:
        """Sends a request; see httplib2.Http.request.

        Raises:
          TimeoutError: the answer was not whole at the deadline.
          ConnectionError: the connection could not be made, or broke.
        """
        self._answer.size = 0
        end = time.monotonic() + self._deadline_s
        timeout = min(CONNECT_S, self._deadline_s), self._deadline_s
        sent = {"data": body, "headers": headers, "timeout": timeout, "stream": True}
        try:
            with self._session.request(method, uri, **sent) as response:
                content = self._whole(response, end)
        except requests.exceptions.Timeout as error:
            raise TimeoutError(str(error)) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise ConnectionError(str(error)) from error
        if RESTRICTED in response.headers.get(QUOTA_HEADER, ""):
            self._on_restricted()
        return httplib2.Response({**response.headers, "status": str(response.status_code)}), content

    def close(self) -> None:
        """Closes all connections."""
        self._session.close()

    def _whole(self, response: requests.Response, end: float) -> bytes:
        """The body; a server that trickles is given up at the deadline too."""
        chunks = []
        for chunk in response.iter_content(CHUNK):
            chunks.append(chunk)
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {self._deadline_s:g} s")
        content = b"".join(chunks)
        self._answer.size = len(content)
        return content
