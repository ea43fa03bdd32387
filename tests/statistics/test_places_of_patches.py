import dataclasses

import ground_pairs

from harmonize_tf.statistics import places
from harmonize_tf.statistics.places import Block, Leak


def test_a_patchs_place_does_not_depend_on_its_block_its_sides_or_its_pixels():
    record = ground_pairs.record(23)
    (_, block), (_, place) = places.of(record)
    assert (block, place) == ("EPSG:32633/3/1", "EPSG:32633/3/1 of 1920 m")
    for other in (
        dataclasses.replace(record, block="x"),
        dataclasses.replace(record, sentinel=None),
        ground_pairs.record(23, side=64),
    ):
        assert places.of(other)[1] == ("patch", place)


def test_leaks_are_places_of_more_than_one_split():
    found = {("block", "a"): (3, 0, 0), ("block", "b"): (1, 0, 2), ("patch", "c"): (1, 1, 1)}
    assert places.leaks(found) == [Leak("block", "b", ("train", "test")), Leak("patch", "c", ("train", "val", "test"))]
    assert [places.is_told(place, counts) for place, counts in found.items()] == [True, True, True]
    assert not places.is_told(("patch", "d"), (5, 0, 0))


def test_blocks_are_counted_and_those_with_a_place_in_their_name_are_drawn():
    found = {("block", "EPSG:32733/-2/7"): (3, 0, 0), ("block", "b"): (1, 0, 2)}
    assert places.blocks(found) == [Block("EPSG:32733", -2, 7, (3, 0, 0))]
    assert places.numbers(found) == {"all": 2, "train": 2, "val": 0, "test": 1}


def test_counts_add_up_by_place():
    found = {("block", "a"): (1, 0, 0)}
    places.add(found, {("block", "a"): (0, 2, 0), ("block", "b"): places.counts("test")})
    assert found == {("block", "a"): (1, 2, 0), ("block", "b"): (0, 0, 1)}


def test_places_are_spread_over_the_buckets_alike_in_all_processes():
    named = [places.bucket(("block", f"EPSG:32633/{number}/7")) for number in range(20_000)]
    assert set(named) == set(range(places.BUCKETS)) and max(map(named.count, range(places.BUCKETS))) < 160
    assert places.bucket(("block", "a")) == 128
