"""That the figures put outputs of known faults into the order in which a person would."""

import numpy as np
import pytest
import triplets

from harmonize_tf.metrics import fidelity, hallucination, opensr, sharpness
from harmonize_tf.metrics.reference import Reference

TRUTH = triplets.field(0)
OUTPUTS = triplets.outputs_of(TRUTH)


@pytest.fixture(scope="module")
def figures():
    landsat = triplets.landsat_of(TRUTH)
    everywhere = np.ones(TRUTH.shape[:2])
    reference = Reference(TRUTH, everywhere, triplets.BANDS, landsat, np.ones(landsat.shape[:2]))
    found = {}
    for name, output in OUTPUTS.items():
        found[name] = fidelity.figures(fidelity.sums(reference, output))
        found[name] |= sharpness.figures(sharpness.sums(reference, output))
        found[name] |= hallucination.figures(hallucination.sums(reference, output))
        found[name] |= opensr.figures(opensr.sums(reference, output))
    return found


def ranked(figures, name, *, best_first=True, among=OUTPUTS):
    return sorted(among, key=lambda output: float(np.mean(figures[output][name])), reverse=best_first)


@pytest.mark.parametrize("name", ["psnr", "cpsnr", "ssim", "uiqi", "coherence_all", "improvement"])
def test_a_perfect_output_is_best(figures, name):
    assert ranked(figures, name)[0] == "perfect"


@pytest.mark.parametrize("name", ["rmse_all", "sam", "ergas", "ndvi_rmse", "hallucination", "reflectance", "spectral"])
def test_a_perfect_output_has_the_least_error(figures, name):
    assert ranked(figures, name, best_first=False)[0] == "perfect"


def test_a_false_cloud_is_the_worst_error_and_the_worst_hallucination(figures):
    assert ranked(figures, "rmse_all")[0] == "false_cloud"
    assert ranked(figures, "hallucination")[0] == "false_cloud"
    assert ranked(figures, "reflectance")[0] == "false_cloud"  # the input has none


def test_a_blurred_output_omits_and_is_found_soft(figures):
    among = ["perfect", "shifted", "false_cloud", "blurred", "noisy"]
    assert ranked(figures, "omission", among=among)[0] == "blurred"
    assert ranked(figures, "ratio_all", best_first=False, among=among)[0] == "blurred"
    # Looked at where the reference's edges are, an output beside its place is soft too.
    assert ranked(figures, "edge", best_first=False, among=set(among) - {"shifted"})[0] == "blurred"


def test_a_shifted_output_is_blamed_for_the_shift_and_not_for_what_it_shows(figures):
    shifted, blurred = figures["shifted"], figures["blurred"]
    assert shifted["rmse_all"] > blurred["rmse_all"]
    assert shifted["cpsnr"] > blurred["cpsnr"] + 10  # at the right place all is there
    assert shifted["improvement"] > 0.9 > blurred["improvement"]
    # By 22 m, three quarters of a pixel of 30 m.
    assert shifted["spatial"] == pytest.approx(np.hypot(10, 20) / 30, abs=0.1)
    assert max(figures[name]["spatial"] for name in ("perfect", "noisy", "blurred")) < 0.05


def test_invented_detail_is_sharp_and_a_hallucination(figures):
    invented = figures["invented"]
    assert invented["ratio_all"] > 1 and invented["coherence_all"] < 0.2
    assert invented["hallucination"] > 0.5 > figures["blurred"]["hallucination"]
