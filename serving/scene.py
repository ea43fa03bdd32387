"""A Landsat scene in, a Cloud Optimized GeoTIFF at 10 m out.

    python -m serving.scene LC08_L1TP_020039_20150804 harmonised.tif --model=RUN/serving/subpixel
    python -m serving.scene manifest.json harmonised.tif --target=localhost:8500 --model_name=subpixel

takes a folder with a Landsat scene (its bands and MTL) or a manifest, puts it through an exported model, in this
process or on a server, and writes harmonised.tif, its quality bits harmonised_quality.tif, its quick-look
harmonised.png and its STAC item harmonised.json. A command that was interrupted is simply given again.
"""

import logging
import os
import pathlib
from collections.abc import Sequence

from absl import flags

from harmonize_tf import command, predictors, products, quicklook
from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.mgrs import mgrs_tile
from harmonize_tf.sources import Scene
from harmonize_tf.sources.geotiff import GeoTiffSource

FLAGS = flags.FlagValues()
predictors.define_flags(FLAGS)
_SCENE = flags.DEFINE_string("scene", None, "Id of the scene, where IN holds several.", flag_values=FLAGS)
_WINDOW = flags.DEFINE_integer(
    "window",
    products.WINDOW,
    "Side of the windows that are predicted at once, pixels of 30 m. Larger ones repeat less of their surroundings and "
    "take more memory; the product is the same.",
    1,
    flag_values=FLAGS,
)
_TILE = flags.DEFINE_string(
    "tile", None, "Sentinel-2 tile to write, such as 33UUU, instead of all of the scene.", flag_values=FLAGS
)
_FIGURE = flags.DEFINE_string(
    "figure", None, "PNG to write, of Landsat, product and difference side by side.", flag_values=FLAGS
)

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Harmonises one scene.

    Raises:
      HarmonizeError: flags, scene, model or server do not serve, or the product cannot be written.
    """
    given, out = _arguments(command.parse(FLAGS, argv))
    source = GeoTiffSource(given)
    scene = choose(source.scenes(), _SCENE.value)
    _check_spared(out, given, source.files(scene))
    grid = mgrs_tile(_TILE.value) if _TILE.value else None
    local = predictors.local(FLAGS.model) if FLAGS.model else None
    with local or predictors.served(**predictors.server_of(FLAGS)) as predictor:
        product = products.harmonize(source, scene, predictor, out, grid=grid, window=_WINDOW.value)
    rows, columns = product.grid.shape
    _log.info(
        "%s: %d x %d pixels, %d windows (%d without data, %d done before), %.1f s, %.2f Mpx/s; STAC item %s",
        *(product.path, rows, columns, product.windows, product.skipped, product.kept, product.seconds),
        *(rows * columns / 1e6 / product.seconds, product.item),
    )
    if _FIGURE.value:
        quicklook.compare(source, scene, out, pathlib.Path(_FIGURE.value))


def choose(scenes: Sequence[Scene], wanted: str | None) -> Scene:
    """The Landsat scene with the wanted id, or the only one there is.

    Raises:
      SceneError: there is none, or more than one and no id was given.
    """
    landsat = {scene.id: scene for scene in scenes if scene.sensor == "landsat"}
    if wanted is None and len(landsat) == 1:
        return next(iter(landsat.values()))
    if wanted in landsat:
        return landsat[wanted]
    raise SceneError(
        f"expected --scene to name one of the Landsat scenes there: {', '.join(landsat) or 'there are none'}. "
        f"Received: scene={wanted}"
    )


def _arguments(positional: Sequence[str]) -> tuple[str, pathlib.Path]:
    """Checks what can be checked before anything is opened."""
    if len(positional) != 2:
        raise FlagError(
            f"expected a scene and the GeoTIFF to write, `harmonize scene IN OUT.tif`. Received: {list(positional)}"
        )
    predictors.check_flags(FLAGS)
    given, out = positional[0], pathlib.Path(positional[1])
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise FlagError(f"the product is a GeoTIFF; end its name in .tif. Received: {out}")
    for path in (out, pathlib.Path(_FIGURE.value or out)):
        if not path.parent.is_dir():
            raise FlagError(f"the folder {path.parent} does not exist; make it first. Received: {path}")
    if _FIGURE.value:
        _check_figure(pathlib.Path(_FIGURE.value), out)
    return given, out


def _check_spared(out: pathlib.Path, given: str, files: Sequence[str]) -> None:
    """Refuses a product that would take the place of what it is made of."""
    for path in products.Product.names(out):
        if path.exists() and any(os.path.exists(file) and path.samefile(file) for file in (given, *files)):
            raise FlagError(f"{path} is the scene's own; choose another name. Received: {out}")


def _check_figure(figure: pathlib.Path, out: pathlib.Path) -> None:
    if figure.suffix.lower() != ".png":
        raise FlagError(f"the picture is a PNG; end its name in .png. Received: figure={figure}")
    if figure.resolve() == out.with_suffix(".png").resolve():
        raise FlagError(f"that is where the quick-look goes; choose another name. Received: figure={figure}")


if __name__ == "__main__":
    command.run(main)
