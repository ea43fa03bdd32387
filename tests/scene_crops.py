"""Small real scenes: crops of the Landsat-8 scene of Alabama, each a folder with its files and a manifest."""

import json
import pathlib

import rasterio
import rasterio.windows
import real_scenes
from affine import Affine

STEP = 60  # 30 m pixels from one to the next, and their side; the panchromatic band has two for each


def write(data: pathlib.Path, folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Writes the first crops, row by row, and returns their folders."""
    scene = real_scenes.scenes(data)["alabama"]
    with rasterio.open(scene["files"][0]["path"]) as raster:
        columns = raster.width // STEP
    return [_write(scene, folder / f"LC08_CROP_{n:03}", *divmod(n, columns)) for n in range(count)]


def _write(scene: dict, folder: pathlib.Path, row: int, column: int) -> pathlib.Path:
    folder.mkdir(parents=True)
    parts = {"files": scene["files"], "quality": scene["quality"]}
    declared = {key: [dict(part) for part in some] for key, some in parts.items()}
    for part in (*declared["files"], *declared["quality"]):
        side = 2 * STEP if part.get("bands") == ["pan"] else STEP
        window = rasterio.windows.Window(column * side, row * side, side, side)
        with rasterio.open(part["path"]) as raster:
            profile = raster.profile | {"width": side, "height": side, "tiled": False, "compress": None}
            profile["transform"] = raster.transform @ Affine.translation(window.col_off, window.row_off)
            for key in ("blockxsize", "blockysize"):
                profile.pop(key, None)
            part["path"] = pathlib.Path(part["path"]).name
            with rasterio.open(folder / part["path"], "w", **profile) as crop:
                crop.write(raster.read(window=window))
    entry = scene | declared | {"id": folder.name}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "scenes": [entry]}))
    return folder
