"""A scene through any predictor into Cloud Optimized GeoTIFFs at 10 m, window by window in bounded memory.

OUT.tif            the bands, and where the model tells it the uncertainty of each
OUT_quality.tif    a byte of quality bits a pixel (`harmonize_tf.quality`)
OUT.png            a quick-look
OUT.json           the STAC item: written last, so where it is all of it is
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import rasterio
import rasterio.warp
import shapely
import shapely.geometry
from tqdm import tqdm

import harmonize_tf
from harmonize_tf import artifacts, cog, geometry, quality, quicklook, stac, tiling, unfinished, windows
from harmonize_tf.cog import Image
from harmonize_tf.errors import SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.manifest import Manifest
from harmonize_tf.sources import Scene, SceneSource
from harmonize_tf.tiling import Window
from harmonize_tf.windows import Predictor

_log = logging.getLogger("harmonize")

WINDOW = 384  # 30 m cells: large against a halo of 20 to 50, and a gigabyte or two in a network at 10 m
IN_FLIGHT = 4  # windows being read, predicted or waiting to be written
PROBES, PROBE = 5, 32  # windows along a scene's diagonal, and their side in its pixels, by which its pixels are known
ASIDE = 300.0  # m that data may lie beyond a scene's footprint, which is drawn coarsely


@dataclasses.dataclass(frozen=True)
class Product:
    """What was written.

    Attributes:
      path: the GeoTIFF.
      quality: the GeoTIFF of its quality bits.
      picture: its quick-look in natural colour.
      item: its STAC item.
      grid: the 10 m pixels.
      windows: how many windows the grid was cut into.
      skipped: how many of them held no data at all.
      kept: how many had been done before, by a process that did not get to the end.
      seconds: wall time, first read to last rename.
    """

    path: pathlib.Path
    quality: pathlib.Path
    picture: pathlib.Path
    item: pathlib.Path
    grid: Grid
    windows: int
    skipped: int
    kept: int
    seconds: float

    @staticmethod
    def names(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path, pathlib.Path]:
        """Its files by the GeoTIFF's name, the item last."""
        judged = path.with_name(f"{path.stem}_quality{path.suffix}")
        return path, judged, path.with_suffix(".png"), path.with_suffix(".json")


def harmonize(
    source: SceneSource,
    scene: Scene,
    predictor: Predictor,
    path: pathlib.Path,
    *,
    grid: Grid | None = None,
    window: int = WINDOW,
    in_flight: int = IN_FLIGHT,
) -> Product:
    """Writes a Landsat scene as Sentinel-2 would have shown it.

    Only missing data is invalid: clouds are in the scene and stay in the product. Nothing appears under the product's
    names before it is complete and has been read back. What is done when the process ends early - killed, stopped, the
    server gone, the disk full - stays in OUT.tif.unfinished, and the same call goes on from there.

    Args:
      source: where the scene comes from.
      scene: one of its Landsat scenes.
      predictor: the model.
      path: the GeoTIFF to write, replaced if it exists; `Product` says what goes beside it.
      grid: the 10 m pixels to write, in any UTM zone, such as `mgrs.mgrs_tile` gives; None: all of the scene in its
        own zone.
      window: side of a window's core, 30 m cells.
      in_flight: most windows held in memory at one time.

    Raises:
      SceneError: the scene is not what the model needs, does not touch the grid, or cannot be read.
      ModelError: the model's answer is not what its manifest says.
      HarmonizeError: the product cannot be written.
    """
    manifest, started = predictor.manifest, time.monotonic()
    check(scene, manifest)
    grid = grid or geometry.pair_grid(scene.grid)
    cells = enclosing(grid)
    plan = list(tiling.windows(cells.at(30.0).shape, window, manifest.halo, manifest.multiple))
    touched = _touched(scene, cells, plan)
    if not touched:
        raise SceneError(
            f"scene {scene.id} does not touch the grid that is to be filled; choose the tile or zone that it lies in. "
            f"Received: grid={grid}"
        )
    corner = grid.offset_in(cells)
    images = {
        "pixels": Image(grid, manifest.product_bands, tags(scene, predictor)),
        "quality": Image(grid, ("quality",), _quality_tags(scene), "uint8", None, "NEAREST"),
    }
    made_of = _made_of(source, scene, predictor, grid, window)
    with rasterio.Env(GDAL_CACHEMAX=cog.CACHE), unfinished.work(path, made_of, images) as work:
        kept = len(work.windows)
        todo = [one for one in touched if (one.core.row, one.core.column) not in work.windows]
        tiles = windows.predicted(source, scene, cells, predictor, todo, in_flight)
        with contextlib.closing(tiles):  # its threads end with the loop, however that ends
            for tile in _progress(tiles, len(todo)):
                core = tile.window.core
                *inside, rows, columns = tiling.overlap(core, 3, corner, grid.shape)
                values = {"pixels": tile.predicted, "quality": tile.quality}
                cut = {name: value[tuple(inside)] for name, value in values.items() if value is not None}
                work.add(core.row, core.column, cut, rows, columns)
        skipped = len(plan) - sum(work.windows.values())
        with cog.mendable(path):
            _publish(path, work, lambda files: _item(scene, predictor, images["pixels"], files))
    return Product(*Product.names(path), grid, len(plan), skipped, kept, time.monotonic() - started)


def enclosing(grid: Grid) -> Grid:
    """The pair grid, at 10 m, whose cells enclose a grid of 10 m pixels.

    Raises:
      SceneError: the grid's pixels are not those of Sentinel-2.
    """
    cells = geometry.pair_grid(grid)
    if cells.crs != grid.crs or grid.offset_in(cells) is None:
        raise SceneError(
            "expected 10 m pixels whose corners are multiples of 10 m in a UTM zone, as Sentinel-2's are. "
            f"Received: grid={grid}"
        )
    return cells


def _touched(scene: Scene, cells: Grid, plan: Sequence[Window]) -> list[Window]:
    """The windows in which the scene may have data."""
    if scene.footprint is None:
        outline, crs = shapely.box(*scene.grid.bounds), scene.grid.crs
    else:
        outline, crs = shapely.geometry.shape(scene.footprint), "EPSG:4326"

    def project(points: np.ndarray) -> np.ndarray:
        return np.transpose(rasterio.warp.transform(crs, cells.crs, *points.T)) if len(points) else points

    # Straight to a metre: 20 km, or 0.1 degrees.
    seen = shapely.transform(shapely.segmentize(outline, 0.1 if crs == "EPSG:4326" else 20_000.0), project)
    if not np.isfinite(shapely.get_coordinates(seen)).all():
        return []  # the other side of the Earth
    seen = shapely.buffer(seen, 30.0 if scene.footprint is None else ASIDE)
    shapely.prepare(seen)
    cores = [cells.at(30.0).window(*dataclasses.astuple(one.core)) for one in plan]
    return [one for one, core in zip(plan, cores, strict=True) if seen.intersects(shapely.box(*core.bounds))]


def _made_of(source: SceneSource, scene: Scene, predictor: Predictor, grid: Grid, window: int) -> str:
    """All that the product depends on. Of the scene's pixels a sample is looked at: files are mended, too."""
    digest, manifest = hashlib.sha256(), predictor.manifest
    used = [*manifest.bands, *["pan"] * manifest.uses_pan]
    for native in dict.fromkeys(scene.grids[band] for band in used):
        bands = [band for band in used if scene.grids[band] == native]
        for k in range(PROBES):
            row, column = ((size - PROBE) * k // (PROBES - 1) for size in native.shape)
            raster = source.read(scene, bands, native.window(row, column, PROBE, PROBE))
            for array in (raster.values, raster.valid, raster.clear):
                digest.update(array.tobytes())
    return artifacts.to_json(
        {
            "sample": digest.hexdigest(),
            "grids": {band: str(one) for band, one in scene.grids.items()},
            "tags": tags(scene, predictor),
            "grid": str(grid),
            "window": window,
        }
    )


def _publish(path: pathlib.Path, work: unfinished.Work, describe: Callable[[Mapping[str, pathlib.Path]], str]) -> None:
    """Makes the files aside, then gives them their names, the item last."""
    aside = work.folder / "new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    *new, _ = Product.names(aside / path.name)
    for file, name in zip(new, ("pixels", "quality"), strict=False):
        raster = work.rasters[name]
        cog.publish(raster.path, file, raster.image.overviews)
    data, judged, picture = new
    quicklook.write(data, judged, picture)
    text = describe({"data": data, "quality": judged, "thumbnail": picture})
    *files, item = Product.names(path)
    # From here to the end an older product of that name is no longer whole.
    item.unlink(missing_ok=True)
    for made, file in zip(new, files, strict=True):
        made.replace(file)
    artifacts.write(item, text)
    artifacts.sync(*files, item, path.parent)


def _item(scene: Scene, predictor: Predictor, image: Image, files: Mapping[str, pathlib.Path]) -> str:
    item = stac.item(scene, predictor.manifest, _version(predictor), image, files)
    return json.dumps(item.to_dict(include_self_link=False), indent=2) + "\n"


def _version(predictor: Predictor) -> str:
    return str(getattr(predictor, "version", ""))


def check(scene: Scene, manifest: Manifest) -> None:
    """Tells before the first pixel whether a model can take a scene.

    Raises:
      SceneError: it cannot; the message says what would fit.
    """
    model = f"model {manifest.name!r}"
    if scene.sensor != "landsat":
        raise SceneError(f"{model} takes Landsat scenes. Received: scene={scene.id}, sensor={scene.sensor}")
    if scene.level != manifest.level:
        raise SceneError(
            f"{model} is made for level {manifest.level!r}; give it a scene of that level, or take a model of the "
            f"scene's. Received: scene={scene.id}, level={scene.level!r}"
        )
    missing = [band for band in manifest.bands if band not in scene.bands]
    if missing:
        raise SceneError(
            f"{model} needs {', '.join(missing)}, which scene {scene.id} lacks; add the files, or take a model trained "
            f"on fewer bands. Received: bands={','.join(scene.bands)}"
        )
    if manifest.uses_pan and "pan" not in scene.grids:
        raise SceneError(
            f"{model} uses the panchromatic band, which scene {scene.id} lacks; add its file (B8 of the Level-1 "
            f"product), or take a model without it. Received: bands={','.join(scene.grids)}"
        )


def tags(scene: Scene, predictor: Predictor) -> dict[str, str]:
    """Provenance of a product, as GeoTIFF tags."""
    manifest = predictor.manifest
    taken = datetime.datetime.fromtimestamp(scene.time_ms / 1000, datetime.UTC) if scene.time_ms else None
    return {
        "TIFFTAG_SOFTWARE": f"harmonize_tf {harmonize_tf.__version__}",
        "TIFFTAG_DOCUMENTNAME": scene.id,
        "TIFFTAG_IMAGEDESCRIPTION": f"{scene.id} as Sentinel-2 would have shown it: 10 m, level {manifest.level}, "
        "reflectance = DN * 0.0001 - 0.1, DN 0 = no data",
        "SOURCE_SCENE": scene.id,
        "SOURCE_PRODUCT": scene.product,
        "SPACECRAFT": scene.spacecraft,
        "ACQUIRED": taken.isoformat(timespec="milliseconds") if taken else "",
        "LEVEL": scene.level,
        "MODEL": manifest.name,
        "MODEL_VERSION": _version(predictor),
        "MODEL_MANIFEST": manifest.to_json(),
    }


def _quality_tags(scene: Scene) -> dict[str, str]:
    bits = {f"BIT_{bit.bit_length() - 1}": f"{name}: {meaning}" for bit, (name, meaning) in quality.BITS.items()}
    return {
        "TIFFTAG_SOFTWARE": f"harmonize_tf {harmonize_tf.__version__}",
        "TIFFTAG_IMAGEDESCRIPTION": f"Quality of {scene.id} at 10 m, a bit for each thing to know; 0 = no data",
        "SOURCE_SCENE": scene.id,
        **bits,
    }


def _progress(items: Iterable, total: int) -> Iterator:
    """Passes items through, with a bar on a terminal and a line every tenth of the way otherwise."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit="window", desc="scene")
        return
    for number, item in enumerate(items, 1):
        yield item
        if number * 10 // total > (number - 1) * 10 // total:
            _log.info("scene: %d of %d windows", number, total)
