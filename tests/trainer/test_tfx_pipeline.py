"""The TFX pipeline, where its environment is: trainer/tfx_requirements.txt, which is tested everywhere."""

import json
import os
import re
import tomllib

import pytest
import tiny_examples
from runs import ROOT, SMALL

from harmonize_tf.errors import DatasetError
from harmonize_tf.manifest import Manifest

# What TFX brings itself, at versions of its own choice, and what only an export needs.
BROUGHT = {"absl-py", "apache-beam", "numpy", "protobuf", "tensorflow-metadata", "tensorflow-serving-api"}
OF_EXPORT = {"earthengine-api", "fsspec", "gcsfs", "google-cloud-dataflow-client", "google-cloud-storage"}


def by_name(requirements):
    return {re.match(r"[\w-]+", requirement)[0]: requirement for requirement in requirements}


def test_the_environment_of_tfx_has_what_the_commands_need_at_the_versions_that_the_project_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = by_name([*project["dependencies"], *extras["train"], *extras["serve"]])
    lines = (ROOT / "trainer" / "tfx_requirements.txt").read_text().splitlines()
    there = by_name(line for line in lines if line and not line.startswith("#"))
    assert there.pop("tfx") == "tfx==1.21.0"
    assert there == {name: needed[name] for name in needed.keys() - BROUGHT - OF_EXPORT}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the pipeline with more flags; returns the versions that are served then."""
    pytest.importorskip("tfx.v1", reason="needs an environment of its own, see docs/tfx.md", exc_type=ImportError)
    from trainer import tfx_pipeline

    folder = tmp_path_factory.mktemp("tfx")
    tiny_examples.write(folder / "examples")
    (folder / "rules.toml").write_text('[absolute]\n"consistency.quantile" = { at_most = 0.001 }\n')
    flags = [f"--data={folder / 'examples'}", f"--run={folder / 'tfx'}", f"--evaluate=--thresholds={folder}/rules.toml"]
    flags += [f"--train={flag}" for flag in (*SMALL, "--steps=20", "--validate_every=10")]

    def run(*more):
        tfx_pipeline.main([*flags, *more])
        return sorted((folder / "tfx" / "serving" / "harmonizer").iterdir())

    return run


def made(version, pattern):
    """What a component left, newest first."""
    return sorted(version.parents[2].glob(f"artifacts/{pattern}"), key=os.path.getmtime, reverse=True)


def test_a_blessed_model_is_pushed_and_a_worse_one_is_not(run):
    (version,) = run()
    manifest = Manifest.from_json((version / "assets.extra" / "harmonize.json").read_bytes())
    assert manifest.provenance["blessed"].endswith("every rule is kept")
    assert (version / "saved_model.pb").is_file()
    assert run("--train=--consistency=none") == [version]
    assert [path.name for path in made(version, "Evaluator/model_blessing/*/*BLESSED")] == ["NOT_BLESSED", "BLESSED"]
    assert made(version, "InfraValidator/infra_blessing/*/*BLESSED")[0].name == "INFRA_NOT_BLESSED"
    blessing = json.loads(made(version, "Evaluator/model_blessing/*/blessing.json")[0].read_text())
    assert [verdict["blessed"] for verdict in blessing["verdicts"]] == [False, True]  # the new one, then the last one
    assert len(made(version, "ImportExampleGen/examples/*")) == 1  # the data were not looked at again


def test_records_that_are_not_as_the_schema_wants_them_end_the_run(run, tmp_path):
    (tmp_path / "schema.pbtxt").write_text('feature { name: "bands" type: BYTES }')
    with pytest.raises(DatasetError, match=r"train: sentinel/ms: New column"):
        run(f"--schema={tmp_path / 'schema.pbtxt'}")
