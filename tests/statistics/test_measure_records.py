"""What records come to, against numpy on all of their pixels at once."""

import dataclasses
import random

import ground_pairs
import numpy as np
import pytest

from harmonize_tf.errors import RecordError
from harmonize_tf.statistics.groups import ALL
from harmonize_tf.statistics.measure import contrasts, detail, measure
from harmonize_tf.statistics.totals import KEPT, Totals


@pytest.fixture(scope="module")
def by_split():
    return ground_pairs.splits(6, 3, 2)


@pytest.fixture(scope="module")
def described(by_split):
    return ground_pairs.described(by_split)


def reflectance(records, sensor, band):
    """Of all valid pixels."""
    sides = [getattr(record, sensor) for record in records]
    return np.concatenate([side.ms[side.valid > 0][:, band] for side in sides]) * 1e-4 - 0.1


@pytest.mark.parametrize("group", ["train", "val", ALL])
@pytest.mark.parametrize(("sensor", "band"), [("landsat", 0), ("sentinel", 3)])
def test_figures_of_bands_are_those_of_all_valid_pixels(by_split, described, group, sensor, band):
    records = sum(by_split.values(), []) if group == ALL else by_split[group]
    values = reflectance(records, sensor, band)
    found = described[0][group].bands[f"{sensor}/{ground_pairs.BANDS[band]}"]
    np.testing.assert_allclose(
        [found.count, found.mean, found.std, found.low, found.high],
        [values.size, values.mean(), values.std(), values.min(), values.max()],
    )
    np.testing.assert_allclose(found.quantile(0.9), np.quantile(values, 0.9, method="inverted_cdf"))


def test_the_panchromatic_band_counts_where_landsat_is_valid(by_split, described):
    sides = [record.landsat for record in by_split["train"]]
    clear = [side.valid.repeat(2, 0).repeat(2, 1) > 0 for side in sides]
    values = np.concatenate([side.pan[mask] for side, mask in zip(sides, clear, strict=True)]) * 1e-4 - 0.1
    found = described[0]["train"].bands["landsat/pan"]
    assert (found.count, found.mean) == (values.size, pytest.approx(values.mean()))
    share = np.mean([mask.mean() for mask in clear])
    assert described[0]["train"].valid["landsat"] == pytest.approx(share)


def test_a_fit_is_the_least_squares_of_all_cells(by_split, described):
    x, y = [], []
    for record in sum(by_split.values(), []):
        side = len(record.landsat.valid)
        x.append(record.sentinel.ms.reshape(side, 3, side, 3, 4).mean((1, 3))[record.landsat.valid > 0][:, 1])
        y.append(record.landsat.ms[record.landsat.valid > 0][:, 1])
    x, y = np.concatenate(x) * 1e-4 - 0.1, np.concatenate(y) * 1e-4 - 0.1
    (fit,) = [fit for fit in described[0][ALL].fits if fit.band == "green"]
    slope, offset = np.polyfit(x, y, 1)
    assert (fit.slope, fit.offset) == (pytest.approx(slope, abs=1e-3), pytest.approx(offset, abs=2e-4))
    assert fit.r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-3)


def test_a_planted_band_pass_is_recovered_though_some_cells_have_changed():
    def plant(record):
        record = ground_pairs.with_codes(record, "landsat", lambda codes: 0.97 * (codes - 1000) + 1000 + 20)
        capture = record.landsat
        codes = capture.ms.copy()
        codes[:3, :3] = 9000  # a new roof, or a cloud that the mask has missed
        return dataclasses.replace(record, landsat=dataclasses.replace(capture, ms=codes))

    groups, _, _ = ground_pairs.described(ground_pairs.changed(ground_pairs.splits(8, 0, 0), plant))
    for fit in groups[ALL].fits:
        assert fit.slope == pytest.approx(0.97, abs=0.01)
        assert fit.offset == pytest.approx(0.002, abs=0.002)


def test_months_gaps_and_shifts_are_counted(by_split, described):
    group, records = described[0][ALL], sum(by_split.values(), [])
    assert group.months == {"2022-06": len(records)}
    assert group.figures["pair/shift_east_m"].mean == pytest.approx(np.mean([r.shift_m[0] for r in records]))
    assert group.figures["pair/day_gap"].median == pytest.approx(np.median([r.dt_s for r in records]) / 86400, abs=0.03)
    assert group.figures["pair/correlation"].low > 0.95
    assert group.texts["landsat/spacecraft"] == {"LANDSAT_8": len(records)}


def test_totals_are_the_same_in_whatever_order_and_parts_they_are_added(by_split, described):
    shuffled = [(split, record) for split, records in by_split.items() for record in records]
    random.Random(1).shuffle(shuffled)
    parts = [Totals() for _ in range(4)]
    for number, (split, record) in enumerate(shuffled):
        measure(record, split, parts[number % 4])
    together = Totals()
    for part in parts:
        together.merge(Totals.from_bytes(part.to_bytes()))
    assert together.to_bytes() == described[2].to_bytes()


def test_totals_do_not_grow_with_the_number_of_patches():
    totals, record = Totals(), ground_pairs.record(1)
    measure(record, "train", totals)
    size = {key: len(values) for key, values in totals.sums.items()}
    for number in range(40):
        measure(dataclasses.replace(record, id=f"{number:020}"), "train", totals)
    assert {key: len(values) for key, values in totals.sums.items()} == size
    assert len(totals.thumbnails["train"]) == KEPT


def test_thumbnails_are_the_patches_of_the_smallest_ids(described):
    assert [one.id for one in described[2].thumbnails["train"]] == [f"{number:020}" for number in range(KEPT)]


@pytest.mark.parametrize("missing", ["landsat", "sentinel"])
def test_a_record_of_one_side_has_figures_of_that_side_only(missing):
    records = [dataclasses.replace(record, **{missing: None}) for record in ground_pairs.splits(3, 0, 0)["train"]]
    groups, _, totals = ground_pairs.described({"train": records})
    assert {feature.split("/")[0] for feature in groups[ALL].features} == {"landsat", "sentinel"} - {missing}
    assert not groups[ALL].fits and set(totals.thumbnails["train"][0].sides) == {"landsat", "sentinel"} - {missing}


def test_a_record_with_other_bands_than_it_names_is_refused():
    record = dataclasses.replace(ground_pairs.record(0), bands=("blue", "green", "red"))
    with pytest.raises(RecordError, match=r"as many bands.*blue,green,red.*Received: landsat/ms=\(16, 16, 4\)"):
        measure(record, "train", Totals())


def test_the_difference_of_swapped_bands_is_seen_the_other_way_round():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1000, 1))
    ground = 3 * shared + rng.normal(size=(1000, 3))
    other = (ground + 0.1 * rng.normal(size=ground.shape)) * [1, 10, 100]  # of whatever scale

    def seen(a, b):
        a, b = a - a.mean(0), b - b.mean(0)
        return contrasts(a.T @ b, a.T @ a, b.T @ b)

    assert min(seen(ground, other).values()) > 1
    swapped = seen(ground, other[:, [1, 0, 2]])
    assert swapped[0, 1] < -1 and swapped[0, 1] == min(swapped.values())
    # Of two bands, divided by their standard deviations, it is the correlation of the differences.
    unit = [(band - band.mean(0)) / band.std(0) for band in (ground, other)]
    r = np.corrcoef(unit[0][:, 0] - unit[0][:, 2], unit[1][:, 0] - unit[1][:, 2])[0, 1]
    assert np.tanh(seen(ground, other)[0, 2]) == pytest.approx(r, abs=1e-6)


def test_bands_that_show_the_same_are_not_told_apart():
    """Else the blurs of the sensors would be compared, which differ from band to band."""
    rng = np.random.default_rng(0)
    field, blur = rng.normal(size=(1000, 1)), 1e-3 * rng.normal(size=(1000, 1))
    a, b = (x - x.mean(0) for x in (field + blur * [1, -1], field + blur * [-1, 1]))
    assert contrasts(a.T @ b, a.T @ a, b.T @ b) == {}


def test_detail_is_that_of_second_differences():
    image = np.random.default_rng(0).integers(1000, 3000, (9, 15, 1), np.uint16)
    clear = np.ones((3, 5), bool)
    clear[0, 2] = False
    expected = np.zeros(4)
    for plane, mask in ((image[..., 0], clear), (image[..., 0].T, clear.T)):
        rows, columns = mask.shape
        lines = plane.astype(float).reshape(rows, 3, 3 * columns).mean(1)
        for row in range(rows):
            for column in range(1, columns - 1):
                if mask[row, column - 1 : column + 2].all():
                    means = lines[row].reshape(columns, 3).mean(1)
                    expected[0] += (means[column - 1] - 2 * means[column] + means[column + 1]) ** 2
                    for phase in range(3):
                        at = 3 * column + phase
                        expected[1 + phase] += (lines[row, at - 1] - 2 * lines[row, at] + lines[row, at + 1]) ** 2
    np.testing.assert_allclose(detail(image, clear) / 9, expected, atol=1)
