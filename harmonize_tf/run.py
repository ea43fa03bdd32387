"""`harmonize run`: export, statistics, training, evaluation, push and a check on a server, each only if it has to be.

    harmonize run --run=runs/one --flagfile=one.txt

with one.txt such as

    --export=--source=degraded
    --export=--scenes=scenes/t33uuu-6e7e281b
    --train=--flagfile=harmonizer_small.txt
    --train=--uncertainty

With --bucket=gs://BUCKET/one what Beam makes lies there, where Dataflow's workers see it, and is fetched into the run's
folder then:

    --bucket=gs://BUCKET/one
    --export=--runner=DataflowRunner
    --statistics=--runner=DataflowRunner

A step runs again only if its flags, the files that it reads or the package's version changed, or if it did not end
well: an anomaly in the data ends the run before the training, a model that is not blessed before the push.
"""

import logging
import pathlib
from collections.abc import Mapping, Sequence

from absl import flags

from harmonize_tf import command, lineage, workflow
from harmonize_tf.workflow import Step

LOG = "log"
STEPS = ("export", "statistics", "train", "evaluate", "push")

FLAGS = flags.FlagValues()
_RUN = flags.DEFINE_string("run", None, "Folder of the run.", required=True, flag_values=FLAGS)
_BUCKET = flags.DEFINE_string(
    "bucket", None, "Where export and statistics write, gs://BUCKET/RUN, and from where their files are fetched; "
    "--run by default.", flag_values=FLAGS,
)  # fmt: skip
_NAME = flags.DEFINE_string("name", "harmonizer", "The model's name on servers.", flag_values=FLAGS)
for _step in STEPS:
    flags.DEFINE_multi_string(_step, [], f"A flag for `harmonize {_step}`; repeat it for several.", flag_values=FLAGS)

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs every step that has to be."""
    command.parse(FLAGS, argv)
    run = pathlib.Path(_RUN.value)
    told = {name: FLAGS[name].value for name in STEPS}
    command.write_flags(FLAGS, run / "flags.txt")
    made = steps(run, _NAME.value, told, _BUCKET.value)
    workflow.run(made, run / LOG)
    _log.info("from the served model back to the scenes: %s", lineage.write(run, _NAME.value, made, run / LOG))


def steps(run: pathlib.Path, name: str, told: Mapping[str, Sequence[str]], bucket: str | None = None) -> list[Step]:
    """The steps of a run.

    Args:
      run: its folder.
      name: the model's name on servers.
      told: for any of `STEPS` flags of its command.
      bucket: where Beam's steps write, if not in `run`.
    """
    made = bucket.rstrip("/") if bucket else str(run)
    examples, model, serving = run / "examples", run / "training" / "model.keras", run / "serving" / name
    info, statistics = examples / "dataset_info.json", run / "statistics"
    report, blessing = run / "evaluation" / "report.html", run / "evaluation" / "blessing.json"
    server = Step("serve", [f"--model_base_path={serving.resolve()}", f"--model_name={name}", "--port=0"])
    own = {
        "export": [f"--out={made}/examples"],
        "statistics": [f"--data={made}/examples", f"--out={made}/statistics"],
        "train": [f"--data={examples}", f"--model_dir={model.parent}"],
        "evaluate": [f"--data={examples}", f"--model={model}", f"--out={blessing.parent}"],
        "push": [f"--model={model}", f"--serving_dir={serving}", f"--blessing={blessing}"],
    }
    given = {step: [*told.get(step, ()), *own[step]] for step in STEPS}
    written = [[info], [statistics / "statistics.pbtxt"]]
    if bucket:
        # Whether export and statistics ran anew shows in what their steps leave in the log.
        ran = [workflow.record(run / LOG, step) for step in STEPS[:2]]
        beam = [
            Step("export", given["export"]),
            Step("statistics", given["statistics"], ran[:1]),
            Step("fetch", [f"{made}/examples", str(examples)], ran[:1], written[0], title="fetch-examples"),
            Step("fetch", [f"{made}/statistics", str(statistics)], ran[1:], written[1], title="fetch-statistics"),
        ]
    else:
        beam = [
            Step("export", given["export"], [], written[0]),
            Step("statistics", given["statistics"], [info], written[1]),
        ]
    return [
        *beam,
        Step("train", given["train"], [info], [model], owned=model.parent),
        Step("evaluate", given["evaluate"], [info, model], [report, blessing]),
        Step("push", given["push"], [model, blessing], [serving]),
        Step("verify", [str(serving), "--target={address}", f"--model_name={name}"], [serving], service=server),
    ]


if __name__ == "__main__":
    command.run(main)
