import pytest

from harmonize_tf import pairing
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import Scene

DAY = 86_400_000


def scene(name, sensor, day=100.0, *, left=300_000.0, top=5_700_000.0, crs="EPSG:32633", level="toa", size=100):
    grid = Grid(crs, left, top, (30.0, 30.0), (size, size))
    return Scene(name, sensor, level, "P", "X", round(day * DAY), {"red": grid})


def ids(pairs):
    return [(a.id, b.id) for a, b in pairs]


def test_the_nearest_in_time_is_chosen_and_equal_distances_go_by_id():
    landsat = [scene("L", "landsat", 100)]
    assert ids(pairing.pair(landsat, [scene("A", "sentinel", 97), scene("B", "sentinel", 101)])) == [("L", "B")]
    assert ids(pairing.pair(landsat, [scene("B", "sentinel", 99), scene("A", "sentinel", 101)])) == [("L", "A")]


def test_a_landsat_scene_is_paired_with_every_tile_that_shares_its_ground():
    tiles = [scene("west", "sentinel", 101), scene("west later", "sentinel", 103)]
    tiles += [scene("east", "sentinel", 102, left=301_500.0)]
    assert ids(pairing.pair([scene("L", "landsat")], tiles)) == [("L", "west"), ("L", "east")]


@pytest.mark.parametrize(
    "other",
    [
        {"day": 106},
        {"left": 303_000.0},
        {"crs": "EPSG:32634"},
        {"level": "sr"},
        {"day": 0},  # not known
    ],
)
def test_what_does_not_belong_together_is_not_paired(other):
    assert pairing.pair([scene("L", "landsat")], [scene("S", "sentinel", **other)]) == []
    assert ids(pairing.pair([scene("L", "landsat")], [scene("S", "sentinel")])) == [("L", "S")]


def test_the_limit_in_days_is_inclusive():
    landsat, sentinel = [scene("L", "landsat", 100)], [scene("S", "sentinel", 102)]
    assert pairing.pair(landsat, sentinel, max_days=2)
    assert not pairing.pair(landsat, sentinel, max_days=1.99)


def test_one_sentinel_scene_may_serve_several_landsat_scenes_in_their_order():
    landsat = [scene("L2", "landsat", 101), scene("L1", "landsat", 100)]
    assert ids(pairing.pair(landsat, [scene("S", "sentinel", 100)])) == [("L2", "S"), ("L1", "S")]


def test_landsats_northern_coordinates_meet_sentinels_southern_ones():
    landsat = scene("L", "landsat", crs="EPSG:32623", top=-2_222_685.0, left=584_385.0)
    sentinel = scene("S", "sentinel", crs="EPSG:32723", top=7_777_300.0, left=584_400.0)
    assert ids(pairing.pair([landsat], [sentinel])) == [("L", "S")]
    assert pairing.check_pair(landsat, sentinel) is None


def test_scenes_that_only_touch_have_no_common_ground():
    assert not pairing.overlap(scene("L", "landsat"), scene("S", "sentinel", left=303_000.0))
    assert pairing.overlap(scene("L", "landsat"), scene("S", "sentinel", left=302_999.0))


def test_a_pair_that_cannot_be_compared_is_told_with_its_names():
    with pytest.raises(SceneError, match="pair L, S:.*no common ground"):
        pairing.check_pair(scene("L", "landsat"), scene("S", "sentinel", left=500_000.0))
