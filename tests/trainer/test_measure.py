import dataclasses

import numpy as np
import pytest
import tiny_examples

from harmonize_tf import radiometry
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.metrics import strata
from harmonize_tf.metrics.fidelity import FidelityMeter
from harmonize_tf.models.baselines import build_baseline
from trainer.measure import measure

TESTED = 5


def change(record):
    """One patch half under cloud, one of another spacecraft and a day apart."""
    sentinel = record.sentinel
    if record.id == "patch3":
        valid = sentinel.valid.copy()
        valid[:20] = 0
        return dataclasses.replace(record, sentinel=dataclasses.replace(sentinel, valid=valid), dt_s=60.0)
    if record.id == "patch4":
        sentinel = dataclasses.replace(sentinel, spacecraft="SENTINEL_2B")
    return dataclasses.replace(record, sentinel=sentinel, dt_s=86400.0 if record.id == "patch4" else 60.0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    directory = tmp_path_factory.mktemp("examples")
    by_split = tiny_examples.write(directory, train=1, val=1, test=TESTED, change=change)
    info = DatasetInfo.load(directory)
    names = ("nearest", "bandpass")
    models = {name: build_baseline(name, info.bands, info.level, info.pan, info.bandpass) for name in names}
    return tiny_examples.in_reading_order(by_split, "test"), measure(models, info, "test", 2)


def nearest_figures(records):
    meter = FidelityMeter(tiny_examples.BANDS)
    for record in records:
        output = radiometry.decode(record.landsat.ms).repeat(3, 0).repeat(3, 1)
        meter.update(radiometry.decode(record.sentinel.ms), output, record.sentinel.valid)
    return meter.result()


def test_figures_of_a_stratum_are_those_of_its_patches_alone(measured):
    records, figures = measured
    found = figures["nearest"].strata
    cloudy = [record for record in records if record.id == "patch3"]
    assert list(found["cloud"]) == ["clear", "to 50 %"]
    assert found["cloud"]["to 50 %"]["rmse_all"] == pytest.approx(nearest_figures(cloudy).rmse_all, rel=1e-5)
    clear = [record for record in records if record.id != "patch3"]
    assert found["cloud"]["clear"]["sam"] == pytest.approx(nearest_figures(clear).sam, rel=1e-4)
    assert list(found["gap"]) == ["same day", "1 day"]
    other = found["spacecraft"]["LANDSAT_8, SENTINEL_2B"]
    assert other == found["gap"]["1 day"] and other["pixels"] == (3 * tiny_examples.CELLS) ** 2
    ground = found["ground"]
    assert set(ground) <= set(strata.GROUND)
    assert sum(kind["pixels"] for kind in ground.values()) == figures["nearest"].fidelity.pixels


def test_intervals_hold_the_figures_and_a_ratio_tells_of_pairs(measured):
    figures = measured[1]["nearest"]
    assert figures.blocks == TESTED
    for name in ("rmse_all", "psnr", "ssim", "sam"):
        low, high = figures.intervals[name]
        assert low <= getattr(figures.fidelity, name) <= high, name
    assert set(figures.intervals["rmse"]) == set(tiny_examples.BANDS)
    against = figures.against["bandpass"]
    assert set(figures.against) == {"bandpass"} and 1 < against["interval"][0] <= against["rmse_ratio"]
    # Patches differ more than models do on one patch.
    ratio = np.ptp(against["interval"]) / against["rmse_ratio"]
    assert ratio < np.ptp(figures.intervals["rmse_all"]) / figures.fidelity.rmse_all


def test_every_patch_is_told_and_every_pixel_is_in_the_scatter(measured):
    records, figures = measured
    nearest = figures["nearest"]
    assert [patch.id for patch in nearest.patches] == [record.id for record in records]
    assert [patch.number for patch in nearest.patches] == list(range(TESTED))
    for patch, record in zip(nearest.patches, records, strict=True):
        assert patch.rmse == pytest.approx(nearest_figures([record]).rmse_all, rel=1e-4)
        assert patch.clear == pytest.approx(record.sentinel.valid.mean())
    assert (nearest.scatter.counts.sum((1, 2)) == nearest.fidelity.pixels).all()
    assert np.trace(figures["bandpass"].scatter.counts[0]) > 0


def test_too_few_blocks_give_figures_without_intervals(tmp_path):
    tiny_examples.write(tmp_path, train=1, val=1, test=2)
    info = DatasetInfo.load(tmp_path)
    model = build_baseline("nearest", info.bands, info.level, info.pan, info.bandpass)
    figures = measure({"nearest": model}, info, "test", 2)["nearest"]
    assert figures.intervals == {} and figures.fidelity.rmse_all > 0


def test_a_patch_under_cloud_as_a_whole_changes_nothing_and_an_output_that_is_no_number_gives_no_figures(tmp_path):
    def clouded(record):
        if record.id == "patch3":
            record.sentinel.valid[:] = 0
        return record

    by_split = tiny_examples.write(tmp_path, train=1, val=1, test=3, change=clouded)
    info = DatasetInfo.load(tmp_path)
    nearest = build_baseline("nearest", info.bands, info.level, info.pan, info.bandpass)
    figures = measure({"nearest": nearest, "broken": lambda x: nearest(x) * np.float32("nan")}, info, "test", 2)
    seen = [record for record in tiny_examples.in_reading_order(by_split, "test") if record.id != "patch3"]
    assert figures["nearest"].fidelity.rmse_all == pytest.approx(nearest_figures(seen).rmse_all, rel=1e-5)
    assert [np.isnan(patch.rmse) for patch in figures["nearest"].patches].count(True) == 1
    broken = figures["broken"]
    numbers = [broken.fidelity.rmse_all, broken.fidelity.cpsnr, broken.sharpness.ratio_all, broken.consistency.largest]
    assert np.isnan([*numbers, *broken.correctness.values(), *broken.resampled.values()]).all()
