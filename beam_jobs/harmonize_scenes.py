r"""Scenes by the thousand: a list of Landsat scenes in, Cloud Optimized GeoTIFFs at 10 m out.

    ls -d landsat/*/ > scenes.txt
    harmonize scenes --scenes=scenes.txt --model=runs/one/serving/subpixel --out=products
    harmonize scenes --scenes=scenes.txt --target=models:8500 --model_name=subpixel --out=gs://BUCKET/products

The list has a scene a line: whatever `harmonize scene` takes, and perhaps a tab and a Sentinel-2 tile. OUT/NAME/ has
each one's products, named by the last part of its path. Flags that are not listed here go to Beam:
`--runner=DataflowRunner --max_num_workers=8`. Without a runner the job runs in this process. The same command continues
a job that was stopped, makes again what had failed, and makes nothing twice. docs/scaling.md tells more.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from absl import flags
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import options, outcomes, progress, scene_list
from beam_jobs.folder import STAGING, Folder
from beam_jobs.models import ExportedModel, ServedModel
from beam_jobs.scene_handler import Job, SceneHandler
from beam_jobs.scene_list import Task
from beam_jobs.stopping import stoppable
from harmonize_tf import command, predictors
from harmonize_tf.errors import FlagError

FLAGS = flags.FlagValues()
_SCENES = flags.DEFINE_string(
    "scenes",
    None,
    "Text file with a scene a line: a folder, manifest or URL, perhaps a tab and a Sentinel-2 tile; "
    "lines that begin with `#` are comments.",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", None, "Folder of the products, a path or gs://BUCKET/PATH.", flag_values=FLAGS)
predictors.define_flags(FLAGS)
_MAX_DEAD_FRACTION = flags.DEFINE_float(
    "max_dead_fraction", 0.01, "Greatest share of scenes that may have failed.", 0, 1, flag_values=FLAGS
)

TODO = f"{STAGING}/scenes.jsonl"  # for the workers

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Harmonises scenes.

    Raises:
      FlagError: a flag is wrong, or scenes could not be made.
      ModelError: there is no such model.
      ServerError: no server answers, or it has no such model.
    """
    rest = command.parse(FLAGS, argv, known_only=True)
    beam_options = options.pipeline_options(rest, 1, FLAGS)
    _check_flags(beam_options)
    tasks = scene_list.read(_SCENES.value)
    for task in tasks:
        options.check_reachable("scenes", task.path, beam_options)
    out = Folder(_OUT.value)
    out.check_writable()
    model = _model()
    identity = model.identity()
    made, _ = outcomes.survey(out, tasks, identity)
    todo = [task for task in tasks if task.name not in made]
    if made:
        _log.info("%d of %d scenes are there already", len(made), len(tasks))
    if todo:
        _make(out, todo, Job(out, model), beam_options, options.as_text(FLAGS, rest))
    told = outcomes.finish(out, tasks, todo, identity, _MAX_DEAD_FRACTION.value)
    _log.info("%s: %s", out, _told(told))


def add_to(pipeline: beam.Pipeline, job: Job) -> None:
    """Adds the whole job to a pipeline."""
    (
        pipeline
        | "List" >> beam.Create([TODO])
        | "Scenes" >> beam.FlatMap(scene_list.written, job.folder)
        | "Reshuffle" >> beam.Reshuffle()
        | "Harmonize" >> RunInference(SceneHandler(job))
    )


def _model() -> ExportedModel | ServedModel:
    if FLAGS.model:
        return ExportedModel.newest(FLAGS.model)
    return ServedModel(**predictors.server_of(FLAGS))


def _make(out: Folder, todo: Sequence[Task], job: Job, beam_options: PipelineOptions, flags_text: str) -> None:
    """Runs the pipeline."""
    out.delete([outcomes.SCENES])
    out.tidy()
    out.write(outcomes.FLAGS, flags_text.encode())
    scene_list.write(out, TODO, todo)
    stop = stoppable() if options.in_this_process(beam_options) else contextlib.nullcontext()
    shown = progress.show("scenes", len(todo), "scenes")
    try:
        with stop, shown, options.pipeline(beam_options) as pipeline:
            add_to(pipeline, job)
    except RuntimeError as error:  # Beam has logged where, and what it was
        raise FlagError(
            f"the job ended early ({str(error).splitlines()[-1]}); what is finished stays, run the same command "
            f"again. Received: out={out}"
        ) from error
    finally:
        out.delete([TODO])


def _check_flags(beam_options: PipelineOptions) -> None:
    options.check_given(_SCENES, _OUT)
    predictors.check_flags(FLAGS)
    options.check_reachable("out", _OUT.value, beam_options)
    if FLAGS.model:
        options.check_reachable("model", FLAGS.model, beam_options)


def _told(told: Mapping[str, Any]) -> str:
    parts = [f"{told['made']} scenes made", f"{told['made_before']} there before"]
    parts += [f"{count} dead ({kind})" for kind, count in told["dead"].items() if count]
    speed = told["megapixels"] / max(told["seconds"], 1e-9)
    parts.append(f"{told['megapixels']:,.1f} Mpx, {told['bytes'] / 1e6:,.1f} MB, {speed:.2f} Mpx/s of each process")
    return "; ".join(parts)


if __name__ == "__main__":
    command.run(main)
