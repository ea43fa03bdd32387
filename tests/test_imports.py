import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("harmonize_tf", "beam_jobs", "trainer", "serving")
MAY_IMPORT = {
    "harmonize_tf": set(),
    "beam_jobs": {"harmonize_tf"},
    "trainer": {"harmonize_tf"},
    "serving": {"harmonize_tf"},
}

# What a Dataflow worker or a light client imports.
WITHOUT_TENSORFLOW = """
harmonize_tf.artifacts harmonize_tf.blessing harmonize_tf.blur harmonize_tf.blur_fit harmonize_tf.estimate_blur
harmonize_tf.__main__ harmonize_tf.command harmonize_tf.check harmonize_tf.demo harmonize_tf.degradation
harmonize_tf.errors harmonize_tf.geometry harmonize_tf.manifest harmonize_tf.metrics.fidelity
harmonize_tf.metrics.consistency harmonize_tf.metrics.distribution harmonize_tf.metrics.sharpness
harmonize_tf.metrics.edges harmonize_tf.metrics.hallucination harmonize_tf.metrics.intervals harmonize_tf.metrics.opensr
harmonize_tf.metrics.reference harmonize_tf.metrics.scatter harmonize_tf.metrics.strata harmonize_tf.metrics.structure
harmonize_tf.metrics.sums harmonize_tf.mgrs
harmonize_tf.pairing harmonize_tf.pansharpen harmonize_tf.patches harmonize_tf.products harmonize_tf.quality
harmonize_tf.quicklook harmonize_tf.radiometry harmonize_tf.records harmonize_tf.sensors harmonize_tf.sources
harmonize_tf.sources.degraded harmonize_tf.sources.geotiff harmonize_tf.sources.samples
harmonize_tf.sources.simulated harmonize_tf.stac harmonize_tf.tiling harmonize_tf.unfinished harmonize_tf.windows
harmonize_tf.workflow harmonize_tf.sources.earth_engine
harmonize_tf.testing.earth_engine_emulator beam_jobs.estimate beam_jobs.export_pairs beam_jobs.export_shard
beam_jobs.exports beam_jobs.folder beam_jobs.options beam_jobs.plan beam_jobs.progress beam_jobs.settings
beam_jobs.shards beam_jobs.squares beam_jobs.summary beam_jobs.tally beam_jobs.transforms
beam_jobs.compute_statistics beam_jobs.harmonize_scenes beam_jobs.models beam_jobs.outcomes beam_jobs.scene_handler
beam_jobs.scene_list beam_jobs.stopping harmonize_tf.statistics.schema
""".split()


def imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_arrow_allows(package):
    forbidden = set(PACKAGES) - {package, "harmonize_tf"}
    files = list((ROOT / package).rglob("*.py"))
    assert files
    found = {
        f"{file.relative_to(ROOT)}: {name}" for file in files for name in imported_packages(file) if name in forbidden
    }
    assert not found


def test_what_workers_and_light_clients_import_brings_no_tensorflow_along():
    code = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TENSORFLOW!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'tensorflow' not in sys.modules, name\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
