"""One record into the totals: plain numpy over whole patches, a few milliseconds each."""

import datetime
import itertools
import math

import numpy as np

from harmonize_tf import radiometry, sensors
from harmonize_tf.errors import RecordError
from harmonize_tf.records import REMEDY, Capture, Record
from harmonize_tf.statistics.distribution import FIGURES
from harmonize_tf.statistics.totals import Thumbnail, Totals

MEAN_STEPS = 16  # of a code, in which patches' means are added up
CONTRAST_STEP = 1e-4  # in which contrasts are added up
# 1 - r of two bands that show the same but for the blur: 0.003 at least in 70 patches of T33UUU, and 1e-6 in simulated
# ground, whose blue and green are one field.
ALIKE = 1e-4
MOST = 0.9999  # correlation whose z is still told apart
LEAST = 64  # valid pixels below which a band is not called constant: a sixty-fourth of a patch at 30 m
THUMBNAIL = 96  # pixels, at most
VISIBLE = sensors.BANDS[:3]
# Codes at which a band may be clipped, and so constant over a whole patch: the ends of the code, and reflectance 0,
# at which Earth Engine's harmonized Sentinel-2 ends (and display values, whose other end is 1).
CLIPPED = tuple(radiometry.encode(np.float32([0.0, 1.0])).tolist()) + (radiometry.LOWEST_CODE, radiometry.HIGHEST_CODE)
OUTLIER = 3 * 1.4826  # median absolute deviations: three standard deviations of normal errors


def measure(record: Record, split: str, totals: Totals) -> None:
    """Adds a record to the totals.

    Args:
      record: a patch, of one side or of both.
      split: in whose folder it lies, which is where training reads it.
      totals: what is added to.

    Raises:
      RecordError: it has more or fewer bands than it names.
    """
    totals.add(("records", split), [1])
    if record.split != split:
        totals.add(("misfiled", split, record.split), [1])
    sides = [(sensor, side) for sensor in ("landsat", "sentinel") if (side := getattr(record, sensor)) is not None]
    for sensor, side in sides:
        if side.ms.shape[-1] != len(record.bands):
            raise RecordError(
                f"expected as many bands as the record names, {','.join(record.bands)}. {REMEDY}. "
                f"Received: {sensor}/ms={side.ms.shape}, id={record.id}"
            )
        _add_side(totals, split, sensor, side, record.bands)
    _add_texts(record, split, totals)
    _add_figures(record, split, totals)
    if len(sides) == 2 and record.sentinel.ms.shape[:2] == tuple(3 * size for size in record.landsat.ms.shape[:2]):
        _add_pair(totals, split, record)
    if totals.wants(split, record.id) and set(VISIBLE) <= set(record.bands):
        natural = [record.bands.index(band) for band in reversed(VISIBLE)]
        steps = {sensor: math.ceil(max(side.valid.shape) / THUMBNAIL) for sensor, side in sides}
        shown = {sensor: side.ms[:: steps[sensor], :: steps[sensor], natural] for sensor, side in sides}
        totals.keep(Thumbnail(split, record.id, shown))


def _add_side(totals: Totals, split: str, sensor: str, side: Capture, bands: tuple[str, ...]) -> None:
    clear = side.valid.astype(bool)
    totals.add(("pixels", split, sensor), [np.count_nonzero(clear), clear.size])
    planes = dict(zip((f"{sensor}/{band}" for band in bands), _planes(side.ms, clear), strict=True))
    if side.pan is not None:
        totals.add(("pans", split), [1])
        planes[f"{sensor}/pan"] = _planes(side.pan, clear.repeat(2, 0).repeat(2, 1))[0]
    for feature, codes in planes.items():
        counts = np.bincount(codes)
        totals.add(("codes", split, feature), counts)
        _add_plane(totals, split, feature, counts)


def _planes(codes: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Valid pixels as int64 [band, pixel], so that they can be counted."""
    pixels = codes.reshape(-1, codes.shape[-1]) if clear.all() else codes[clear]
    return pixels.T.astype(np.int64)


def _add_plane(totals: Totals, split: str, feature: str, counts: np.ndarray) -> None:
    """Adds what one band of one patch is as a whole: its mean, and whether it is dead."""
    missing, valid = int(counts[:1].sum()), int(counts.sum())
    there = valid - missing
    if there:
        mean = round(float(counts[1:] @ np.arange(1.0, len(counts))) / there * MEAN_STEPS)
        totals.add(("means", split, feature), [1, mean, mean**2])
    if valid >= LEAST:
        codes = np.flatnonzero(counts[1:]) + 1
        without_data = 2 * missing > valid
        constant = not without_data and len(codes) == 1
        clipped = constant and int(codes[0]) in CLIPPED
        totals.add(("dead", split, feature), [1, without_data, clipped, constant and not clipped])


def _add_texts(record: Record, split: str, totals: Totals) -> None:
    texts = {"level": record.level, "source": record.source, "crs": record.crs, "bands": ",".join(record.bands)}
    for sensor in ("landsat", "sentinel"):
        if (side := getattr(record, sensor)) is not None:
            texts |= {f"{sensor}/spacecraft": side.spacecraft, f"{sensor}/product": side.product}
            texts[f"{sensor}/processing_baseline"] = side.processing_baseline
            texts[f"{sensor}/size"] = "x".join(map(str, side.valid.shape))
    for feature, value in texts.items():
        totals.add(("text", split, feature, value), [1])


def _add_figures(record: Record, split: str, totals: Totals) -> None:
    times = [side.time_ms for side in (record.landsat, record.sentinel) if side is not None and side.time_ms]
    totals.add(("month", split, month(times[0]) if times else "unknown"), [1])
    known = {
        "pair/day_gap": record.dt_s / 86400,
        "pair/shift_east_m": record.shift_m[0],
        "pair/shift_north_m": record.shift_m[1],
        "pair/valid_fraction": record.valid_fraction,
    }
    for sensor in ("landsat", "sentinel"):
        if (side := getattr(record, sensor)) is not None:
            known[f"{sensor}/sun_zenith"] = side.sun[0]
    for name, value in known.items():
        if math.isfinite(value):
            totals.add(("figure", split, name), FIGURES[name].counts(value))


def month(time_ms: int) -> str:
    """Such as "2022-06", of milliseconds since 1970 UTC."""
    return f"{datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC):%Y-%m}"


def _add_pair(totals: Totals, split: str, record: Record) -> None:
    """Adds what the two sides say of each other, on the 30 m cells that both have clear."""
    landsat, sentinel, bands = record.landsat, record.sentinel, record.bands
    rows, columns, depth = landsat.ms.shape
    blocks = sentinel.ms.reshape(rows, 3, columns, 3, depth)
    # A band without data is looked at elsewhere; here its cells would make all others useless.
    clear = sentinel.valid.reshape(rows, 3, columns, 3).all((1, 3)) & landsat.valid.astype(bool)
    totals.add(("detail", split), detail(sentinel.ms[..., [bands.index(b) for b in VISIBLE if b in bands]], clear))
    if np.count_nonzero(clear) < LEAST:
        return
    # The mean of 3 x 3 pixels is as sharp as Landsat within a tenth: their point spread functions have standard
    # deviations of 10.1 and 11.5 m (`sensors`; a square of 30 m has 8.7 m).
    coarse = blocks.sum((1, 3), dtype=np.int64)[clear] / 9  # [cell, band]
    fine = landsat.ms[clear].astype(np.float64)
    _add_fits(totals, split, record, coarse, fine)
    coarse -= coarse.mean(0)
    fine -= fine.mean(0)
    within = fine.T @ fine, coarse.T @ coarse
    products = fine.T @ coarse
    cross = np.concatenate([np.diag(within[0]), np.diag(within[1]), products.ravel()])
    totals.add(("cross", split, ",".join(bands)), np.rint(cross).astype(np.int64))
    visible = [index for index, band in enumerate(bands) if band in VISIBLE]
    first, second = fine[:, visible].mean(1), coarse[:, visible].mean(1)
    if (energy := (first @ first) * (second @ second)) > 0:
        name = "pair/correlation"
        totals.add(("figure", split, name), FIGURES[name].counts(first @ second / math.sqrt(energy)))
    for (one, other), contrast in contrasts(products, *within).items():
        steps = round(contrast / CONTRAST_STEP)
        totals.add(("order", split, bands[one], bands[other]), [1, steps, steps**2])


def _add_fits(totals: Totals, split: str, record: Record, x: np.ndarray, y: np.ndarray) -> None:
    """Adds the sums of a regression of Landsat on Sentinel-2, without cells that changed or hide a cloud."""
    x = np.rint(x)
    difference = y - x
    middle = np.median(difference, 0)
    spread = np.maximum(np.median(np.abs(difference - middle), 0), 1.0)
    kept = np.abs(difference - middle) <= OUTLIER * spread
    for index, band in enumerate(record.bands):
        a, b = x[kept[:, index], index], y[kept[:, index], index]
        key = ("fit", split, record.landsat.spacecraft, record.sentinel.spacecraft, band)
        totals.add(key, [int(value) for value in (len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b)])


def correlation(products: np.ndarray, landsat: np.ndarray, sentinel: np.ndarray) -> np.ndarray:
    """Correlations [Landsat's band, Sentinel-2's band] of sums of products [B, B] and of squares [B]; 0 if constant."""
    energy = np.sqrt(np.outer(landsat.astype(np.float64), sentinel.astype(np.float64)))
    return np.divide(products, energy, out=np.zeros(energy.shape), where=energy > 0)


def contrasts(products: np.ndarray, landsat: np.ndarray, sentinel: np.ndarray) -> dict[tuple[int, int], float]:
    """How alike the two sensors see the difference of every two bands: negative where these are swapped.

    Bands are so alike that a swapped one fits almost as well as the right one; their difference is colour only. Each
    band is divided by its standard deviation first, so that a wrong scale does not count. The correlation is given as
    Fisher's z = artanh(r), whose errors are alike at all correlations.

    Args:
      products: [Landsat's band, Sentinel-2's band], sums over cells of values less their mean; likewise what follows.
      landsat: [Landsat's band, Landsat's band].
      sentinel: [Sentinel-2's band, Sentinel-2's band].

    Returns:
      z by two bands' indices, without bands that are constant, or do not differ.
    """
    squares = np.diag(landsat), np.diag(sentinel)
    across, first, second = (
        correlation(products, *squares),
        correlation(landsat, squares[0], squares[0]),
        correlation(sentinel, squares[1], squares[1]),
    )
    found = {}
    for i, j in itertools.combinations(range(len(products)), 2):
        differ = 1 - first[i, j], 1 - second[i, j]
        if across[i, i] and across[j, j] and min(differ) > ALIKE:
            shared = across[i, i] + across[j, j] - across[i, j] - across[j, i]
            found[i, j] = float(np.arctanh(np.clip(shared / (2 * math.sqrt(math.prod(differ))), -MOST, MOST)))
    return found


def detail(ms: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Squared second differences at 30 m, and at 10 m around the first, middle and last pixel of the 30 m cells.

    An image that was enlarged from 30 m has little at 10 m around one of these at least: none in the middle where
    pixels were repeated, none beside it where they were interpolated linearly, little anywhere by cubic kernels.

    Args:
      ms: codes uint16 [3 h, 3 w, band].
      clear: bool [h, w].

    Returns:
      int64 [4], summed over rows, columns and bands; codes squared.
    """
    found = np.zeros(4, np.int64)
    for image, mask in ((ms, clear), (ms.swapaxes(0, 1), clear.T)):
        rows, columns = mask.shape
        lines = image.reshape(rows, 3, 3 * columns, -1).sum(1, dtype=np.int32)
        cells = lines.reshape(rows, columns, 3, -1)
        inside = mask[:, :-2] & mask[:, 1:-1] & mask[:, 2:]
        means = cells.sum(2)
        found[0] += _energy(means[:, :-2] - 2 * means[:, 1:-1] + means[:, 2:], inside) // 9
        bent = lines[:, :-2] - 2 * lines[:, 1:-1] + lines[:, 2:]
        for phase in range(3):  # that of pixel 3 + phase of a line stands at 2 + phase
            found[1 + phase] += _energy(bent[:, 2 + phase :: 3][:, : columns - 2], inside)
    return found


def _energy(values: np.ndarray, inside: np.ndarray) -> int:
    chosen = values[inside].ravel().astype(np.float64)
    return round(float(chosen @ chosen))
