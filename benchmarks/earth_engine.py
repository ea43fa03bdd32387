"""What `harmonize export --source=earthengine` makes of the requests, cores and memory it has, against the emulator.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.earth_engine --patches=400 --request_side=1 --latency_ms=200
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.earth_engine --patches=10000 --latency_ms=200

The variable is what the command sets for itself before numpy is imported; see benchmarks/export.py.

The emulator runs in a process of its own and cuts its pixels out of an array that it rendered before, so that next to
nothing but HTTP is left of its work. Three runs ask it for the same windows: the whole job; the job's threads, which
only read and decode; a plain thread pool with the real client, which only downloads. Each is held against

  latency  requests in flight / latency, which is all that the quota allows;
  CPU      cores that others leave / CPU seconds a request costs here, the emulator's included;

and the smaller of the two is the ideal. Then one thread tells where a patch's CPU time goes.
"""

import contextlib
import dataclasses
import json
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import ee
import numpy as np
from absl import flags

from beam_jobs import export_pairs, summary, transforms
from beam_jobs.settings import Settings
from beam_jobs.squares import Square
from harmonize_tf import command, geometry, records, sensors
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Raster, Scene, SceneSource, earth_engine, ee_client, native_windows, region
from harmonize_tf.sources.earth_engine import EarthEngineSource
from harmonize_tf.sources.ee_client import Connection
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.testing.earth_engine_emulator import Emulator
from harmonize_tf.testing.ee_limits import Limits

FLAGS = flags.FlagValues()
_PATCHES = flags.DEFINE_integer("patches", 400, "How many, about: a square number.", 1, flag_values=FLAGS)
_LATENCY_MS = flags.DEFINE_float("latency_ms", 200, "The emulator's.", 1, flag_values=FLAGS)
_CONCURRENT = flags.DEFINE_integer("concurrent", 40, "Requests in flight.", 1, flag_values=FLAGS)
_REQUEST_SIDE = flags.DEFINE_integer("request_side", 4, "The job's flag.", 1, 7, flag_values=FLAGS)
_JOB = flags.DEFINE_multi_string("job", [], "Further flags of the job, such as --job=--threads=80.", flag_values=FLAGS)

PERIOD = 7680  # m, after which the emulator's ground begins anew
AREA, START, END, PROJECT = "10,40,18,53", "2022-06-01", "2022-08-01", "emulator-project"
BANDS = sensors.BAND_SETS["rgbn"]
PROFILED = 96  # patches
SAMPLE_S = 0.1  # between two looks at the memory


@dataclasses.dataclass
class Run:
    """One way of reading all windows, measured.

    Attributes:
      name: of what was done.
      wall: seconds.
      cpu: seconds of this process.
      served_cpu: seconds of the emulator.
      others: cores that were busy with something else.
      requests: for pixels that were answered.
    """

    name: str
    wall: float
    cpu: float
    served_cpu: float
    others: float
    requests: int

    def told(self, patches: int, in_flight: int, latency: float) -> str:
        """The figures, in lines."""
        rate, cores = self.requests / self.wall, os.cpu_count() - self.others
        bounds = {"latency": in_flight / latency, "CPU": cores * self.requests / (self.cpu + self.served_cpu)}
        least = min(bounds, key=bounds.get)
        alone = os.cpu_count() * self.requests / self.cpu
        return "\n".join([
            f"{self.name}: {patches / self.wall:.1f} patches/s, {rate:.1f} requests/s",
            f"  ideal {', '.join(f'{bound:.1f} by {name}' for name, bound in bounds.items())}; "
            f"{rate / bounds['latency']:.2f} of the latency's, {rate / bounds[least]:.2f} of the least ({least})",
            f"  busy cores of {os.cpu_count()}: {self.cpu / self.wall:.2f} here, {self.served_cpu / self.wall:.2f} the "
            f"emulator, {self.others:.2f} others",
            f"  CPU here {1000 * self.cpu / self.requests:.1f} ms a request, {1000 * self.cpu / patches:.1f} ms a "
            f"patch; by that {os.cpu_count()} cores fill {in_flight} in flight from {in_flight / alone:.2f} s of "
            "latency on",
        ])  # fmt: skip


class Server:
    """The emulator in its process, for the time of a `with`."""

    def __init__(self, source: SimulatedSource, latency: float, concurrent: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, source, latency, concurrent), daemon=True)

    def __enter__(self) -> "Server":
        self._process.start()
        self.url = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(False)
        self._process.join()

    def measured(self, name: str, work: Callable[[], object]) -> Run:
        """Does some work and says what it cost."""
        busy, cpu, wall, (served, requests) = _busy(), time.process_time(), time.perf_counter(), self._ask()
        work()
        served, requests = (after - before for after, before in zip(self._ask(), (served, requests), strict=True))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Run(name, wall, cpu, served, max(0.0, (_busy() - busy - cpu - served) / wall), requests)

    def _ask(self) -> tuple[float, int]:
        """CPU seconds of the emulator, and its answers with pixels so far."""
        self._pipe.send(True)
        return self._pipe.recv()


def _serve(
    pipe: multiprocessing.connection.Connection, source: SimulatedSource, latency: float, concurrent: int
) -> None:
    """The emulator's process."""
    with Emulator(source, limits=Limits(concurrent=concurrent), latency=latency) as emulator:
        assets = emulator.catalogue.assets
        for name, asset in assets.items():
            bands = tuple(dataclasses.replace(band, read=Pattern(band.grid, band.read)) for band in asset.bands)
            assets[name] = dataclasses.replace(asset, bands=bands)
        pipe.send(emulator.url)
        while pipe.recv():
            answered = sum(request.status == 200 and "computePixels" in request.path for request in emulator.log)
            pipe.send((time.process_time(), answered))


class Pattern:
    """A band's first square of `PERIOD`, again and again; called with a window it gives a view."""

    def __init__(self, grid: Grid, read: Callable[[Grid], np.ndarray]) -> None:
        self._grid, self._size = grid, round(PERIOD / grid.pixel[0])
        self._pixels = np.tile(read(grid.window(0, 0, self._size, self._size)), (3, 3))

    def __call__(self, window: Grid) -> np.ndarray:
        """Pixels of a window."""
        row, column = (at % self._size for at in window.offset_in(self._grid))
        return self._pixels[row : row + window.shape[0], column : column + window.shape[1]]


def _busy() -> float:
    """Seconds for which this machine's cores have worked: all but those of being idle and of waiting for disks."""
    user, nice, system, _, _, *others = map(int, pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


class Memory:
    """Looks at this process's memory for the time of a `with`."""

    def __init__(self) -> None:
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._watch, daemon=True)
        self._samples: list[float] = []

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._samples.append(status_mb("VmRSS"))

    def told(self) -> str:
        """The greatest size in each tenth of the time."""
        tenths = " ".join(f"{max(part):.0f}" for part in np.array_split(self._samples, 10) if len(part))
        return f"memory of the whole job: greatest in each tenth of its time {tenths} MB"


def status_mb(name: str) -> float:
    """A line of /proc/self/status."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the three runs, the job's share of the plain one's rate, its memory and its profile."""
    command.parse(FLAGS, argv)
    latency, in_flight = _LATENCY_MS.value / 1000, _CONCURRENT.value
    simulated = SimulatedSource(size=math.isqrt(_PATCHES.value) * geometry.PATCH)
    place = EarthEngineSource(region.parse(AREA), START, END)
    with tempfile.TemporaryDirectory() as folder, Server(simulated, latency, in_flight) as server:
        out = pathlib.Path(folder) / "examples"
        with Memory() as memory:
            job = server.measured("whole job", lambda: export_pairs.main([*_asked(out, server.url), *_JOB.value]))
        squares = [Square.parse(line) for line in (out / "plan.jsonl").read_text().splitlines()]
        info = json.loads((out / "dataset_info.json").read_text())
        source = dataclasses.replace(place, connection=Connection(PROJECT, server.url, in_flight))
        ee_client.client(source.connection)  # signs in
        reading = server.measured("reading alone", lambda: _each(lambda each: read(source, each), squares, in_flight))
        ee.Reset()
        ee.Initialize(credentials=None, url=server.url, project=PROJECT)
        plain = server.measured(
            "plain download", lambda: _each(lambda each: download(source, each), squares, in_flight)
        )
    count = sum(len(square.patches) for square in squares)
    print(f"{count} patches in {len(squares)} squares, {info['counts']['train']} exported, {plain.requests} requests")
    for run in (job, reading, plain):
        print(run.told(count, in_flight, latency))
    rates = f"{plain.wall / job.wall:.2f} of its patches/s, {job.cpu / plain.cpu:.1f} times its CPU time here"
    print(f"whole job against plain download: {rates}")
    print(memory.told())
    with Server(simulated, 0.0, in_flight) as server:
        settings = Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in info["flags"].items()})
        source = dataclasses.replace(place, connection=Connection(PROJECT, server.url, in_flight))
        print(profile(source, squares, settings))


def _asked(out: pathlib.Path, url: str) -> list[str]:
    """The job's flags."""
    return [
        "--source=earthengine",
        f"--out={out}",
        f"--area={AREA}",
        f"--start={START}",
        f"--end={END}",
        f"--ee_project={PROJECT}",
        f"--ee_url={url}",
        f"--ee_max_concurrent={_CONCURRENT.value}",
        f"--request_side={_REQUEST_SIDE.value}",
        "--split=1,0,0",
    ]


def _each(function: Callable[[Square], object], squares: Sequence[Square], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, squares):
            pass


def windows(square: Square) -> list[tuple[Scene, Sequence[str], Grid]]:
    """What the job reads for a square."""
    found, grids = [], [patch.grid for patch in square.patches]
    landsat, sentinel = square.scenes
    for scene, pixel, bands in ((landsat, 30, BANDS), (landsat, 15, ("pan",)), (sentinel, 10, BANDS)):
        found += [(scene, *each) for each in native_windows(scene, bands, [grid.at(pixel) for grid in grids])]
    return found


def read(source: SceneSource, square: Square) -> None:
    """Reads a square's windows, one after the other as the job does."""
    for each in windows(square):
        source.read(*each)


def download(source: EarthEngineSource, square: Square) -> None:
    """Downloads the same and does nothing with it."""
    for each in windows(square):
        for request in source._asked(*each):
            ee.data.computePixels(earth_engine._request(*request))


class Remembering:
    """A source that reads each window once."""

    def __init__(self, source: SceneSource) -> None:
        self._source, self._read = source, {}

    def read(self, scene: Scene, bands: Sequence[str], window: Grid) -> Raster:
        """See `SceneSource.read`."""
        key = scene.id, tuple(bands), window
        if key not in self._read:
            self._read[key] = self._source.read(scene, bands, window)
        return self._read[key]


def profile(source: EarthEngineSource, squares: Sequence[Square], settings: Settings) -> str:
    """CPU time of one thread for each step of a patch."""
    ee_client.client(source.connection)  # signs in
    spent, count, encoded = dict.fromkeys(("read", "warp", "gates", "encode", "statistics", "gzip"), 0.0), 0, []

    @contextlib.contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        spent[step] += time.thread_time() - start

    for square in squares:
        if count >= PROFILED:
            break
        count += len(square.patches)
        known = Remembering(source)
        with timed("read"):
            read(known, square)
        with timed("warp"):
            views = transforms.fetch(known, square, BANDS, pan=True)
        with timed("gates"):
            verdicts = [transforms.examine(each, settings) for each in views]
        with timed("encode"):
            made = [transforms.to_record(*both, settings, "toa") for both in zip(views, verdicts, strict=True)]
            encoded += [records.encode(record) for record in made]
        with timed("statistics"):
            for record in made:
                summary.of(record, square.scenes)
    with timed("gzip"):
        records.shard(encoded)
    total = sum(spent.values())
    steps = ", ".join(f"{name} {1000 * each / count:.2f} ({each / total:.0%})" for name, each in spent.items())
    return f"CPU ms a patch of {count}, in one thread: {steps}; {1000 * total / count:.1f} in all"


if __name__ == "__main__":
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the plain client's pool is smaller than it needs
    command.run(main)
