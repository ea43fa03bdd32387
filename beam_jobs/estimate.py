"""How much an export will ask for, before it asks: the words of `--dry_run`."""

import collections

from beam_jobs.plan import Plan
from beam_jobs.settings import Settings
from harmonize_tf import patches
from harmonize_tf.sources import SceneSource, native_windows
from harmonize_tf.sources.earth_engine import EarthEngineSource

# Earth Engine's default quota of a project (developers.google.com/earth-engine/guides/usage).
REQUESTS_PER_SECOND = 100
# Assumed, not measured: seconds that one answer of some MB takes. A run's own are in its dataset_info.json.
LATENCY_S = 2.0


def requests(planned: Plan, source: EarthEngineSource, settings: Settings) -> tuple[int, int]:
    """Requests for pixels and their bytes, if none fails or is refused for its size."""
    count = size = 0
    for square in planned.squares:
        grids = [patch.grid for patch in square.patches]
        sides = list(zip(square.scenes, (30, 10), (settings.bands, settings.bands), strict=True))
        if planned.pan:
            sides.append((square.scenes[0], 15, ("pan",)))
        for scene, pixel, bands in sides:
            if scene is not None:
                for group, window in native_windows(scene, bands, [grid.at(pixel) for grid in grids]):
                    answers = source.cost(scene, group, window)
                    count, size = count + len(answers), size + sum(answers)
    return count, size


def record_bytes(planned: Plan, settings: Settings) -> int:
    """Of all patches' records before they are compressed."""
    bands, fine = len(settings.bands), (patches.PATCH // 10) ** 2
    landsat, pan = (patches.PATCH // 30) ** 2 * (2 * bands + 1), (patches.PATCH // 15) ** 2 * 2 * planned.pan
    per_patch = {(True, True): landsat + pan + fine * (2 * bands + 1)}
    per_patch |= {(True, False): landsat + pan, (False, True): fine * (2 * bands + 1)}
    return sum(per_patch[patch.landsat is not None, patch.sentinel is not None] for patch in planned.patches)


def told(planned: Plan, source: SceneSource, settings: Settings, in_flight: int) -> str:
    """A few lines for a person."""
    scenes = [{s.scenes[i].id for s in planned.squares if s.scenes[i]} for i in (0, 1)]
    pairs = {tuple(scene and scene.id for scene in square.scenes) for square in planned.squares}
    splits = collections.Counter(patch.split for patch in planned.patches)
    counted = ", ".join(f"{splits[split]:,} {split}" for split in patches.SPLITS)
    squares = sum(1 for _ in planned.squares)
    lines = [
        f"scenes    {len(scenes[0]):,} Landsat and {len(scenes[1]):,} Sentinel-2 in {len(pairs):,} pairs",
        f"patches   {splits.total():,} before the gates: {counted}",
        f"shards    {len(planned.shards):,}, of {squares:,} squares that are read together",
        f"records   {_bytes(record_bytes(planned, settings))} at most, before compression",
    ]
    if isinstance(source, EarthEngineSource):
        count, size = requests(planned, source, settings)
        hours = max(count / REQUESTS_PER_SECOND, count * LATENCY_S / in_flight) / 3600
        lines += [
            f"requests  {count:,} for {_bytes(size)} of pixels",
            f"time      {hours:.2g} hours at the quota of {in_flight} requests in flight and {REQUESTS_PER_SECOND} a "
            f"second, if an answer takes {LATENCY_S:g} s (an assumption)",
        ]
    return "\n".join(lines)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
