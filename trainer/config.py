"""What a training run is told: the flags of `trainer.task`, checked, and what of them a resumed run must share."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from harmonize_tf import artifacts, augmentation, dataset, precision
from harmonize_tf.blur import BlurEstimate
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import FlagError, ModelError
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.synthesis import BlurPrior

IDENTITY_FILE = "training.json"
STATE = ("checkpoints", "tensorboard")  # folders of a training
RESULTS = ("model.keras", "summary.json")
# Two runs in one model_dir must agree on these: another network, other data or another order is another training.
# Steps, learning rate and how often to validate may change.
NETWORK = (
    "model", "scale", "blocks", "filters", "norm", "pan", "consistency", "adversarial", "gan_loss",
    "adversarial_weight", "batch", "crop", "seed", "ema", "precision",
)  # fmt: skip
GAN_LOSS = "lsgan"  # of those of `discriminators.LOSSES` the one taken by default
DATA = ("source", "level", "bands", "nir", "schema", "plan_sha256")
CONSTANTS = ("sigma", "bandpass", "mean", "std", "pan_mean", "pan_std")  # that the network computes with

_log = logging.getLogger("harmonize")


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
      model: method, such as "subpixel".
      data: folder of `harmonize export`.
      model_dir: folder to write to.
      scale: 3 (network at 30 m) or 2 (at 20 m).
      blocks: residual blocks.
      filters: channels of the network.
      pan: whether the panchromatic band is an input.
      consistency: "exact" or "none".
      batch: patches in a step, over all replicas, of each stream.
      crop: side of the random crops, 30 m pixels.
      steps: optimizer steps in all.
      learning_rate: peak, after the warm-up.
      validate_every: steps between validations, which are when checkpoints are written too.
      seed: of the weights, the order and the augmentation.
      ema: decay of the moving average of the weights, 0 to below 1; see `ema.Average`.
      precision: what the network computes with, one of `precision.PRECISIONS`.
      norm: "none", or of a network at full resolution "instance".
      adversarial: whether there is a discriminator.
      gan_loss: one of `discriminators.LOSSES`.
      adversarial_weight: what the adversary's loss counts, where a pixel's error of one standard deviation counts 1.
      blur: file that `harmonize estimate-blur` wrote; None: the published blur.
      uncertainty: whether the exported model also tells how wrong it may be.
      streams: kinds of batches that the method learns from.
      worker: number of this worker and of all.
    """

    model: str
    data: pathlib.Path
    model_dir: pathlib.Path
    scale: int
    blocks: int
    filters: int
    pan: bool
    consistency: str
    batch: int
    crop: int
    steps: int
    learning_rate: float
    validate_every: int
    seed: int
    ema: float = 0.0
    precision: str = "float32"
    norm: str = "none"
    adversarial: bool = False
    gan_loss: str = GAN_LOSS
    adversarial_weight: float = 0.0
    blur: pathlib.Path | None = None
    uncertainty: bool = False
    streams: tuple[str, ...] = ("paired",)
    worker: tuple[int, int] = (0, 1)

    @property
    def examples(self) -> int:
        """Patches in a step: `batch` of each stream."""
        return self.batch * len(self.streams)

    @classmethod
    def of(
        cls,
        values: Mapping[str, Any],
        info: DatasetInfo,
        defaults: Mapping[str, Any],
        streams: tuple[str, ...],
        worker: tuple[int, int] = (0, 1),
    ) -> "Config":
        """Takes flags by name; an unset `pan` follows the data, the precision "auto" an earlier session or the machine.

        Args:
          values: the flags.
          info: the records.
          defaults: the method's, of flags that are None.
          streams: the method's.
          worker: number of this worker and of all.

        Raises:
          FlagError: the data holds no panchromatic band and yet it is asked for, or crops do not suit `scale`.
        """
        named = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        named |= {"data": pathlib.Path(values["data"]), "model_dir": pathlib.Path(values["model_dir"])}
        named |= {"pan": info.pan if values["pan"] is None else values["pan"]}
        named |= {"scale": int(values["scale"]), "streams": streams, "worker": worker}
        named |= {name: default for name, default in defaults.items() if named.get(name) is None}
        if not named.get("adversarial"):
            _check_no_adversary(values)
            named["adversarial_weight"] = 0.0
        named |= {"blur": pathlib.Path(values["blur"]) if values.get("blur") else None}
        if named.get("precision") == "auto":
            named["precision"] = _precision(named["model_dir"])
        config = cls(**named)
        if config.pan and not info.pan:
            raise FlagError(f"{info.directory} holds no panchromatic band; leave --pan out. Received: pan=True")
        if not 0 <= config.ema < 1:
            raise FlagError(f"a decay is 0, no average, to below 1, such as 0.999. Received: ema={config.ema}")
        if config.scale == 2 and config.crop % 2:
            raise FlagError(f"with --scale=2 crops have even sizes, 20 m nests in 60 m. Received: crop={config.crop}")
        return config

    def identity(self, info: DatasetInfo, harmonizer: Harmonizer) -> dict[str, Any]:
        """What runs that share a model_dir must have in common, as JSON has it."""
        data = {name: getattr(info, name) for name in DATA} | {"augmentation": augmentation.VERSION}
        built = harmonizer.get_config()
        network = {name: getattr(self, name) for name in NETWORK}
        # Through JSON, which knows lists but no tuples, so that it equals what is read again.
        constants = {name: built[name] for name in CONSTANTS}
        samples = self.blur_prior(info).samples
        drawn = None if samples is None else hashlib.sha256(samples.tobytes()).hexdigest()
        return json.loads(json.dumps(network | data | constants | {"blur_samples_sha256": drawn}))

    def blur_prior(self, info: DatasetInfo) -> BlurPrior:
        """The blur between Sentinel-2 and Landsat: measured where a file is given, and else published.

        Raises:
          FlagError: it was measured on other imagery.
          DatasetError: the file cannot be read.
        """
        if self.blur is None:
            return BlurPrior.published(info.bands, info.nir)
        estimate = BlurEstimate.load(self.blur, info.bands)
        if (estimate.level, estimate.nir) != (info.level, info.nir):
            raise FlagError(
                f"the blur has to be measured on records like those of the training, level {info.level} and nir from "
                f"{info.nir}; run `harmonize estimate-blur` on such. Received: blur={self.blur}, of level "
                f"{estimate.level} and nir {estimate.nir}"
            )
        return BlurPrior.measured(estimate)

    def batches(self, info: DatasetInfo, start: int = 0) -> tf.data.Dataset:
        """The training batches from number `start` on, this worker's part of each."""
        blur = self.blur_prior(info)
        streams = [
            dataset.training(
                info, kind, batch=self.batch, crop=self.crop, pan=self.pan, seed=self.seed, start=start, blur=blur,
                worker=self.worker,
            )
            for kind in self.streams
        ]  # fmt: skip
        return streams[0] if len(streams) == 1 else tf.data.Dataset.zip(tuple(streams))

    def ids(self, info: DatasetInfo, step: int) -> list[str]:
        """The ids of the records in the batch of a step, from 1."""
        named = (
            dataset.training_ids(info, kind, batch=self.batch, seed=self.seed, number=step - 1) for kind in self.streams
        )
        return [name for names in named for name in names]


def _check_no_adversary(values: Mapping[str, Any]) -> None:
    """Raises FlagError where flags are about an adversary that there is none of."""
    asked = {
        "gan_loss": values.get("gan_loss", GAN_LOSS) != GAN_LOSS,
        "adversarial_weight": values.get("adversarial_weight"),
    }
    if given := [f"{name}={values[name]}" for name, told in asked.items() if told]:
        raise FlagError(
            f"there is no adversary for it; add --adversarial, or leave it out. Received: {', '.join(given)}"
        )


def _precision(model_dir: pathlib.Path) -> str:
    """That of the training that is there, so that it can go on on other hardware; or else this machine's fastest."""
    earlier = None
    with contextlib.suppress(OSError):  # which `claim` tells
        earlier = (_earlier(model_dir) or {}).get("precision")
    if earlier in precision.PRECISIONS:
        _log.info("precision %s, as this training began", earlier)
        return earlier
    found, reason = precision.fastest()
    _log.info("precision %s: %s", found, reason)
    return found


def claim(model_dir: str | os.PathLike, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Makes a folder the place of a training, or finds that it already is the place of this one.

    Args:
      model_dir: the folder.
      identity: `Config.identity` of this training.
      overwrite: whether another training that has been there is deleted.

    Raises:
      ModelError: another training has been there.
      FlagError: the folder cannot be made, read or written.
    """
    try:
        _claim(pathlib.Path(model_dir), identity, overwrite)
    except OSError as error:
        raise FlagError(
            f"expected a folder that can be made and written to; give another --model_dir ({error}). "
            f"Received: model_dir={model_dir}"
        ) from error


def _claim(model_dir: pathlib.Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    earlier = _earlier(model_dir)
    differing = [] if earlier is None else [name for name in identity if earlier.get(name) != identity[name]]
    if differing and not overwrite:
        was, now = (", ".join(f"{n}={values.get(n)}" for n in differing) for values in (earlier, identity))
        raise ModelError(
            f"{model_dir} holds a training that a run with other data or another network cannot continue; take another "
            f"--model_dir, or --overwrite. There: {was}. Received: {now}"
        )
    model_dir.mkdir(parents=True, exist_ok=True)
    if differing:
        _write(model_dir, {})  # what a kill leaves half deleted continues neither training
        _delete(model_dir)
    _write(model_dir, identity)


def _delete(model_dir: pathlib.Path) -> None:
    for folder in (model_dir / name for name in STATE):
        if folder.exists():
            shutil.rmtree(folder)
    for name in RESULTS:
        (model_dir / name).unlink(missing_ok=True)


def _write(model_dir: pathlib.Path, identity: Mapping[str, Any]) -> None:
    artifacts.write(model_dir / IDENTITY_FILE, artifacts.to_json(identity))


def _earlier(model_dir: pathlib.Path) -> Mapping[str, Any] | None:
    """The identity of the training that has been there; {} where a file is damaged or gone but its checkpoints stay."""
    try:
        values = json.loads((model_dir / IDENTITY_FILE).read_text())
        return values if isinstance(values, dict) else {}
    except FileNotFoundError:
        return {} if (model_dir / "checkpoints").exists() else None
    except ValueError:
        return {}
