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
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from harmonize_tf import augmentation, degradation, radiometry, records
from harmonize_tf.augmentation import Tensors
from harmonize_tf.errors import DatasetError, RecordError
from harmonize_tf.geometry import CELL
from harmonize_tf.models.layers import repeat_pixels
from harmonize_tf.synthesis import BlurPrior, Synthesis

SHUFFLE_BUFFER = 512  # records, 0.3 to 0.5 MB each; shards are read in random order and interleaved besides
CYCLE = 4  # shards read at once
KEPT_BYTES = 2**28  # of a split's shards: below it, it stays in memory unpacked, in about three times as much
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
    patches = _in_order(info, split, pan).map(lambda r: _pair(info, r, pan), tf.data.AUTOTUNE)
    missing = -info.counts[split] % batch
    filling = patches.take(1).repeat(missing).map(lambda x, y: (x, y | {"mask": tf.zeros_like(y["mask"])}))
    return _options(patches.concatenate(filling).batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def described(
    info: DatasetInfo, split: str, *, batch: int, pan: bool, chosen: Sequence[int] | None = None
) -> tf.data.Dataset:
    """The patches of a split once, whole and in order, as `paired` has them but with what tells of each pair.

    Args:
      info: the records.
      split: "train", "val" or "test".
      batch: patches in a batch; the last may have fewer.
      pan: whether the panchromatic band is read.
      chosen: numbers of patches, rising, if not all are wanted.

    Returns:
      Batches of inputs, targets and facts: id, block, landsat, sentinel (the spacecraft) string [batch], dt_s float32.

    Raises:
      DatasetError: the split is empty, or there is no panchromatic band in the records.
    """
    serialized = _in_order(info, split, pan)
    if chosen is not None:
        wanted = tf.constant(chosen, tf.int64)
        numbered = serialized.enumerate().filter(lambda number, _: tf.reduce_any(wanted == number))
        serialized = numbered.map(lambda _, record: record)

    def made(record: tf.Tensor) -> tuple[Tensors, Tensors, Tensors]:
        arrays = records.parse(record, pan=pan, facts=True)
        facts = {"id": arrays["id"], "block": arrays["block"], "dt_s": arrays["pair/dt_s"]}
        facts |= {side: arrays[f"{side}/spacecraft"] for side in ("landsat", "sentinel")}
        return *_pair_of(info, arrays, pan), facts

    return _options(serialized.map(made, tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE))


def _in_order(info: DatasetInfo, split: str, pan: bool) -> tf.data.Dataset:
    """A split's records, serialized."""
    _check_pan(info, pan)
    shards = tf.data.Dataset.from_tensor_slices(info.shards(split))
    return _counted(shards.flat_map(_read), info.counts[split])


def training(
    info: DatasetInfo,
    kind: str = "paired",
    *,
    batch: int,
    crop: int,
    pan: bool,
    seed: int,
    start: int = 0,
    split: str = "train",
    blur: BlurPrior | None = None,
    worker: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Endless shuffled crops in all symmetries. What batch number k holds depends on the arguments alone.

    The kinds are

        paired      what both sensors saw of a place, aligned to 30 m cells, under many lights
        natural     the same under its own light
        degraded    Sentinel-2's patches and what Landsat would have seen (`synthesis`), under many lights, some with
                    a cloud planted into them
        unpaired    Landsat's patches and Sentinel-2's, each in an order of its own, under their own light, some with
                    a cloud planted. The inputs hold landsat_clear [batch, h, w, 1] too, and mask is Sentinel-2's
                    alone: 1 = clear ground, or planted cloud

    Args:
      info: the records.
      kind: one of `KINDS`.
      batch: patches in a batch.
      crop: side of the random crops, 30 m pixels.
      pan: whether the panchromatic band is an input.
      seed: of the order, the crops, the symmetries, the light and what else is drawn.
      start: number of the first batch; a resumed training continues where it was.
      split: the split to read.
      blur: with "degraded" what Sentinel-2 is blurred by.
      worker: number of this worker and of all, which share each batch in equal parts.

    Returns:
      Batches as described above.

    Raises:
      DatasetError: the split is empty, crops are larger than patches, or there is no panchromatic band in the records.
    """
    _check_pan(info, pan and kind != "degraded")
    if not 0 < crop <= info.patch_m // CELL:
        raise DatasetError(
            f"a crop is 1 to {info.patch_m // CELL} pixels of 30 m, the size of the records. Received: crop={crop}"
        )
    made = KINDS[kind](info, crop, pan, blur)

    def augmented(index: tf.Tensor, serialized: Any) -> tuple[Tensors, Tensors]:
        return made(serialized, [seed, index])

    first = start * batch
    streams = tuple(_shuffled(info, split, stream, first) for stream in _seeds(kind, seed))
    serialized = streams[0] if len(streams) == 1 else tf.data.Dataset.zip(streams)
    numbered = serialized.enumerate(first)
    number, workers = worker
    if workers > 1:
        numbered = numbered.filter(lambda index, _: index % batch // (batch // workers) == number)
    patches = numbered.map(augmented, tf.data.AUTOTUNE, deterministic=True)
    return _options(patches.batch(batch // workers, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def training_ids(
    info: DatasetInfo, kind: str = "paired", *, batch: int, seed: int, number: int, split: str = "train"
) -> list[str]:
    """The ids of the records in batch `number` (from 0) of `training`, read anew: training itself carries none."""
    streams = [_shuffled(info, split, stream, number * batch).take(batch) for stream in _seeds(kind, seed)]
    return [records.parse(record)["id"].numpy().decode() for stream in streams for record in stream]


Maker = Callable[[Any, Sequence[Any]], tuple[Tensors, Tensors]]


def _paired_crops(info: DatasetInfo, crop: int, pan: bool, blur: BlurPrior | None) -> Maker:
    del blur

    def made(serialized: tf.Tensor, seed: Sequence[Any]) -> tuple[Tensors, Tensors]:
        where, which, light = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        pair = augmentation.cropped(_pair(info, serialized, pan), crop, where)
        return augmentation.relit(augmentation.turned(pair, which), info.bands, info.bandpass, light)

    return made


def _natural_crops(info: DatasetInfo, crop: int, pan: bool, blur: BlurPrior | None) -> Maker:
    del blur

    def made(serialized: tf.Tensor, seed: Sequence[Any]) -> tuple[Tensors, Tensors]:
        where, which = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        return augmentation.turned(augmentation.cropped(_pair(info, serialized, pan), crop, where), which)

    return made


def _degraded_crops(info: DatasetInfo, crop: int, pan: bool, blur: BlurPrior | None) -> Maker:
    synthesis = Synthesis(info.bands, info.bandpass, blur, crop, pan)

    def made(serialized: tf.Tensor, seed: Sequence[Any]) -> tuple[Tensors, Tensors]:
        view, which, light, cloud = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
        arrays = records.parse(serialized, landsat=False)
        sentinel = _sentinel(info, arrays)
        pair = synthesis(sentinel["sentinel_ms"], _data(arrays["sentinel/ms"]), sentinel["mask"], view)
        inputs, targets = augmentation.turned(pair, which)
        both = augmentation.clouded(inputs | targets, "mask", info.bandpass, cloud)
        pair = {name: both[name] for name in inputs}, {name: both[name] for name in targets}
        return augmentation.relit(pair, info.bands, info.bandpass, light)

    return made


def _unpaired_crops(info: DatasetInfo, crop: int, pan: bool, blur: BlurPrior | None) -> Maker:
    del blur

    def made(serialized: tuple[tf.Tensor, tf.Tensor], seed: Sequence[Any]) -> tuple[Tensors, Tensors]:
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 6))
        landsat = _landsat(info, records.parse(serialized[0], sentinel=False, pan=pan), pan)
        sentinel = _sentinel(info, records.parse(serialized[1], landsat=False))
        masks, sides = ("landsat_clear", "mask"), []
        drawn = zip((landsat, sentinel), masks, seeds[:2], seeds[2:4], seeds[4:], strict=True)
        for side, mask, where, which, cloud in drawn:
            (seen,) = augmentation.turned(augmentation.cropped((side,), crop, where), which)
            sides.append(augmentation.clouded(seen, mask, info.bandpass, cloud))
        return tuple(sides)

    return made


KINDS: Mapping[str, Callable[[DatasetInfo, int, bool, BlurPrior | None], Maker]] = {
    "paired": _paired_crops,
    "natural": _natural_crops,
    "degraded": _degraded_crops,
    "unpaired": _unpaired_crops,
}
"""How a training may show records; see `training`."""


def _seeds(kind: str, seed: int) -> tuple[int, ...]:
    """Those of the orders in which the records come, one for each stream."""
    apart = 7_368_787  # a prime; any number does that no other seed is likely to differ by
    return {"unpaired": (seed, seed + apart), "degraded": (seed + apart,)}.get(kind, (seed,))


def _shuffled(info: DatasetInfo, split: str, seed: int, start: int) -> tf.data.Dataset:
    """A split's records, serialized, pass after pass in the orders that the seed gives, from number `start` on."""
    shards, count = info.shards(split), info.counts[split]
    first, begun = divmod(start, count)
    read = _reader(shards)

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        # This function's own graph forgets the program's global seed, which `shuffle` would mix in.
        tf.compat.v1.set_random_seed(None)
        order = tf.random.experimental.stateless_shuffle(tf.range(len(shards)), seed=[seed, number])
        passage = tf.data.Dataset.from_tensor_slices(order).interleave(
            read, cycle_length=min(CYCLE, len(shards)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        draw = tf.random.stateless_uniform([], [seed, number], minval=None, maxval=None, dtype=tf.int64)
        return _counted(passage, count).shuffle(min(SHUFFLE_BUFFER, count), seed=draw, reshuffle_each_iteration=False)

    return tf.data.Dataset.range(first, tf.int64.max).flat_map(one_pass).skip(begun)


def _reader(shards: Sequence[str]) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Makes a function that reads a shard by its number; a small split is unpacked once and stays in memory."""
    states = [os.stat(shard) for shard in shards]
    if sum(state.st_size for state in states) > KEPT_BYTES:
        return lambda number: _read(tf.constant(shards)[number])
    kept = _unpacked(tuple((shard, state.st_mtime_ns) for shard, state in zip(shards, states, strict=True)))
    return lambda number: tf.data.Dataset.from_tensor_slices(kept[number])


@functools.lru_cache(maxsize=2)  # the streams of a training, and its checks, read the same split
def _unpacked(shards: tuple[tuple[str, int], ...]) -> tf.RaggedTensor:
    """The records of shards, [shard, (record)], given by their paths and when they were written."""
    listed = [list(records.read_shard(path)) for path, _ in shards]
    return tf.RaggedTensor.from_row_lengths([record for shard in listed for record in shard], [*map(len, listed)])


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


def _pair(info: DatasetInfo, serialized: tf.Tensor, pan: bool) -> tuple[Tensors, Tensors]:
    """One record as unbatched inputs and targets."""
    return _pair_of(info, records.parse(serialized, pan=pan), pan)


def _pair_of(info: DatasetInfo, arrays: Tensors, pan: bool) -> tuple[Tensors, Tensors]:
    inputs, targets = _landsat(info, arrays, pan), _sentinel(info, arrays)
    clear = repeat_pixels(inputs.pop("landsat_clear"), degradation.FACTOR)
    return inputs, targets | {"mask": targets["mask"] * clear}


def _landsat(info: DatasetInfo, arrays: Tensors, pan: bool) -> Tensors:
    """A record's Landsat side as unbatched inputs, with its own mask, landsat_clear [h, w, 1]."""
    side = {
        "landsat_ms": radiometry.decode(arrays["landsat/ms"]),
        "landsat_valid": _data(arrays["landsat/ms"]),
        "landsat_clear": tf.cast(arrays["landsat/valid"], tf.float32)[..., None],
    }
    if pan:
        side["landsat_pan"] = radiometry.decode(arrays["landsat/pan"])
        side["landsat_pan_valid"] = _data(arrays["landsat/pan"])
    return _shaped(info, side)


def _sentinel(info: DatasetInfo, arrays: Tensors) -> Tensors:
    """A record's Sentinel-2 side as unbatched targets, with its own mask."""
    side = {
        "sentinel_ms": radiometry.decode(arrays["sentinel/ms"]),
        "mask": tf.cast(arrays["sentinel/valid"], tf.float32)[..., None],
    }
    return _shaped(info, side)


def _data(dn: tf.Tensor) -> tf.Tensor:
    """Where codes [h, w, band] hold data in all bands, float32 [h, w, 1]."""
    return tf.cast(tf.reduce_all(dn > 0, -1, keepdims=True), tf.float32)


def _shaped(info: DatasetInfo, side: Tensors) -> Tensors:
    cells = info.patch_m // CELL

    def shaped(name: str, x: tf.Tensor) -> tf.Tensor:
        size = augmentation.pixels_per_cell(name) * cells
        return tf.ensure_shape(x, [size, size, len(info.bands) if name.endswith("_ms") else 1])

    return {name: shaped(name, x) for name, x in side.items()}


def _options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # One machine: replicas share each batch, they do not read files of their own.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
