"""Windows with an exact halo over a scene of any size, in the 30 m cells of the pair grid.

A model treats everything outside of its input as missing, exactly as it treats the outside of a scene. A window that is
padded by the model's halo therefore gives, in its core, what the whole scene at once would give.
"""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of 30 m cells; row and column count from the scene's upper left corner and may be negative."""

    row: int
    column: int
    rows: int
    columns: int

    def slices(self, factor: int = 1) -> tuple[slice, slice]:
        """The box in an array that starts at the scene's corner and has `factor` pixels along a cell."""
        return (
            slice(self.row * factor, (self.row + self.rows) * factor),
            slice(self.column * factor, (self.column + self.columns) * factor),
        )


@dataclasses.dataclass(frozen=True)
class Window:
    """A piece of a scene.

    Attributes:
      core: what the window answers for; within the scene, and no cell is in two cores.
      padded: what is read for it; may reach over the scene's edges.
    """

    core: Box
    padded: Box

    def cut(self, factor: int = 1) -> tuple[slice, slice]:
        """The core in an array of the padded window that has `factor` pixels along a cell."""
        inside = dataclasses.replace(
            self.core, row=self.core.row - self.padded.row, column=self.core.column - self.padded.column
        )
        return inside.slices(factor)


def windows(shape: tuple[int, int], size: int, halo: int, multiple: int = 1) -> Iterator[Window]:
    """Windows that cover a scene, row by row; all padded ones have the same size, so that they can share a batch.

    The cores are made as equal as the scene allows instead of leaving a sliver at the end.

    Args:
      shape: rows and columns of the scene, cells.
      size: the largest core to make, cells; rounded down to a multiple of `multiple`, at least one.
      halo: context needed on each side, cells; rounded up to a multiple of `multiple`.
      multiple: origins and sizes of padded windows are multiples of this many cells.
    """
    halo = -(-halo // multiple) * multiple
    rows, columns = (_core_size(length, size, multiple) for length in shape)
    for row in range(0, shape[0], rows):
        for column in range(0, shape[1], columns):
            core = Box(row, column, min(rows, shape[0] - row), min(columns, shape[1] - column))
            yield Window(core, Box(row - halo, column - halo, rows + 2 * halo, columns + 2 * halo))


def _core_size(length: int, size: int, multiple: int) -> int:
    """The smallest multiple that needs no more windows along `length` than the largest one allowed."""
    largest = max(size // multiple, 1) * multiple
    count = -(-length // largest)
    return -(-length // (count * multiple)) * multiple


def overlap(
    box: Box, factor: int, corner: tuple[int, int], shape: tuple[int, int]
) -> tuple[slice, slice, slice, slice]:
    """What a box and a raster that cuts through cells have in common.

    Args:
      box: in cells.
      factor: pixels along a cell.
      corner: the raster's row and column, pixels from the cells' corner.
      shape: the raster's rows and columns.

    Returns:
      Rows and columns in an array of the box's pixels, and in the raster; empty where they have nothing in common.
    """
    inside, there = [], []
    for part, first, size in zip(box.slices(factor), corner, shape, strict=True):
        start, stop = max(part.start, first), min(part.stop, first + size)
        inside.append(slice(start - part.start, stop - part.start))
        there.append(slice(start - first, stop - first))
    return (*inside, *there)
