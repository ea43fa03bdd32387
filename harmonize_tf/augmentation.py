"""What training does to patches so that a few are worth many: crops, symmetries, another light.

Pairs are unbatched (inputs, targets) as `harmonize_tf.dataset` describes them.
"""

from collections.abc import Sequence

import tensorflow as tf

from harmonize_tf import radiometry, sensors
from harmonize_tf.degradation import FACTOR, PAN_FACTOR

Tensors = dict[str, tf.Tensor]
Sides = tuple[Tensors, ...]  # both of a pair, or one

VERSION = 3  # version of what follows; another one makes another training
GAIN = 3.0  # of the augmentation, this often or a third: a summer scene has about three times a winter scene's contrast
OFFSETS = (-0.05, 0.10)  # reflectance, of the augmentation: what haze adds to blue at the top of the atmosphere is 0.1
CLOUD = (0.3, 1.2)  # reflectance of planted clouds
RIM = 4  # cells of 30 m along a planted cloud's edge, on either side, that no loss counts


def pixels_per_cell(name: str) -> int:
    """Pixels along one side of a 30 m cell in an array of that name."""
    return {"landsat_pan": PAN_FACTOR, "landsat_pan_valid": PAN_FACTOR}.get(
        name, 1 if name.startswith("landsat") else FACTOR
    )


def cropped(sides: Sides, crop: int, seed: tf.Tensor) -> Sides:
    """A random window of `crop` x `crop` cells of 30 m out of unbatched dicts, the same ground in all."""
    name, image = next(iter(sides[0].items()))
    cells = tf.shape(image)[:2] // pixels_per_cell(name)
    corner = tf.cast(tf.random.stateless_uniform([2], seed) * tf.cast(cells - crop + 1, tf.float32), tf.int32)

    def cut(name: str, x: tf.Tensor) -> tf.Tensor:
        factor = pixels_per_cell(name)
        row, column = factor * corner[0], factor * corner[1]
        window = x[row : row + factor * crop, column : column + factor * crop]
        return tf.ensure_shape(window, [factor * crop, factor * crop, x.shape[-1]])

    return tuple({name: cut(name, x) for name, x in side.items()} for side in sides)


def turned(sides: Sides, seed: tf.Tensor) -> Sides:
    """Unbatched dicts of square images in one of the eight symmetries of the square, drawn from the seed."""
    symmetry = tf.random.stateless_uniform([], seed, maxval=8, dtype=tf.int32)
    return tuple({name: symmetric(x, symmetry) for name, x in side.items()} for side in sides)


def relit(
    pair: tuple[Tensors, Tensors], bands: Sequence[str], bandpass: radiometry.Bandpass, seed: tf.Tensor
) -> tuple[Tensors, Tensors]:
    """A pair of unbatched dicts under another light: one gain for all, and an offset for each band, as haze gives.

    Blur and band-pass are linear and the panchromatic band gets the offset of the bands that it covers, so that what
    comes out is again a pair. Without it a network takes the brightness of the few scenes that it was shown for
    granted, and draws a pattern of three rows over a brighter one. The targets say what the light was, so that
    `by_daylight` takes it back.
    """
    draws = tf.random.stateless_uniform([len(bands) + 1], seed)
    gain, (darkest, brightest) = GAIN ** (2 * draws[0] - 1), OFFSETS
    offset = darkest + (brightest - darkest) * draws[1:]
    inputs, targets = dict(pair[0]), dict(pair[1])
    inputs["landsat_ms"] = gain * inputs["landsat_ms"] + offset
    if "landsat_pan" in inputs:
        weights = sensors.pan_weights()
        inputs["landsat_pan"] = gain * inputs["landsat_pan"] + tf.add_n(
            [weights[band] * offset[bands.index(band)] for band in weights]
        )
    from_sentinel = bandpass.inverse()
    targets["sentinel_ms"] = bandpass.apply(gain * from_sentinel.apply(targets["sentinel_ms"]) + offset)
    return inputs, targets | {
        "gain": gain[None, None, None],
        "offset": (bandpass.apply(offset) - gain * bandpass.offset)[None, None],
    }


def clouded(images: Tensors, mask: str, bandpass: radiometry.Bandpass, seed: tf.Tensor) -> Tensors:
    """Unbatched images of one place, one time in two with an opaque, uniform cloud planted into them.

    Real clouds are in no loss, and a network that has seen none draws patterns over them. Of a planted one the truth is
    known, but for its rim, where one cannot tell what of it a pixel sees.

    Args:
      images: of one size in 30 m cells, of one sensor or both; masks of data among them become 1 under the cloud.
      mask: name of the one that says what losses count, which becomes 0 along the rim and 1 inside.
      bandpass: the adjustment Landsat -> Sentinel-2; to Landsat the cloud is as bright in all bands.
      seed: of the place, the size and the brightness, reflectance of `CLOUD`.
    """
    draws = tf.random.stateless_uniform([6], seed)
    cells = images[mask].shape[0] // pixels_per_cell(mask)
    size = 3 * RIM + tf.cast(draws[:2] * tf.cast(max(cells - 3 * RIM, 0), tf.float32), tf.int32)
    first = tf.cast(draws[2:4] * tf.cast(cells + RIM, tf.float32), tf.int32) - size // 2  # may lie partly outside
    planted, brightness = draws[4] < 0.5, CLOUD[0] + (CLOUD[1] - CLOUD[0]) * draws[5:]

    def inside(name: str, beyond: int) -> tf.Tensor:
        factor = pixels_per_cell(name)
        row, column = (
            (place >= factor * (first[axis] - beyond)) & (place < factor * (first[axis] + size[axis] + beyond))
            for axis, place in enumerate(tf.range(n) for n in images[name].shape[:2])
        )
        return (row[:, None] & column[None, :])[..., None] & planted

    values = {"landsat_ms": brightness, "landsat_pan": brightness, "sentinel_ms": bandpass.apply(brightness)}
    values |= {"landsat_valid": 1.0, "landsat_pan_valid": 1.0}
    changed = {name: tf.where(inside(name, 0), value, images[name]) for name, value in values.items() if name in images}
    within = tf.where(inside(mask, RIM), tf.cast(inside(mask, -RIM), tf.float32), images[mask])
    return images | changed | {mask: within}


def by_daylight(image: tf.Tensor, targets: Tensors) -> tf.Tensor:
    """An image under the light that `relit` put `targets` in, [batch, h, w, band], back under its own."""
    return (image - targets["offset"]) / targets["gain"] if "gain" in targets else image


def symmetric(image: tf.Tensor, symmetry: int | tf.Tensor) -> tf.Tensor:
    """A square image [n, n, band] in symmetry 0..7: bit 0 mirrors left-right, bit 1 top-bottom, bit 2 transposes."""
    turned = tf.cond(symmetry & 1 > 0, lambda: image[:, ::-1], lambda: image)
    turned = tf.cond(symmetry & 2 > 0, lambda: turned[::-1], lambda: turned)
    turned = tf.cond(symmetry & 4 > 0, lambda: tf.transpose(turned, [1, 0, 2]), lambda: turned)
    return tf.ensure_shape(turned, image.shape)
