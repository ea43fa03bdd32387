"""Earth Engine's image expressions, as far as reading pixels needs them, and the pixels' formats.

Every call is held against the signatures of the installed earthengine-api; what is not implemented says so by name.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import ee
import numpy as np
from rasterio.io import MemoryFile

from harmonize_tf.geometry import Grid
from harmonize_tf.testing.ee_assets import Asset, AssetBand, Catalogue
from harmonize_tf.testing.ee_limits import Limits, Refusal

SHIPPED = pathlib.Path(ee.__file__).parent / "tests"
# There are no pyramids here: beyond this ratio to the native pixels Earth Engine would read an overview.
COARSEST = 1.5


@cache
def algorithms() -> dict[str, Any]:
    """The signatures of all functions, as the server lists them."""
    return json.loads((SHIPPED / "algorithms.json").read_text())


@cache
def _signatures() -> dict[str, dict[str, bool]]:
    """Functions' arguments, and whether each may be left out."""
    return {
        a["name"].removeprefix("algorithms/"): {
            x["argumentName"]: x.get("optional", False) for x in a.get("arguments", ())
        }
        for a in algorithms()["algorithms"]
    }


def compute(catalogue: Catalogue, request: Mapping[str, Any], limits: Limits) -> bytes:
    """Answers computePixels.

    Raises:
      Refusal: the expression or the grid cannot be used, or the result is too large.
    """
    image = _Interpreter(catalogue, request["expression"]).result()
    if not isinstance(image, Asset):
        raise Refusal(400, "The expression does not result in an image.")
    return pixels(image, request, limits)


def pixels(image: Asset, request: Mapping[str, Any], limits: Limits) -> bytes:
    """Pixels of an image as NPY or GEO_TIFF.

    Raises:
      Refusal: the grid cannot be used, or the result is too large.
    """
    bands = _select(image.bands, request["bandIds"]) if request.get("bandIds") else image.bands
    grid = _requested(request.get("grid") or {}, bands[0].grid)
    limits.check(grid.shape, [band.dtype.itemsize for band in bands])
    planes = {band.name: _resample(band, grid) for band in bands}
    form = request.get("fileFormat")
    if form == "NPY":
        return _npy(planes)
    if form == "GEO_TIFF":
        return _geotiff(planes, grid)
    raise Refusal(501, f"The emulator has no such file format: {form}")


def _requested(grid: Mapping[str, Any], native: Grid) -> Grid:
    """The grid asked for; what is left out is the first band's."""
    affine, size = grid.get("affineTransform"), grid.get("dimensions")
    if affine is None:
        left, top, pixel = native.left, native.top, native.pixel
    else:
        if affine.get("shearX") or affine.get("shearY") or affine["scaleX"] <= 0 or affine["scaleY"] >= 0:
            raise Refusal(501, "The emulator has north-up grids only.")
        left, top = affine.get("translateX", 0.0), affine.get("translateY", 0.0)
        pixel = affine["scaleX"], -affine["scaleY"]
    shape = (size["height"], size["width"]) if size else native.shape
    return Grid(grid.get("crsCode", native.crs), left, top, pixel, shape)


def _resample(band: AssetBand, grid: Grid) -> np.ndarray:
    """A band on a grid: as it is on its own lattice, by nearest neighbour on a finer one."""
    native = band.grid
    if grid.crs != native.crs:
        raise Refusal(501, f"The emulator does not reproject: {native.crs} of band {band.name} to {grid.crs}.")
    if max(a / b for a, b in zip(grid.pixel, native.pixel, strict=True)) > COARSEST:
        raise Refusal(501, f"The emulator has no pyramids: {grid.pixel} m of band {band.name}, native {native.pixel}.")
    if grid.offset_in(native) is not None:
        return band.read(grid)
    rows = (native.top - grid.top + (np.arange(grid.shape[0]) + 0.5) * grid.pixel[1]) / native.pixel[1]
    columns = (grid.left - native.left + (np.arange(grid.shape[1]) + 0.5) * grid.pixel[0]) / native.pixel[0]
    rows, columns = np.floor(rows).astype(int), np.floor(columns).astype(int)
    size = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    window = native.window(int(rows[0]), int(columns[0]), int(size[0]), int(size[1]))
    return band.read(window)[np.ix_(rows - rows[0], columns - columns[0])]


def _npy(planes: Mapping[str, np.ndarray]) -> bytes:
    """A structured array, one field for each band."""
    first = next(iter(planes.values()))
    array = np.zeros(first.shape, [(name, plane.dtype) for name, plane in planes.items()])
    for name, plane in planes.items():
        array[name] = plane
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _geotiff(planes: Mapping[str, np.ndarray], grid: Grid) -> bytes:
    dtype = np.result_type(*planes.values())
    shape = {"height": grid.shape[0], "width": grid.shape[1], "count": len(planes), "dtype": dtype}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", crs=grid.crs, transform=grid.transform, **shape) as file:
            for index, (name, plane) in enumerate(planes.items(), 1):
                file.write(plane.astype(dtype), index)
                file.set_band_description(index, name)
        return memory.read()


def _select(bands: Sequence[AssetBand], names: Sequence[str]) -> tuple[AssetBand, ...]:
    named = {band.name: band for band in bands}
    for name in names:
        if name not in named:
            available = ", ".join(named)
            raise Refusal(400, f"Image.select: Band pattern '{name}' did not match any bands. Available: [{available}]")
    return tuple(named[name] for name in names)


class _Interpreter:
    """Evaluates one expression."""

    def __init__(self, catalogue: Catalogue, expression: Mapping[str, Any]) -> None:
        self._catalogue, self._values = catalogue, expression["values"]
        self._result = expression["result"]
        self._functions: Mapping[str, Callable[..., Any]] = {
            "Image.load": self._load,
            "Image.select": self._bands,
            "Image.addBands": self._add,
        }

    def result(self) -> Any:
        """Value of the whole."""
        return self._value(self._values[self._result])

    def _value(self, node: Mapping[str, Any]) -> Any:
        kind, content = next(iter(node.items()))
        if kind == "constantValue":
            return content
        if kind == "valueReference":
            return self._value(self._values[content])
        if kind == "arrayValue":
            return [self._value(item) for item in content["values"]]
        if kind == "functionInvocationValue":
            return self._call(content["functionName"], content.get("arguments", {}))
        raise Refusal(501, f"The emulator does not evaluate {kind}.")

    def _call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        signature = _signatures().get(name)
        if signature is None:
            raise Refusal(400, f"Unrecognized function: {name}")
        for argument in arguments:
            if argument not in signature:
                raise Refusal(400, f"{name}: Unrecognized argument: {argument}")
        for argument, optional in signature.items():
            if argument not in arguments and not optional:
                raise Refusal(400, f"{name}: Parameter '{argument}' is required.")
        if name not in self._functions:
            raise Refusal(501, f"The emulator does not implement {name}.")
        return self._functions[name](**{key: self._value(node) for key, node in arguments.items()})

    def _load(self, id: str, version: float = -1) -> Asset:
        return self._catalogue.get(id)

    def _bands(self, input: Asset, bandSelectors: Sequence[str], newNames: Sequence[str] | None = None) -> Asset:  # noqa: N803
        bands = _select(input.bands, [bandSelectors] if isinstance(bandSelectors, str) else bandSelectors)
        if newNames is not None:
            bands = tuple(dataclasses.replace(b, name=n) for b, n in zip(bands, newNames, strict=True))
        return dataclasses.replace(input, bands=bands)

    def _add(
        self,
        dstImg: Asset,
        srcImg: Asset,
        names: Sequence[str] | None = None,
        overwrite: bool = False,  # noqa: N803
    ) -> Asset:
        added = srcImg.bands if names is None else _select(srcImg.bands, names)
        taken = {band.name for band in dstImg.bands}
        if overwrite or taken & {band.name for band in added}:
            raise Refusal(501, "The emulator does not add bands of names that are taken.")
        return dataclasses.replace(dstImg, bands=dstImg.bands + added)
