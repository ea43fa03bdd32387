"""That each planted fault is named, and that clean records, many or few, raise nothing."""

import dataclasses

import ground_pairs
import numpy as np
import pytest
from scipy.ndimage import zoom

from harmonize_tf import geometry
from harmonize_tf.records import decode, read_shard
from harmonize_tf.statistics import anomalies, comparison, places
from harmonize_tf.statistics.groups import groups
from harmonize_tf.statistics.measure import measure
from harmonize_tf.statistics.totals import Totals


@pytest.fixture(scope="module")
def clean():
    return ground_pairs.splits()


def find(by_split, **info) -> list[anomalies.Anomaly]:
    figures, found, _ = ground_pairs.described(by_split)
    return [
        *anomalies.find(figures, places.leaks(found), ground_pairs.info(by_split) | info),
        *comparison.skew(figures),
    ]


def told(found) -> set[tuple[str, str]]:
    return {(one.kind, one.feature) for one in found}


def test_clean_records_raise_nothing(clean):
    assert find(clean) == []


def test_small_clean_exports_do_not_cry_wolf():
    """Forty exports of 3 to 19 patches, drawn from the same ground, and halves of it against one another."""
    each = []
    for number in range(40):
        each.append(Totals())
        measure(ground_pairs.record(number), "train", each[-1])
    rng = np.random.default_rng(0)

    def drawn(order, sizes):
        totals = Totals()
        for split, size in sizes.items():
            chosen, order = order[:size], order[size:]
            for (kind, _, *rest), values in (pair for i in chosen for pair in each[i].sums.items()):
                totals.add((kind, split, *rest), values)
        return groups(totals, {"all": sum(sizes.values()), **sizes})

    for trial in range(40):
        sizes = dict(
            zip(("train", "val", "test"), ((8, 6, 5), (5, 2, 1), (1, 1, 1), (19, 19, 2))[trial % 4], strict=True)
        )
        figures = drawn(rng.permutation(40), sizes)
        info = ground_pairs.INFO | {"counts": sizes}
        assert [*anomalies.find(figures, [], info), *comparison.skew(figures)] == []


def swap(*order):
    return lambda codes: codes[..., list(order)]


def band(index, function):
    def change(codes):
        codes = codes.copy()
        codes[..., index] = function(codes[..., index])
        return codes

    return change


def reflectance(factor=1.0, offset=0.0):
    return lambda codes: np.where(codes > 0, (codes * 1e-4 - 0.1) * factor * 1e4 + 1000 + offset * 1e4, 0)


ALL, VAL = ("train", "val", "test"), ("val",)


@pytest.mark.parametrize(("sensor", "only"), [("landsat", VAL), ("sentinel", ALL)], ids=["landsat-val", "sentinel-all"])
@pytest.mark.parametrize(
    ("fault", "kind", "feature"),
    [
        (swap(2, 1, 0, 3), "band order", "landsat+sentinel"),
        (swap(0, 2, 1, 3), "band order", "landsat+sentinel"),
        (swap(1, 2, 0, 3), "band order", "landsat+sentinel"),
        (lambda codes: codes * 10, "wrong scale", "{sensor}/blue"),
        (reflectance(10), "wrong scale", "{sensor}/nir"),
        (reflectance(0.1), "wrong scale", "landsat+sentinel/red"),
        (band(1, lambda codes: 10 * codes), "wrong scale", "{sensor}/green"),
        (reflectance(offset=0.1), "wrong offset", "landsat+sentinel"),
        (reflectance(offset=-0.1), "wrong offset", "landsat+sentinel"),
        (band(2, lambda codes: 0 * codes), "dead band", "{sensor}/red"),
        (band(2, lambda codes: 0 * codes + 1000), "dead band", "{sensor}/red"),
        (band(2, lambda codes: 0 * codes + 1234), "dead band", "{sensor}/red"),
    ],
    ids="red-blue red-green cycle codes*10 x10 /10 green*10 +0.1 -0.1 zeros black grey".split(),
)
def test_a_fault_of_a_sensor_is_named(clean, sensor, fault, kind, feature, only):
    found = find(ground_pairs.changed(clean, lambda one: ground_pairs.with_codes(one, sensor, fault), only))
    assert (kind, feature.format(sensor=sensor)) in told(found)
    assert {one.split for one in found if one.kind == kind} == ({"all"} if only == ALL else {"val"})
    others = {one.kind for one in found} - {kind, "skew"}
    assert others <= ({"wrong scale"} if kind == "wrong offset" else set())
    for one in found:
        assert one.sentence.endswith(".") and "\n" not in one.sentence


def test_a_wrong_order_is_told_in_the_bands_names(clean):
    (one,) = find(ground_pairs.changed(clean, lambda r: ground_pairs.with_codes(r, "sentinel", swap(2, 1, 0, 3))))
    assert "Landsat's blue looks like Sentinel-2's red" in one.sentence


def exchanged(record):
    """The captures in each other's place."""
    return dataclasses.replace(record, landsat=record.sentinel, sentinel=dataclasses.replace(record.landsat, pan=None))


def resampled(order):
    """The captures in each other's place, brought to the sizes expected there."""

    def change(record):
        landsat, sentinel = record.landsat, record.sentinel
        side = len(landsat.valid)
        coarse = sentinel.ms.reshape(side, 3, side, 3, -1).mean((1, 3)).astype(np.uint16)
        fine = zoom(landsat.ms.astype(float), (3, 3, 1), order=order, grid_mode=True, mode="nearest")
        return dataclasses.replace(
            record,
            landsat=dataclasses.replace(landsat, ms=coarse, pan=None),
            sentinel=dataclasses.replace(sentinel, ms=np.clip(fine, 0, 65535).astype(np.uint16)),
        )

    return change


def renamed(record):
    landsat = dataclasses.replace(record.landsat, spacecraft="SENTINEL_2A")
    return dataclasses.replace(record, landsat=landsat)


@pytest.mark.parametrize(
    ("fault", "only"),
    [(exchanged, ALL), (exchanged, VAL), (resampled(0), VAL), (resampled(1), VAL), (resampled(3), VAL), (renamed, VAL)],
)
def test_swapped_sensors_are_named(clean, fault, only):
    assert {one.kind for one in find(ground_pairs.changed(clean, fault, only))} - {"skew"} == {"swapped sensors"}


def test_a_block_in_two_splits_is_a_leak(clean):
    leaking = {**clean, "val": [*clean["val"], dataclasses.replace(clean["train"][0], split="val", id="f" * 20)]}
    found = find(leaking)
    assert told(found) == {("leakage", "block"), ("leakage", "patch")}
    assert clean["train"][0].block in found[0].sentence and "train and val" in found[0].sentence


def test_the_same_ground_is_a_leak_whatever_its_block_is_called(clean):
    renamed = dataclasses.replace(clean["train"][0], split="test", block="elsewhere", id="f" * 20)
    assert told(find({**clean, "test": [*clean["test"], renamed]})) == {("leakage", "patch")}


def test_records_in_another_splits_folder_are_told(clean):
    moved = {**clean, "val": [*clean["val"], ground_pairs.record(500, "train")]}
    (one,) = find(moved)
    assert (one.kind, one.split) == ("split", "val") and one.sentence.startswith("1 of 11 patches")


def test_missing_files_and_mixed_exports_are_told(clean):
    found = find(clean, counts={"train": 14, "val": 10, "test": 9}, level="sr", bands=["red", "green", "blue", "nir"])
    assert {one.kind for one in found} == {"count", "level", "bands"}
    assert "train holds 13 patches, dataset_info.json says 14" in found[0].sentence


def test_dark_water_clipped_in_a_few_patches_is_no_dead_band(clean):
    def change(record):
        if int(record.id) % 4:
            return record
        return ground_pairs.with_codes(record, "sentinel", band(3, lambda codes: 0 * codes + 1000))

    assert not [one for one in find(ground_pairs.changed(clean, change)) if one.kind == "dead band"]


def test_display_values_have_no_scale_to_be_wrong(clean):
    def change(record):
        record = ground_pairs.with_codes(record, "sentinel", reflectance(3))
        return dataclasses.replace(record, level="uncalibrated")

    assert find(ground_pairs.changed(clean, change), level="uncalibrated") == []


def test_a_dark_patch_of_8_bit_values_is_no_dead_band(clean):
    def change(record):
        record = dataclasses.replace(record, level="uncalibrated")
        return (
            record
            if int(record.id) % 4
            else ground_pairs.with_codes(record, "sentinel", band(2, lambda x: 0 * x + 1078))
        )

    assert find(ground_pairs.changed(clean, change), level="uncalibrated") == []


def test_real_pairs_raise_nothing_and_their_swapped_bands_do(real_data, tmp_path):
    import real_scenes

    from beam_jobs import export_pairs

    manifest = real_scenes.manifest(real_data, tmp_path, "oli2msi_landsat", "oli2msi_sentinel")
    export_pairs.main(
        ["--source=geotiff", f"--scenes={manifest}", f"--out={tmp_path}/x", "--split=0.6,0.2,0.2", "--bands=rgb",
         f"--split_block={geometry.PATCH}"]
    )  # fmt: skip
    by_split = {
        split: [decode(one) for path in sorted((tmp_path / "x" / split).glob("*.gz")) for one in read_shard(path)]
        for split in ("train", "val", "test")
    }
    assert find(by_split, bands=["blue", "green", "red"]) == []
    swapped = ground_pairs.changed(by_split, lambda r: ground_pairs.with_codes(r, "landsat", swap(2, 1, 0)))
    assert {one.kind for one in find(swapped, bands=["blue", "green", "red"])} == {"band order"}
