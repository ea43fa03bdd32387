"""What a served model is: the facts that travel with it, which a scene must respect. JSON, without TensorFlow."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

import harmonize_tf
from harmonize_tf.errors import ModelError
from harmonize_tf.radiometry import Bandpass
from harmonize_tf.sensors import CODE

FILE = "assets.extra/harmonize.json"  # in a version's folder
UNCERTAINTY = "_uncertainty"  # what a band's name is followed by


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of one exported Harmonizer, kept as `assets.extra/harmonize.json` and served with it.

    Attributes:
      name: the model's name, such as "subpixel".
      bands: band names in the order of the last axis.
      level: "toa" or "sr".
      uses_pan: whether the panchromatic band is an input.
      halo: pixels of 30 m that exact tiling needs as context on each side.
      multiple: pixels of 30 m that a window's origin and size must be multiples of.
      sigma: assumed blur (standard deviation of the Gaussian MTF) per band, pixels of 10 m.
      bandpass: assumed adjustment Landsat -> Sentinel-2.
      consistency: "exact" where the output, degraded, is the measurement; "none" where that is not promised.
      nir: Sentinel-2's band behind "nir", "B8" or "B8A".
      uncertainty: whether it also answers with "uncertainty", the standard deviation of the output's error.
      precision: what its network computes in, "float32" or "bfloat16"; everything else is float32.
      scale: reflectance of a step of the codes that go in and come out.
      offset: reflectance of code 0, were it not "no data".
      schema: version of the records that the signature `tf_example` reads.
      package_version: version of harmonize_tf that exported it.
      provenance: what made it: fingerprint of the trained model, its flags.
    """

    name: str
    bands: tuple[str, ...]
    level: str
    uses_pan: bool
    halo: int
    multiple: int
    sigma: tuple[float, ...]
    bandpass: Bandpass
    consistency: str = "none"
    nir: str = "B8"
    uncertainty: bool = False
    precision: str = "float32"
    scale: float = CODE.scale
    offset: float = CODE.offset
    schema: int = 1
    package_version: str = harmonize_tf.__version__
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def product_bands(self) -> tuple[str, ...]:
        """Names of a product's bands: the model's, and where it tells it the uncertainty of each."""
        return self.bands + tuple(f"{band}{UNCERTAINTY}" for band in self.bands if self.uncertainty)

    def to_json(self) -> str:
        """The manifest as indented JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    def inputs(self, ms: np.ndarray, pan: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What the signature `serving_default` is given for windows, checked against this model.

        Args:
          ms: uint16 codes [N, h, w, B].
          pan: uint16 codes [N, 2h, 2w, 1]; left out where the model does not use it.

        Raises:
          ModelError: windows of another shape, type or number of bands, or without the panchromatic band.
        """
        inputs, shape = {"landsat_ms": ms}, (None, None, None, len(self.bands))
        _check_window("ms", ms, shape, f"bands {', '.join(self.bands)}")
        if self.uses_pan:
            number, rows, columns, _ = ms.shape
            _check_window("pan", pan, (number, 2 * rows, 2 * columns, 1), f"the panchromatic band of ms {ms.shape}")
            inputs["landsat_pan"] = pan
        return inputs

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Reads what `to_json` wrote; keys of later versions are ignored.

        Raises:
          ModelError: it is not JSON, not a manifest, or of a model whose codes are not this release's.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            known = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
            known["bandpass"] = _bandpass(values["bandpass"])
            read = cls(**known | {"bands": tuple(values["bands"]), "sigma": tuple(map(float, values["sigma"]))})
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"a model's manifest must be JSON with the fields of harmonize_tf.manifest.Manifest ({error!r}). "
                f"Received: {text[:80]!r}. Export the model again with `harmonize push`."
            ) from error
        if (read.scale, read.offset) != (CODE.scale, CODE.offset):
            raise ModelError(
                f"codes mean reflectance = code * {CODE.scale} + {CODE.offset} here, and something else to the model "
                f"{read.name!r}. Received: scale={read.scale}, offset={read.offset}. Take the release of harmonize_tf "
                f"that exported it ({read.package_version}), or export it again with `harmonize push`."
            )
        return read


def _check_window(name: str, array: np.ndarray | None, shape: tuple[int | None, ...], what: str) -> None:
    fits = array is not None and array.dtype == np.uint16 and len(array.shape) == len(shape)
    if not fits or any(size not in (None, given) for size, given in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        received = "None" if array is None else f"{array.dtype} {array.shape}"
        raise ModelError(
            f"this model needs uint16 [{wanted}] for {what}. Received: {name}={received}. Give it those bands, or take "
            "a model that was trained for yours."
        )


def _bandpass(values: Mapping[str, Any]) -> Bandpass:
    return Bandpass(tuple(map(float, values["slope"])), tuple(map(float, values["offset"])), str(values["source"]))
