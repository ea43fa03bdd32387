"""A Cloud Optimized GeoTIFF of reflectance codes, written window by window: there when complete, or not at all."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.windows
from rasterio._err import CPLE_BaseError  # what GDAL's drivers raise; rasterio.errors has no name for it
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from harmonize_tf import sensors
from harmonize_tf.errors import HarmonizeError
from harmonize_tf.geometry import Grid

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


class Writer:
    """Takes the windows of one product, in any order."""

    def __init__(self, path: pathlib.Path, pixels: Any) -> None:
        self._path, self._pixels = path, pixels
        self.sums = np.zeros(pixels.count, np.uint64)

    def write(self, dn: np.ndarray, rows: slice, columns: slice) -> None:
        """Writes codes uint16 [height, width, band] into a window that nothing was written to before.

        Raises:
          HarmonizeError: the disk is full, or the like.
        """
        with _mendable(self._path):
            self._pixels.write(np.moveaxis(dn, -1, 0), window=rasterio.windows.Window.from_slices(rows, columns))
        self.sums += dn.sum((0, 1), dtype=np.uint64)


@contextlib.contextmanager
def create(path: pathlib.Path, grid: Grid, bands: Sequence[str], tags: Mapping[str, str]) -> Iterator[Writer]:
    """Opens a product for writing; it gets its name when the block ends well, and leaves no trace otherwise.

    Args:
      path: the GeoTIFF; one that is there is replaced.
      grid: its pixels.
      bands: names of its bands (`Manifest.product_bands`).
      tags: more GeoTIFF tags.

    Raises:
      HarmonizeError: the disk is full, the folder does not exist, or the like.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE))
        with _mendable(path):
            folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
            aside = pathlib.Path(stack.enter_context(folder))
            pixels = rasterio.open(aside / "pixels.tif", "w", **_profile(grid, len(bands)))
            _describe(pixels, bands, tags)
        with pixels:
            writer = Writer(path, pixels)
            yield writer
        with _mendable(path):
            _translate(aside / "pixels.tif", aside / "product.tif")
            _verify(aside / "product.tif", writer.sums)
            (aside / "product.tif").replace(path)


@contextlib.contextmanager
def _mendable(path: pathlib.Path) -> Iterator[None]:
    """Says what the system or GDAL has against a write as something that can be mended."""
    try:
        yield
    except (OSError, RasterioError, CPLE_BaseError) as error:
        raise HarmonizeError(
            f"the product cannot be written ({error}); make room on that disk, or choose a folder that exists and may "
            f"be written to. Received: out={path}"
        ) from error


def _profile(grid: Grid, count: int) -> dict[str, Any]:
    """Of the file that collects the windows: not compressed, so blocks can be rewritten, and holes take no space."""
    return {
        "driver": "GTiff",
        "dtype": "uint16",
        "count": count,
        "height": grid.shape[0],
        "width": grid.shape[1],
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": sensors.CODE.nodata,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "sparse_ok": True,
        "bigtiff": "IF_SAFER",
    }


def _describe(pixels: Any, bands: Sequence[str], tags: Mapping[str, str]) -> None:
    pixels.descriptions = tuple(bands)
    pixels.scales = (sensors.CODE.scale,) * len(bands)
    pixels.offsets = (sensors.CODE.offset,) * len(bands)
    pixels.colorinterp = [COLORS.get(band, ColorInterp.undefined) for band in bands]
    pixels.update_tags(**tags)
    for index, band in enumerate(bands, 1):
        if band in sensors.MSI:
            # GDAL's own item for it, in micrometres.
            pixels.update_tags(index, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{sensors.MSI[band].wavelength / 1000:g}")


def _translate(pixels: pathlib.Path, path: pathlib.Path) -> None:
    """Makes the Cloud Optimized GeoTIFF; its averaged overviews leave no-data pixels out."""
    rasterio.shutil.copy(
        pixels,
        path,
        driver="COG",
        compress="DEFLATE",
        # After the predictor little is left to be found: level 6 takes half as long again and saves nothing.
        level=1,
        predictor="STANDARD",
        blocksize=BLOCK,
        overview_resampling="AVERAGE",
        num_threads="ALL_CPUS",
        bigtiff="IF_SAFER",
        sparse_ok="TRUE",
    )


def _verify(path: pathlib.Path, sums: np.ndarray) -> None:
    """Reads the product back, since rasterio keeps quiet about a write that fails as the file is closed (a full disk).

    Args:
      path: the product.
      sums: of all codes written, per band.
    """
    found = np.zeros_like(sums)
    with rasterio.open(path, num_threads="ALL_CPUS") as product:
        for _, block in product.block_windows(1):
            found += product.read(window=block).sum((1, 2), dtype=np.uint64)
    if (found != sums).any():
        raise OSError(f"the file does not hold what was written: sums {found.tolist()}, expected {sums.tolist()}")
