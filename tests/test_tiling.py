import itertools

import numpy as np
import pytest

from harmonize_tf.tiling import Box, windows

SHAPES = [(1, 1), (1, 40), (5, 7), (33, 32), (64, 100), (61, 47)]


def cases():
    return itertools.product(SHAPES, (1, 2, 7, 16, 32, 500), (0, 1, 3, 20), (1, 2, 3))


def test_every_cell_is_in_exactly_one_core():
    for shape, size, halo, multiple in cases():
        count = np.zeros(shape, int)
        for window in windows(shape, size, halo, multiple):
            count[window.core.slices()] += 1
            assert 0 <= window.core.row and window.core.row + window.core.rows <= shape[0]
            assert 0 <= window.core.column and window.core.column + window.core.columns <= shape[1]
        assert (count == 1).all(), (shape, size, halo, multiple)


def test_all_padded_windows_of_a_scene_have_one_size_and_lie_at_multiples():
    for shape, size, halo, multiple in cases():
        padded = [window.padded for window in windows(shape, size, halo, multiple)]
        assert len({(box.rows, box.columns) for box in padded}) == 1
        assert all(v % multiple == 0 for box in padded for v in (box.row, box.column, box.rows, box.columns))


def test_a_core_has_its_halo_on_every_side_and_is_never_larger_than_asked():
    for shape, size, halo, multiple in cases():
        for window in windows(shape, size, halo, multiple):
            core, padded = window.core, window.padded
            assert core.row - padded.row >= halo and core.column - padded.column >= halo
            assert padded.row + padded.rows - core.row - core.rows >= halo
            assert padded.column + padded.columns - core.column - core.columns >= halo
            assert max(core.rows, core.columns) <= max(size, multiple)


def test_cores_are_balanced_instead_of_leaving_a_sliver():
    assert [w.core.rows for w in windows((257, 1), 256, 8)] == [129, 128]
    assert [w.core.columns for w in windows((1, 1000), 256, 8)] == [250] * 4


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_cut_finds_the_core_in_the_padded_window(factor):
    shape, halo = (23, 31), 4
    scene = np.arange(shape[0] * shape[1] * factor * factor).reshape(shape[0] * factor, shape[1] * factor)
    outside = np.pad(scene, 2 * halo * factor + 50, constant_values=-1)
    origin = 2 * halo * factor + 50
    for window in windows(shape, 10, halo):
        rows, columns = window.padded.slices(factor)
        padded = outside[origin + rows.start : origin + rows.stop, origin + columns.start : origin + columns.stop]
        np.testing.assert_array_equal(padded[window.cut(factor)], scene[window.core.slices(factor)])


def test_slices_scale_with_the_pixels_of_a_cell():
    assert Box(2, 3, 4, 5).slices(3) == (slice(6, 18), slice(9, 24))
