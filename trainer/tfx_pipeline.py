"""The way of `harmonize run` as a TFX pipeline: from an export to a pushed version.

    python -m trainer.tfx_pipeline --data=RUN/examples --run=RUN/tfx --train=--flagfile=subpixel_small.txt

    ImportExampleGen -> StatisticsGen -> SchemaGen -> ExampleValidator -> no_anomalies -> Trainer -> Evaluator
      -> InfraValidator -> Pusher

What is about data, and Pusher, is TFX's own; Trainer calls `run_fn`, which is `harmonize train`; Evaluator is
`harmonize evaluate`; InfraValidator is `harmonize push` and `harmonize verify`. Each runs again only if its inputs or
flags changed. It needs the environment of trainer/tfx_requirements.txt; docs/tfx.md tells more.
"""

import os
import pathlib
import shutil
from collections.abc import Sequence

from absl import flags
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import v1 as tfx
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import (
    ExampleAnomalies,
    Examples,
    InfraBlessing,
    Model,
    ModelBlessing,
    ModelEvaluation,
)
from tfx.utils import path_utils

from harmonize_tf import artifacts, blessing, command, patches
from harmonize_tf.blessing import Blessing
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import DatasetError
from harmonize_tf.workflow import Step
from trainer import evaluate, task

InputArtifact, OutputArtifact = tfx.dsl.components.InputArtifact, tfx.dsl.components.OutputArtifact
Parameter = tfx.dsl.components.Parameter

MODEL = "model.keras"
INFO = "dataset_info.json"

FLAGS = flags.FlagValues()
_DATA = flags.DEFINE_string(
    "data", None, "Folder that `harmonize export` wrote, RUN/examples.", required=True, flag_values=FLAGS
)
_RUN = flags.DEFINE_string(
    "run", None, "Folder for artifacts/, metadata.sqlite and serving/NAME/VERSION.", required=True, flag_values=FLAGS
)
_NAME = flags.DEFINE_string("name", "harmonizer", "The model's name on servers.", flag_values=FLAGS)
_SCHEMA = flags.DEFINE_string(
    "schema", None, "A schema.pbtxt to hold the records against. Default: SchemaGen infers one.", flag_values=FLAGS
)
_TRAIN = flags.DEFINE_multi_string("train", [], "A flag for `harmonize train`.", flag_values=FLAGS)
_EVALUATE = flags.DEFINE_multi_string("evaluate", [], "A flag for `harmonize evaluate`.", flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs every component that has to be."""
    command.parse(FLAGS, argv)
    run = pathlib.Path(_RUN.value).resolve()
    command.write_flags(FLAGS, run / "flags.txt")
    made = pipeline(pathlib.Path(_DATA.value).resolve(), run, _NAME.value, _SCHEMA.value, _TRAIN.value, _EVALUATE.value)
    tfx.orchestration.LocalDagRunner().run(made)


def pipeline(
    data: pathlib.Path,
    run: pathlib.Path,
    name: str,
    schema: str | None = None,
    train: Sequence[str] = (),
    evaluated: Sequence[str] = (),
) -> tfx.dsl.Pipeline:
    """The pipeline.

    Args:
      data: folder that `harmonize export` wrote.
      run: where artifacts, metadata and pushed versions go.
      name: the model's name on servers.
      schema: of TFX, that the records are held against; None: inferred from them.
      train: flags for `harmonize train`.
      evaluated: flags for `harmonize evaluate`.

    Raises:
      DatasetError: there is no finished export.
    """
    counts = DatasetInfo.load(data).counts
    splits = [
        example_gen_pb2.Input.Split(name=split, pattern=f"{split}/*.tfrecord.gz")
        for split in patches.SPLITS
        if counts.get(split)
    ]
    examples = tfx.components.ImportExampleGen(str(data), input_config=example_gen_pb2.Input(splits=splits))
    statistics = tfx.components.StatisticsGen(examples.outputs["examples"])
    if schema:
        wanted = tfx.components.ImportSchemaGen(schema_file=os.path.abspath(schema))
    else:
        wanted = tfx.components.SchemaGen(statistics.outputs["statistics"])
    validator = tfx.components.ExampleValidator(statistics.outputs["statistics"], wanted.outputs["schema"])
    gate = no_anomalies(anomalies=validator.outputs["anomalies"])
    trainer = tfx.components.Trainer(
        examples=examples.outputs["examples"],
        schema=wanted.outputs["schema"],
        run_fn=f"trainer.tfx_pipeline.{run_fn.__name__}",
        eval_args=tfx.proto.EvalArgs(splits=["val"]),
        custom_config={"export": str(data), "flags": list(train)},
    )
    trainer.add_upstream_node(gate)
    last = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=Model),
        model_blessing=tfx.dsl.Channel(type=ModelBlessing),
    ).with_id("last_blessed")
    judge = evaluator(
        examples=examples.outputs["examples"],
        model=trainer.outputs["model"],
        last_model=last.outputs["model"],
        last_blessing=last.outputs["model_blessing"],
        export=str(data),
        told=list(evaluated),
    ).with_id("Evaluator")
    infra = infra_validator(
        model=trainer.outputs["model"], model_blessing=judge.outputs["model_blessing"], name=name
    ).with_id("InfraValidator")
    pusher = tfx.components.Pusher(
        model_blessing=judge.outputs["model_blessing"],
        infra_blessing=infra.outputs["infra_blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(run / "serving" / name))
        ),
    )
    run.mkdir(parents=True, exist_ok=True)
    return tfx.dsl.Pipeline(
        pipeline_name=name,
        pipeline_root=str(run / "artifacts"),
        components=[examples, statistics, wanted, validator, gate, trainer, last, judge, infra, pusher],
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(run / "metadata.sqlite")
        ),
        enable_cache=True,
        beam_pipeline_args=["--runner=FnApiRunner"],  # Beam's default would download one
    )


@tfx.dsl.components.component
def no_anomalies(anomalies: InputArtifact[ExampleAnomalies]) -> None:
    """Ends the run where ExampleValidator, which only tells, has found anything.

    Raises:
      DatasetError: with what it found.
    """
    found = []
    for split in artifact_utils.decode_split_names(anomalies.split_names):
        file = pathlib.Path(artifact_utils.get_split_uri([anomalies], split)) / "SchemaDiff.pb"
        told = anomalies_pb2.Anomalies.FromString(file.read_bytes())
        of_all = {"all": told.dataset_anomaly_info} if told.HasField("dataset_anomaly_info") else {}
        infos = sorted((dict(told.anomaly_info) | of_all).items())
        found += [f"{split}: {name}: {info.description}" for name, info in infos]
    if found:
        raise DatasetError(
            "the records are not as the schema wants them; export them again, or mend the schema. "
            f"Received: {'; '.join(found)}"
        )


def run_fn(told: FnArgs) -> None:
    """Trains: what Trainer calls.

    Args:
      told: custom_config holds "export", the folder of the export, and "flags", those of `harmonize train`.
    """
    home = pathlib.Path(told.model_run_dir)
    split = pathlib.Path(told.train_files[0]).parent
    data = _as_export(split.parent, told.custom_config["export"], home / "examples")
    task.main([*told.custom_config["flags"], f"--data={data}", f"--model_dir={home / 'training'}"])
    served = pathlib.Path(told.serving_model_dir)
    served.mkdir(parents=True)
    for file in (MODEL, "flags.txt"):
        shutil.copy(home / "training" / file, served / file)


@tfx.dsl.components.component
def evaluator(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    evaluation: OutputArtifact[ModelEvaluation],
    model_blessing: OutputArtifact[ModelBlessing],
    export: Parameter[str],
    told: Parameter[list[str]],
    last_model: InputArtifact[Model] = None,
    last_blessing: InputArtifact[ModelBlessing] = None,
) -> None:
    """Judges the model as `harmonize evaluate` does, against the one that was blessed last, if there is one, too."""
    out, trained = pathlib.Path(evaluation.uri), _trained(model)
    data = _as_export(pathlib.Path(examples.uri), export, out / "examples")
    again = last_model is not None and last_model.id == model.id
    models = [trained] if again or last_model is None else [trained, _trained(last_model)]
    last = [f"--last_blessed={last_blessing.uri}/{blessing.FILE}"] if last_blessing else []
    evaluate.main([*last, *told, f"--data={data}", f"--model={','.join(map(str, models))}", f"--out={out}"])
    verdict = Blessing.load(out / blessing.FILE).about(artifacts.sha256(trained))
    shutil.copy(out / blessing.FILE, model_blessing.uri)
    _stamp(model_blessing, "BLESSED" if verdict.blessed else "NOT_BLESSED", verdict.blessed)
    if not again:  # the last one keeps its first blessing, lest the inputs of this component change with every run
        model_blessing.set_int_custom_property("current_model_id", model.id)  # by which `last_blessed` finds it


@tfx.dsl.components.component
def infra_validator(
    model: InputArtifact[Model],
    model_blessing: InputArtifact[ModelBlessing],
    infra_blessing: OutputArtifact[InfraBlessing],
    name: Parameter[str],
) -> None:
    """Exports the model, if it is blessed, and asks a server of that version whether it answers as the model did.

    The version, which has warm-up requests, is what Pusher pushes.
    """
    home = pathlib.Path(infra_blessing.uri)
    serving, log = home / name, home / "log.txt"
    judged = f"--blessing={model_blessing.uri}/{blessing.FILE}"
    push = Step("push", [f"--model={_trained(model)}", f"--serving_dir={serving}", judged])
    server = Step("serve", [f"--model_base_path={serving}", f"--model_name={name}", "--port=0"])
    verify = Step("verify", [str(serving), "--target={address}", f"--model_name={name}"], service=server)
    good = not push.run(log) and not verify.run(log)
    if good:
        (version,) = serving.iterdir()
        version.rename(path_utils.stamped_model_path(infra_blessing.uri))
        serving.rmdir()
    _stamp(infra_blessing, "INFRA_BLESSED" if good else "INFRA_NOT_BLESSED", good)
    infra_blessing.set_int_custom_property("has_model", int(good))


def _as_export(examples: pathlib.Path, export: str, folder: pathlib.Path) -> pathlib.Path:
    """Lets Examples be read as an export: links to its files under the names that an export gives them."""
    folder.mkdir()
    (folder / INFO).symlink_to(pathlib.Path(export) / INFO)
    for split in examples.glob("Split-*"):
        into = folder / split.name.removeprefix("Split-")
        into.mkdir()
        for file in split.glob("*.gz"):
            into.joinpath(f"{file.stem.removeprefix('data_tfrecord-')}.tfrecord.gz").symlink_to(file)
    return folder


def _trained(model: Model) -> pathlib.Path:
    return pathlib.Path(path_utils.serving_model_dir(model.uri)) / MODEL


def _stamp(artifact: ModelBlessing | InfraBlessing, file: str, blessed: bool) -> None:
    """Leaves a verdict as Pusher and those who look into the folder read it."""
    (pathlib.Path(artifact.uri) / file).touch()
    artifact.set_int_custom_property("blessed", int(blessed))


if __name__ == "__main__":
    command.run(main)
