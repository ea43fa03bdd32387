"""An Earth Engine on loopback, for tests: scenes of any source, served to the real earthengine-api client.

    python -m harmonize_tf.testing.earth_engine_emulator --port=8099
    python -m harmonize_tf.testing.earth_engine_emulator --scenes=scenes/t33uuu-6e7e281b --degraded

    with Emulator(SimulatedSource(seed=1)) as emulator:
        ee.Initialize(credentials=None, url=emulator.url, project="emulator-project")

It serves the discovery document and the signatures that ship inside the installed client, lists images with filters,
and gives pixels by computePixels and getPixels as NPY and GEO_TIFF. Calls are held against the signatures. Faults,
latency, hangs and quotas come on request, and everything that was asked is kept in a log.

What it is not: a re-implementation of Earth Engine. It has a handful of functions (anything else is answered with 501
and the function's name), no pyramids and no reprojection (501), no accounting of compute units, and none of the real
catalogue's oddities but those written down in `ee_assets`. Regions and footprints are compared by bounding box. Limits
and error texts are Earth Engine's as far as they are public; what works here may still be refused there.
"""

import json
import pathlib
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from absl import flags

from harmonize_tf import command
from harmonize_tf.errors import FlagError
from harmonize_tf.sources import SceneSource
from harmonize_tf.sources.degraded import DegradedSource
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.testing import ee_images
from harmonize_tf.testing.ee_assets import PUBLIC, Catalogue
from harmonize_tf.testing.ee_limits import Fault, Gate, Limits, Logged, Refusal
from harmonize_tf.testing.service_account import ServiceAccount

FLAGS = flags.FlagValues()
_PORT = flags.DEFINE_integer("port", 0, "Port on loopback; 0: a free one, which is printed.", flag_values=FLAGS)
_SCENES = flags.DEFINE_list("scenes", [], "Manifests or folders of GeoTIFFs; none: simulated ones.", flag_values=FLAGS)
_DEGRADED = flags.DEFINE_boolean(
    "degraded", False, "Serve Sentinel-2 scenes with a Landsat-like partner made from each.", flag_values=FLAGS
)
_SIZE = flags.DEFINE_integer("size", 23_040, "Side of the simulated scenes, m, a multiple of 60.", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of the simulated scenes.", flag_values=FLAGS)
_LEVEL = flags.DEFINE_enum("level", "toa", ("toa", "sr"), "Of the simulated scenes.", flag_values=FLAGS)
_CLOUDS = flags.DEFINE_float("clouds", 0.0, "Share of cells of 1.6 km with a cloud.", flag_values=FLAGS)
_LATENCY_MS = flags.DEFINE_float("latency_ms", 0.0, "Added to every answer with pixels.", flag_values=FLAGS)
_CONCURRENT = flags.DEFINE_integer("concurrent", None, "Pixel requests at one time; more get 429.", flag_values=FLAGS)

PAGE = 1000  # assets in one answer, at most
STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
STATUS |= {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE"}


@cache
def discovery() -> bytes:
    """The API's description out of the installed client, as version 1, with parameters that it lacks."""
    text = (ee_images.SHIPPED / "cloud_api_discovery_document.json").read_text().replace("v1alpha", "v1")
    document = json.loads(text)
    projects = document["resources"]["projects"]
    for resource in (projects, projects["resources"]["assets"]):
        for name in ("filter", "view"):
            resource["methods"]["listAssets"]["parameters"].setdefault(name, {"location": "query", "type": "string"})
    return json.dumps(document).encode()


class Emulator:
    """The server; a context manager that serves while it is entered.

    Attributes:
      faults: what goes wrong on purpose; may be changed at any time.
      latency: seconds added to every answer with pixels.
      log: every request as it was answered.
      account: who may ask, when `auth` is on.
    """

    def __init__(
        self,
        source: SceneSource,
        *,
        port: int = 0,
        limits: Limits | None = None,
        faults: Sequence[Fault] = (),
        latency: float = 0.0,
        auth: bool = False,
        page: int = PAGE,
        restricted: bool = False,
        without_cloud_score: Sequence[str] = (),
        properties: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Binds the port.

        Args:
          source: the scenes to serve.
          port: on loopback; 0: a free one.
          limits: quotas and sizes; None: Earth Engine's sizes, no quota.
          faults: what goes wrong on purpose.
          latency: seconds added to every answer with pixels.
          auth: whether bearer tokens are required.
          page: greatest number of assets in one answer.
          restricted: whether answers say that the project is in restricted mode.
          without_cloud_score: ids of Sentinel-2 scenes that Cloud Score+ has not reached yet.
          properties: metadata by scene id.
        """
        self.catalogue = Catalogue(source, without_cloud_score=without_cloud_score, properties=properties)
        self.gate, self.account, self.auth = Gate(), ServiceAccount() if auth else None, auth
        self.gate.limits = limits or Limits()
        self.faults, self.latency, self.page, self.restricted = list(faults), latency, page, restricted
        self.log: list[Logged] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.emulator = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def peak(self) -> int:
        """Greatest number of pixel requests that were worked on at one time."""
        return self.gate.peak

    def requests(self, pattern: str = "") -> list[Logged]:
        """What was asked, where "METHOD path" or the body matches."""
        return [r for r in self.log if re.search(pattern, f"{r.method} {r.path}") or re.search(pattern, r.body)]

    def write_key(self, path: pathlib.Path) -> pathlib.Path:
        """Writes the service account's key file."""
        if self.account is None:
            raise ValueError("the emulator was made without auth")
        return self.account.write_key(path, f"{self.url}/token")

    def __enter__(self) -> "Emulator":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the default of 5 refuses connections when many threads start at once
    emulator: Emulator


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without these two an answer takes 40 ms more.
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: `Emulator.log` has it."""

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def do_POST(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        start, emulator = time.monotonic(), self.server.emulator
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        if len(content) < length:  # the client died while it asked
            self.close_connection = True
            return
        body = content.decode()
        method, path = self.command, self.path
        # The client sends long queries in a body.
        if override := self.headers.get("x-http-method-override"):
            method, path, body = override, f"{path}?{body}", ""
        try:
            self._meet_faults(f"{method} {path}", body)
            status, kind, answer = 200, *self._route(method, path, body)
        except Refusal as refusal:
            status, kind, answer = refusal.status, "application/json", _error(refusal)
        except Exception as error:  # the emulator's own fault: told to the client rather than on stderr
            refusal = Refusal(500, f"The emulator failed: {error!r}")
            status, kind, answer = 500, "application/json", _error(refusal)
        emulator.log.append(Logged(method, urllib.parse.unquote(path), body, status, start, time.monotonic()))
        if status == 0:
            self.close_connection = True
            return
        self._send(status, kind, answer)

    def _send(self, status: int, kind: str, content: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if self.server.emulator.restricted:
                self.send_header("x-earth-engine-quota-status", "parallelism_restricted=true")
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:  # the client has given up
            self.close_connection = True

    def _meet_faults(self, line: str, body: str) -> None:
        emulator = self.server.emulator
        for fault in list(emulator.faults):
            if fault.meets(urllib.parse.unquote(line), body):
                emulator.closing.wait(fault.hang)
                if fault.status != 200:
                    raise Refusal(fault.status, fault.message)

    def _route(self, method: str, path: str, body: str) -> tuple[str, bytes]:
        emulator, url = self.server.emulator, urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(url.query))
        place = urllib.parse.unquote(url.path)
        if method == "POST" and place == "/token":
            return "application/json", self._token(body)
        if emulator.account and not emulator.account.accepts(self.headers.get("Authorization", "")):
            raise Refusal(401, "Request had invalid authentication credentials. Expected OAuth 2 access token.")
        if place == "/$discovery/rest":
            return "application/json", discovery()
        if method == "GET" and re.fullmatch(r"/v1/projects/[^/]+/algorithms", place):
            return "application/json", (ee_images.SHIPPED / "algorithms.json").read_bytes()
        if method == "POST" and re.fullmatch(r"/v1/projects/[^/]+/image:computePixels", place):
            return "application/octet-stream", self._pixels(json.loads(body), None)
        found = re.fullmatch(rf"/v1/{PUBLIC}(.+?)(?::(getPixels|listAssets))?", place)
        if not found:
            raise Refusal(501, f"The emulator does not implement {method} {place}.")
        asset, verb = found.groups()
        if verb == "listAssets":
            return "application/json", self._list(asset, query)
        if verb == "getPixels":
            return "application/octet-stream", self._pixels(json.loads(body), asset)
        return "application/json", json.dumps(emulator.catalogue.get(asset).describe()).encode()

    def _token(self, body: str) -> bytes:
        account = self.server.emulator.account
        if account is None:
            raise Refusal(404, "The emulator asks for no tokens.")
        try:
            return json.dumps(account.token(body)).encode()
        except (ValueError, KeyError) as error:
            raise Refusal(400, f"invalid_grant: {error}") from error

    def _list(self, collection: str, query: Mapping[str, str]) -> bytes:
        emulator = self.server.emulator
        found = emulator.catalogue.list(collection, query.get("filter", ""))
        start = int(query.get("pageToken") or 0)
        stop = start + min(int(query.get("pageSize") or emulator.page), emulator.page)
        answer: dict[str, Any] = {"assets": [a.describe(query.get("view") != "BASIC") for a in found[start:stop]]}
        if stop < len(found):
            answer["nextPageToken"] = str(stop)
        return json.dumps(answer).encode()

    def _pixels(self, request: Mapping[str, Any], asset: str | None) -> bytes:
        """Counted against the quotas for as long as it takes."""
        emulator = self.server.emulator
        with emulator.gate.passage():
            emulator.closing.wait(emulator.latency)
            if asset is None:
                return ee_images.compute(emulator.catalogue, request, emulator.gate.limits)
            return ee_images.pixels(emulator.catalogue.get(asset), request, emulator.gate.limits)


def _error(refusal: Refusal) -> bytes:
    status = STATUS.get(refusal.status, "UNKNOWN")
    return json.dumps({"error": {"code": refusal.status, "message": refusal.message, "status": status}}).encode()


def main(argv: Sequence[str] | None = None) -> None:
    """Serves scenes until it is stopped.

    Raises:
      FlagError, SceneError: the port or the scenes cannot be used.
    """
    command.parse(FLAGS, argv)
    source: SceneSource = SimulatedSource(seed=_SEED.value, size=_SIZE.value, level=_LEVEL.value, clouds=_CLOUDS.value)
    if _SCENES.value:
        source = GeoTiffSource(*_SCENES.value)
        source = DegradedSource(source) if _DEGRADED.value else source
    limits = Limits(concurrent=_CONCURRENT.value)
    try:
        server = Emulator(source, port=_PORT.value, limits=limits, latency=_LATENCY_MS.value / 1000)
    except (OSError, OverflowError) as error:
        raise FlagError(
            f"the port cannot be used ({error}); choose another one, or 0. Received: {_PORT.value}"
        ) from error
    with server as emulator:
        print(emulator.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    command.run(main)
