"""`harmonize demo`: the whole way on real samples, from Sentinel-2 and Landsat-8 scenes to a harmonised GeoTIFF.

    harmonize demo --run=runs/demo

Run again, it repeats only the steps whose inputs changed. Where the samples cannot be fetched it says so and takes
simulated scenes.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
import rasterio
from absl import flags

from harmonize_tf import command, radiometry, run, workflow
from harmonize_tf.errors import SceneError
from harmonize_tf.sources import samples
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.workflow import Step

FLAGS = flags.FlagValues()
_RUN = flags.DEFINE_string("run", "runs/demo", "Folder of the run.", flag_values=FLAGS)
_STEPS = flags.DEFINE_integer("steps", 800, "Training steps; fewer for a quick look.", 1, flag_values=FLAGS)

MODEL = "subpixel"
_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs every step that has to be."""
    command.parse(FLAGS, argv)
    folder = pathlib.Path(_RUN.value)
    try:
        sentinel, landsat = samples.fetch("t33uuu"), samples.fetch("alabama")
        export = ["--source=degraded", f"--scenes={sentinel}"]
    except SceneError as error:
        _log.warning("%s\nSimulated scenes are used instead.", error)
        landsat = _simulated_landsat(folder / "simulated")
        export = ["--source=simulated"]
    # The sample is small, 15 x 8 km: blocks of one patch, and a fifth of them held out for the table.
    told = {"export": [*export, "--split=0.6,0.2,0.2", "--split_block=1920", "--overwrite"]}
    told["train"] = ["--flagfile=subpixel_small.txt", "--overwrite", f"--steps={_STEPS.value}"]
    if _STEPS.value < _STEPS.default:  # a quick look may end with a model that is not good yet
        told["push"] = ["--allow_unblessed"]
    steps = {step.name: step for step in run.steps(folder, MODEL, told)}
    steps["train"] = dataclasses.replace(steps["train"], owned=None)  # more --steps go on from fewer
    (serving,), (report, _) = steps["push"].outputs, steps["evaluate"].outputs
    product, figure = folder / "harmonised.tif", folder / "side_by_side.png"
    asked = [str(landsat), str(product), "--target={address}", f"--model_name={MODEL}", f"--figure={figure}"]
    scene = Step("scene", asked, [landsat, serving], [product, figure], service=steps["verify"].service)
    workflow.run([*(steps[name] for name in ("export", "train", "evaluate", "push")), scene], folder / "log")
    _log.info("The harmonised scene: %s; beside resampled Landsat: %s; evaluation: %s", product, figure, report)


def _simulated_landsat(folder: pathlib.Path) -> pathlib.Path:
    """Writes a simulated Landsat scene as GeoTIFFs with their manifest, and returns the manifest."""
    source = SimulatedSource(seed=1, clouds=0.2, nodata=True)
    scene = source.scenes()[0]
    manifest = folder / "manifest.json"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, bands in {"ms_30m.tif": scene.bands, "pan_15m.tif": ("pan",)}.items():
        grid = scene.grids[bands[0]]
        raster = source.read(scene, bands, grid)
        dn = np.moveaxis(radiometry.encode(raster.values, raster.valid[..., None]), -1, 0)
        place = {"crs": grid.crs, "transform": grid.transform, "height": grid.shape[0], "width": grid.shape[1]}
        with rasterio.open(folder / name, "w", "GTiff", dtype="uint16", count=len(bands), nodata=0, **place) as file:
            file.write(dn)
        files.append({"path": name, "bands": list(bands), "scale": 1e-4, "offset": -0.1})
    entry = {"id": scene.id, "sensor": "landsat", "level": scene.level, "spacecraft": scene.spacecraft, "files": files}
    manifest.write_text(json.dumps({"version": 1, "scenes": [entry]}))
    return manifest


if __name__ == "__main__":
    command.run(main)
