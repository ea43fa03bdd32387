"""Statistics as tensorflow-metadata's protos, the text file that TFX's tools read, and back.

Features are of two kinds: those of the `tf.train.Example` itself (`harmonize_tf.records`), and what is derived from
them: `reflectance/SENSOR/BAND`, valid pixels in reflectance, and what `distribution.FIGURES` lists. What the protos
have no field for is in `custom_stats`.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import Message
from tensorflow_metadata.proto.v0 import path_pb2, statistics_pb2

from harmonize_tf.errors import DatasetError
from harmonize_tf.statistics.comparison import QUANTILES, Curve, Earlier, pooled
from harmonize_tf.statistics.distribution import Distribution
from harmonize_tf.statistics.groups import ALL, Group

REFLECTANCE = "reflectance/"
BUCKETS = 40
Parsed = TypeVar("Parsed", bound=Message)
Statistics, Feature = statistics_pb2.DatasetFeatureStatistics, statistics_pb2.FeatureNameStatistics


def statistics(groups: Mapping[str, Group]) -> statistics_pb2.DatasetFeatureStatisticsList:
    """One dataset for each split."""
    return statistics_pb2.DatasetFeatureStatisticsList(
        datasets=[_dataset(group) for name, group in groups.items() if name != ALL]
    )


def _dataset(group: Group) -> Statistics:
    dataset = Statistics(name=group.name, num_examples=group.patches)
    for feature, values in group.texts.items():
        dataset.features.append(_text(feature, values, group.patches))
    for name, figure in group.figures.items():
        dataset.features.append(_numeric(name, figure, group.patches, figure.count, figure.count))
    for feature in group.features:
        pixels, missing = group.pixels(feature)
        entry = _numeric(
            REFLECTANCE + feature, group.bands.get(feature), group.patches, group.seen(feature), pixels - missing
        )
        sensor = feature.split("/")[0]
        custom = {"valid_fraction": group.valid[sensor], "valid_without_data": missing / max(pixels, 1)}
        if (saturated := group.saturated(feature)) is not None:
            custom["saturated_fraction"] = saturated
        if feature in group.bands:
            custom["effective_patches"] = group.effective(feature)
        for fit in group.fits:
            if feature == f"landsat/{fit.band}":
                figures = {"cells": fit.cells, "slope": fit.slope, "offset": fit.offset, "r": fit.r}
                custom |= {f"fit/{fit.landsat}/{fit.sentinel}/{key}": value for key, value in figures.items()}
        entry.custom_stats.extend(statistics_pb2.CustomStatistic(name=key, num=value) for key, value in custom.items())
        dataset.features.append(entry)
    for bands, correlations in group.correlations.items():
        for i, j in np.ndindex(correlations.shape):
            cross = dataset.cross_features.add(count=group.patches)
            cross.path_x.step.append(f"{REFLECTANCE}landsat/{bands[i]}")
            cross.path_y.step.append(f"{REFLECTANCE}sentinel/{bands[j]}")
            cross.num_cross_stats.correlation = float(correlations[i, j])
    return dataset


def _common(patches: int, there: int, values: int) -> statistics_pb2.CommonStatistics:
    return statistics_pb2.CommonStatistics(
        num_non_missing=there, num_missing=patches - there, tot_num_values=values, avg_num_values=values / max(there, 1)
    )


def _text(name: str, values: Mapping[str, int], patches: int) -> Feature:
    common = _common(patches, sum(values.values()), sum(values.values()))
    common.min_num_values = common.max_num_values = 1
    stats = statistics_pb2.StringStatistics(common_stats=common, unique=len(values))
    for rank, (value, count) in enumerate(sorted(values.items(), key=lambda item: (-item[1], item[0]))):
        stats.top_values.add(value=value, frequency=count)
        stats.rank_histogram.buckets.add(low_rank=rank, high_rank=rank, label=value, sample_count=count)
    return Feature(path=path_pb2.Path(step=[name]), type=Feature.STRING, string_stats=stats)


def _numeric(name: str, values: Distribution | None, patches: int, there: int, count: int) -> Feature:
    stats = statistics_pb2.NumericStatistics(common_stats=_common(patches, there, count))
    if values is not None:
        stats.mean, stats.std_dev, stats.median = values.mean, values.std, values.median
        stats.min, stats.max = values.low, values.high
        stats.num_zeros = int(round(values.count * (values.share_from(0.0) - values.share_from(values.axis.step))))
        standard = statistics_pb2.Histogram(type=statistics_pb2.Histogram.STANDARD)
        _fill(standard, *values.buckets(BUCKETS))
        quantiles = statistics_pb2.Histogram(type=statistics_pb2.Histogram.QUANTILES)
        edges = np.concatenate([[values.low], values.quantile(np.arange(1, QUANTILES + 1) / QUANTILES)])
        _fill(quantiles, edges, np.full(QUANTILES, values.count / QUANTILES))
        stats.histograms.extend([standard, quantiles])
    return Feature(path=path_pb2.Path(step=[name]), type=Feature.FLOAT, num_stats=stats)


def _fill(histogram: statistics_pb2.Histogram, edges: np.ndarray, counts: np.ndarray) -> None:
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        histogram.buckets.add(low_value=float(low), high_value=float(high), sample_count=float(count))


def earlier(content: bytes, where: str) -> Earlier:
    """What an earlier export's statistics.pbtxt says.

    Raises:
      DatasetError: it is no such file, or says nothing of reflectance.
    """
    found = parsed(content, statistics_pb2.DatasetFeatureStatisticsList(), where)
    curves: dict[str, list[Curve]] = {}
    texts: dict[str, dict[str, int]] = {}
    for dataset in found.datasets:
        for feature in dataset.features:
            name = feature.path.step[0] if feature.path.step else feature.name
            if name.startswith(REFLECTANCE) and (one := _curve(feature, dataset.num_examples)):
                curves.setdefault(name.removeprefix(REFLECTANCE), []).append(one)
            for value in feature.string_stats.top_values:
                counted = texts.setdefault(name, {})
                counted[value.value] = counted.get(value.value, 0) + int(value.frequency)
    if not curves:
        raise DatasetError(
            f"expected the statistics.pbtxt that `harmonize statistics` writes; name the folder it is in. "
            f"Received: {where}"
        )
    patches = sum(dataset.num_examples for dataset in found.datasets)
    return Earlier(patches, {name: pooled(some) for name, some in curves.items()}, texts)


def _curve(feature: Feature, patches: int) -> Curve | None:
    for histogram in feature.num_stats.histograms:
        if histogram.type == statistics_pb2.Histogram.QUANTILES and histogram.buckets:
            counts = np.array([bucket.sample_count for bucket in histogram.buckets])
            edges = [histogram.buckets[0].low_value, *(bucket.high_value for bucket in histogram.buckets)]
            custom = {one.name: one.num for one in feature.custom_stats}
            shares = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
            return Curve(np.array(edges), shares, float(counts.sum()), custom.get("effective_patches", patches))
    return None


def to_text(message: Message) -> bytes:
    """A proto as a text file."""
    return text_format.MessageToString(message).encode()


def parsed(content: bytes, message: Parsed, where: str) -> Parsed:
    """A text file read into an empty proto.

    Raises:
      DatasetError: it is none of that kind.
    """
    try:
        return text_format.Parse(content.decode(), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"expected a text file of {message.DESCRIPTOR.full_name} ({' '.join(str(error).split())}). "
            f"Received: {where}"
        ) from error
