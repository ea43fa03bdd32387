import json
import math

import numpy as np
import pytest

from harmonize_tf import degradation
from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics.consistency import ConsistencyMeter

BANDS, SIGMA = ("red", "nir"), (1.2, 0.8)


def image(seed=0, cells=20):
    return np.random.default_rng(seed).uniform(0.1, 0.4, (3 * cells, 3 * cells, 2)).astype(np.float32)


def seen(output):
    return degradation.degrade(output, np.ones(output.shape[:2], bool), SIGMA)[0]


def everywhere(measurement):
    return np.ones(measurement.shape[:2], bool)


def measure(*patches):
    meter = ConsistencyMeter(BANDS, SIGMA)
    for patch in patches:
        meter.update(*patch)
    return meter.result()


def test_what_the_measurement_was_made_from_is_consistent():
    measurement = seen(image())
    figures = measure((image(), measurement, everywhere(measurement)))
    assert figures.cells == 400 and figures.rms_all == figures.quantile == figures.largest == 0


def test_an_offset_per_band_is_the_closed_form():
    measurement = seen(image()) - np.float32([0.01, -0.03])
    figures = measure((image(), measurement, everywhere(measurement)))
    np.testing.assert_allclose(figures.rms, [0.01, 0.03], rtol=1e-4)
    assert figures.rms_all == pytest.approx(math.sqrt((0.01**2 + 0.03**2) / 2), rel=1e-4)
    assert figures.largest == figures.quantile == pytest.approx(0.03, rel=1e-4)


def test_the_quantile_is_numpys_within_its_bins_over_all_patches():
    rng = np.random.default_rng(0)
    errors = [rng.normal(0, 0.01, (60, 60, 2)).astype(np.float32) for _ in range(4)]
    outputs = [image(seed, 60) for seed in range(4)]
    figures = measure(*((o, seen(o) - e, np.ones((60, 60), bool)) for o, e in zip(outputs, errors, strict=True)))
    expected = np.quantile(np.abs(errors), 0.999)
    assert 0.99 * expected < figures.quantile < 1.025 * expected
    assert figures.rms_all == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)
    assert figures.largest == pytest.approx(np.abs(errors).max(), rel=1e-4)


def test_cells_without_a_measurement_have_no_part_whatever_they_and_the_output_there_hold():
    output, measurement = image(), seen(image(1))
    valid = everywhere(measurement)
    valid[5:8, 9:15] = False
    expected = measure((output, measurement, valid))
    assert expected.cells == valid.sum()
    fine = valid.repeat(3, 0).repeat(3, 1)
    for rubbish in (np.nan, np.inf, -9999.0):
        spoilt, nothing = output.copy(), measurement.copy()
        spoilt[~fine], nothing[~valid] = rubbish, rubbish
        assert measure((spoilt, nothing, valid)) == expected


def test_an_output_that_is_not_finite_where_there_is_a_measurement_is_not_hidden():
    output, measurement = image(), seen(image())
    output[30, 30] = np.nan
    figures = measure((output, measurement, everywhere(measurement)))
    assert all(map(math.isnan, (figures.rms_all, figures.quantile, figures.largest)))


def test_without_a_valid_cell_there_are_no_figures():
    measurement = seen(image())
    figures = measure((image(), measurement, ~everywhere(measurement)))
    assert figures.cells == 0 and math.isnan(figures.rms_all) and math.isnan(figures.quantile)


def test_shapes_that_disagree_are_named():
    measurement = seen(image())
    with pytest.raises(DatasetError, match=r"Received: output=\(57, 60, 2\), measurement=\(20, 20, 2\)"):
        measure((image()[3:], measurement, everywhere(measurement)))


def test_figures_go_into_json_by_band():
    measurement = seen(image())
    values = measure((image(1), measurement, everywhere(measurement))).to_dict()
    assert set(json.loads(json.dumps(values))["rms"]) == set(BANDS)
