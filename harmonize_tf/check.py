"""Tells what is wrong with scenes, examples or a model before they are used.

    harmonize check SCENES.json LANDSAT_FOLDER RUN/examples RUN/serving/subpixel RUN/training/model.keras
    harmonize check LANDSAT.tar https://HOST/SCENE_MTL.txt gs://BUCKET/SCENE

Prints a line for each thing looked at: "ok:", "note:" (allowed, yet often a mistake) or "wrong:". What is given
together has to fit together: a model is held against the scenes and the examples beside it. Exit status 2 when
something is wrong.
"""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from harmonize_tf import command, pairing, patches, versions
from harmonize_tf.errors import FlagError, HarmonizeError, ModelError, SceneError
from harmonize_tf.manifest import FILE as MANIFEST_FILE
from harmonize_tf.manifest import Manifest
from harmonize_tf.sensors import CODE
from harmonize_tf.sources import Scene, geotiff
from harmonize_tf.sources.scene_manifest import SceneFiles

FLAGS = flags.FlagValues()


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model needs to fit: scenes of Landsat, or examples.

    Attributes:
      name: a scene's id, or the examples' folder.
      bands: names of the bands there are.
      level: "toa", "sr" or "uncalibrated".
      pan: whether there is a panchromatic band.
      exact: whether the bands must be the model's own, in its order (examples), or may be more (scenes).
    """

    name: str
    bands: tuple[str, ...]
    level: str
    pan: bool
    exact: bool


@dataclasses.dataclass(frozen=True)
class Model:
    """What a model was made for."""

    name: str
    bands: tuple[str, ...]
    level: str
    uses_pan: bool


class Report:
    """Prints findings and counts what is wrong."""

    def __init__(self) -> None:
        self.looked_at = self.wrong = 0

    def ok(self, text: str) -> None:
        """Something can be used."""
        self.looked_at += 1
        print(f"ok: {text}", flush=True)

    def note(self, text: str) -> None:
        """Something is allowed, yet often a mistake."""
        print(f"note: {text}", flush=True)

    def error(self, error: HarmonizeError) -> None:
        """Something cannot be used."""
        self.looked_at += 1
        self.wrong += 1
        print(f"wrong: {error}", flush=True)


def check(given: Sequence[str], report: Report) -> None:
    """Looks at everything, paths and URLs, then at whether it fits together."""
    data: list[Data] = []
    models: list[Model] = []
    for each in given:
        path = pathlib.Path(each)
        try:
            if (path / "dataset_info.json").is_file():
                data.append(_examples(path, report))
            elif (manifest := _model_manifest(path)) is not None:
                models.append(_model(path, manifest, report))
            else:
                data.extend(_scenes(each, report))
        except HarmonizeError as error:
            report.error(error)
    for model in models:
        for one in data:
            try:
                fit(model, one)
                report.ok(f"{model.name} fits {one.name}")
            except ModelError as error:
                report.error(error)


def fit(model: Model, data: Data) -> None:
    """Holds a model against data.

    Raises:
      ModelError: the data are of another level, or lack what the model takes.
    """
    if model.level != data.level:
        raise ModelError(
            f"{model.name} was made for level {model.level}; take data or a model of one level. "
            f"Received: level={data.level} in {data.name}"
        )
    missing = [band for band in model.bands if band not in data.bands]
    if missing or (data.exact and model.bands != data.bands):
        raise ModelError(
            f"{model.name} takes bands {','.join(model.bands)}; take data or a model with the same. "
            f"Received: bands={','.join(data.bands)} in {data.name}"
        )
    if model.uses_pan and not data.pan:
        raise ModelError(
            f"{model.name} takes the panchromatic band; take data with it, or a model without. "
            f"Received: no pan in {data.name}"
        )


def _scenes(path: str, report: Report) -> list[Data]:
    """Checks every scene and pair at a path; returns the Landsat scenes that can be used."""
    declared, pairs = geotiff.find(path)
    scenes: list[Scene] = []
    unusable = set()
    for scene, folder in declared:
        try:
            files = geotiff.open_scene(scene, folder)
            if files.scene.id in {other.id for other in scenes}:
                raise SceneError(f"{path}: ids must be unique; rename one. Received: id={files.scene.id} twice")
        except HarmonizeError as error:
            report.error(error)
            unusable.add(scene.get("id"))
            continue
        scenes.append(files.scene)
        report.ok(_summary(files))
        for text in _doubts(files):
            report.note(f"scene {files.scene.id}: {text}")
    _pairs(scenes, [pair for pair in pairs if not unusable & set(pair)] if pairs else pairs, report)
    landsat = (scene for scene in scenes if scene.sensor == "landsat")
    return [Data(f"scene {s.id}", s.bands, s.level, "pan" in s.grids, exact=False) for s in landsat]


def _summary(files: SceneFiles) -> str:
    scene = files.scene
    rows, columns = scene.grid.shape
    medians = [
        f"{band} {np.median(values):.3f}" if values.size else f"{band} no data sampled"
        for band, values in geotiff.sample(files).items()
    ]
    return (
        f"scene {scene.id}: {scene.sensor}, {scene.level}, {rows} x {columns} pixels of {scene.grid.pixel[0]:g} in "
        f"{scene.grid.crs}; median {', '.join(medians)}; quality {', '.join(q.kind for q in files.quality) or 'none'}"
    )


def _doubts(files: SceneFiles) -> Iterator[str]:
    """What is allowed, yet often a mistake."""
    scene = files.scene
    if scene.sensor == "sentinel" and scene.processing_baseline >= "04.00":
        if any(file.encoding.offset == 0 for file in files.bands.values()):
            yield (
                f"offset 0 at processing baseline {scene.processing_baseline} is right for harmonized digital numbers "
                f"only; ESA's own files need offset {CODE.offset}"
            )
    if scene.sensor == "landsat":
        for pixel in sorted({grid.pixel[0] for grid in scene.grids.values() if not grid.left % grid.pixel[0]}):
            yield (
                f"pixels of {pixel:g} m have their corners at 0 mod {pixel:g} m, Landsat's are at half a pixel; "
                "the coordinates may be off by that much"
            )
    if not scene.time_ms:
        yield "no time is declared, so that it cannot be paired by time"


def _pairs(scenes: Sequence[Scene], pairs: Sequence[Sequence[str]] | None, report: Report) -> None:
    """Checks the declared pairs, or tells which ones time and overlap suggest."""
    if pairs is None:
        landsat, sentinel = ([s for s in scenes if s.sensor == sensor] for sensor in ("landsat", "sentinel"))
        for first, second in pairing.pair(landsat, sentinel):
            report.ok(f"pair {first.id}, {second.id}: by time and overlap")
    for pair in pairs or ():
        try:
            first, second = geotiff.declared_pair(pair, scenes)
            report.ok(f"pair {first.id}, {second.id}")
        except HarmonizeError as error:
            report.error(error)


def _examples(path: pathlib.Path, report: Report) -> Data:
    """Reads every record: check sums, schema, shapes."""
    from harmonize_tf import dataset  # brings TensorFlow along

    info = dataset.DatasetInfo.load(path)
    for split in patches.SPLITS:
        if info.counts.get(split):
            dataset.check(info, split)
    counts = ", ".join(f"{count} {split}" for split, count in info.counts.items())
    report.ok(f"examples {path}: {info.level}, bands {','.join(info.bands)}, pan {info.pan}, {counts}")
    return Data(f"examples {path}", info.bands, info.level, info.pan, exact=True)


def _model_manifest(path: pathlib.Path) -> pathlib.Path | None:
    """The file that describes a model: a .keras file itself, or a version's (the latest one's) manifest."""
    if path.suffix == ".keras":
        return path
    version = versions.newest(path)
    return version / MANIFEST_FILE if (version / versions.SAVED_MODEL).is_file() else None


def _model(path: pathlib.Path, manifest: pathlib.Path, report: Report) -> Model:
    """Reads what a model says of itself; loads no weights.

    Raises:
      ModelError: it cannot be read.
    """
    try:
        if manifest.suffix == ".keras":
            with zipfile.ZipFile(manifest) as archive:
                config = json.loads(archive.read("config.json"))["config"]
            told = tuple(config["bands"]), config["level"], bool(config["uses_pan"])
        else:
            served = Manifest.from_json(manifest.read_text())
            told = served.bands, served.level, served.uses_pan
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"not a model of this project; train or push it again. Received: {path} ({error!r})"
        ) from error
    model = Model(f"model {path}", *told)
    report.ok(f"{model.name}: {model.level}, bands {','.join(model.bands)}, pan {model.uses_pan}")
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Checks what is named on the command line.

    Raises:
      FlagError: nothing is named.
      HarmonizeError: something is wrong; what, was printed.
    """
    paths = command.parse(FLAGS, argv)
    if not paths:
        raise FlagError("name what to check: manifests, Landsat scenes, examples, models. Received: no path")
    report = Report()
    check(paths, report)
    if report.wrong:
        raise HarmonizeError(
            f"what is listed above as wrong cannot be used; mend it and check again. "
            f"Received: {report.wrong} wrong of {report.looked_at} looked at"
        )


if __name__ == "__main__":
    command.run(main)
