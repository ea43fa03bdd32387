import dataclasses
import functools

import numpy as np
import pytest
from export_settings import SETTINGS, change

from beam_jobs import plan, transforms
from beam_jobs.squares import Square
from harmonize_tf import radiometry, records, sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.sources import native_windows
from harmonize_tf.sources.simulated import SimulatedSource


@functools.cache
def views(source: SimulatedSource) -> transforms.Views:
    """A patch in the middle."""
    planned = plan.make(source, SETTINGS)
    found = sorted(planned.patches, key=lambda p: (p.left, p.top))
    square = Square(source.pairs()[0], (found[len(found) // 2],))
    (seen,) = transforms.fetch(source, square, SETTINGS.bands, pan=planned.pan)
    return seen


def truth(source, grid, band, sigma):
    """The closed form at the centres of a grid's pixels."""
    east = grid.left + (np.arange(grid.shape[1]) + 0.5) * grid.pixel[0]
    north = grid.top - (np.arange(grid.shape[0]) + 0.5) * grid.pixel[1]
    return source.truth(east[None], north[:, None], band, sigma)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32733"])
def test_each_side_shows_the_truth_at_its_pixels_centres(crs):
    source = SimulatedSource(seed=3, crs=crs)
    seen = views(source)
    assert seen.landsat.values.shape == (64, 64, 4)
    assert seen.pan.values.shape == (128, 128, 1)
    assert seen.sentinel.values.shape == (192, 192, 4)
    for side, pixel in ((seen.landsat, 30), (seen.pan, 15), (seen.sentinel, 10)):
        assert side.grid == seen.patch.grid.at(pixel)
    for index, band in enumerate(SETTINGS.bands):
        expected = truth(source, seen.sentinel.grid, band, sensors.MSI[band].sigma)
        np.testing.assert_allclose(seen.sentinel.values[..., index], expected, atol=5.1e-5)  # half a code
        sigma = sensors.OLI[band].sigma
        error = rms(seen.landsat.values[..., index], truth(source, seen.landsat.grid, band, sigma))
        # The cubic kernel loses a tenth of the contrast; a pixel of 10 m off would be three times that.
        moved = dataclasses.replace(seen.landsat.grid, left=seen.landsat.grid.left + 10)
        assert error < 0.12 * seen.landsat.values[..., index].std()
        assert error < rms(seen.landsat.values[..., index], truth(source, moved, band, sigma)) / 2
    pan = truth(source, seen.pan.grid, "pan", sensors.OLI_PAN.sigma)
    assert rms(seen.pan.values[..., 0], pan) < 0.12 * pan.std()


def rms(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_an_open_gate_lets_a_clear_patch_through():
    verdict = transforms.examine(views(SimulatedSource()), SETTINGS)
    assert verdict.reason is None
    assert verdict.valid_fraction == 1.0
    assert verdict.correlation > 0.95


@pytest.mark.parametrize("shift_m", [(8.0, 0.0), (0.0, -8.0), (-6.0, 5.0)])
def test_the_shift_is_the_planted_one_east_and_north(shift_m):
    verdict = transforms.examine(views(SimulatedSource(shift_m=shift_m)), SETTINGS)
    none = transforms.examine(views(SimulatedSource()), SETTINGS)
    # Warping to the pair grid displaces the finest detail by up to 2.5 m; the planted shift comes on top.
    np.testing.assert_allclose(none.shift_m, (0, 0), atol=2.5)
    np.testing.assert_allclose(np.subtract(verdict.shift_m, none.shift_m), shift_m, atol=1.5)


@pytest.mark.parametrize(
    ("source", "gate", "reason"),
    [
        (SimulatedSource(clouds=1.0), {"min_valid": 0.95}, "valid"),
        (SimulatedSource(shift_m=(14.0, 8.0)), {"max_shift": 12}, "shift"),
        (SimulatedSource(shift_m=(14.0, 8.0)), {"min_correlation": 0.99}, "correlation"),
    ],
)
def test_each_gate_closes_with_its_reason(source, gate, reason):
    assert transforms.examine(views(source), SETTINGS).reason is None
    assert transforms.examine(views(source), dataclasses.replace(SETTINGS, **gate)).reason == reason


def test_clouds_that_moved_count_on_both_sides():
    seen = views(SimulatedSource(clouds=1.0, clouds_move=True))
    landsat = seen.landsat.clear.repeat(3, 0).repeat(3, 1)
    both = (landsat & seen.sentinel.clear).mean()
    assert both < min(landsat.mean(), seen.sentinel.clear.mean())
    assert transforms.examine(seen, SETTINGS).valid_fraction == pytest.approx(both)


def test_a_patch_that_is_flat_or_one_sided_has_no_shift_and_passes():
    seen = views(SimulatedSource())
    flat = dataclasses.replace(seen.sentinel, values=np.full_like(seen.sentinel.values, 0.1))
    alone = dataclasses.replace(seen, landsat=None, pan=None, scenes=(None, seen.scenes[1]))
    for case in (dataclasses.replace(seen, sentinel=flat), alone):
        verdict = transforms.examine(case, SETTINGS)
        assert verdict.reason is None and np.isnan(verdict.shift_m).all()
    record = transforms.to_record(alone, transforms.examine(alone, SETTINGS), SETTINGS, "toa")
    assert record.landsat is None and record.sentinel is not None and np.isnan(record.dt_s)


def test_a_patch_without_a_clear_pixel_is_rejected_whatever_the_gate():
    seen = views(SimulatedSource())
    dark = dataclasses.replace(seen.landsat, clear=np.zeros_like(seen.landsat.clear))
    gate = dataclasses.replace(SETTINGS, min_valid=0.0)
    assert transforms.examine(dataclasses.replace(seen, landsat=dark), gate).reason == "valid"


def test_the_record_holds_codes_masks_and_what_is_known_of_the_scenes():
    source = SimulatedSource(clouds=1.0, nodata=True)
    seen = views(source)
    verdict = transforms.examine(seen, SETTINGS)
    record = records.decode(records.encode(transforms.to_record(seen, verdict, SETTINGS, "toa")))
    assert (record.landsat.ms > 0).all(-1).tolist() == seen.landsat.valid.tolist()
    assert record.landsat.valid.tolist() == seen.landsat.clear.astype(int).tolist()
    assert 0 < record.sentinel.valid.mean() < 1, "clouds are not clear"
    decoded = radiometry.decode(record.sentinel.ms)
    np.testing.assert_allclose(decoded, seen.sentinel.values, atol=5.1e-5)
    assert record.dt_s == 1800.0
    assert record.transform == (10.0, 0.0, seen.patch.left, 0.0, -10.0, seen.patch.top)
    assert record.landsat.spacecraft == "LANDSAT_8" and record.sentinel.scene_id == source.pairs()[0][1].id
    assert record.sentinel.sun == (40.0, 150.0)


class Counting(SimulatedSource):
    """Notes what is read."""

    def read(self, scene, bands, window):
        READS.append((scene.id, tuple(bands), window))
        return super().read(scene, bands, window)


READS = []


def same(one, other):
    """Whether two views are equal to the last bit."""
    assert (one.patch, one.scenes) == (other.patch, other.scenes)
    for name in ("landsat", "pan", "sentinel"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        if first is not None:
            assert first.grid == second.grid
            for part in ("values", "valid", "clear"):
                np.testing.assert_array_equal(getattr(first, part), getattr(second, part))
    return True


@pytest.mark.parametrize("bands", ["rgbn", "all6"])
def test_the_patches_of_a_square_are_as_if_each_were_read_alone_by_one_request_a_grid(bands):
    wanted = change(bands=sensors.BAND_SETS[bands], request_side=2)
    source = Counting(size=5760, clouds=0.6, clouds_move=True, nodata=True)
    planned = plan.make(source, wanted)
    square = max(planned.squares, key=lambda square: len(square.patches))
    assert len(square.patches) == 4
    READS.clear()
    seen = transforms.fetch(source, square, wanted.bands, pan=True)
    reads, grids = len(READS), [patch.grid for patch in square.patches]
    assert reads == 2 + len(native_windows(square.scenes[1], wanted.bands, grids)) == (3 if bands == "rgbn" else 4)
    assert [views.patch for views in seen] == list(square.patches)
    for views in seen:
        (alone,) = transforms.fetch(source, Square(square.scenes, (views.patch,)), wanted.bands, pan=True)
        assert same(views, alone)
    assert len(READS) == reads * 5


def test_a_square_of_one_side_is_read_on_that_side_only():
    source = Counting(size=3840)
    square = next(plan.make(source, SETTINGS).squares)
    whole = transforms.fetch(source, square, SETTINGS.bands, pan=True)
    for scenes in ((square.scenes[0], None), (None, square.scenes[1])):
        READS.clear()
        seen = transforms.fetch(source, Square(scenes, square.patches), SETTINGS.bands, pan=True)
        assert {read[0] for read in READS} == {scene.id for scene in scenes if scene is not None}
        for views, both in zip(seen, whole, strict=True):
            assert (views.landsat is None, views.pan is None) == (scenes[0] is None,) * 2
            assert (views.sentinel is None) == (scenes[1] is None)
            for name in ("landsat", "sentinel"):
                if getattr(views, name) is not None:
                    np.testing.assert_array_equal(getattr(views, name).values, getattr(both, name).values)


def test_without_the_panchromatic_band_it_is_not_read():
    source = Counting(size=3840)
    square = next(plan.make(source, SETTINGS).squares)
    READS.clear()
    assert all(views.pan is None for views in transforms.fetch(source, square, SETTINGS.bands, pan=False))
    assert not any("pan" in read[1] for read in READS)


def test_a_scene_that_cannot_be_read_says_so():
    class Broken(SimulatedSource):
        def read(self, scene, bands, window):
            raise SceneError("ms.tif: the file is truncated")

    square = next(plan.make(SimulatedSource(size=3840), SETTINGS).squares)
    with pytest.raises(SceneError, match="truncated"):
        transforms.fetch(Broken(), square, SETTINGS.bands, pan=True)


def test_a_rejection_is_plain_json_without_nan():
    seen = views(SimulatedSource())
    nan = float("nan")
    line = transforms.rejection(seen.patch, transforms.Verdict(0.25, (nan, nan), nan, "valid"))
    assert set(line) > {"id", "split", "block", "crs", "left", "top", "landsat", "sentinel"}
    assert (line["reason"], line["valid_fraction"], line["shift_m"], line["correlation"]) == ("valid", 0.25, None, None)
    assert line["id"] == seen.patch.id
