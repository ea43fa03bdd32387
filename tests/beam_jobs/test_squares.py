import collections
import dataclasses
import json

import pytest
from export_settings import SETTINGS, change

from beam_jobs import plan, squares
from beam_jobs.squares import Square
from harmonize_tf import geometry
from harmonize_tf.sources.simulated import SimulatedSource

NAN = float("nan")
FOOTPRINT = {"type": "Polygon", "coordinates": [[[12.0, 51.0], [12.5, 51.0], [12.5, 51.3], [12.0, 51.0]]]}


def strict(text):
    """JSON as every program reads it: no NaN."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def everything(square):
    """All that a square says, and NaN, which equals nothing, as text."""
    scenes = [scene and vars(scene) | {"sun": repr(scene.sun), "view": repr(scene.view)} for scene in square.scenes]
    return scenes, square.patches


@pytest.fixture(scope="module")
def patches():
    """Patches of two dates, and their scenes."""
    source = SimulatedSource(size=15_360, days=(0, 16))
    found = list(plan.make(source, change(shard_examples=1)).patches)
    return found, {(scene.sensor, scene.id): scene for scene in source.scenes()}


@pytest.mark.parametrize("side", [1, 2, 3, 16])
def test_every_patch_is_in_one_square_with_its_neighbours_of_the_same_pair(patches, side):
    found, scenes = patches
    made = squares.squares(found, scenes, side)
    assert sorted(patch for square in made for patch in square.patches) == sorted(found)
    for square in made:
        assert {(patch.landsat, patch.sentinel) for patch in square.patches} == {tuple(s.id for s in square.scenes)}
        for place in ("left", "top"):
            places = [getattr(patch, place) for patch in square.patches]
            assert max(places) - min(places) < side * geometry.PATCH
        assert len(square.patches) <= side**2
    most = collections.Counter(len(square.patches) for square in made)
    assert side == 16 or most[side**2] >= 2, "full ones within the scene"


def test_squares_come_in_an_order_and_with_names_that_have_nothing_to_do_with_the_input_order(patches):
    found, scenes = patches
    made = squares.squares(found, scenes, 2)
    assert squares.squares(reversed(found), scenes, 2) == made
    assert [square.id for square in made] == sorted(min(patch.id for patch in square.patches) for square in made)


def test_a_place_is_in_the_same_square_whatever_else_is_exported(patches):
    found, scenes = patches
    whole = {frozenset(square.patches) for square in squares.squares(found, scenes, 2)}
    east = [patch for patch in found if patch.left > 306_000]
    parts = [frozenset(square.patches) for square in squares.squares(east, scenes, 2)]
    assert all(any(part <= square for square in whole) for part in parts)


def awkward(sensor, scene):
    """A scene with all that is hard to write down."""
    bands = dict(scene.grids)
    return dataclasses.replace(
        scene, grids=bands, sun=(NAN, 12.345678901234567), view=(NAN, NAN), processing_baseline="05.09",
        masks=("SCL", "Cloud Score+") if sensor == "sentinel" else (), footprint=FOOTPRINT, time_ms=1_655_000_000_123,
        id=f"{scene.id} ä\"\n",
    )  # fmt: skip


def test_a_line_gives_back_scenes_with_all_that_is_known_of_them():
    source = SimulatedSource(size=3840)
    landsat, sentinel = source.pairs()[0]
    plain = Square((landsat, sentinel), tuple(sorted(plan.make(source, SETTINGS).patches)))
    odd = tuple(awkward(scene.sensor, scene) for scene in (landsat, sentinel))
    for scenes in (plain.scenes, odd, (None, odd[1]), (odd[0], None)):
        ids = {"landsat": scenes[0] and scenes[0].id, "sentinel": scenes[1] and scenes[1].id}
        square = Square(scenes, tuple(dataclasses.replace(patch, **ids) for patch in plain.patches))
        line = square.line()
        assert line.endswith("\n") and line.count("\n") == 1
        again = Square.parse(line)
        assert everything(again) == everything(square)
        assert again.id == square.id
        assert again.line() == line
        strict(line)
        for before, after in zip(scenes, again.scenes, strict=True):
            assert (before is None) == (after is None)
            if before is not None:
                assert before.grids == after.grids and before.bands == after.bands and before.grid == after.grid
                assert set(before.grids.values()) == set(after.grids.values())
    assert Square.parse(plain.line().encode()).scenes[1] == sentinel


def test_bands_that_lie_on_several_grids_keep_them():
    source = SimulatedSource(size=3840)
    square = next(plan.make(source, SETTINGS).squares)
    line = json.loads(square.line())
    assert [entry["bands"] for entry in line["sentinel"]["grids"]] == [
        ["blue", "green", "red", "nir"],
        ["swir1", "swir2"],
    ]
    assert line["landsat"]["grids"][1]["bands"] == ["pan"]
    landsat, sentinel = Square.parse(square.line()).scenes
    assert {grid.pixel for grid in sentinel.grids.values()} == {(10.0, 10.0), (20.0, 20.0)}
    assert landsat.grids["pan"].pixel == (15.0, 15.0)


def test_a_dead_letter_is_a_work_item_again():
    square = next(plan.make(SimulatedSource(size=3840), SETTINGS).squares)
    line = json.dumps(square.plain() | {"kind": "transient", "error": "503"})
    assert Square.parse(line).line() == square.line()
