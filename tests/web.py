"""A web server on loopback that sends a folder's files whole or in ranges, counts, and fails as it is told."""

import contextlib
import pathlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer:
    """Serves a folder.

    Attributes:
      url: of the folder.
      requests: every request's path, with what follows `?`.
      sent: bytes of all bodies.
      faults: by file name, what is wrong with it: a status, (status, how often), "truncated", "whole" (no ranges)
        or "broken" (the connection, before an answer).
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.url = folder, ""
        self.requests: list[str] = []
        self.sent = 0
        self.faults: dict[str, int | tuple[int, int] | str] = {}
        self._lock = threading.Lock()

    def answer(self, path: str, asked: str | None) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers for a path and the header `Range`."""
        file = self.folder / path.split("?")[0].lstrip("/")
        with self._lock:
            self.requests.append(path)
            fault = self.faults.get(file.name)
            if isinstance(fault, tuple):
                status, left = fault
                self.faults[file.name] = (status, left - 1)
                fault = status if left > 0 else None
        if isinstance(fault, int):
            return fault, b"", {}
        if not file.is_file():
            return 404, b"", {}
        content = file.read_bytes()
        if fault == "truncated":
            content = content[: len(content) // 2]
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if not found or fault == "whole":
            return 200, content, {}
        first = int(found[1])
        if first >= len(content):
            return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
        part = content[first : int(found[2] or len(content)) + 1]
        return 206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}


@contextlib.contextmanager
def serve(folder: pathlib.Path) -> Iterator[WebServer]:
    """Serves a folder on a free port."""
    web = WebServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            status, body, headers = web.answer(self.path, self.headers.get("Range"))
            if web.faults.get(pathlib.PurePosixPath(self.path.split("?")[0]).name) == "broken":
                self.close_connection = True
                return
            self.send_response(status)
            for header in headers.items():
                self.send_header(*header)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                web.sent += len(body)
                with contextlib.suppress(ConnectionError):  # who wanted a range only has gone
                    self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
