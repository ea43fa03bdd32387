import json

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
