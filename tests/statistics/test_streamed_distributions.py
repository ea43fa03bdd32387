"""Streamed figures against numpy on all values at once."""

import numpy as np
import pytest

from harmonize_tf.statistics.distribution import CODES, FIGURES, Axis, Distribution


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(2500, 300, 5001).astype(int), rng.integers(1, 65536, 100), [65535, 65535, 1]])


@pytest.fixture(scope="module")
def streamed(codes):
    return Distribution(CODES, sum(np.bincount(part, minlength=65536) for part in np.array_split(codes, 7)))


def test_moments_are_those_of_all_values(codes, streamed):
    values = codes * 1e-4 - 0.1
    assert streamed.count == len(values)
    np.testing.assert_allclose(
        [streamed.mean, streamed.std, streamed.low, streamed.high],
        [values.mean(), values.std(), values.min(), values.max()],
        rtol=1e-12,
    )


def test_quantiles_are_numpys(codes, streamed):
    shares = [0.001, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0]
    expected = np.quantile(codes, shares, method="inverted_cdf") * 1e-4 - 0.1
    np.testing.assert_allclose(streamed.quantile(np.array(shares)), expected, atol=1e-12)
    assert streamed.median == pytest.approx(expected[4], abs=1e-12)


def test_an_exact_share_is_not_lifted_to_the_next_value():
    hundred = Distribution(Axis(0, 1, 100), np.ones(100, np.int64))
    np.testing.assert_array_equal(hundred.quantile(np.arange(1, 101) / 100), np.arange(100))


def test_coarse_buckets_hold_every_value_once(codes, streamed):
    edges, counts = streamed.buckets(40)
    assert len(counts) <= 40 and counts.sum() == len(codes)
    expected, _ = np.histogram(codes * 1e-4 - 0.1, edges)
    np.testing.assert_array_equal(counts, expected)


def test_the_share_from_a_value_on_includes_it(codes, streamed):
    assert streamed.share_from(0.16) == pytest.approx(np.mean(codes >= 2600))
    assert streamed.share_from(-9) == 1 and streamed.share_from(9) == 0


def test_what_is_beyond_an_axis_counts_at_its_end_and_nan_not_at_all():
    axis = FIGURES["pair/day_gap"]
    counted = axis.counts(-1e9, 0.0, 1e9, float("nan"))
    values = Distribution(axis, counted)
    assert (values.count, values.low, values.median, values.high) == (3, -60, 0, pytest.approx(60))


def test_a_single_value_has_no_spread():
    one = Distribution(CODES, np.bincount([1500]))
    assert one.std == 0 and one.low == one.high == one.median == pytest.approx(0.05)
