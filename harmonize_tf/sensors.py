"""What is known of the two sensors: bands, wavelengths, ground sampling distance, MTF, digital numbers, band-pass.

Constants only, each under its source. Bands carry one name for both sensors and always come in the order of
wavelength: blue, green, red, nir, swir1, swir2.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from harmonize_tf.errors import FlagError

BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
BAND_SETS: Mapping[str, tuple[str, ...]] = {"rgb": BANDS[:3], "rgbn": BANDS[:4], "all6": BANDS}
# Top of atmosphere, surface reflectance, and display values (8-bit, stretched) that are no reflectance at all.
LEVELS = ("toa", "sr", "uncalibrated")
LANDSAT_SPACECRAFT = ("LANDSAT_8", "LANDSAT_9")
SENTINEL_SPACECRAFT = ("SENTINEL_2A", "SENTINEL_2B", "SENTINEL_2C")


@dataclasses.dataclass(frozen=True)
class Band:
    """One band of one sensor.

    Attributes:
      name: the sensor's own name of the band, such as "B2".
      wavelength: centre, nm.
      gsd: ground sampling distance, m.
      mtf: modulation transfer function at the band's own Nyquist frequency, unitless.
    """

    name: str
    wavelength: float
    gsd: float
    mtf: float

    @property
    def sigma(self) -> float:
        """Standard deviation in m of the Gaussian point spread function with this MTF at Nyquist.

        sigma = GSD / pi * sqrt(-2 ln MTF), as in SupReME / S2Sharp and the DLPan toolbox (genMTF).
        """
        return self.gsd / math.pi * math.sqrt(-2.0 * math.log(self.mtf))


# OLI and OLI-2. Wavelengths: USGS, https://www.usgs.gov/faqs/what-are-best-landsat-spectral-bands-use-my-research
# (band edges' middle). MTF: S2L8sharpening, SLSharp.m line 129 (Sigurdsson et al. 2022), the author's PSF model.
OLI: Mapping[str, Band] = {
    "blue": Band("B2", 482, 30, 0.4884),
    "green": Band("B3", 561, 30, 0.4872),
    "red": Band("B4", 655, 30, 0.4843),
    "nir": Band("B5", 865, 30, 0.4806),
    "swir1": Band("B6", 1609, 30, 0.4615),
    "swir2": Band("B7", 2201, 30, 0.4544),
}
# No published OLI panchromatic MTF was found; 0.20 is the middle of the plausible 0.10-0.30.
OLI_PAN = Band("B8", 590, 15, 0.20)
OLI_PAN_RANGE = (503.0, 676.0)  # nm, USGS as above
# Standard deviations, reflectance. OLI's signal-to-noise ratio on orbit is 200 to 350 at typical radiances, which are
# reflectances of about 0.05 under a high sun (Morfitt et al. 2015, Remote Sensing 7(2), 10.3390/rs70202208): 2e-4, and
# half as much again under a sun at 45 degrees. The panchromatic band, SNR 145 at 0.04, has half as much again.
OLI_NOISE, OLI_PAN_NOISE = 3e-4, 4.5e-4

# MSI. Wavelengths: ESA, Sentinel-2A spectral response. MTF: SupReME / S2Sharp, `mtf` table of their authors.
MSI: Mapping[str, Band] = {
    "blue": Band("B2", 492, 10, 0.26),
    "green": Band("B3", 560, 10, 0.28),
    "red": Band("B4", 665, 10, 0.24),
    "nir": Band("B8", 833, 10, 0.26),
    "swir1": Band("B11", 1614, 20, 0.22),
    "swir2": Band("B12", 2202, 20, 0.23),
}
MSI_NARROW_NIR = Band("B8A", 865, 20, 0.33)

# HLS v2.0 band-pass adjustment, MSI -> OLI-like surface reflectance: rho_OLI = slope * rho_MSI + offset.
# NASA-IMPACT/hls-sentinel, hls_libs/L8like/bandpass_parameter.S2{A,B,C}.txt. "nir" is B8A: nothing is published for B8.
HLS_BANDPASS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "SENTINEL_2A": {
        "blue": (0.9778, -0.0040),
        "green": (1.0053, -0.0009),
        "red": (0.9765, 0.0009),
        "nir": (0.9983, -0.0001),
        "swir1": (0.9987, -0.0011),
        "swir2": (1.0030, -0.0012),
    },
    "SENTINEL_2B": {
        "blue": (0.9778, -0.0040),
        "green": (1.0075, -0.0008),
        "red": (0.9761, 0.0010),
        "nir": (0.9966, 0.0000),
        "swir1": (1.0000, -0.0003),
        "swir2": (0.9867, 0.0004),
    },
    "SENTINEL_2C": {
        "blue": (0.9851, -0.0027),
        "green": (1.0038, -0.0009),
        "red": (0.9718, 0.0011),
        "nir": (0.9995, -0.0003),
        "swir1": (0.9994, -0.0007),
        "swir2": (0.9910, 0.0004),
    },
}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How digital numbers become reflectance: `reflectance = DN * scale + offset`; `nodata` marks missing pixels."""

    scale: float
    offset: float
    nodata: float | None = 0


# This project's own code, equal to Sentinel-2's since processing baseline 04.00 (BOA_ADD_OFFSET -1000).
CODE = Encoding(1e-4, -0.1)
SENTINEL_BEFORE_BASELINE_0400 = Encoding(1e-4, 0.0)
# Landsat Collection 2 Level-2 surface reflectance, USGS LSDS-1619.
LANDSAT_C2_L2 = Encoding(2.75e-5, -0.2)


def landsat_toa(sun_elevation: float) -> Encoding:
    """Landsat-8/9 Level-1 digital numbers to top-of-atmosphere reflectance: (DN * 2e-5 - 0.1) / sin(sun elevation).

    Args:
      sun_elevation: degrees, from the scene's MTL (USGS LSDS-1574, REFLECTANCE_MULT_BAND and REFLECTANCE_ADD_BAND).
    """
    sine = math.sin(math.radians(sun_elevation))
    return Encoding(2e-5 / sine, -0.1 / sine)


def band_set(name: str) -> tuple[str, ...]:
    """The bands of a band set: "rgb", "rgbn" or "all6".

    Raises:
      FlagError: there is no such set.
    """
    if name not in BAND_SETS:
        raise FlagError(f"no band set of that name; expected one of {', '.join(BAND_SETS)}. Received: bands={name!r}")
    return BAND_SETS[name]


def msi_band(band: str, nir: str = "B8") -> Band:
    """The Sentinel-2 band behind a name; `nir` chooses between "B8" (10 m) and "B8A" (20 m, nearest to OLI's)."""
    return MSI_NARROW_NIR if band == "nir" and nir == "B8A" else MSI[band]


def blur_sigma(bands: Sequence[str], nir: str = "B8") -> tuple[float, ...]:
    """Extra Gaussian blur that makes Sentinel-2 look like Landsat's 30 m bands.

    sigma_k = sqrt(sigma_OLI^2 - sigma_MSI^2), of Gaussian point spread functions.

    Returns:
      One standard deviation per band, in pixels of 10 m.
    """
    return tuple(math.sqrt(OLI[b].sigma ** 2 - msi_band(b, nir).sigma ** 2) / 10.0 for b in bands)


# The same for the panchromatic band, from the mean of Sentinel-2's visible bands; pixels of 10 m.
PAN_BLUR_SIGMA = math.sqrt(OLI_PAN.sigma**2 - (sum(MSI[b].sigma for b in BANDS[:3]) / 3) ** 2) / 10.0


def pan_weights() -> dict[str, float]:
    """Weights of Sentinel-2's blue, green and red that imitate OLI's panchromatic band; they sum to 1.

    The spectrum is taken as piecewise linear between the bands' centres (constant beyond red) and integrated over
    the panchromatic range with a flat response.
    """
    blue, green, red = (MSI[b].wavelength for b in BANDS[:3])
    low, high = OLI_PAN_RANGE
    weight_blue = (green - low) ** 2 / 2 / (green - blue)
    weight_red = (red - green) / 2 + (high - red)
    total = high - low
    return {"blue": weight_blue / total, "green": 1 - (weight_blue + weight_red) / total, "red": weight_red / total}
