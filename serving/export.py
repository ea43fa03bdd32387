"""From a trained model to a version that TensorFlow Serving, the development server and scenes can load.

    python -m serving.export --model=RUN/training/model.keras --serving_dir=RUN/serving/subpixel

asks RUN/evaluation/blessing.json whether the model may be served, and writes RUN/serving/subpixel/VERSION: the
SavedModel with the signatures of `serving.signatures`, the manifest and the warm-up requests. The version is written
beside its place, verified in a process of its own, and renamed: a server that watches the folder never sees half of it
(a half-written version blocks TensorFlow Serving's reloading for minutes).
"""

import contextlib
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from harmonize_tf import artifacts, blessing, command, records, versions
from harmonize_tf.blessing import Blessing
from harmonize_tf.errors import FlagError, ModelError
from harmonize_tf.manifest import FILE as MANIFEST_FILE
from harmonize_tf.manifest import Manifest
from harmonize_tf.models.harmonizer import Harmonizer, load
from harmonize_tf.precision import fastest
from harmonize_tf.sensors import BANDS
from serving import signatures, tensors
from serving.servable import WARMUP_FILE

# Not float16: a detail beyond its range, which a cloud brings, would be infinite.
PRECISIONS = ("float32", "bfloat16")

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "The trained model, RUN/training/model.keras.", flag_values=FLAGS)
_SERVING_DIR = flags.DEFINE_string(
    "serving_dir", None, "Folder of the served model, RUN/serving/NAME; a version is added to it.", flag_values=FLAGS
)
_BLESSING = flags.DEFINE_string(
    "blessing", None,
    "What `harmonize evaluate` decided about the model. Default: evaluation/blessing.json beside the model's folder.",
    flag_values=FLAGS,
)  # fmt: skip
_ALLOW_UNBLESSED = flags.DEFINE_boolean(
    "allow_unblessed", False, "Push the model even if it is not blessed.", flag_values=FLAGS
)
_WARMUP_SIZE = flags.DEFINE_integer(
    "warmup_size", 64, "Side of the window that a server is warmed with, pixels of 30 m.", 1, flag_values=FLAGS
)

_PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["auto", *PRECISIONS],
    "What the network computes in; radiometry and consistency are float32 always. auto: bfloat16 where this machine's "
    "hardware multiplies it, right where the model is served on machines of this kind. Others are slower with it.",
    flag_values=FLAGS,
)  # fmt: skip

_log = logging.getLogger("harmonize.serving")


def export_harmonizer(
    harmonizer: Harmonizer,
    directory: str | os.PathLike,
    *,
    name: str | None = None,
    provenance: Mapping[str, str] | None = None,
    warmup_size: int = 64,
    precision: str = "float32",
) -> pathlib.Path:
    """Adds a version to a served model's folder.

    Args:
      harmonizer: the trained model.
      directory: the model's folder; made if need be.
      name: the model's name in its manifest; None: the folder's name.
      provenance: what made the model, for the manifest.
      warmup_size: side of the window in the warm-up requests, pixels of 30 m.
      precision: what the network is to compute in, one of `PRECISIONS`, whatever it was trained in.

    Returns:
      The version's folder; its name is the UTC time in seconds, and larger than all there were.

    Raises:
      ModelError: the model is no Harmonizer, does not fit the versions in the folder, or fails the verification;
        nothing is left behind then.
    """
    directory = pathlib.Path(directory).absolute()
    check(harmonizer)
    harmonizer = harmonizer.in_precision(precision)
    manifest = describe(harmonizer, name or directory.name, provenance or {})
    _check_successor(manifest, directory)
    version = max(int(time.time()), max(versions.numbered(path.name for path in directory.glob("*")), default=0) + 1)
    aside = directory / f"exporting-{version}"
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        _write(harmonizer, manifest, aside, warmup_size)
        _verify(aside)
        os.rename(aside, directory / str(version))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there yet, or another's by now
            for path in made:
                path.rmdir()
        raise
    return directory / str(version)


def check(harmonizer: Harmonizer) -> None:
    """Tells whether a model can be served.

    Raises:
      ModelError: it is no Harmonizer, its bands are not known ones in the order of wavelength, or no halo is enough.
    """
    if not isinstance(harmonizer, Harmonizer):
        raise ModelError(
            f"only a Harmonizer can be served. Received: model={type(harmonizer).__name__}. Give the model.keras that "
            "`harmonize train` wrote."
        )
    if list(harmonizer.bands) != [band for band in BANDS if band in harmonizer.bands]:
        raise ModelError(
            f"bands must be among {', '.join(BANDS)}, in this order. Received: bands={','.join(harmonizer.bands)}. "
            "Train on records exported with one of the band sets."
        )
    if harmonizer.halo is None:
        raise ModelError(
            "a model whose pixels depend on the whole image is not served, because no window of a scene would equal "
            f"the whole. Received: norm={harmonizer.norm}. Train with norm=none; `harmonize evaluate` takes this one."
        )


def describe(harmonizer: Harmonizer, name: str, provenance: Mapping[str, str]) -> Manifest:
    """The manifest of a model that can be served."""
    return Manifest(
        name=name,
        bands=tuple(harmonizer.bands),
        level=harmonizer.level,
        uses_pan=harmonizer.uses_pan,
        halo=harmonizer.halo,
        multiple=harmonizer.multiple,
        sigma=tuple(harmonizer.sigma),
        bandpass=harmonizer.bandpass,
        consistency=harmonizer.consistency,
        nir=harmonizer.nir,
        uncertainty=harmonizer.spread is not None,
        precision=harmonizer.generator.compute_dtype,
        schema=records.SCHEMA,
        provenance=provenance,
    )


def _check_successor(manifest: Manifest, directory: pathlib.Path) -> None:
    """A server replaces a version by the next under the same name; clients may rely on what they are asked for."""
    path = versions.newest(directory) / MANIFEST_FILE
    if not path.is_file():
        return
    last = Manifest.from_json(path.read_bytes())
    for field in ("bands", "level", "uses_pan", "consistency", "nir"):
        if getattr(last, field) != getattr(manifest, field):
            raise ModelError(
                f"a new version must be of the last one's kind, whose {field} is {getattr(last, field)}. "
                f"Received: {field}={getattr(manifest, field)}. Export it into a folder of its own instead of "
                f"{directory}."
            )


def _write(harmonizer: Harmonizer, manifest: Manifest, path: pathlib.Path, warmup_size: int) -> None:
    functions = signatures.build(harmonizer, manifest)
    archive = keras.export.ExportArchive()
    archive.track(harmonizer)
    for name, function in functions.items():
        archive.add_endpoint(name, function)
    archive.write_out(str(path), verbose=False)
    (path / MANIFEST_FILE).parent.mkdir()
    (path / MANIFEST_FILE).write_text(manifest.to_json())
    with tf.io.TFRecordWriter(str(path / WARMUP_FILE)) as writer:
        for name, inputs in signatures.sample_inputs(manifest, warmup_size).items():
            # On the CPU, where the verification runs too: another device rounds differently.
            with tf.device("/CPU:0"):
                outputs = functions[name](*(tf.constant(array) for array in inputs.values()))
            writer.write(_warmup_record(manifest.name, name, inputs, {k: v.numpy() for k, v in outputs.items()}))


def _warmup_record(
    model: str, signature: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> bytes:
    """A request as servers replay it; the response, which they ignore, is what `serving.verify` compares with."""
    request, response = predict_pb2.PredictRequest(), predict_pb2.PredictResponse()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for arrays, protos in ((inputs, request.inputs), (outputs, response.outputs)):
        for alias, array in arrays.items():
            tensors.encode(array, protos[alias])
    log = prediction_log_pb2.PredictLog(request=request, response=response)
    return prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString()


def _verify(path: pathlib.Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "serving.verify", str(path)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        ended = f"signal {-result.returncode}" if result.returncode < 0 else f"status {result.returncode}"
        raise ModelError(f"the exported model fails its verification ({ended}): {lines[-1]}")


def _provenance(path: pathlib.Path) -> dict[str, str]:
    """Fingerprint and flags of a trained model."""
    flags_file = path.parent / "flags.txt"
    flags_text = {"flags": flags_file.read_text()} if flags_file.is_file() else {}
    return {"model": str(path), "sha256": artifacts.sha256(path), **flags_text}


def _blessed(model: pathlib.Path, sha256: str) -> str:
    """Who blessed a model, for its manifest.

    Raises:
      ModelError: nobody, and --allow_unblessed is not given.
    """
    path = pathlib.Path(_BLESSING.value or model.absolute().parent.parent / "evaluation" / blessing.FILE)
    found = Blessing.load(path) if path.exists() else None
    verdict = found and found.about(sha256)
    if verdict and verdict.blessed:
        return f"{path}: {verdict.reason}"
    why = f"{path} says: {verdict.reason}" if verdict else f"{path} {'judges other files' if found else 'is not there'}"
    if _ALLOW_UNBLESSED.value:
        _log.warning("%s is pushed though it is not blessed: %s", model, why)
        return f"no: {why}"
    raise ModelError(
        f"only a blessed model is pushed, and this one is not: {why}. Evaluate it (`harmonize evaluate`, and name its "
        f"{blessing.FILE} with --blessing if it is elsewhere), train it better, or push it all the same with "
        f"--allow_unblessed. Received: model={model}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Exports a trained model and prints the version's folder.

    Raises:
      HarmonizeError: the model cannot be read, is not blessed or does not fit the folder, or nothing can be written
        there.
    """
    command.parse(FLAGS, argv)
    if not _MODEL.value or not _SERVING_DIR.value:
        raise FlagError(
            "expected --model=RUN/training/model.keras --serving_dir=RUN/serving/NAME. "
            f"Received: model={_MODEL.value}, serving_dir={_SERVING_DIR.value}"
        )
    harmonizer, model = load(_MODEL.value), pathlib.Path(_MODEL.value)
    provenance = _provenance(model)
    provenance["blessed"] = _blessed(model, provenance["sha256"])
    serving_dir, chosen, reason = _SERVING_DIR.value, _PRECISION.value, "as asked"
    if chosen == "auto":
        chosen, reason = fastest()
    _log.info("precision %s: %s", chosen, reason)
    settings = {"warmup_size": _WARMUP_SIZE.value, "precision": chosen}
    try:
        path = export_harmonizer(harmonizer, serving_dir, provenance=provenance, **settings)
    except (OSError, tf.errors.OpError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise FlagError(
            f"the version cannot be written there ({reason}). Received: serving_dir={serving_dir}. Give a folder that "
            "may be written to, on a disk with space left."
        ) from error
    print(f"{path}: exported and verified")


if __name__ == "__main__":
    command.run(main)
