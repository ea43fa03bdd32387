import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny_examples

from harmonize_tf import augmentation, dataset, degradation, sensors, synthesis
from harmonize_tf.blur import BlurEstimate
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.radiometry import Bandpass
from harmonize_tf.synthesis import BlurPrior, Synthesis

BANDS = tiny_examples.BANDS
BANDPASS = Bandpass((1.1, 0.9, 1.0, 1.0), (0.01, -0.01, 0.0, 0.0), "of these tests")


def image(side=60, seed=0):
    return np.random.default_rng(seed).uniform(0, 0.5, (side, side, len(BANDS))).astype(np.float32)


def holes(side=60):
    data = np.ones((side, side), np.float32)
    data[25:31, 10:14] = 0
    data[:, -2:] = 0
    return data


@pytest.mark.parametrize("size, count", [(3.0, 12), (1.5, 24)])
def test_a_drawn_blur_shows_what_scipys_sparse_matrices_show(size, count):
    """The export degrades with `degradation.sample_blurred`; training has to show the same."""
    truth, data, corner = image(), holes(), np.array([7, 11])
    sigma = [0.8, 1.2, 1.5, 1.0]
    rows, columns = (c + (np.arange(count) + 0.5) * size - 0.5 for c in corner)
    expected, _ = degradation.sample_blurred(truth, data > 0, rows, columns, sigma, size)
    given = np.where(data[..., None] > 0, truth, 0.0), data[..., None]
    blur = tf.constant([[s, s] for s in sigma])
    np.testing.assert_allclose(synthesis.seen(*given, corner, count, size, blur), expected, atol=2e-6)


def test_a_blur_is_wide_in_x_along_the_columns():
    point = np.zeros((30, 30, 1), np.float32)
    point[15, 15] = 1
    spread = synthesis.seen(point, np.ones_like(point), tf.constant([0, 0]), 30, 1.0, tf.constant([[3.0, 1.0]]))[..., 0]
    at = np.arange(30) - 15
    assert np.sqrt((at**2 * np.sum(spread, 0)).sum()) == pytest.approx(3.0, rel=0.01)
    assert np.sqrt((at**2 * np.sum(spread, 1)).sum()) == pytest.approx(1.0, rel=0.01)


@pytest.fixture
def quiet(monkeypatch):
    """No noise, and always the blur that models assume."""
    for name in ("OLI_NOISE", "OLI_PAN_NOISE"):
        monkeypatch.setattr(sensors, name, 0.0)
    monkeypatch.setattr(synthesis, "SPREAD", 1.0)


def test_a_crop_is_a_pair_of_the_same_ground_in_each_sensors_radiometry(quiet):
    truth, everywhere = image(), np.ones((60, 60, 1), np.float32)
    prior = BlurPrior.published(BANDS, "B8")
    make = Synthesis(BANDS, BANDPASS, prior, crop=10, pan=True)
    inputs, targets = make(tf.constant(truth), everywhere, everywhere, [3, 4])
    target = targets["sentinel_ms"].numpy()
    [(row, column)] = [
        (r, c) for r in range(31) for c in range(31) if np.array_equal(truth[r : r + 30, c : c + 30], target)
    ]
    assert row % 3 or column % 3  # anywhere, not on one lattice only
    expected, _ = degradation.degrade(
        truth[row % 3 :, column % 3 :], np.ones((60 - row % 3, 60 - column % 3), bool), prior.sigma
    )
    cells = expected[row // 3 : row // 3 + 10, column // 3 : column // 3 + 10]
    inner = slice(2, -2)  # the export's image ends elsewhere than this one
    seen = BANDPASS.apply(inputs["landsat_ms"].numpy())
    np.testing.assert_allclose(seen[inner, inner], cells[inner, inner], atol=2e-6)
    weights = sensors.pan_weights()
    grey = sum(weights[band] * target[..., BANDS.index(band)] for band in weights)
    assert inputs["landsat_pan"].shape == (20, 20, 1)
    assert np.corrcoef(inputs["landsat_pan"].numpy()[::2, ::2].ravel(), grey[::3, ::3].ravel())[0, 1] > 0.3


def test_a_cell_with_a_gap_is_not_seen_and_what_a_gap_holds_has_no_influence():
    data = holes()[..., None]
    found = []
    for rubbish in (0.0, np.nan):
        make = Synthesis(BANDS, BANDPASS, BlurPrior.published(BANDS, "B8"), crop=20, pan=True)
        found.append(make(tf.constant(np.where(data > 0, image(), np.float32(rubbish))), data, data, [0, 1]))
    (inputs, targets), (other, _) = found
    tf.nest.map_structure(np.testing.assert_array_equal, inputs, other)
    whole = data[..., 0].reshape(20, 3, 20, 3).min((1, 3))
    np.testing.assert_array_equal(inputs["landsat_valid"][..., 0], whole)
    np.testing.assert_array_equal(inputs["landsat_pan_valid"][::2, 1::2, 0], whole)
    np.testing.assert_array_equal(targets["mask"][..., 0], whole.repeat(3, 0).repeat(3, 1))
    assert np.isfinite(inputs["landsat_ms"]).all() and np.isfinite(targets["sentinel_ms"]).all()


def test_the_published_blur_is_drawn_around_itself_for_each_band():
    prior = BlurPrior.published(BANDS, "B8")
    draws = np.array([prior.draw([n, 0]) for n in range(200)]) / np.array(prior.sigma)[:, None]
    assert draws.min() > 1 / 1.21 and draws.max() < 1.21 and draws.std() > 0.08
    np.testing.assert_array_equal(draws[..., 0], draws[..., 1])
    assert abs(np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]) < 0.2


def test_a_measured_blur_is_drawn_as_it_occurred_in_all_bands_together():
    samples = np.random.default_rng(0).uniform(0.8, 1.6, (5, len(BANDS), 2))
    estimate = BlurEstimate(BANDS, (1.0,) * 4, samples.mean(0), samples, "toa", "B8", "", "")
    prior = BlurPrior.measured(estimate)
    draws = {prior.draw([n, 0]).numpy().tobytes() for n in range(100)}
    assert draws == {sample.astype(np.float32).tobytes() for sample in samples}


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "examples"
    tiny_examples.write(directory)
    return DatasetInfo.load(directory)


ARGUMENTS = {"batch": 2, "crop": 8, "pan": True, "seed": 1, "blur": BlurPrior.published(BANDS, "B8")}


@pytest.mark.parametrize("kind", dataset.KINDS)
def test_batches_have_one_form_and_depend_on_their_number_alone(info, kind):
    def read(start, count):
        batches = dataset.training(info, kind, **ARGUMENTS, start=start)
        return [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in batches.take(count)]

    whole, rest = read(0, 5), read(3, 2)
    tf.nest.map_structure(np.testing.assert_array_equal, whole[3:], rest)
    inputs, targets = whole[0]
    assert inputs["landsat_ms"].shape == (2, 8, 8, 4) and inputs["landsat_pan"].shape == (2, 16, 16, 1)
    assert targets["sentinel_ms"].shape == (2, 24, 24, 4) and targets["mask"].shape == (2, 24, 24, 1)
    assert ("landsat_clear" in inputs) == (kind == "unpaired")


@pytest.mark.parametrize("kind", dataset.KINDS)
def test_workers_share_each_batch_in_equal_parts(info, kind):
    whole = list(dataset.training(info, kind, **ARGUMENTS | {"batch": 4}).take(3))
    parts = [dataset.training(info, kind, **ARGUMENTS | {"batch": 4}, worker=(n, 2)).take(3) for n in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        joined = tf.nest.map_structure(lambda *x: tf.concat(x, 0), *shares)
        tf.nest.map_structure(np.testing.assert_array_equal, batch, joined)


def test_unpaired_patches_are_of_different_places_and_keep_their_light(info, monkeypatch):
    monkeypatch.setattr(augmentation, "clouded", lambda images, *_: images)
    apart = 0
    for inputs, targets in dataset.training(info, "unpaired", **ARGUMENTS | {"crop": tiny_examples.CELLS}).take(20):
        low, _ = degradation.degrade(targets["sentinel_ms"].numpy()[0], np.ones((48, 48), bool), [1.0] * 4)
        apart += np.abs(low - inputs["landsat_ms"].numpy()[0]).mean() > 0.01
        assert abs(float(tf.reduce_mean(inputs["landsat_ms"])) - 0.25) < 0.05
    assert apart > 12


def test_unpaired_batches_are_named_by_the_records_of_both_sides(info):
    ids = dataset.training_ids(info, "unpaired", batch=3, seed=1, number=2)
    assert len(ids) == 6 and len(dataset.training_ids(info, "degraded", batch=3, seed=1, number=2)) == 3


def test_records_of_sentinel_2_alone_can_be_shown_as_landsat(tmp_path):
    tiny_examples.write(tmp_path, change=lambda record: dataclasses.replace(record, landsat=None))
    info = dataclasses.replace(DatasetInfo.load(tmp_path), pan=False)
    [(inputs, _)] = dataset.training(info, "degraded", **ARGUMENTS).take(1)
    assert inputs["landsat_ms"].shape == (2, 8, 8, 4) and "landsat_pan" in inputs
