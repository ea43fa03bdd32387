"""What a served model is: the facts that travel with it, which a scene must respect. JSON, without TensorFlow."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import harmonize_tf
from harmonize_tf.errors import ModelError
from harmonize_tf.radiometry import Bandpass


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
    schema: int = 1
    package_version: str = harmonize_tf.__version__
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as indented JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Reads what `to_json` wrote; keys of later versions are ignored.

        Raises:
          ModelError: it is not JSON, or not a manifest.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            known = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
            known["bandpass"] = _bandpass(values["bandpass"])
            return cls(**known | {"bands": tuple(values["bands"]), "sigma": tuple(map(float, values["sigma"]))})
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"a model's manifest must be JSON with the fields of harmonize_tf.manifest.Manifest ({error!r}). "
                f"Received: {text[:80]!r}. Export the model again with `harmonize push`."
            ) from error


def _bandpass(values: Mapping[str, Any]) -> Bandpass:
    return Bandpass(tuple(map(float, values["slope"])), tuple(map(float, values["offset"])), str(values["source"]))
