"""What a served model answers: its signatures as graphs, from codes to codes.

    serving_default  landsat_ms uint16 [N,h,w,B] (, landsat_pan uint16 [N,2h,2w,1]) -> sentinel_ms uint16 [N,3h,3w,B]
    reflectance      the same in float32 reflectance, NaN = no data
    tf_example       examples string [N], records as in training -> sentinel_ms uint16 [N,3h,3w,B]
    manifest         query uint8 [N], any values -> manifest uint8 [N,L], the manifest's JSON as UTF-8

With every "sentinel_ms" comes "quality", uint8 [N,3h,3w,1]: bit 1 where there is data, bit 2 where the output, seen at
30 m, is the measurement (`harmonize_tf.quality`). A model that was trained with --uncertainty also answers with
"uncertainty", of the same shape and in the same code as "sentinel_ms": the standard deviation of its error.

A pixel of 30 m with code 0 (or NaN) in any band is no data: its own 3x3 pixels of 10 m are no data, and no others.

Each signature starts with `tf.ensure_shape`: TensorFlow Serving checks types and never shapes, and a tensor of the
wrong rank that reaches a convolution ends the whole server (tensor_format.h, "Check failed", TensorFlow 2.21).

TensorFlow Serving hands out a model's signatures but none of its extra files, which is why the manifest is a signature
too. It is bytes in a uint8 tensor because `tf.make_ndarray` cannot read strings from servers that answer with
`tensor_content`, and it has a query because servers that batch need an input whose first axis is N.
"""

import numpy as np
import tensorflow as tf

from harmonize_tf import quality, radiometry, records
from harmonize_tf.manifest import Manifest
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.models.layers import repeat_pixels

Outputs = dict[str, tf.Tensor]


def build(harmonizer: Harmonizer, manifest: Manifest) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The traced signatures of a model, by name."""
    codes, reflectance = (_window_specs(manifest, dtype) for dtype in (tf.uint16, tf.float32))
    functions = {
        "serving_default": (lambda *windows: _serving_default(harmonizer, manifest, *windows), codes),
        "reflectance": (lambda *windows: _reflectance(harmonizer, manifest, *windows), reflectance),
        "tf_example": (
            lambda examples: _tf_example(harmonizer, manifest, examples),
            [tf.TensorSpec([None], tf.string, "examples")],
        ),
        "manifest": (lambda query: _manifest(manifest, query), [tf.TensorSpec([None], tf.uint8, "query")]),
    }
    traced = {
        name: tf.function(function, input_signature=specs, autograph=False)
        for name, (function, specs) in functions.items()
    }
    for function in traced.values():
        function.get_concrete_function()
    return traced


def _window_specs(manifest: Manifest, dtype: tf.DType) -> list[tf.TensorSpec]:
    ms = tf.TensorSpec([None, None, None, len(manifest.bands)], dtype, "landsat_ms")
    return [ms, tf.TensorSpec([None, None, None, 1], dtype, "landsat_pan")] if manifest.uses_pan else [ms]


def _guarded(manifest: Manifest, windows: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor | None]:
    ms, *pan = (
        tf.ensure_shape(x, spec.shape)
        for x, spec in zip(windows, _window_specs(manifest, windows[0].dtype), strict=True)
    )
    if not pan:
        return ms, None
    fits = tf.debugging.assert_equal(
        tf.shape(pan[0])[:3],
        tf.shape(ms)[:3] * [1, 2, 2],
        "landsat_pan must be [N, 2h, 2w, 1] for landsat_ms [N, h, w, B]",
    )
    with tf.control_dependencies([fits]):  # or the network's own error, which says less, may come first
        return ms, tf.identity(pan[0])


def _forward(
    harmonizer: Harmonizer, ms: tf.Tensor, valid: tf.Tensor, pan: tf.Tensor | None, pan_valid: tf.Tensor | None
) -> Outputs:
    inputs = {"landsat_ms": ms, "landsat_valid": tf.cast(valid, tf.float32)}
    if pan is not None:
        inputs |= {"landsat_pan": pan, "landsat_pan_valid": tf.cast(pan_valid, tf.float32)}
    if not harmonizer.spread:
        return {"sentinel_ms": harmonizer(inputs, training=False)}
    return dict(zip(("sentinel_ms", "uncertainty"), harmonizer.judged(inputs), strict=True))


def _serving_default(harmonizer: Harmonizer, manifest: Manifest, *windows: tf.Tensor) -> Outputs:
    codes, pan = _guarded(manifest, windows)
    ms, valid = radiometry.decode(codes), tf.reduce_all(tf.not_equal(codes, 0), -1, keepdims=True)
    guide = (None, None) if pan is None else (radiometry.decode(pan), tf.not_equal(pan, 0))
    outputs, seen = _forward(harmonizer, ms, valid, *guide), repeat_pixels(valid, 3)
    outputs = {alias: radiometry.encode(x, seen) for alias, x in outputs.items()}
    # Of the codes, which end where the code's range does.
    return outputs | _quality(harmonizer, ms, valid, radiometry.decode(outputs["sentinel_ms"]))


def _reflectance(harmonizer: Harmonizer, manifest: Manifest, *windows: tf.Tensor) -> Outputs:
    ms, pan = _guarded(manifest, windows)
    valid = tf.reduce_all(tf.math.is_finite(ms), -1, keepdims=True)
    ms = tf.where(valid, ms, 0.0)
    pan_valid = None if pan is None else tf.math.is_finite(pan)
    pan = None if pan is None else tf.where(pan_valid, pan, 0.0)
    outputs, seen = _forward(harmonizer, ms, valid, pan, pan_valid), repeat_pixels(valid, 3)
    judged = _quality(harmonizer, ms, valid, outputs["sentinel_ms"])
    return {alias: tf.where(seen, x, np.nan) for alias, x in outputs.items()} | judged


def _quality(harmonizer: Harmonizer, ms: tf.Tensor, valid: tf.Tensor, output: tf.Tensor) -> Outputs:
    """What may be said of an output: the bits of `harmonize_tf.quality`, [N,3h,3w,1]."""
    error = tf.abs(harmonizer.degrade(output, tf.cast(valid, tf.float32)) - harmonizer.bandpass.apply(ms))
    consistent = tf.reduce_all(error <= quality.TOLERANCE, -1, keepdims=True)
    bits = tf.where(consistent, quality.DATA | quality.CONSISTENT, quality.DATA)
    return {"quality": repeat_pixels(tf.cast(tf.where(valid, bits, 0), tf.uint8), 3)}


def _tf_example(harmonizer: Harmonizer, manifest: Manifest, examples: tf.Tensor) -> Outputs:
    record = records.parse(tf.ensure_shape(examples, [None]), sentinel=False, pan=manifest.uses_pan)
    bands = ", ".join(manifest.bands)
    tf.debugging.assert_equal(record["bands"], tf.constant([manifest.bands]), f"expected records of bands {bands}")
    tf.debugging.assert_equal(record["level"], manifest.level, f"expected records of level {manifest.level}")
    windows = (record["landsat/ms"], record["landsat/pan"]) if manifest.uses_pan else (record["landsat/ms"],)
    return _serving_default(harmonizer, manifest, *windows)


def _manifest(manifest: Manifest, query: tf.Tensor) -> Outputs:
    text = tf.constant(np.frombuffer(manifest.to_json().encode(), np.uint8)[None])
    return {"manifest": tf.tile(text, [tf.size(tf.ensure_shape(query, [None])), 1])}


def sample_inputs(manifest: Manifest, size: int) -> dict[str, dict[str, np.ndarray]]:
    """Inputs for every signature, the same on each call: a window of size x size pixels of 30 m, some without data."""
    draw = np.random.default_rng(0)
    ms = draw.integers(1, 10000, (1, size, size, len(manifest.bands)), np.uint16)
    pan = draw.integers(1, 10000, (1, 2 * size, 2 * size, 1), np.uint16) if manifest.uses_pan else None
    ms[:, : size // 4, : size // 4] = 0
    windows = manifest.inputs(ms, pan)
    return {
        "serving_default": windows,
        "reflectance": {k: np.where(x == 0, np.float32("nan"), radiometry.decode(x)) for k, x in windows.items()},
        "tf_example": {"examples": np.array([_example(manifest, ms[0], None if pan is None else pan[0])], object)},
        "manifest": {"query": np.zeros(1, np.uint8)},
    }


def _example(manifest: Manifest, ms: np.ndarray, pan: np.ndarray | None) -> bytes:
    valid = np.all(ms != 0, -1).astype(np.uint8)
    landsat = records.Capture(ms=ms, valid=valid, scene_id="warm-up", product="", spacecraft="LANDSAT_8", pan=pan)
    return records.encode(
        records.Record(
            id="warm-up",
            split="test",
            block="",
            source="",
            level=manifest.level,
            bands=manifest.bands,
            crs="EPSG:32633",
            transform=(10.0, 0.0, 0.0, 0.0, -10.0, 0.0),
            landsat=landsat,
            sentinel=None,
        )
    )
