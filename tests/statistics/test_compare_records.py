"""Split against split, and now against earlier: distances, what chance allows, and what is told."""

import ground_pairs
import numpy as np
import pytest
from scipy import stats

from harmonize_tf.errors import DatasetError
from harmonize_tf.statistics import comparison, protos
from harmonize_tf.statistics.comparison import Curve
from harmonize_tf.statistics.distribution import CODES, Distribution
from harmonize_tf.statistics.groups import ALL


def curve(codes, effective=1e9) -> Curve:
    values, shares = Distribution(CODES, np.bincount(codes)), np.linspace(0, 1, comparison.QUANTILES + 1)
    edges = np.concatenate([[values.low], values.quantile(shares[1:])])
    return Curve(edges, shares, len(codes), effective)


@pytest.fixture(scope="module")
def figures():
    return ground_pairs.described(ground_pairs.splits())[0]


@pytest.fixture(scope="module")
def baseline(figures):
    return protos.earlier(protos.to_text(protos.statistics(figures)), "statistics.pbtxt")


def test_the_distance_is_that_of_kolmogorov_and_smirnov_to_a_hundredth():
    rng = np.random.default_rng(0)
    one, other = rng.normal(2500, 300, 20_000).astype(int), rng.normal(2700, 400, 15_000).astype(int)
    apart, at = comparison.distance(curve(one), curve(other))
    expected = stats.ks_2samp(one, other)
    assert apart == pytest.approx(expected.statistic, abs=0.011)
    assert at == pytest.approx(expected.statistic_location * 1e-4 - 0.1, abs=0.02)
    assert comparison.distance(curve(one), curve(one))[0] == 0


def test_curves_of_splits_pooled_are_the_curve_of_all_pixels():
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, 300, size).astype(int) for mean, size in ((2500, 9000), (3500, 3000))]
    apart, _ = comparison.distance(comparison.pooled([curve(part) for part in parts]), curve(np.concatenate(parts)))
    assert abs(apart) < 0.01


def test_what_chance_allows_is_smirnovs_limit_and_never_less_than_a_tenth():
    few = comparison.allowed(curve(np.arange(2000), 20), curve(np.arange(2000), 30), 1)
    assert few == pytest.approx(stats.kstwobign.isf(comparison.RISK) * np.sqrt(1 / 20 + 1 / 30), rel=1e-3)
    assert comparison.allowed(curve(np.arange(2000)), curve(np.arange(2000)), 9) == comparison.LEAST


def test_pixels_are_worth_more_where_patches_are_alike():
    means = {0.05: [], 0.3: []}
    for spread, found in means.items():
        rng = np.random.default_rng(1)

        def change(record, rng=rng, spread=spread):
            return ground_pairs.with_codes(record, "sentinel", lambda codes: codes + 4000 * rng.normal(scale=spread))

        groups, _, _ = ground_pairs.described(ground_pairs.changed(ground_pairs.splits(20, 0, 0), change))
        found.append(groups[ALL].effective("sentinel/red"))
    assert 20 <= means[0.3][0] < means[0.05][0]


def test_nothing_has_drifted_against_itself(figures, baseline):
    assert list(comparison.drift(figures[ALL], baseline)) == []
    assert baseline.patches == figures[ALL].patches and baseline.texts["level"] == {"toa": 32}


def test_other_ground_of_the_same_kind_has_not_drifted(baseline):
    later = ground_pairs.described(ground_pairs.splits(first=100))[0]
    assert list(comparison.drift(later[ALL], baseline)) == []


@pytest.mark.parametrize(
    "fault",
    [
        lambda codes: codes + 900,
        lambda codes: 1000 + (codes - 1000) * 1.7,
        lambda codes: 1000 + np.maximum(codes - 1000, 0) ** 1.5 / 80,
    ],
    ids=["brighter", "steeper", "bent"],
)
def test_a_drifted_histogram_is_named_and_the_other_sensors_is_not(baseline, fault):
    drifted = ground_pairs.changed(
        ground_pairs.splits(first=100), lambda one: ground_pairs.with_codes(one, "sentinel", fault)
    )
    found = list(comparison.drift(ground_pairs.described(drifted)[0][ALL], baseline))
    bands = {one.feature.removeprefix("sentinel/") for one in found}
    assert set(ground_pairs.BANDS[:3]) <= bands <= set(ground_pairs.BANDS)
    assert all(one.kind == "drift" and "of the pixels are at or below" in one.sentence for one in found)


def test_a_split_of_other_ground_is_skewed_and_is_named():
    skewed = ground_pairs.changed(
        ground_pairs.splits(20, 20, 5),
        lambda one: ground_pairs.with_codes(one, "landsat", lambda codes: codes + 1500),
        ("val",),
    )
    found = list(comparison.skew(ground_pairs.described(skewed)[0]))
    assert {(one.kind, one.split) for one in found} == {("skew", "val")}
    assert {one.feature for one in found} == {f"landsat/{band}" for band in ground_pairs.BANDS}


def test_bands_that_came_or_went_and_another_level_are_drift(figures, baseline):
    fewer = comparison.Earlier(
        baseline.patches, {n: c for n, c in baseline.curves.items() if n != "landsat/pan"}, baseline.texts
    )
    (one,) = comparison.drift(figures[ALL], fewer)
    assert one.feature == "landsat/pan" and "none in the baseline" in one.sentence
    other = comparison.Earlier(baseline.patches, baseline.curves, {"level": {"sr": 32}})
    (one,) = comparison.drift(figures[ALL], other)
    assert one.feature == "level" and "toa, in the baseline sr" in one.sentence


@pytest.mark.parametrize("content", [b"not a proto", b"", b"\xff", b'datasets { name: "x" num_examples: 3 }'])
def test_what_is_no_statistics_file_is_refused(content):
    with pytest.raises(DatasetError, match="Received: x/statistics.pbtxt"):
        protos.earlier(content, "x/statistics.pbtxt")
