"""The record: one `tf.train.Example` a patch, schema version 1. The only file that knows how it is laid out.

Arrays are raw little-endian bytes in the order row, column, band. Each side ("landsat", "sentinel") may be absent:

    schema               int64       1
    id split block source level crs  bytes (UTF-8)
    bands                bytes[B]    names, in the order of the last axis
    transform            bytes       6 float64: a b c d e f of the 10 m grid (float32 would be coarse by metres)
    SIDE/shape           int64[3]    h w B of SIDE/ms
    SIDE/ms              bytes       uint16 [h, w, B], reflectance code of `harmonize_tf.radiometry`, 0 = no data
    SIDE/valid           bytes       uint8 [h, w], 1 = clear ground by the sensor's own quality band
    SIDE/scene SIDE/product SIDE/spacecraft SIDE/processing_baseline  bytes
    SIDE/time_ms         int64       since 1970 UTC; 0 = not known
    SIDE/sun SIDE/view   float[2]    zenith, azimuth, degrees; NaN = not known
    landsat/pan          bytes       uint16 [2h, 2w, 1]; absent where there is none
    pair/dt_s            float       Sentinel-2's time minus Landsat's; NaN = not known
    pair/valid_fraction  float
    pair/shift_m         float[2]    Sentinel-2 against Landsat, east and north, m; NaN = not known

Writing, reading and checking need no TensorFlow; `feature_spec` and `parse` import it.
"""

import dataclasses
import gzip
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import google_crc32c
import numpy as np

from harmonize_tf.errors import RecordError

if TYPE_CHECKING:
    import tensorflow as tf

SCHEMA = 1
NOT_KNOWN = (float("nan"), float("nan"))
REMEDY = "Delete the file and run `harmonize export` again"


@dataclasses.dataclass(frozen=True, eq=False)
class Capture:
    """What one sensor saw of a patch.

    Attributes:
      ms: uint16 [h, w, band], reflectance code, 0 = no data.
      valid: uint8 [h, w], 1 where there is data and the sensor's own quality band calls it clear.
      scene_id: the scene's name in its source.
      product: collection or product type.
      spacecraft: such as "LANDSAT_8".
      time_ms: acquisition, milliseconds since 1970 UTC; 0: not known.
      sun: zenith and azimuth, degrees; NaN: not known.
      view: zenith and azimuth, degrees; NaN: not known.
      processing_baseline: Sentinel-2's, "" otherwise.
      pan: uint16 [2h, 2w, 1], Landsat's panchromatic band, or None.
    """

    ms: np.ndarray
    valid: np.ndarray
    scene_id: str
    product: str
    spacecraft: str
    time_ms: int = 0
    sun: tuple[float, float] = NOT_KNOWN
    view: tuple[float, float] = NOT_KNOWN
    processing_baseline: str = ""
    pan: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A patch: the two sensors' captures of one place, or one of them.

    Attributes:
      id: name of the patch, a hash of where and from what it was taken.
      split: "train", "val" or "test".
      block: name of the ground cell, all of which is in one split.
      source: name of the source, such as "geotiff".
      level: "toa", "sr" or "uncalibrated".
      bands: band names in the order of the captures' last axis.
      crs: such as "EPSG:32633".
      transform: a, b, c, d, e, f of the patch's 10 m grid.
      landsat: capture at 30 m, or None.
      sentinel: capture at 10 m, or None.
      dt_s: Sentinel-2's time minus Landsat's, seconds; NaN: not known.
      valid_fraction: share of the patch that is valid on every side there is.
      shift_m: where Sentinel-2's image lies against Landsat's, east and north, m; NaN: not known.
    """

    id: str
    split: str
    block: str
    source: str
    level: str
    bands: tuple[str, ...]
    crs: str
    transform: tuple[float, float, float, float, float, float]
    landsat: Capture | None
    sentinel: Capture | None
    dt_s: float = float("nan")
    valid_fraction: float = 1.0
    shift_m: tuple[float, float] = NOT_KNOWN


def encode(record: Record) -> bytes:
    """The record as a serialized `tf.train.Example`; equal records give equal bytes."""
    features: dict[str, list] = {
        "schema": [SCHEMA],
        "bands": [band.encode() for band in record.bands],
        "transform": [np.asarray(record.transform, "<f8").tobytes()],
        "pair/dt_s": [float(record.dt_s)],
        "pair/valid_fraction": [float(record.valid_fraction)],
        "pair/shift_m": [float(shift) for shift in record.shift_m],
    }
    for name in ("id", "split", "block", "source", "level", "crs"):
        features[name] = [getattr(record, name).encode()]
    for side in ("landsat", "sentinel"):
        if (capture := getattr(record, side)) is not None:
            features |= {f"{side}/{name}": values for name, values in _capture_features(capture).items()}
    return _encode_example(features)


def _capture_features(capture: Capture) -> dict[str, list]:
    rows, columns, bands = capture.ms.shape
    features: dict[str, list] = {
        "shape": [rows, columns, bands],
        "ms": [_raw(capture.ms, "<u2", (rows, columns, bands))],
        "valid": [_raw(capture.valid, "u1", (rows, columns))],
        "scene": [capture.scene_id.encode()],
        "product": [capture.product.encode()],
        "spacecraft": [capture.spacecraft.encode()],
        "processing_baseline": [capture.processing_baseline.encode()],
        "time_ms": [int(capture.time_ms)],
        "sun": [float(angle) for angle in capture.sun],
        "view": [float(angle) for angle in capture.view],
    }
    if capture.pan is not None:
        features["pan"] = [_raw(capture.pan, "<u2", (2 * rows, 2 * columns, 1))]
    return features


def _raw(array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> bytes:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"expected {np.dtype(dtype)} {shape}. Received: array={array.dtype} {array.shape}")
    return np.ascontiguousarray(array, dtype).tobytes()


def decode(serialized: bytes) -> Record:
    """Reads what `encode` wrote, on this or an earlier version.

    Raises:
      RecordError: it is no record, of another schema, or its arrays have not the size they should.
    """
    features = _decode_example(serialized)
    try:
        if features["schema"] != [SCHEMA]:
            raise RecordError(
                f"expected a record of schema {SCHEMA}; read it with the version of harmonize_tf that wrote it, or run "
                f"`harmonize export` again. Received: schema={features['schema'][0]}"
            )
        return Record(
            **{name: features[name][0].decode() for name in ("id", "split", "block", "source", "level", "crs")},
            bands=tuple(band.decode() for band in features["bands"]),
            transform=tuple(np.frombuffer(features["transform"][0], "<f8").tolist()),
            landsat=_capture(features, "landsat"),
            sentinel=_capture(features, "sentinel"),
            dt_s=features["pair/dt_s"][0],
            valid_fraction=features["pair/valid_fraction"][0],
            shift_m=tuple(features["pair/shift_m"]),
        )
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise RecordError(
            f"expected a record of schema {SCHEMA} with the features that harmonize_tf.records lists ({error!r}). "
            f"{REMEDY}. Received: features={','.join(sorted(features)) or 'none'}"
        ) from error


def _capture(features: Mapping[str, list], side: str) -> Capture | None:
    if f"{side}/ms" not in features:
        return None
    rows, columns, bands = features[f"{side}/shape"]
    pan = features.get(f"{side}/pan")
    return Capture(
        ms=np.frombuffer(features[f"{side}/ms"][0], "<u2").reshape(rows, columns, bands),
        valid=np.frombuffer(features[f"{side}/valid"][0], "u1").reshape(rows, columns),
        scene_id=features[f"{side}/scene"][0].decode(),
        product=features[f"{side}/product"][0].decode(),
        spacecraft=features[f"{side}/spacecraft"][0].decode(),
        time_ms=features[f"{side}/time_ms"][0],
        sun=tuple(features[f"{side}/sun"]),
        view=tuple(features[f"{side}/view"]),
        processing_baseline=features[f"{side}/processing_baseline"][0].decode(),
        pan=None if pan is None else np.frombuffer(pan[0], "<u2").reshape(2 * rows, 2 * columns, 1),
    )


def feature_spec(
    *, landsat: bool = True, sentinel: bool = True, pan: bool = False, facts: bool = False
) -> dict[str, Any]:
    """What `tf.io.parse_example` needs; training and the signature `tf_example` use the same.

    Args:
      landsat: the records must hold Landsat's side.
      sentinel: the records must hold Sentinel-2's side.
      pan: the records must hold the panchromatic band.
      facts: what tells of the pair is read too.
    """
    import tensorflow as tf

    spec = {
        "schema": tf.io.FixedLenFeature([], tf.int64, default_value=0),
        "id": tf.io.FixedLenFeature([], tf.string),
        "level": tf.io.FixedLenFeature([], tf.string),
        "bands": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    }
    for side in _sides(landsat, sentinel):
        spec |= {f"{side}/{name}": tf.io.FixedLenFeature([], tf.string) for name in ("ms", "valid", "spacecraft")}
        spec[f"{side}/shape"] = tf.io.FixedLenFeature([3], tf.int64)
    if facts:
        spec |= {"block": tf.io.FixedLenFeature([], tf.string), "pair/dt_s": tf.io.FixedLenFeature([], tf.float32)}
    return spec | ({"landsat/pan": tf.io.FixedLenFeature([], tf.string)} if pan else {})


def parse(
    serialized: "tf.Tensor", *, landsat: bool = True, sentinel: bool = True, pan: bool = False, facts: bool = False
) -> dict[str, "tf.Tensor"]:
    """Serialized records as tensors, in a graph or eagerly; `encode`'s counterpart for training and serving.

    Args:
      serialized: string [] for one record, or [N] for records whose captures have one size.
      landsat: as for `feature_spec`.
      sentinel: as for `feature_spec`.
      pan: as for `feature_spec`.
      facts: as for `feature_spec`.

    Returns:
      With a leading N for a batch: "id" and "level" string [], "bands" string [B]; for each side "SIDE/ms" uint16
      [h, w, B], "SIDE/valid" uint8 [h, w], "SIDE/spacecraft" string []; with `pan` "landsat/pan" uint16 [2h, 2w, 1];
      with `facts` "block" string [] and "pair/dt_s" float32 [].
    """
    import tensorflow as tf

    features = tf.io.parse_example(serialized, feature_spec(landsat=landsat, sentinel=sentinel, pan=pan, facts=facts))
    tf.debugging.assert_equal(features.pop("schema"), np.int64(SCHEMA), f"expected records of schema {SCHEMA}")
    batch = tf.shape(serialized, tf.int64)
    for side in _sides(landsat, sentinel):
        shapes = tf.reshape(features.pop(f"{side}/shape"), [-1, 3])
        shape = tf.reduce_max(shapes, 0)
        tf.debugging.assert_equal(shapes, shape[None], f"{side}: expected records of one size")
        arrays = {"ms": (tf.uint16, shape), "valid": (tf.uint8, shape[:2])}
        if pan and side == "landsat":
            arrays["pan"] = (tf.uint16, tf.concat([2 * shape[:2], [1]], 0))
        for name, (dtype, size) in arrays.items():
            flat = tf.io.decode_raw(features[f"{side}/{name}"], dtype)
            features[f"{side}/{name}"] = tf.reshape(flat, tf.concat([batch, size], 0))
    return features


def _sides(landsat: bool, sentinel: bool) -> list[str]:
    return ["landsat"] * landsat + ["sentinel"] * sentinel


# TFRecord framing (tensorflow/core/lib/io/record_writer.h): uint64 length, its masked CRC32C, the data, its masked
# CRC32C, all little-endian. The mask is that of tensorflow/core/lib/hash/crc32c.h.


def frame(serialized: bytes) -> bytes:
    """One record as it stands in a TFRecord file."""
    length = struct.pack("<Q", len(serialized))
    return b"".join((length, _masked_crc(length), serialized, _masked_crc(serialized)))


def shard(serialized: Iterable[bytes]) -> bytes:
    """A gzipped TFRecord file; equal records give equal bytes (the header holds no time and no name)."""
    file = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:
        for record in serialized:
            compressed.write(frame(record))
    return file.getvalue()


def read_shard(file: str | os.PathLike | BinaryIO) -> Iterator[bytes]:
    """Serialized records of a gzipped TFRecord file, given by its path or opened, checked.

    Raises:
      RecordError: the file is missing, is not gzipped TFRecord, was cut off, or a check sum does not fit.
    """
    number = 0
    try:
        with gzip.open(file) as compressed:
            while header := compressed.read(12):
                length = _checked(header, 8)
                size = struct.unpack("<Q", length)[0]
                yield _checked(compressed.read(size + 4), size)
                number += 1
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RecordError(
            f"expected a gzipped TFRecord file, but record {number} cannot be read: {error}. {REMEDY}. "
            f"Received: path={file}"
        ) from error


def _checked(data: bytes, size: int) -> bytes:
    if len(data) != size + 4:
        raise EOFError("the file ends within the record")
    if _masked_crc(data[:size]) != data[size:]:
        raise ValueError("its check sum does not fit")
    return data[:size]


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# Protocol buffers' wire format of tensorflow/core/example/{example,feature}.proto: an Example holds Features (field 1),
# these a map (field 1) of name (1) to Feature (2), and a Feature one list: bytes (1), float (2) or int64 (3).


def _encode_example(features: Mapping[str, Sequence]) -> bytes:
    entries = (_field(1, name.encode()) + _field(2, _feature(features[name])) for name in sorted(features))
    return _field(1, b"".join(_field(1, entry) for entry in entries))


def _feature(values: Sequence) -> bytes:
    if isinstance(values[0], bytes):
        return _field(1, b"".join(_field(1, value) for value in values))
    if isinstance(values[0], float):
        return _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
    return _field(3, _field(1, b"".join(_varint(value & (1 << 64) - 1) for value in values)))


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _decode_example(serialized: bytes) -> dict[str, list]:
    """Every feature's values by name. Raises RecordError where the bytes are no Example."""
    features: dict[str, list] = {}
    try:
        for _, message in _fields(memoryview(serialized)):
            for _, entry in _fields(message):
                pair = dict(_fields(entry))
                features[bytes(pair[1]).decode()] = _values(pair.get(2, b""))
    except (KeyError, IndexError, ValueError, TypeError, struct.error) as error:
        raise RecordError(
            f"expected a serialized tf.train.Example ({error!r}). {REMEDY}. Received: {bytes(serialized[:16])!r}"
        ) from error
    return features


def _values(feature: memoryview) -> list:
    values: list = []
    for kind, message in _fields(feature):
        for _, value in _fields(message):
            if kind == 1:
                values.append(bytes(value))
            elif kind == 2:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            else:
                values += [value] if isinstance(value, int) else _varints(value)
    return [value - (1 << 64) if isinstance(value, int) and value >> 63 else value for value in values]


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Field number and content: an integer for a varint, the bytes otherwise."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag & 7 == 0:
            value, at = _read_varint(message, at)
            yield tag >> 3, value
            continue
        if tag & 7 not in (2, 5):
            raise ValueError(f"wire type {tag & 7}")
        size, at = _read_varint(message, at) if tag & 7 == 2 else (4, at)
        if at + size > len(message):
            raise ValueError("it ends too early")
        yield tag >> 3, message[at : at + size]
        at += size


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        yield value


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
