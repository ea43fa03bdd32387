"""Paired patches from scenes to TFRecords, split by ground cells.

    harmonize export --source=degraded --scenes=scenes/T33UUU/manifest.json --out=runs/one/examples
    python -m beam_jobs.export_pairs --source=simulated --out=runs/one/examples --split_block=1920

`--scenes` are manifests (see harmonize_tf/sources/scene_manifest.py) or Landsat folders with their MTL. Flags that are
not listed here go to Beam: `--runner=DataflowRunner --max_num_workers=8`. Without a runner the job runs in this
process by `--threads`.
"""

import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from absl import flags

from beam_jobs import options, plan, progress, shards
from beam_jobs.plan import Plan, Settings
from beam_jobs.transforms import FAILED, REJECTED, FetchPatch, MaskAndGate
from harmonize_tf import command, pairing, patches, records, sensors
from harmonize_tf.errors import FlagError
from harmonize_tf.sources import SceneSource

FLAGS = flags.FlagValues()
_SOURCE = flags.DEFINE_enum("source", None, list(plan.SOURCES), "Where scenes come from.", flag_values=FLAGS)
_SCENES = flags.DEFINE_list(
    "scenes",
    [],
    "Manifests or Landsat folders. For --source=simulated: none, or a JSON file of the source's attributes.",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", None, "Folder of examples to write, such as RUN/examples.", flag_values=FLAGS)
_BANDS = flags.DEFINE_enum("bands", "rgbn", list(sensors.BAND_SETS), "Band set.", flag_values=FLAGS)
_LEVEL = flags.DEFINE_enum(
    "level", None, sensors.LEVELS, "Level; needed only when the scenes are of several.", flag_values=FLAGS
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
_SHARD_EXAMPLES = flags.DEFINE_integer("shard_examples", 256, "Most records in a shard.", 1, flag_values=FLAGS)
_THREADS = flags.DEFINE_integer("threads", os.cpu_count(), "Threads of the local runner.", 1, flag_values=FLAGS)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace a finished export.", flag_values=FLAGS)

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Exports patches.

    Raises:
      FlagError: a flag is wrong, or a split gets no patch.
      SceneError: a scene cannot be used.
    """
    rest = command.parse(FLAGS, argv, known_only=True)
    beam_options = options.pipeline_options(rest, _THREADS.value, FLAGS)
    settings = _settings()
    source = plan.open_source(settings)
    planned = plan.make(source, settings)
    out, identity = pathlib.Path(_OUT.value), _identity(settings, planned)
    if _OVERWRITE.value:
        shards.check_ours(out)
    elif shards.is_finished(out, identity):
        _log.info("%s holds this export already; use --overwrite if the scenes' pixels have changed", out)
        return
    with shards.written_aside(out) as folder:
        (folder / "plan.jsonl").write_text(planned.lines())
        command.write_flags(FLAGS, folder / "flags.txt")
        with progress.show(len(planned.patches), "patches"), options.pipeline(beam_options) as pipeline:
            export(pipeline, source, settings, planned, identity, os.fspath(folder))
        shards.check_failures(folder)
        info = shards.read_info(folder)
        patches.check_all_splits_filled(info["counts"], settings.split, _remedy(info["rejected"]))
    _log.info("%s: %s", out, _told(info))


def export(
    pipeline: beam.Pipeline,
    source: SceneSource,
    settings: Settings,
    planned: Plan,
    identity: Mapping[str, Any],
    folder: str,
) -> None:
    """Adds the whole job to a pipeline."""
    read = (
        pipeline
        | "Plan" >> beam.Create([(planned.shards[patch.id], patch) for patch in planned.patches])
        | "Reshuffle" >> beam.Reshuffle()
        | "FetchPatch" >> beam.ParDo(FetchPatch(source, settings.bands, planned.pan)).with_outputs(FAILED, main="views")
    )
    judged = read.views | "MaskAndGate" >> beam.ParDo(MaskAndGate(settings, planned.level)).with_outputs(
        REJECTED, main="accepted"
    )
    accepted, rejected = judged.accepted, judged[REJECTED]
    encoded = accepted | "Encode" >> beam.MapTuple(lambda shard, record: (shard, (record.id, records.encode(record))))
    nothing = rejected | "Nothing" >> beam.MapTuple(lambda shard, line: (shard, (line["id"], None)))
    (
        (encoded, nothing)
        | "Flatten" >> beam.Flatten()
        | "GroupByShard" >> beam.GroupByKey()
        | "WriteShard" >> beam.Map(functools.partial(shards.write_shard, folder=folder))
    )
    (
        read[FAILED]
        | "Failed" >> beam.combiners.ToList()
        | "WriteFailures" >> beam.Map(shards.write_failures, folder=folder)
    )
    lines = rejected | "Lines" >> beam.Values() | "Rejected" >> beam.combiners.ToList()
    (
        accepted
        | "Records" >> beam.Values()
        | "Summarise" >> beam.CombineGlobally(shards.Summarise())
        | "WriteInfo"
        >> beam.Map(shards.write_info, beam.pvalue.AsSingleton(lines), identity=dict(identity), folder=folder)
    )


def _settings() -> Settings:
    for flag in (_SOURCE, _OUT):
        if not flag.value:
            raise FlagError(f"--{flag.name} is needed. See --help. Received: {flag.name}={flag.value}")
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
        max_days=_MAX_DAYS.value,
        min_valid=_MIN_VALID.value,
        max_shift=_MAX_SHIFT.value,
        min_correlation=_MIN_CORRELATION.value,
        shard_examples=_SHARD_EXAMPLES.value,
    )


def _identity(settings: Settings, planned: Plan) -> dict[str, Any]:
    """What makes an export this one, as dataset_info.json keeps it."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()}
    return {
        "source": settings.source,
        "level": planned.level,
        "bands": list(settings.bands),
        "nir": settings.nir,
        "pan": planned.pan,
        "flags": plain,
        "inputs": plan.fingerprints(settings.scenes),
        "plan_sha256": planned.sha256(),
    }


def _remedy(rejected: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} by {reason}" for reason, count in rejected.items()) or "none"
    return (
        f"Rejected were {reasons}: loosen --min_valid, --max_shift or --min_correlation, give more scenes, or use a "
        "smaller --split_block or another --seed."
    )


def _told(info: Mapping[str, Any]) -> str:
    parts = [", ".join(f"{count} {split}" for split, count in info["counts"].items())]
    parts += [f"{count} rejected by {reason}" for reason, count in info["rejected"].items()]
    if info["shift_m"]:
        east, north = info["shift_m"]["median"]
        parts.append(f"median shift {east:+.1f} m east, {north:+.1f} m north (90 % within {info['shift_m']['p90']} m)")
    return "; ".join(parts)


if __name__ == "__main__":
    command.run(main)
