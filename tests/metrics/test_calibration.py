import numpy as np
import pytest
from scipy import stats

from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics.calibration import LEVELS, CalibrationMeter

BANDS = ("red", "nir")


def drawn(told=1.0, seed=0):
    """Truth, output and what is told of the error, which is Laplace's of a standard deviation that varies."""
    rng = np.random.default_rng(seed)
    truth, sigma = rng.uniform(0, 0.5, (2, 200, 200, 2))
    sigma = 0.001 + 0.05 * sigma
    output = truth + stats.laplace.rvs(scale=sigma / np.sqrt(2), random_state=rng)
    return truth, output, told * sigma


def measured(*patch, mask=None):
    meter = CalibrationMeter(BANDS)
    meter.update(*patch, np.ones(patch[0].shape[:2]) if mask is None else mask)
    return meter.result()


def test_of_errors_as_they_are_told_to_be_each_interval_holds_its_share():
    found = measured(*drawn())
    np.testing.assert_allclose(found.coverage, np.repeat(np.array(LEVELS)[:, None], 2, 1), atol=0.01)
    sigma = drawn()[2]
    assert found.width == pytest.approx(np.mean(stats.laplace.ppf(0.95, scale=sigma / np.sqrt(2))))


@pytest.mark.parametrize("told", [0.5, 2.0])
def test_half_or_twice_the_error_told_covers_what_the_distribution_says(told):
    expected = [1 - (1 - level) ** told for level in LEVELS]  # 1 - exp(-t ln 1/(1-p))
    np.testing.assert_allclose(measured(*drawn(told)).coverage_all, expected, atol=0.01)


def test_masked_pixels_count_for_nothing_and_patches_add_up():
    truth, output, sigma = drawn()
    mask = np.zeros((200, 200))
    mask[:, :120] = 1
    spoilt = np.where(mask[..., None] > 0, output, np.nan)
    assert measured(truth, spoilt, sigma, mask=mask) == measured(truth[:, :120], output[:, :120], sigma[:, :120])
    assert np.isnan(measured(truth, output, sigma, mask=np.zeros((200, 200))).coverage_all).all()
    assert set(measured(truth, output, sigma).to_dict()["coverage"]["90"]) == set(BANDS)


def test_shapes_that_do_not_agree_are_told():
    truth, output, sigma = drawn()
    with pytest.raises(DatasetError, match="Received: truth=.*sigma=\\(200, 100, 2\\)"):
        measured(truth, output, sigma[:, :100])
