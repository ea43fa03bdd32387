import dataclasses
import json

import numpy as np
import pytest

from harmonize_tf.errors import ModelError
from harmonize_tf.manifest import Manifest
from harmonize_tf.radiometry import landsat_to_sentinel

BANDS = ("blue", "green", "red", "nir")
MANIFEST = Manifest(
    name="subpixel",
    bands=BANDS,
    level="sr",
    uses_pan=True,
    halo=12,
    multiple=1,
    sigma=(1.1, 1.1, 1.15, 1.2),
    bandpass=landsat_to_sentinel(BANDS, "sr", "SENTINEL_2A"),
)


def test_manifest_survives_json_exactly():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json().encode()) == MANIFEST


def test_keys_of_a_later_version_are_ignored():
    later = json.loads(MANIFEST.to_json()) | {"something_new": 1}
    assert Manifest.from_json(json.dumps(later)) == MANIFEST


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"bands": 3}', b"\xff"])
def test_what_is_no_manifest_is_refused_with_the_remedy(text):
    with pytest.raises(ModelError, match="harmonize push"):
        Manifest.from_json(text)


def test_a_missing_field_is_named():
    values = json.loads(MANIFEST.to_json())
    del values["halo"]
    with pytest.raises(ModelError, match="halo"):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("changes", [{"scale": 2.75e-5}, {"offset": 0.0}])
def test_a_model_of_other_codes_is_refused(changes):
    """Sentinel-2's codes before processing baseline 04.00 had no offset."""
    values = json.loads(MANIFEST.to_json())
    assert (values["scale"], values["offset"]) == (1e-4, -0.1)
    with pytest.raises(ModelError, match="code \\* 0.0001 \\+ -0.1 here.*Received: scale="):
        Manifest.from_json(json.dumps(values | changes))


def window(*shape, dtype=np.uint16):
    return np.ones(shape, dtype)


def test_windows_that_fit_become_the_inputs_of_the_signature():
    ms, pan = window(2, 6, 9, 4), window(2, 12, 18, 1)
    assert MANIFEST.inputs(ms, pan) == {"landsat_ms": ms, "landsat_pan": pan}
    without_pan = dataclasses.replace(MANIFEST, uses_pan=False)
    assert without_pan.inputs(ms) == without_pan.inputs(ms, pan) == {"landsat_ms": ms}


@pytest.mark.parametrize(
    ("ms", "pan", "text"),
    [
        (window(1, 6, 6, 6), window(1, 12, 12, 1), r"bands blue, green, red, nir. Received: ms=uint16 \(1, 6, 6, 6\)"),
        (window(6, 6, 4), window(12, 12, 1), r"ms=uint16 \(6, 6, 4\)"),
        (window(1, 6, 6, 4, dtype=np.float32), window(1, 12, 12, 1), "ms=float32"),
        (window(1, 6, 6, 4), None, "pan=None"),
        (window(1, 6, 6, 4), window(1, 18, 18, 1), r"\[1, 12, 12, 1\].*pan=uint16 \(1, 18, 18, 1\)"),
    ],
)
def test_windows_of_other_shape_or_type_are_refused(ms, pan, text):
    with pytest.raises(ModelError, match=text):
        MANIFEST.inputs(ms, pan)
