import numpy as np
import pytest

from harmonize_tf.metrics import intervals
from harmonize_tf.metrics.sums import Tally


def mean(total):
    return {"mean": total["sum"] / total["count"]}


def blocks(values, counts=None):
    counts = np.ones(len(values)) if counts is None else counts
    rows = zip(values, counts, strict=True)
    return {f"b{n}": {"sum": np.float64(v * c), "count": np.float64(c)} for n, (v, c) in enumerate(rows)}


def test_the_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(3).normal(5, 2, 60)
    low, high = intervals.interval(intervals.drawn(blocks(values), mean, draws=4000)["mean"])
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.12 * half)


def test_it_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        draws = intervals.drawn(blocks(rng.normal(0, 1, 40)), mean, draws=300, seed=seed)
        low, high = intervals.interval(draws["mean"])
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.98


def test_neighbours_in_one_block_are_no_more_evidence_than_one():
    values = np.random.default_rng(1).normal(0, 1, 30)
    one, ten = (intervals.drawn(blocks(values, np.full(30, n)), mean)["mean"].std() for n in (1, 10))
    assert one == pytest.approx(ten)


def test_models_see_the_same_draws_so_that_a_ratio_is_of_pairs():
    values = np.random.default_rng(2).uniform(1, 9, 20)
    mine, other = (intervals.drawn(blocks(scale * values), mean)["mean"] for scale in (0.9, 1.0))
    low, high = intervals.interval(mine / other)
    assert low == pytest.approx(0.9) and high == pytest.approx(0.9)


def test_two_blocks_give_no_interval_and_draws_without_a_value_are_left_out():
    assert intervals.drawn(blocks([1.0, 2.0]), mean) is None
    low, high = intervals.interval(np.array([[np.nan, np.nan], [1.0, np.nan], [1.0, np.nan]]))
    assert low[0] == high[0] == 1 and np.isnan(low[1])


def test_a_tally_adds_up_to_the_same_whatever_the_parts():
    tally = Tally()
    for n in range(12):
        tally.add((n % 3, n % 2), {"x": np.array([n, 1.0])})
    np.testing.assert_array_equal(tally.total()["x"], [66, 12])
    by = tally.by(lambda group: group[0])
    assert list(by) == [0, 1, 2] and sum(part["x"][0] for part in by.values()) == 66
    np.testing.assert_array_equal(by[1]["x"], [1 + 4 + 7 + 10, 4])
