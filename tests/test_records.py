import gzip
import pathlib
import struct

import numpy as np
import pytest

from harmonize_tf import records
from harmonize_tf.errors import RecordError
from harmonize_tf.records import Capture, Record

GOLDEN = pathlib.Path(__file__).parent / "data" / "record_v1.tfrecord.gz"


def golden_record() -> Record:
    """What tests/data/record_v1.tfrecord.gz holds; never to be changed."""
    landsat = Capture(
        ms=(np.arange(4 * 6 * 4).reshape(4, 6, 4) * 101 % 65536).astype(np.uint16),
        valid=(np.arange(24).reshape(4, 6) % 5 > 0).astype(np.uint8),
        scene_id="LC08_L1TP_193023_20170216_20200905_02_T1",
        product="LC08_L1TP",
        spacecraft="LANDSAT_8",
        time_ms=1487239200123,
        sun=(63.5, 158.25),
        processing_baseline="",
        pan=(np.arange(8 * 12).reshape(8, 12, 1) * 307 % 65536).astype(np.uint16),
    )
    sentinel = Capture(
        ms=(65535 - np.arange(12 * 18 * 4).reshape(12, 18, 4) * 11).astype(np.uint16),
        valid=np.ones((12, 18), np.uint8),
        scene_id="S2A_MSIL1C_20170216T102101_N0204_R065_T33UUU_20170216T102204",
        product="S2MSI1C",
        spacecraft="SENTINEL_2A",
        time_ms=1487240461000,
        sun=(64.75, 162.5),
        view=(5.5, 104.125),
        processing_baseline="02.04",
    )
    return Record(
        id="0123456789abcdef0123",
        split="val",
        block="EPSG:32633:12:-7",
        source="geotiff",
        level="toa",
        bands=("blue", "green", "red", "nir"),
        crs="EPSG:32633",
        transform=(10.0, 0.0, 369610.000001, 0.0, -10.0, 5826010.0),
        landsat=landsat,
        sentinel=sentinel,
        dt_s=1260.875,
        valid_fraction=0.75,
        shift_m=(-2.5, 7.0),
    )


def random_record(rng: np.random.Generator, *, landsat=True, sentinel=True, pan=True) -> Record:
    rows, columns, bands = rng.integers(1, 9, 3).tolist()

    def capture(factor: int, with_pan: bool) -> Capture:
        shape = factor * rows, factor * columns
        return Capture(
            ms=rng.integers(0, 65536, (*shape, bands), np.uint16),
            valid=rng.integers(0, 2, shape, np.uint8),
            scene_id="scène " * int(rng.integers(0, 60)),
            product="P",
            spacecraft="SENTINEL_2B",
            time_ms=int(rng.integers(-(2**62), 2**62)),
            sun=tuple(rng.random(2, np.float32).tolist()),
            pan=rng.integers(0, 65536, (2 * shape[0], 2 * shape[1], 1), np.uint16) if with_pan else None,
        )

    return Record(
        id=rng.bytes(10).hex(),
        split="train",
        block="b",
        source="test",
        level="sr",
        bands=("blue", "green", "red", "nir", "swir1", "swir2", "a", "b")[:bands],
        crs="EPSG:32601",
        transform=tuple(rng.random(6).tolist()),
        landsat=capture(1, pan) if landsat else None,
        sentinel=capture(3, False) if sentinel else None,
        shift_m=tuple(rng.random(2, np.float32).tolist()),
    )


def assert_same(actual, expected) -> None:
    """Field by field, NaN equal to NaN."""
    assert type(actual) is type(expected)
    for name, value in vars(expected).items():
        if isinstance(value, Capture):
            assert_same(getattr(actual, name), value)
        elif isinstance(value, np.ndarray) or name in ("sun", "view", "shift_m", "dt_s"):
            np.testing.assert_array_equal(getattr(actual, name), value, err_msg=name)
        else:
            assert getattr(actual, name) == value, name


SIDES = [
    {},
    {"pan": False},
    {"landsat": False},
    {"sentinel": False},
]


@pytest.mark.parametrize("sides", SIDES)
def test_what_is_encoded_is_decoded(sides):
    record = random_record(np.random.default_rng(1), **sides)
    assert_same(records.decode(records.encode(record)), record)


@pytest.mark.parametrize("seed", range(8))
def test_encoder_and_decoder_agree_with_tensorflow(seed):
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    record = random_record(rng, pan=bool(seed % 2))
    ours = records.encode(record)
    message = tf.train.Example.FromString(ours)
    feature = message.features.feature
    assert feature["landsat/time_ms"].int64_list.value[:] == [record.landsat.time_ms]
    assert feature["id"].bytes_list.value[:] == [record.id.encode()]
    np.testing.assert_array_equal(feature["sentinel/sun"].float_list.value, np.float32(record.sentinel.sun))
    assert feature["sentinel/ms"].bytes_list.value[0] == record.sentinel.ms.astype("<u2").tobytes()
    assert message.SerializeToString(deterministic=True) == ours
    assert_same(records.decode(message.SerializeToString()), record)


def test_features_without_packing_decode_too():
    unpacked = b"".join(records._varint(1 << 3) + records._varint(n) for n in (7, 300))
    floats = b"".join(b"\x0d" + struct.pack("<f", x) for x in (0.5, -2.0))
    assert records._values(memoryview(records._field(3, unpacked))) == [7, 300]
    assert records._values(memoryview(records._field(2, floats))) == [0.5, -2.0]


@pytest.mark.parametrize("sides", SIDES)
def test_parse_gives_the_arrays_of_one_record_and_of_a_batch(sides):
    import tensorflow as tf

    wanted = {"landsat": True, "sentinel": True, "pan": True} | sides
    wanted["pan"] &= wanted["landsat"]
    record = random_record(np.random.default_rng(2), **sides)
    serialized = records.encode(record)
    parse = tf.function(lambda s: records.parse(s, **wanted))
    one, batch = parse(tf.constant(serialized)), parse(tf.constant([serialized] * 3))
    for side in ("landsat", "sentinel"):
        if not wanted[side]:
            assert f"{side}/ms" not in one
            continue
        capture = getattr(record, side)
        for name in ("ms", "valid") + ("pan",) * (wanted["pan"] and side == "landsat"):
            np.testing.assert_array_equal(one[f"{side}/{name}"], getattr(capture, name))
            np.testing.assert_array_equal(batch[f"{side}/{name}"], np.stack([getattr(capture, name)] * 3))
    assert one["bands"].numpy().tolist() == [band.encode() for band in record.bands]
    assert batch["id"].numpy().tolist() == [record.id.encode()] * 3


def test_parse_refuses_other_schemas_sizes_and_missing_sides(monkeypatch):
    import tensorflow as tf

    first, second = (random_record(np.random.default_rng(seed)) for seed in (3, 4))
    with pytest.raises(tf.errors.InvalidArgumentError):
        records.parse(tf.constant([records.encode(first), records.encode(second)]))
    without = random_record(np.random.default_rng(3), sentinel=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="sentinel/ms"):
        records.parse(tf.constant(records.encode(without)))
    monkeypatch.setattr(records, "SCHEMA", 2)
    other = records.encode(first)
    monkeypatch.undo()
    with pytest.raises(tf.errors.InvalidArgumentError, match="schema 1"):
        records.parse(tf.constant(other))
    with pytest.raises(RecordError, match="schema=2"):
        records.decode(other)


def test_the_golden_record_decodes_forever():
    (serialized,) = records.read_shard(GOLDEN)
    assert_same(records.decode(serialized), golden_record())
    assert records.encode(golden_record()) == serialized


def test_tensorflow_reads_our_shards_and_we_read_its(tmp_path):
    import tensorflow as tf

    data = [b"", b"a", np.random.default_rng(0).bytes(70_000)]
    (tmp_path / "ours.gz").write_bytes(records.shard(data))
    assert list(tf.data.TFRecordDataset(str(tmp_path / "ours.gz"), "GZIP").as_numpy_iterator()) == data
    with tf.io.TFRecordWriter(str(tmp_path / "theirs.gz"), "GZIP") as writer:
        for item in data:
            writer.write(item)
    assert list(records.read_shard(tmp_path / "theirs.gz")) == data


def test_equal_records_give_equal_shard_bytes(tmp_path):
    for name in ("one.gz", "another.gz"):
        (tmp_path / name).write_bytes(records.shard([records.encode(golden_record())]))
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "another.gz").read_bytes()


def damaged_shards() -> dict[str, bytes]:
    framed = [records.frame(bytes([65 + n]) * 100) for n in range(3)]
    flipped = bytearray(framed[1])
    flipped[40] ^= 1
    wrong_length = bytearray(framed[1])
    wrong_length[0] ^= 1
    whole = gzip.compress(b"".join(framed))
    return {
        "a flipped bit": gzip.compress(framed[0] + flipped),
        "a wrong length": gzip.compress(framed[0] + wrong_length),
        "an end within the data": gzip.compress(framed[0] + framed[1][:50]),
        "an end within the header": gzip.compress(framed[0] + framed[1][:5]),
        "a file cut off": gzip.compress(framed[0]) + whole[: len(whole) // 2],
    }


@pytest.mark.parametrize("damage", damaged_shards())
def test_a_damaged_shard_is_refused_with_file_record_and_remedy(tmp_path, damage):
    path = tmp_path / "00000-of-00001.tfrecord.gz"
    path.write_bytes(damaged_shards()[damage])
    reading = records.read_shard(path)
    assert next(reading) == b"A" * 100
    with pytest.raises(RecordError, match=r"record [1-3] .*harmonize export.*00000-of-00001") as caught:
        list(reading)
    assert "\n" not in str(caught.value)


def test_what_is_no_shard_is_refused(tmp_path):
    (tmp_path / "plain.gz").write_bytes(b"not gzip at all")
    for name in ("plain.gz", "missing.gz"):
        with pytest.raises(RecordError, match=name):
            list(records.read_shard(tmp_path / name))


def test_bytes_that_are_no_record_are_refused():
    serialized = records.encode(golden_record())
    for junk in (b"\x0a\xff", b"\xff" * 20, b"", serialized[: len(serialized) // 2], b"\x0b\x0b"):
        with pytest.raises(RecordError):
            records.decode(junk)


def test_arrays_of_the_wrong_size_are_never_written():
    bad = Capture(np.zeros((4, 4, 2), np.uint16), np.zeros((4, 5), np.uint8), "s", "p", "LANDSAT_8")
    with pytest.raises(ValueError, match=r"expected uint8 \(4, 4\)"):
        records._capture_features(bad)
