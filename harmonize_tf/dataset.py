"""Exported records as batches for a model: `DatasetInfo` says what there is, `paired` and `training` read it.

A batch is a pair of dicts of float32 tensors, sizes in 30 m pixels, reflectance unitless:

    inputs   landsat_ms        [batch, h, w, band]      any finite value where not valid
             landsat_valid     [batch, h, w, 1]         1 = has data; cloud counts as data
             landsat_pan       [batch, 2h, 2w, 1]       with `pan`
             landsat_pan_valid [batch, 2h, 2w, 1]       with `pan`
    targets  sentinel_ms       [batch, 3h, 3w, band]
             mask              [batch, 3h, 3w, 1]       1 = both sensors saw clear ground: what loss and metrics count
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from harmonize_tf import degradation, radiometry, records, sensors
from harmonize_tf.errors import DatasetError, RecordError
from harmonize_tf.geometry import CELL

Tensors = dict[str, tf.Tensor]

PAN_FACTOR = 2  # 15 m pixels along one side of a 30 m cell
SHUFFLE_BUFFER = 512  # records, 0.3 to 0.5 MB each; shards are read in random order and interleaved besides
CYCLE = 4  # shards read at once
AUGMENTATION = 2  # version of `turned` and `relit`; another one makes another training
GAIN = 3.0  # of the augmentation, this often or a third: a summer scene has about three times a winter scene's contrast
OFFSETS = (-0.05, 0.10)  # reflectance, of the augmentation: what haze adds to blue at the top of the atmosphere is 0.1
# What TensorFlow raises on damaged, malformed, missing and too few records.
_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.FailedPreconditionError,
)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Reflectance over the valid pixels of the train split, one number per band: `mean` and standard deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What `harmonize export` wrote about its records, dataset_info.json.

    Attributes:
      directory: where it was read.
      package_version: of harmonize_tf when exporting.
      source: name of the source of the scenes.
      level: "toa", "sr" or "uncalibrated".
      bands: band names in order.
      nir: Sentinel-2's band behind "nir", "B8" or "B8A".
      pan: whether the records hold the panchromatic band.
      patch_m: side of a patch, m.
      counts: number of records by split.
      spacecraft: number of records by spacecraft, by sensor.
      statistics: by "landsat", "sentinel" and, where there is one, "pan".
      plan_sha256: fingerprint of the plan that was exported.
      schema: version of the records.
    """

    directory: pathlib.Path
    package_version: str
    source: str
    level: str
    bands: tuple[str, ...]
    nir: str
    pan: bool
    patch_m: int
    counts: Mapping[str, int]
    spacecraft: Mapping[str, Mapping[str, int]]
    statistics: Mapping[str, Statistics]
    plan_sha256: str
    schema: int

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "DatasetInfo":
        """Reads a folder of examples' dataset_info.json.

        Raises:
          DatasetError: it is missing, damaged, or of a schema that this version does not read.
        """
        path = pathlib.Path(directory) / "dataset_info.json"
        if not path.is_file():
            raise DatasetError(
                f"expected the folder of a finished `harmonize export`, with dataset_info.json in it. Received: {path}"
            )
        try:
            values = json.loads(path.read_text())
            if values["schema"] != records.SCHEMA:
                raise DatasetError(
                    f"expected records of schema {records.SCHEMA}; export them again with this version of harmonize_tf "
                    f"({path}). Received: schema={values['schema']}"
                )
            known = {
                f.name: values[f.name] for f in dataclasses.fields(cls) if f.name not in ("directory", "statistics")
            }
            known["bands"] = tuple(values["bands"])
            statistics = {
                name: Statistics(tuple(map(float, s["mean"])), tuple(map(float, s["std"])))
                for name, s in values["statistics"].items()
            }
            return cls(directory=pathlib.Path(directory), statistics=statistics, **known)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"expected the JSON that `harmonize export` writes, run it again ({error!r}). Received: {path}"
            ) from error

    @property
    def sentinel_spacecraft(self) -> str:
        """The Sentinel-2 spacecraft that most records are from; of equals, the first by name."""
        counts = collections.Counter(self.spacecraft["sentinel"])
        if not counts or not self.spacecraft["landsat"]:
            raise DatasetError(
                f"these records hold one sensor only, and pairs are needed; export pairs of scenes. Received: "
                f"{self.directory}, spacecraft={dict(self.spacecraft)}"
            )
        return min(counts, key=lambda name: (-counts[name], name))

    @property
    def bandpass(self) -> radiometry.Bandpass:
        """The published adjustment Landsat -> Sentinel-2 for these records."""
        return radiometry.landsat_to_sentinel(self.bands, self.level, self.sentinel_spacecraft, self.nir)

    def shards(self, split: str) -> list[str]:
        """Paths of a split's shards, in order.

        Raises:
          DatasetError: the split holds no record, or shards are missing.
        """
        paths = sorted((self.directory / split).glob("*-of-*.tfrecord.gz"))
        if not self.counts.get(split) or not paths:
            raise DatasetError(
                f"the split {split!r} holds no records; export more scenes or other blocks. Received: "
                f"{self.directory}, counts={dict(self.counts)}"
            )
        declared = int(paths[0].name.split("-of-")[1].split(".")[0])
        if len(paths) != declared:
            raise DatasetError(
                f"expected {declared} shards of the split {split!r}; run `harmonize export` again, what is there is "
                f"kept. Received: {len(paths)} in {paths[0].parent}"
            )
        return [os.fspath(path) for path in paths]


def paired(info: DatasetInfo, split: str, *, batch: int, pan: bool) -> tf.data.Dataset:
    """All patches of a split once, whole and in order.

    Args:
      info: the records.
      split: "train", "val" or "test".
      batch: patches in a batch. The last batch is filled up with patches whose mask is 0, since a replica that gets
        nothing fails (tf.distribute).
      pan: whether the panchromatic band is read.

    Returns:
      Batches as described above.

    Raises:
      DatasetError: the split is empty, or there is no panchromatic band in the records.
    """
    _check_pan(info, pan)
    shards = tf.data.Dataset.from_tensor_slices(info.shards(split))
    serialized = _counted(shards.flat_map(_read), info.counts[split])
    patches = serialized.map(lambda r: _pair(info, r, pan), tf.data.AUTOTUNE)
    missing = -info.counts[split] % batch
    filling = patches.take(1).repeat(missing).map(lambda x, y: (x, y | {"mask": tf.zeros_like(y["mask"])}))
    return _options(patches.concatenate(filling).batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def training(
    info: DatasetInfo, *, batch: int, crop: int, pan: bool, seed: int, start: int = 0, split: str = "train"
) -> tf.data.Dataset:
    """Endless shuffled, cropped, turned and relit patches. What batch number k holds depends on the arguments alone.

    Args:
      info: the records.
      batch: patches in a batch.
      crop: side of the random crops, 30 m pixels; crops are aligned to 30 m cells.
      pan: whether the panchromatic band is read.
      seed: of the order, the crops, the symmetries and the light.
      start: number of the first batch; a resumed training continues where it was.
      split: the split to read.

    Returns:
      Batches as described above.

    Raises:
      DatasetError: the split is empty, crops are larger than patches, or there is no panchromatic band in the records.
    """
    _check_pan(info, pan)
    if not 0 < crop <= info.patch_m // CELL:
        raise DatasetError(
            f"a crop is 1 to {info.patch_m // CELL} pixels of 30 m, the size of the records. Received: crop={crop}"
        )

    def augmented(index: tf.Tensor, serialized: tf.Tensor) -> tuple[Tensors, Tensors]:
        where, which, light = tf.unstack(tf.random.experimental.stateless_split([seed, index], 3))
        return relit(
            turned(cropped(_pair(info, serialized, pan), crop, where), which), info.bands, info.bandpass, light
        )

    serialized = _shuffled(info, split, seed, start * batch)
    patches = serialized.enumerate(start * batch).map(augmented, tf.data.AUTOTUNE, deterministic=True)
    return _options(patches.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def training_ids(info: DatasetInfo, *, batch: int, seed: int, number: int, split: str = "train") -> list[str]:
    """The ids of the records in batch `number` (from 0) of `training`, read anew: training itself carries none."""
    serialized = _shuffled(info, split, seed, number * batch).take(batch)
    return [records.parse(record)["id"].numpy().decode() for record in serialized]


def _shuffled(info: DatasetInfo, split: str, seed: int, start: int) -> tf.data.Dataset:
    """A split's records, serialized, pass after pass in the orders that the seed gives, from number `start` on."""
    shards, count = info.shards(split), info.counts[split]
    first, begun = divmod(start, count)

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        # This function's own graph forgets the program's global seed, which `shuffle` would mix in.
        tf.compat.v1.set_random_seed(None)
        order = tf.random.experimental.stateless_shuffle(shards, seed=[seed, number])
        passage = tf.data.Dataset.from_tensor_slices(order).interleave(
            _read, cycle_length=min(CYCLE, len(shards)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        draw = tf.random.stateless_uniform([], [seed, number], minval=None, maxval=None, dtype=tf.int64)
        return _counted(passage, count).shuffle(min(SHUFFLE_BUFFER, count), seed=draw, reshuffle_each_iteration=False)

    return tf.data.Dataset.range(first, tf.int64.max).flat_map(one_pass).skip(begun)


def cropped(pair: tuple[Tensors, Tensors], crop: int, seed: tf.Tensor) -> tuple[Tensors, Tensors]:
    """A random window of `crop` x `crop` cells of 30 m out of a pair of unbatched dicts, the same ground in all."""
    cells = tf.shape(pair[0]["landsat_ms"])[:2]
    corner = tf.cast(tf.random.stateless_uniform([2], seed) * tf.cast(cells - crop + 1, tf.float32), tf.int32)

    def cut(name: str, x: tf.Tensor) -> tf.Tensor:
        factor = _factor(name)
        row, column = factor * corner[0], factor * corner[1]
        window = x[row : row + factor * crop, column : column + factor * crop]
        return tf.ensure_shape(window, [factor * crop, factor * crop, x.shape[-1]])

    return tuple({name: cut(name, x) for name, x in side.items()} for side in pair)


def turned(pair: tuple[Tensors, Tensors], seed: tf.Tensor) -> tuple[Tensors, Tensors]:
    """A pair of unbatched dicts of square images in one of the eight symmetries of the square, drawn from the seed."""
    symmetry = tf.random.stateless_uniform([], seed, maxval=8, dtype=tf.int32)
    return tuple({name: symmetric(x, symmetry) for name, x in side.items()} for side in pair)


def relit(
    pair: tuple[Tensors, Tensors], bands: Sequence[str], bandpass: radiometry.Bandpass, seed: tf.Tensor
) -> tuple[Tensors, Tensors]:
    """A pair of unbatched dicts under another light: one gain for all, and an offset for each band, as haze gives.

    Blur and band-pass are linear and the panchromatic band gets the offset of the bands that it covers, so that what
    comes out is again a pair. Without it a network takes the brightness of the few scenes that it was shown for
    granted, and draws a pattern of three rows over a brighter one.
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
    return inputs, targets


def symmetric(image: tf.Tensor, symmetry: int | tf.Tensor) -> tf.Tensor:
    """A square image [n, n, band] in symmetry 0..7: bit 0 mirrors left-right, bit 1 top-bottom, bit 2 transposes."""
    turned = tf.cond(symmetry & 1 > 0, lambda: image[:, ::-1], lambda: image)
    turned = tf.cond(symmetry & 2 > 0, lambda: turned[::-1], lambda: turned)
    turned = tf.cond(symmetry & 4 > 0, lambda: tf.transpose(turned, [1, 0, 2]), lambda: turned)
    return tf.ensure_shape(turned, image.shape)


@contextlib.contextmanager
def damage_named(info: DatasetInfo, split: str) -> Iterator[None]:
    """While records are read: finds which shard is at fault when TensorFlow fails on them.

    Raises:
      RecordError: a record of the split is damaged, or not what dataset_info.json declares.
    """
    try:
        yield
    except _UNREADABLE:
        check(info, split)
        raise


def check(info: DatasetInfo, split: str) -> None:
    """Reads every record of a split without TensorFlow.

    Raises:
      RecordError: one is damaged, or not what dataset_info.json declares, or some are missing.
    """
    count = 0
    for path in info.shards(split):
        for number, serialized in enumerate(records.read_shard(path)):
            try:
                _check_record(info, records.decode(serialized))
            except RecordError as error:
                raise RecordError(f"record {number} of {path}: {error}") from error
            count += 1
    if count != info.counts[split]:
        raise RecordError(
            f"expected the {info.counts[split]} records of the split {split!r} that dataset_info.json declares; run "
            f"`harmonize export` again. Received: {count} in {info.directory / split}"
        )


def _check_record(info: DatasetInfo, record: records.Record) -> None:
    side = info.patch_m // CELL
    shapes = [
        (record.landsat, (side, side, len(info.bands))),
        (record.sentinel, (degradation.FACTOR * side, degradation.FACTOR * side, len(info.bands))),
    ]
    agrees = all(capture is not None and capture.ms.shape == shape for capture, shape in shapes)
    agrees &= (record.bands, record.level) == (info.bands, info.level)
    if not agrees or (info.pan and record.landsat.pan is None):
        raise RecordError(
            f"it is not what dataset_info.json declares, {side} x {side} pixels of 30 m with bands "
            f"{','.join(info.bands)} at level {info.level}; run `harmonize export` again. Received: "
            f"bands={','.join(record.bands)}, level={record.level}, "
            f"shapes={[None if capture is None else capture.ms.shape for capture, _ in shapes]}"
        )


def _check_pan(info: DatasetInfo, pan: bool) -> None:
    if pan and not info.pan:
        raise DatasetError(
            f"these records hold no panchromatic band; use --nopan, or export scenes that have one. "
            f"Received: pan={pan}, {info.directory}"
        )


def _read(path: tf.Tensor) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(path, "GZIP")


def _counted(dataset: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """The same records; TensorFlow fails when there are more or fewer, as where a shard ends too early."""
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


def _factor(name: str) -> int:
    """Pixels along one side of a 30 m cell."""
    return {"landsat_pan": PAN_FACTOR, "landsat_pan_valid": PAN_FACTOR, "landsat_ms": 1, "landsat_valid": 1}.get(
        name, degradation.FACTOR
    )


def _pair(info: DatasetInfo, serialized: tf.Tensor, pan: bool) -> tuple[Tensors, Tensors]:
    """One record as unbatched inputs and targets."""
    arrays = records.parse(serialized, pan=pan)
    ms, sentinel = arrays["landsat/ms"], arrays["sentinel/ms"]
    clear = tf.repeat(tf.repeat(arrays["landsat/valid"], degradation.FACTOR, 0), degradation.FACTOR, 1)
    inputs = {
        "landsat_ms": radiometry.decode(ms),
        "landsat_valid": tf.cast(tf.reduce_all(ms > 0, -1, keepdims=True), tf.float32),
    }
    if pan:
        inputs["landsat_pan"] = radiometry.decode(arrays["landsat/pan"])
        inputs["landsat_pan_valid"] = tf.cast(arrays["landsat/pan"] > 0, tf.float32)
    targets = {
        "sentinel_ms": radiometry.decode(sentinel),
        "mask": tf.cast(arrays["sentinel/valid"] * clear, tf.float32)[..., None],
    }
    return tuple({name: _shaped(info, name, x) for name, x in side.items()} for side in (inputs, targets))


def _shaped(info: DatasetInfo, name: str, x: tf.Tensor) -> tf.Tensor:
    side = _factor(name) * info.patch_m // CELL
    return tf.ensure_shape(x, [side, side, len(info.bands) if name.endswith("_ms") else 1])


def _options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # One machine: replicas share each batch, they do not read files of their own.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
