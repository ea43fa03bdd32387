"""Consistency and correctness against opensr-test itself: its figures as recorded, and live where it is installed.

`pip install -e '.[opensr]'` brings it, with torch; or HARMONIZE_OPENSR_PYTHON names an interpreter that has it.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import triplets

from harmonize_tf.metrics import hallucination, opensr
from harmonize_tf.metrics.reference import Reference

HERE = pathlib.Path(__file__).parent
RECORDED = json.loads((HERE / "opensr_figures.json").read_text())
CASES = triplets.triplets()
TOLERANCE = 1e-4


def reference_of(landsat, truth, mask=None, measured=None):
    mask = np.ones(truth.shape[:2]) if mask is None else mask
    measured = np.ones(landsat.shape[:2]) if measured is None else measured
    return Reference(truth, mask, [f"band{n}" for n in range(truth.shape[-1])], landsat, measured)


def figures(reference, output):
    found = opensr.figures(opensr.sums(reference, output))
    return found | hallucination.figures(hallucination.sums(reference, output))


def assert_equal(name, theirs):
    landsat, output, truth = CASES[name]
    found = figures(reference_of(landsat, truth), output)
    keys = {"hallucination": "ha_metric", "omission": "om_metric", "improvement": "im_metric"}
    for key in ("reflectance", "spectral", "spatial", *keys):
        assert float(found[key]) == pytest.approx(theirs[keys.get(key, key)], abs=TOLERANCE), key


@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_that_opensr_test_gave(name):
    assert RECORDED["version"] == "1.3.3"
    assert_equal(name, RECORDED[name])


def test_figures_are_those_of_the_installed_opensr_test(tmp_path):
    python = os.environ.get("HARMONIZE_OPENSR_PYTHON")
    if not python and importlib.util.find_spec("opensr_test") is None:
        pytest.skip("opensr-test is not installed, and HARMONIZE_OPENSR_PYTHON names no interpreter that has it")
    triplets.save(tmp_path / "inputs.npz")
    command = [python or sys.executable, str(HERE / "opensr_figures.py"), str(tmp_path / "inputs.npz")]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name in CASES:
        assert_equal(name, theirs[name])


def test_invalid_pixels_have_no_part_whatever_they_hold():
    landsat, output, truth = CASES["noisy"]
    measured = np.ones(landsat.shape[:2], bool)
    measured[20:26, 30:40] = False
    mask = measured.repeat(3, 0).repeat(3, 1)
    mask[100:104, 60:90] = False
    expected = figures(reference_of(landsat, truth, mask, measured), output)
    for rubbish in (np.nan, np.inf, -9999.0):
        spoilt = [
            np.where(valid[..., None], x, np.float32(rubbish))
            for x, valid in ((landsat, measured), (output, mask), (truth, mask))
        ]
        # Cloud is no gap: the output is held to the measurement there, whatever Sentinel-2 shows.
        spoilt[1] = np.where(measured.repeat(3, 0).repeat(3, 1)[..., None], output, np.float32(rubbish))
        found = figures(reference_of(spoilt[0], spoilt[2], mask, measured), spoilt[1])
        assert {k: float(v) for k, v in found.items()} == pytest.approx({k: float(v) for k, v in expected.items()})
    whole = figures(reference_of(landsat, truth), output)
    assert all(abs(float(found[key] - whole[key])) < 0.05 for key in found)


def test_a_shift_is_found_beside_a_gap():
    truth, moved = CASES["shifted"][2][..., 0], CASES["shifted"][1][..., 0]
    valid = np.ones(truth.shape, bool)
    valid[60:80, 50:90] = False
    # Moved by 1 row down and 2 columns left: back it goes by as much.
    assert opensr.shift(moved, truth, np.ones(truth.shape, bool)) == pytest.approx((-1, 2), abs=0.05)
    assert opensr.shift(moved, truth, valid) == pytest.approx((-1, 2), abs=0.05)


def test_nothing_to_see_gives_no_figure():
    landsat, output, truth = CASES["perfect"]
    found = figures(reference_of(landsat, truth, np.zeros(truth.shape[:2]), np.zeros(landsat.shape[:2])), output)
    assert all(np.isnan(value) for value in found.values())


def test_an_output_that_is_no_number_has_no_shares():
    landsat, output, truth = CASES["perfect"]
    found = figures(reference_of(landsat, truth), np.full_like(output, np.nan))
    assert np.isnan(found["reflectance"]) and np.isnan(found["hallucination"]) and np.isnan(found["spatial"])
