import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
import tiny_examples
from scipy import ndimage
from tiny_examples import BANDS, CELLS

from harmonize_tf import augmentation, dataset, degradation, radiometry, sensors
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import DatasetError, RecordError


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("examples")
    return directory, tiny_examples.write(directory)


@pytest.fixture
def info(examples):
    return DatasetInfo.load(examples[0])


def batches(data, count):
    return [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in data.take(count)]


def fingerprints(data, count):
    return [(x["landsat_ms"].tobytes(), y["sentinel_ms"].tobytes()) for x, y in batches(data, count)]


def test_values_are_those_of_the_records_decoded_without_tensorflow(examples, info):
    read = batches(dataset.paired(info, "val", batch=3, pan=True), 1)[0]
    for i, record in enumerate(tiny_examples.in_reading_order(examples[1], "val")):
        np.testing.assert_array_equal(read[0]["landsat_ms"][i], radiometry.decode(record.landsat.ms))
        np.testing.assert_array_equal(read[0]["landsat_pan"][i], radiometry.decode(record.landsat.pan))
        np.testing.assert_array_equal(read[1]["sentinel_ms"][i], radiometry.decode(record.sentinel.ms))
        assert read[0]["landsat_valid"][i].all() and read[1]["mask"][i].all()


def test_a_split_is_read_once_and_its_last_batch_filled_up_with_what_does_not_count(info):
    read = batches(dataset.paired(info, "val", batch=2, pan=False), 9)
    assert [x["landsat_ms"].shape for x, _ in read] == [(2, CELLS, CELLS, 4)] * 2
    assert [int(y["mask"].any(axis=(1, 2, 3)).sum()) for _, y in read] == [2, 1]
    assert "landsat_pan" not in read[0][0]


def test_pairs_come_with_what_tells_of_them_all_or_those_chosen(tmp_path):
    days = {"patch9": 1.5, "patch10": float("nan"), "patch11": -2.0}
    change = lambda record: dataclasses.replace(record, dt_s=days.get(record.id, 0.0))  # noqa: E731
    by_split = tiny_examples.write(tmp_path, change=change)
    info, order = DatasetInfo.load(tmp_path), tiny_examples.in_reading_order(by_split, "test")
    plain = batches(dataset.paired(info, "test", batch=3, pan=True), 1)[0]
    inputs, targets, facts = batches(dataset.described(info, "test", batch=4, pan=True), 1)[0]
    tf.nest.map_structure(np.testing.assert_array_equal, (inputs, targets), plain)
    assert [x.decode() for x in facts["id"]] == [record.id for record in order]
    assert [x.decode() for x in facts["block"]] == [record.block for record in order]
    np.testing.assert_array_equal(facts["dt_s"], np.float32([days[record.id] for record in order]))
    assert set(facts["landsat"]) == {b"LANDSAT_8"} and set(facts["sentinel"]) == {b"SENTINEL_2A"}
    chosen = batches(dataset.described(info, "test", batch=4, pan=False, chosen=[0, 2]), 9)
    assert len(chosen) == 1 and [x.decode() for x in chosen[0][2]["id"]] == [order[0].id, order[2].id]


def test_missing_data_and_cloud_reach_the_masks_they_belong_to(tmp_path):
    def change(record):
        ms, valid = record.landsat.ms.copy(), record.landsat.valid.copy()
        pan, clear = record.landsat.pan.copy(), record.sentinel.valid.copy()
        ms[2, 3, 1], valid[2, 3], valid[5, 5] = 0, 0, 0  # no data in one band; a cloud
        pan[8, 8], clear[40, 41] = 0, 0
        landsat = dataclasses.replace(record.landsat, ms=ms, valid=valid, pan=pan)
        return dataclasses.replace(record, landsat=landsat, sentinel=dataclasses.replace(record.sentinel, valid=clear))

    tiny_examples.write(tmp_path, change=change)
    x, y = batches(dataset.paired(DatasetInfo.load(tmp_path), "val", batch=1, pan=True), 1)[0]
    assert list(zip(*np.where(x["landsat_valid"][0, ..., 0] == 0), strict=True)) == [(2, 3)]
    assert list(zip(*np.where(x["landsat_pan_valid"][0, ..., 0] == 0), strict=True)) == [(8, 8)]
    expected = np.ones((3 * CELLS, 3 * CELLS))
    expected[6:9, 9:12] = expected[15:18, 15:18] = expected[40, 41] = 0
    np.testing.assert_array_equal(y["mask"][0, ..., 0], expected)


@pytest.mark.parametrize("symmetry", range(8))
def test_every_symmetry_keeps_the_pair_a_pair(symmetry):
    record = tiny_examples.record(0)
    ms, pan, truth = (
        augmentation.symmetric(tf.constant(radiometry.decode(x)), symmetry).numpy()
        for x in (record.landsat.ms, record.landsat.pan, record.sentinel.ms)
    )
    everywhere = np.ones(truth.shape[:2], bool)
    np.testing.assert_allclose(degradation.degrade(truth, everywhere, sensors.blur_sigma(BANDS))[0], ms, atol=2e-4)
    rows = (np.arange(2 * CELLS) + 0.5) * 1.5 - 0.5
    grey = truth[..., :3].mean(-1, keepdims=True)
    seen, _ = degradation.sample_blurred(grey, everywhere, rows, rows, [sensors.PAN_BLUR_SIGMA], 1.5)
    np.testing.assert_allclose(seen, pan, atol=2e-4)


def test_the_eight_symmetries_differ():
    image = tf.random.stateless_uniform([6, 6, 1], [0, 1])
    assert len({augmentation.symmetric(image, symmetry).numpy().tobytes() for symmetry in range(8)}) == 8


def test_training_crops_and_turns_all_images_alike(info):
    sigma = sensors.blur_sigma(BANDS)
    for x, y in batches(dataset.training(info, batch=4, crop=10, pan=True, seed=1), 4):
        assert x["landsat_ms"].shape == (4, 10, 10, 4) and x["landsat_pan"].shape == (4, 20, 20, 1)
        assert y["sentinel_ms"].shape == (4, 30, 30, 4) and y["mask"].shape == (4, 30, 30, 1)
        for low, truth in zip(x["landsat_ms"], y["sentinel_ms"], strict=True):
            seen, _ = degradation.degrade(truth, np.ones(truth.shape[:2], bool), sigma)
            # The outer pixels of a crop lack what lay around them.
            np.testing.assert_allclose(seen[2:-2, 2:-2], low[2:-2, 2:-2], atol=3e-4)


def test_crops_and_symmetries_vary(info):
    read = batches(dataset.training(info, batch=6, crop=10, pan=False, seed=1), 8)
    crops = {low.tobytes() for x, _ in read for low in x["landsat_ms"]}
    assert len(crops) > 40  # of 48, drawn from 6 patches, 49 places and 8 symmetries


def test_every_pass_holds_every_record_in_an_order_of_its_own(examples, info):
    # A crop as large as the patch: how far its brightest pixel lies above its mean, in standard deviations, tells
    # which patch it is, whatever the symmetry and the light.
    def name(reflectance):
        band = reflectance[..., 0].astype(np.float64)
        return round((band.max() - band.mean()) / band.std(), 3)

    read = batches(dataset.training(info, batch=1, crop=CELLS, pan=False, seed=3), 24)
    found = [name(x["landsat_ms"]) for x, _ in read]
    expected = sorted(name(radiometry.decode(r.landsat.ms)) for r in examples[1]["train"])
    assert len(set(expected)) == len(expected)
    passes = [found[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(one) == expected for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_a_seed_fixes_every_batch_and_another_seed_gives_others(info):
    def read(seed):
        return fingerprints(dataset.training(info, batch=2, crop=8, pan=True, seed=seed), 5)

    first = read(5)
    assert read(6) != first
    try:
        tf.random.set_seed(0)  # the program's own
        assert read(5) == first
    finally:
        tf.random.set_seed(None)


@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_later_continues_exactly(info, start):
    """Batches of 4 out of 6 records: a start may fall into the middle of a pass."""
    whole = fingerprints(dataset.training(info, batch=4, crop=8, pan=True, seed=2), 10)
    rest = fingerprints(dataset.training(info, batch=4, crop=8, pan=True, seed=2, start=start), 10 - start)
    assert rest == whole[start:]


def test_bandpass_is_that_of_the_most_frequent_spacecraft(examples, info):
    assert info.bandpass == radiometry.landsat_to_sentinel(BANDS, "toa", "SENTINEL_2A")
    mixed = {"landsat": {"LANDSAT_8": 8}, "sentinel": {"SENTINEL_2A": 3, "SENTINEL_2B": 5}}
    other = dataclasses.replace(info, spacecraft=mixed, level="sr")
    assert other.bandpass == radiometry.landsat_to_sentinel(BANDS, "sr", "SENTINEL_2B", "B8")


def test_a_folder_without_records_is_told_how_they_are_made(tmp_path):
    with pytest.raises(DatasetError, match="harmonize export"):
        DatasetInfo.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}'])
def test_a_damaged_dataset_info_is_told(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(DatasetError, match="harmonize export"):
        DatasetInfo.load(tmp_path)


def test_another_schema_is_refused(examples, tmp_path):
    values = json.loads((examples[0] / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps(values | {"schema": 99}))
    with pytest.raises(DatasetError, match="Received: schema=99"):
        DatasetInfo.load(tmp_path)


def test_what_the_records_lack_is_told_before_anything_is_read(tmp_path):
    tiny_examples.write(tmp_path, pan=False, val=0)
    info = DatasetInfo.load(tmp_path)
    with pytest.raises(DatasetError, match="--nopan"):
        dataset.paired(info, "test", batch=1, pan=True)
    with pytest.raises(DatasetError, match="'val' holds no records"):
        dataset.paired(info, "val", batch=1, pan=False)
    with pytest.raises(DatasetError, match="crop=17"):
        dataset.training(info, batch=1, crop=CELLS + 1, pan=False, seed=0)


def test_a_missing_shard_is_told(tmp_path):
    tiny_examples.write(tmp_path)
    (tmp_path / "train" / "00001-of-00002.tfrecord.gz").unlink()
    with pytest.raises(DatasetError, match="expected 2 shards"):
        DatasetInfo.load(tmp_path).shards("train")


def flip_a_byte(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("damage", [flip_a_byte, lambda data: data[: len(data) // 2], lambda data: b"no gzip"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    tiny_examples.write(tmp_path)
    path = tmp_path / "val" / "00001-of-00002.tfrecord.gz"
    path.write_bytes(damage(path.read_bytes()))
    info = DatasetInfo.load(tmp_path)
    with pytest.raises(RecordError, match="00001-of-00002"), dataset.damage_named(info, "val"):
        batches(dataset.paired(info, "val", batch=3, pan=True), 1)


def test_records_of_other_bands_than_declared_are_named(tmp_path):
    tiny_examples.write(tmp_path, bands=sensors.BAND_SETS["rgb"])
    info = dataclasses.replace(DatasetInfo.load(tmp_path), bands=BANDS)
    with pytest.raises(RecordError, match=r"record 0 of .*Received: bands=blue,green,red"):
        with dataset.damage_named(info, "val"):
            batches(dataset.paired(info, "val", batch=1, pan=True), 1)


def test_fewer_records_than_declared_are_told(tmp_path):
    tiny_examples.write(tmp_path)
    info = DatasetInfo.load(tmp_path)
    dataset.check(info, "val")
    more = dataclasses.replace(info, counts={"val": 5, "train": 9})
    with pytest.raises(RecordError, match="expected the 5 records"), dataset.damage_named(more, "val"):
        batches(dataset.paired(more, "val", batch=1, pan=True), 9)
    with pytest.raises(RecordError, match="expected the 9 records"), dataset.damage_named(more, "train"):
        batches(dataset.training(more, batch=1, crop=8, pan=True, seed=0), 9)
    with pytest.raises(RecordError, match="expected the 5 records"):
        dataset.check(more, "val")


def test_records_of_one_sensor_are_no_pairs(info):
    alone = dataclasses.replace(info, spacecraft={"landsat": {"LANDSAT_8": 6}, "sentinel": {}})
    with pytest.raises(DatasetError, match="one sensor only"):
        alone.bandpass  # noqa: B018


def test_another_light_leaves_a_pair_a_pair():
    bands = ("blue", "green", "red")
    bandpass = radiometry.landsat_to_sentinel(bands, "sr", "SENTINEL_2A")
    ms = np.random.default_rng(0).uniform(0, 0.4, (4, 4, 3)).astype(np.float32)

    def pan_of(visible):  # what the panchromatic band would see
        return visible @ np.float32([sensors.pan_weights()[band] for band in bands])

    pan = pan_of(ms)[..., None].repeat(2, 0).repeat(2, 1)
    pair = ({"landsat_ms": ms, "landsat_pan": pan}, {"sentinel_ms": bandpass.apply(ms.repeat(3, 0).repeat(3, 1))})
    lights = [augmentation.relit(pair, bands, bandpass, [seed, 0]) for seed in range(20)]
    for inputs, targets in lights:
        seen = inputs["landsat_ms"].numpy()
        np.testing.assert_allclose(inputs["landsat_pan"][::2, ::2, 0], pan_of(seen), atol=1e-5)
        np.testing.assert_allclose(targets["sentinel_ms"], bandpass.apply(seen.repeat(3, 0).repeat(3, 1)), atol=1e-5)
    gains = [float(np.ptp(inputs["landsat_pan"]) / np.ptp(pan)) for inputs, _ in lights]
    assert 1 / 3 <= min(gains) < 0.7 and 1.5 < max(gains) <= 3.0


def test_daylight_takes_another_light_back():
    bands = ("blue", "green", "red")
    bandpass = radiometry.landsat_to_sentinel(bands, "sr", "SENTINEL_2A")
    truth = np.random.default_rng(0).uniform(0, 0.4, (3, 3, 3)).astype(np.float32)
    pair = ({"landsat_ms": np.zeros((1, 1, 3), np.float32)}, {"sentinel_ms": truth})
    for seed in range(10):
        _, targets = augmentation.relit(pair, bands, bandpass, [seed, 0])
        batch = {name: x[None] for name, x in targets.items()}
        assert np.abs(batch["sentinel_ms"] - truth).max() > 1e-3
        np.testing.assert_allclose(augmentation.by_daylight(batch["sentinel_ms"], batch)[0], truth, atol=2e-6)
    np.testing.assert_array_equal(augmentation.by_daylight(truth, {"sentinel_ms": truth}), truth)


def test_a_planted_cloud_is_uniform_in_both_sensors_and_its_rim_counts_for_nothing():
    bandpass = radiometry.Bandpass((1.1, 0.9), (0.01, 0.0), "of this test")
    rng, cells = np.random.default_rng(0), 32
    images = {
        "landsat_ms": rng.uniform(0, 0.2, (cells, cells, 2)), "landsat_valid": np.zeros((cells, cells, 1)),
        "landsat_pan": rng.uniform(0, 0.2, (2 * cells, 2 * cells, 1)),
        "sentinel_ms": rng.uniform(0, 0.2, (3 * cells, 3 * cells, 2)), "mask": np.full((3 * cells, 3 * cells, 1), 0.5),
    }  # fmt: skip
    images = {name: tf.constant(x, tf.float32) for name, x in images.items()}
    planted = 0
    for seed in range(40):
        found = augmentation.clouded(images, "mask", bandpass, [seed, 0])
        under = np.any(found["landsat_ms"] != images["landsat_ms"], -1)
        if not under.any():
            np.testing.assert_array_equal(found["mask"], images["mask"])
            continue
        planted += 1
        brightness = np.unique(found["landsat_ms"].numpy()[under])
        assert brightness.size == 1 and 0.3 <= brightness[0] <= 1.2
        np.testing.assert_array_equal(found["landsat_valid"][..., 0], under)
        np.testing.assert_array_equal((found["landsat_pan"] == brightness)[..., 0], under.repeat(2, 0).repeat(2, 1))
        fine = under.repeat(3, 0).repeat(3, 1)
        np.testing.assert_allclose(
            found["sentinel_ms"].numpy()[fine], bandpass.apply(brightness.repeat(2))[None].repeat(fine.sum(), 0)
        )
        rim = ndimage.binary_dilation(under, np.ones((9, 9))).repeat(3, 0).repeat(3, 1)
        mask = found["mask"].numpy()[..., 0]
        assert (mask[~rim] == 0.5).all() and set(np.unique(mask[rim])) <= {0.0, 1.0}
        assert not mask[rim & ~fine].any()
    assert 10 < planted < 30
