"""Rasters of a product: windows into a plain TIFF that survives the process, and of it a Cloud Optimized GeoTIFF."""

import contextlib
import dataclasses
import errno
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from rasterio._err import CPLE_BaseError  # what GDAL's drivers raise; rasterio.errors has no name for it
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from harmonize_tf import sensors
from harmonize_tf.errors import HarmonizeError
from harmonize_tf.geometry import Grid
from harmonize_tf.sensors import Encoding

BLOCK = 512  # pixels, GDAL's and rio-cogeo's default
CACHE = 256  # MB for GDAL's blocks; its own default is a twentieth of the machine's memory
COLORS = {
    "blue": ColorInterp.blue,
    "green": ColorInterp.green,
    "red": ColorInterp.red,
    "nir": ColorInterp.nir,
    "swir1": ColorInterp.swir,
    "swir2": ColorInterp.swir,
}


@dataclasses.dataclass(frozen=True)
class Image:
    """What a GeoTIFF holds; 0 is no data.

    Attributes:
      grid: its pixels.
      bands: names of its bands.
      tags: GeoTIFF tags.
      dtype: of its pixels.
      encoding: how numbers become reflectance; None: they are none.
      overviews: how GDAL makes the overviews; "AVERAGE" leaves pixels without data out.
    """

    grid: Grid
    bands: tuple[str, ...]
    tags: Mapping[str, str]
    dtype: str = "uint16"
    encoding: Encoding | None = sensors.CODE
    overviews: str = "AVERAGE"


class Pixels:
    """Takes the windows of one image, in any order, into a tiled TIFF that is not compressed.

    Windows go straight to the operating system, past GDAL, whose cache would die with this process. So what was written
    stays when the process is killed, and after `sync` when the machine loses power. Holes are 0 and take no space.
    """

    def __init__(self, path: pathlib.Path, image: Image) -> None:
        """Opens the file; makes it if it is not there.

        Raises:
          OSError: it cannot be written.
        """
        if not path.exists():
            _allocate(path, image)
        self.path, self.image = path, image
        self._across = -(-image.grid.shape[1] // BLOCK)
        self._pixel = len(image.bands) * np.dtype(image.dtype).itemsize
        with tifffile.TiffFile(path) as file:
            self._first = file.pages.first.dataoffsets[0]
        self._file = os.open(path, os.O_WRONLY)

    def write(self, values: np.ndarray, rows: slice, columns: slice) -> None:
        """Writes [height, width, band] into a window.

        Raises:
          OSError: the disk is full, or the like.
        """
        values = np.ascontiguousarray(values, self.image.dtype)
        for left in range(columns.start - columns.start % BLOCK, columns.stop, BLOCK):
            start, stop = max(columns.start, left), min(columns.stop, left + BLOCK)
            part = np.ascontiguousarray(values[:, start - columns.start : stop - columns.start])
            for row, line in enumerate(part, rows.start):
                tile = row // BLOCK * self._across + left // BLOCK
                pixel = (tile * BLOCK + row % BLOCK) * BLOCK + start - left
                self._write(line.data.cast("B"), self._first + pixel * self._pixel)

    def sync(self) -> None:
        """Returns when all that was written is on the disk.

        Raises:
          OSError: it cannot be.
        """
        os.fdatasync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self, line: memoryview, position: int) -> None:
        while line:
            written = os.pwrite(self._file, line, position)
            line, position = line[written:], position + written


def publish(pixels: pathlib.Path, path: pathlib.Path, overviews: str) -> None:
    """Makes the Cloud Optimized GeoTIFF of pixels, and holds it against them.

    Raises:
      OSError, RasterioError, CPLE_BaseError: the disk is full, or the like (`mendable` explains it).
    """
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        rasterio.shutil.copy(
            pixels,
            path,
            driver="COG",
            compress="DEFLATE",
            # After the predictor little is left to be found: level 6 takes half as long again and saves nothing.
            level=1,
            predictor="STANDARD",
            blocksize=BLOCK,
            overview_resampling=overviews,
            num_threads="ALL_CPUS",
            bigtiff="IF_SAFER",
            sparse_ok="TRUE",
        )
        _verify(pixels, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def mendable(path: pathlib.Path) -> Iterator[None]:
    """Says what the system or GDAL has against a write as something that can be mended."""
    try:
        yield
    except (OSError, RasterioError, CPLE_BaseError) as error:
        raise HarmonizeError(
            f"the product cannot be written ({error}); make room on that disk, or choose a folder that exists and may "
            f"be written to. Received: out={path}"
        ) from error


def _allocate(path: pathlib.Path, image: Image) -> None:
    """Makes the file with every tile in its place, so that writing one changes nothing else."""
    profile = {
        "driver": "GTiff",
        "dtype": image.dtype,
        "count": len(image.bands),
        "height": image.grid.shape[0],
        "width": image.grid.shape[1],
        "crs": image.grid.crs,
        "transform": image.grid.transform,
        "nodata": 0,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "interleave": "pixel",
        "sparse_ok": True,
        "bigtiff": "YES",
    }
    with rasterio.open(path, "w", **profile) as file:
        _describe(file, image)
    # GDAL has written that all tiles are holes; now they lie behind one another where the file ended.
    size, first = BLOCK * BLOCK * len(image.bands) * np.dtype(image.dtype).itemsize, path.stat().st_size
    try:
        with tifffile.TiffFile(path, mode="r+") as file:
            tags = file.pages.first.tags
            count = tags["TileOffsets"].count
            tags["TileOffsets"].overwrite(list(range(first, first + count * size, size)))
            tags["TileByteCounts"].overwrite([size] * count)
    except (IndexError, tifffile.TiffFileError) as error:
        raise OSError(errno.ENOSPC, "rasterio kept quiet about a file that it could not write to its end") from error
    os.truncate(path, first + count * size)


def _describe(file: Any, image: Image) -> None:
    file.descriptions = image.bands
    if image.encoding:
        file.scales = (image.encoding.scale,) * len(image.bands)
        file.offsets = (image.encoding.offset,) * len(image.bands)
    file.colorinterp = [COLORS.get(band, ColorInterp.undefined) for band in image.bands]
    file.update_tags(**image.tags)
    for index, band in enumerate(image.bands, 1):
        if band in sensors.MSI:
            # GDAL's own item for it, in micrometres.
            file.update_tags(index, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{sensors.MSI[band].wavelength / 1000:g}")


def _verify(pixels: pathlib.Path, path: pathlib.Path) -> None:
    """Reads the product back: rasterio keeps quiet about a write that fails as the file is closed (a full disk)."""
    with rasterio.open(pixels) as written, rasterio.open(path, num_threads="ALL_CPUS") as product:
        for _, block in written.block_windows(1):
            if not np.array_equal(written.read(window=block), product.read(window=block)):
                raise OSError(f"the file does not hold what was written, at {block}")
