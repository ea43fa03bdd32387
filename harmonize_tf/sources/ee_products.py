"""What Earth Engine's collections of both sensors hold: names of bands, codes, quality bands.

Source: Earth Engine's public catalogue (developers.google.com/earth-engine/datasets), snapshot of 2026-08-07.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from harmonize_tf import sensors
from harmonize_tf.errors import SceneError
from harmonize_tf.sensors import SENTINEL_BEFORE_BASELINE_0400, Encoding

CLOUD_SCORE = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED"  # images have the ids of Sentinel-2's, at both levels
CLOUD_SCORE_NAME, CLOUD_SCORE_BAND, CLOUD_SCORE_PIXEL = "Cloud Score+", "cs_cdf", 10.0
SATURATED = 65535  # of 16-bit digital numbers
# Collection 2 T1_TOA is float reflectance already; masked pixels come as 0.
TOA_REFLECTANCE = Encoding(1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Product:
    """One image collection.

    Attributes:
      collection: its id.
      sensor: "landsat" or "sentinel".
      level: "toa" or "sr".
      bands: Earth Engine's name for each of `sensors.BANDS`, and "pan".
      encoding: how digital numbers become reflectance; 0 is no data.
      quality: quality bands by their kind in `quality.CLEAR`.
      cloud_cover: the property that holds the cloud cover, percent.
    """

    collection: str
    sensor: str
    level: str
    bands: Mapping[str, str]
    encoding: Encoding
    quality: Mapping[str, str]
    cloud_cover: str

    @property
    def dtype(self) -> np.dtype:
        """Of the digital numbers."""
        return np.dtype(np.float32 if self.encoding == TOA_REFLECTANCE else np.uint16)


_LANDSAT_QUALITY = {"qa_pixel": "QA_PIXEL", "qa_radsat": "QA_RADSAT"}
_OLI = {band: sensors.OLI[band].name for band in sensors.BANDS}
_MSI = {band: sensors.MSI[band].name for band in sensors.BANDS}


def _landsat(spacecraft: str, level: str) -> Product:
    folder = f"LANDSAT/LC0{spacecraft[-1]}/C02"
    if level == "toa":
        names, encoding, tier = _OLI | {"pan": sensors.OLI_PAN.name}, TOA_REFLECTANCE, "T1_TOA"
    else:
        names, encoding, tier = {band: f"SR_{name}" for band, name in _OLI.items()}, sensors.LANDSAT_C2_L2, "T1_L2"
    return Product(f"{folder}/{tier}", "landsat", level, names, encoding, _LANDSAT_QUALITY, "CLOUD_COVER")


def _sentinel(level: str) -> Product:
    # "Harmonized": newer baselines' offset of 1000 is taken off again, so that one scale serves all.
    name, quality = ("S2_HARMONIZED", {}) if level == "toa" else ("S2_SR_HARMONIZED", {"scl": "SCL"})
    collection, encoding = f"COPERNICUS/{name}", SENTINEL_BEFORE_BASELINE_0400
    return Product(collection, "sentinel", level, _MSI, encoding, quality, "CLOUDY_PIXEL_PERCENTAGE")


_PRODUCTS: Mapping[tuple[str, str], Product] = {
    **{(craft, level): _landsat(craft, level) for craft in sensors.LANDSAT_SPACECRAFT for level in ("toa", "sr")},
    **{(craft, level): _sentinel(level) for craft in sensors.SENTINEL_SPACECRAFT for level in ("toa", "sr")},
}


def product(spacecraft: str, level: str) -> Product:
    """The collection with a spacecraft's images of a level.

    Raises:
      SceneError: there is none.
    """
    if (spacecraft, level) not in _PRODUCTS:
        raise SceneError(
            f"Earth Engine has no such product; choose level toa or sr and one of "
            f"{', '.join(sensors.LANDSAT_SPACECRAFT + sensors.SENTINEL_SPACECRAFT)}. "
            f"Received: spacecraft={spacecraft}, level={level}"
        )
    return _PRODUCTS[spacecraft, level]


def itemsize(collection: str) -> int:
    """Bytes of one pixel of a collection's measured bands; 0 where it has none, as Cloud Score+."""
    sizes = {product.collection: product.dtype.itemsize for product in _PRODUCTS.values()}
    return sizes.get(collection, 0)


def digital_numbers(reflectance: np.ndarray, encoding: Encoding) -> np.ndarray:
    """A product's digital numbers of reflectance that has data everywhere; the inverse of `radiometry.decode`.

    Returns:
      uint16 from 1 to 65535, the nearest there is; float32 as it stands in the code that is reflectance itself.
    """
    if encoding == TOA_REFLECTANCE:
        return np.asarray(reflectance, np.float32)
    scaled = (np.asarray(reflectance, np.float64) - encoding.offset) / encoding.scale
    return np.clip(np.rint(scaled), 1, SATURATED).astype(np.uint16)
