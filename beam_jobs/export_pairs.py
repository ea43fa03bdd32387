r"""Paired patches from scenes to TFRecords, split by ground cells.

    harmonize export --source=degraded --scenes=scenes/T33UUU/manifest.json --out=runs/one/examples
    harmonize export --source=earthengine --area=12.0,51.0,12.5,51.3 --start=2022-06-01 --end=2022-09-01 \
      --ee_project=my-project --out=runs/two/examples
    python -m beam_jobs.export_pairs --source=simulated --out=runs/three/examples --split_block=1920

`--scenes` are manifests (see harmonize_tf/sources/scene_manifest.py) or Landsat folders with their MTL. Flags that are
not listed here go to Beam: `--runner=DataflowRunner --max_num_workers=8`. Without a runner the job runs in this
process. The same command continues a job that was stopped. docs/export.md tells more.
"""

import contextlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from absl import flags
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_jobs import estimate, exports, options, plan, progress, settings, shards, tally
from beam_jobs.export_shard import ExportShard, Job, stop_squares
from beam_jobs.folder import Folder
from beam_jobs.plan import Plan, Task
from beam_jobs.settings import Settings
from beam_jobs.stopping import stoppable
from harmonize_tf import command, pairing, patches, sensors
from harmonize_tf.errors import FlagError
from harmonize_tf.sources import SceneSource
from harmonize_tf.sources.ee_client import Connection

FLAGS = flags.FlagValues()
_SOURCE = flags.DEFINE_enum("source", None, list(settings.SOURCES), "Where scenes come from.", flag_values=FLAGS)
_SCENES = flags.DEFINE_list(
    "scenes",
    [],
    "Manifests or Landsat folders. For --source=simulated: none, or a JSON file of the source's attributes.",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", None, "Folder to write, RUN/examples or gs://BUCKET/RUN/examples.", flag_values=FLAGS)
_AREA = flags.DEFINE_string(
    "area",
    None,
    "GeoJSON file, or west,south,east,north in degrees, that holds the patches' centres.",
    flag_values=FLAGS,
)
_START = flags.DEFINE_string("start", None, "First day of Landsat scenes, such as 2022-06-01.", flag_values=FLAGS)
_END = flags.DEFINE_string("end", None, "The day after their last.", flag_values=FLAGS)
_LANDSAT = flags.DEFINE_list("landsat", ["8", "9"], "Which ones.", flag_values=FLAGS)
_CLOUD_COVER = flags.DEFINE_float(
    "cloud_cover", 50, "Greatest share of cloud in a scene of Earth Engine, percent.", 0, 100, flag_values=FLAGS
)
_BANDS = flags.DEFINE_enum("bands", "rgbn", list(sensors.BAND_SETS), "Band set.", flag_values=FLAGS)
_LEVEL = flags.DEFINE_enum(
    "level",
    None,
    sensors.LEVELS,
    "Level; Earth Engine: toa by default; else needed only for scenes of several.",
    flag_values=FLAGS,
)
_NIR = flags.DEFINE_enum("nir", "B8", ["B8", "B8A"], "Sentinel-2's band behind nir.", flag_values=FLAGS)
_PAN = flags.DEFINE_boolean(
    "pan", None, "Export the panchromatic band; by default where all Landsat scenes have one.", flag_values=FLAGS
)
_SPLIT = flags.DEFINE_list("split", ["0.8", "0.1", "0.1"], "Shares of train, val and test.", flag_values=FLAGS)
_SPLIT_BLOCK = flags.DEFINE_integer(
    "split_block",
    2 * patches.PATCH,
    f"Side in m of the ground cells that go to one split, a multiple of {patches.PATCH}.",
    flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the split, and of a degraded source's noise.", flag_values=FLAGS)
_MAX_DAYS = flags.DEFINE_float(
    "max_days", pairing.MAX_DAYS, "Greatest distance in time of scenes that are paired.", 0, flag_values=FLAGS
)
_MIN_VALID = flags.DEFINE_float(
    "min_valid", 0.5, "Smallest share of a patch that is clear on both sides.", 0, 1, flag_values=FLAGS
)
_MAX_SHIFT = flags.DEFINE_float("max_shift", 20, "Greatest shift between the sensors, m.", 0, flag_values=FLAGS)
_MIN_CORRELATION = flags.DEFINE_float(
    "min_correlation", 0.5, "Smallest correlation of the visible bands' mean.", -1, 1, flag_values=FLAGS
)
_SHARD_EXAMPLES = flags.DEFINE_integer(
    "shard_examples", 256, "Most patches in a shard, which a worker holds in memory.", 1, flag_values=FLAGS
)
_REQUEST_SIDE = flags.DEFINE_integer(
    "request_side", 4, "Side, in patches, of the squares that one request reads.", 1, 16, flag_values=FLAGS
)
_THREADS = flags.DEFINE_integer(
    "threads",
    None,
    "Threads of each process; by default one for each core, and for Earth Engine one more for two requests in flight.",
    1,
    flag_values=FLAGS,
)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print how much there is to do, and do nothing.", flag_values=FLAGS)
_OVERWRITE = flags.DEFINE_boolean(
    "overwrite", False, "Replace another export, or this one when it is finished.", flag_values=FLAGS
)
_MAX_DEAD_FRACTION = flags.DEFINE_float(
    "max_dead_fraction", 0.01, "Greatest share of patches that may have failed.", 0, 1, flag_values=FLAGS
)
_RETRY_DEAD = flags.DEFINE_boolean(
    "retry_dead", False, "Fetch again what had failed for good, once that is mended.", flag_values=FLAGS
)
_ASKED = Connection()
_EE_PROJECT = flags.DEFINE_string(
    "ee_project", None, "Google Cloud project with Earth Engine; by default --project.", flag_values=FLAGS
)
_EE_URL = flags.DEFINE_string("ee_url", _ASKED.url, "Earth Engine's endpoint.", flag_values=FLAGS)
_EE_MAX_CONCURRENT = flags.DEFINE_integer(
    "ee_max_concurrent", _ASKED.max_concurrent, "Most requests in flight, of all workers.", 1, flag_values=FLAGS
)
_EE_DEADLINE_S = flags.DEFINE_float(
    "ee_deadline_s", _ASKED.deadline_s, "Longest time for one answer.", 1, flag_values=FLAGS
)
_EE_ATTEMPTS = flags.DEFINE_integer(
    "ee_attempts", _ASKED.attempts, "How often a request that fails is sent.", 1, flag_values=FLAGS
)
_EE_THROTTLE_BUDGET_S = flags.DEFINE_float(
    "ee_throttle_budget_s",
    _ASKED.throttle_budget_s,
    "How long a request is repeated for which there is no quota.",
    0,
    flag_values=FLAGS,
)
_WORKLOAD_TAG = flags.DEFINE_string(
    "workload_tag", _ASKED.workload_tag, "Label in the project's Earth Engine accounting.", flag_values=FLAGS
)

SHARDS_AT_ONCE = 3  # in one process: while one is compressed and written, the others keep the threads busy

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Exports patches.

    Raises:
      FlagError: a flag is wrong, a split gets no patch, or patches could not be fetched.
      SceneError: a scene cannot be used.
    """
    rest = command.parse(FLAGS, argv, known_only=True)
    beam_options = options.pipeline_options(rest, SHARDS_AT_ONCE, FLAGS)
    wanted = _settings()
    source = settings.open_source(wanted, _connection(beam_options))
    if _DRY_RUN.value:
        print(estimate.told(plan.make(source, wanted), source, wanted, _EE_MAX_CONCURRENT.value))
        return
    options.check_reachable("out", _OUT.value, beam_options)
    _export(Folder(_OUT.value), source, wanted, beam_options, options.as_text(FLAGS, rest))


def _export(out: Folder, source: SceneSource, wanted: Settings, beam_options: PipelineOptions, flags_text: str) -> None:
    """Begins an export or continues one, and finishes it."""
    identity = settings.identity(wanted)
    folder = exports.workplace(out, overwrite=_OVERWRITE.value)
    export = exports.find(folder, identity, overwrite=_OVERWRITE.value)
    if export is None:
        planned = plan.make(source, wanted)
        export = exports.begin(folder, identity, _about(wanted, planned), planned, flags_text)
    made = shards.manifests(folder, export.tasks)
    todo = exports.unfinished(export, made, _RETRY_DEAD.value)
    if not todo and folder is out and exports.is_finished(folder):
        _log.info("%s holds this export already; use --overwrite if the scenes' pixels have changed", out)
        return
    if todo:
        folder.delete([exports.INFO])
        if made:
            _log.info("%d of %d shards are there already", len(export.tasks) - len(todo), len(export.tasks))
        readers = options.share(beam_options, _EE_MAX_CONCURRENT.value) if _from_earth_engine() else 0
        job = Job(
            folder, source, wanted, export.about["level"], export.about["pan"], export.splits,
            _threads(beam_options, readers), readers, _RETRY_DEAD.value,
        )  # fmt: skip
        stop = stoppable(stop_squares) if options.in_this_process(beam_options) else contextlib.nullcontext()
        shown = progress.show("export", sum(task.patches for task in todo), "patches")
        try:
            with stop, shown, options.pipeline(beam_options) as pipeline:
                add_to(pipeline, todo, job)
        except RuntimeError as error:  # Beam has logged where, and what it was
            raise FlagError(
                f"the job ended early ({str(error).splitlines()[-1]}); what is finished stays, run the same command "
                f"again. Received: out={out}"
            ) from error
        made |= shards.manifests(folder, todo)
    info = exports.finish(folder, export, identity, made, _MAX_DEAD_FRACTION.value)
    if folder is not out:
        out.take_over(folder, exports.INFO)
    _log.info("%s: %s", out, _told(info))


def add_to(pipeline: beam.Pipeline, tasks: Sequence[Task], job: Job) -> None:
    """Adds the whole job to a pipeline."""
    (
        pipeline
        | "Shards" >> beam.Create(tasks)
        | "Reshuffle" >> beam.Reshuffle()
        | "ExportShard" >> beam.ParDo(ExportShard(job))
    )


def _settings() -> Settings:
    options.check_given(*((_SOURCE,) if _DRY_RUN.value else (_SOURCE, _OUT)))
    try:
        split = tuple(float(share) for share in _SPLIT.value)
    except ValueError as error:
        raise FlagError(f"expected three numbers like 0.8,0.1,0.1. Received: split={','.join(_SPLIT.value)}") from error
    return Settings(
        source=_SOURCE.value,
        scenes=tuple(_SCENES.value),
        bands=sensors.band_set(_BANDS.value),
        level=_LEVEL.value,
        nir=_NIR.value,
        pan=_PAN.value,
        split=split,
        split_block=_SPLIT_BLOCK.value,
        seed=_SEED.value,
        area=_AREA.value,
        start=_START.value,
        end=_END.value,
        landsat=tuple(_LANDSAT.value),
        cloud_cover=_CLOUD_COVER.value,
        max_days=_MAX_DAYS.value,
        min_valid=_MIN_VALID.value,
        max_shift=_MAX_SHIFT.value,
        min_correlation=_MIN_CORRELATION.value,
        shard_examples=_SHARD_EXAMPLES.value,
        request_side=_REQUEST_SIDE.value,
    )


def _connection(beam_options: PipelineOptions) -> Connection:
    """To Earth Engine, with this process's share of the requests."""
    return Connection(
        project=_EE_PROJECT.value or beam_options.view_as(GoogleCloudOptions).project,
        url=_EE_URL.value,
        max_concurrent=options.share(beam_options, _EE_MAX_CONCURRENT.value) if _from_earth_engine() else 1,
        deadline_s=_EE_DEADLINE_S.value,
        attempts=_EE_ATTEMPTS.value,
        throttle_budget_s=_EE_THROTTLE_BUDGET_S.value,
        workload_tag=_WORKLOAD_TAG.value,
    )


def _from_earth_engine() -> bool:
    return _SOURCE.value == "earthengine"


def _threads(beam_options: PipelineOptions, readers: int) -> int:
    """Threads of one process that work on squares: some wait for the readers, while others compute."""
    cores = (os.cpu_count() or 1) if options.processes(beam_options) == 1 else 1  # of several, each has its own
    return _THREADS.value or math.ceil(readers / 2) + cores


def _about(wanted: Settings, planned: Plan) -> dict[str, Any]:
    """What dataset_info.json says of the plan."""
    return {
        "source": wanted.source,
        "level": planned.level,
        "bands": list(wanted.bands),
        "nir": wanted.nir,
        "pan": planned.pan,
    }


def _told(info: Mapping[str, Any]) -> str:
    parts = [", ".join(f"{count} {split}" for split, count in info["counts"].items())]
    parts += [f"{count} rejected by {reason}" for reason, count in info["rejected"].items()]
    parts += [f"{count} dead ({kind})" for kind, count in info["dead"].items() if count]
    if info["dead"]["transient"]:
        parts.append("run the same command again for those that failed for passing reasons")
    if info["shift_m"]:
        east, north = info["shift_m"]["median"]
        parts.append(f"median shift {east:+.1f} m east, {north:+.1f} m north (90 % within {info['shift_m']['p90']} m)")
    if info["requests"]["requests"]:
        parts.append(tally.told(info["requests"]))
    return "; ".join(parts)


if __name__ == "__main__":
    command.run(main)
