"""The schema of an export as tensorflow-metadata's proto, and records held against one.

It lists the features of the `tf.train.Example` as they are written, so that TFX's tools can parse the records, and as
derived ones those of the statistics. Whoever wants more of the records narrows its ranges and lists by hand.
"""

import math
from collections.abc import Iterator

from tensorflow_metadata.proto.v0 import schema_pb2

from harmonize_tf import radiometry
from harmonize_tf.errors import DatasetError
from harmonize_tf.statistics.anomalies import Anomaly
from harmonize_tf.statistics.distribution import CODES
from harmonize_tf.statistics.groups import ALL, Group
from harmonize_tf.statistics.protos import REFLECTANCE, parsed

# The Example's features as they are written: name, type, and how many values; None: any number.
_SIDE = {"ms": ("BYTES", 1), "valid": ("BYTES", 1), "shape": ("INT", 3), "time_ms": ("INT", 1), "sun": ("FLOAT", 2),
         "view": ("FLOAT", 2), "scene": ("BYTES", 1), "product": ("BYTES", 1), "spacecraft": ("BYTES", 1),
         "processing_baseline": ("BYTES", 1)}  # fmt: skip
_EXAMPLE = {"schema": ("INT", 1), "id": ("BYTES", 1), "split": ("BYTES", 1), "block": ("BYTES", 1),
            "source": ("BYTES", 1), "level": ("BYTES", 1), "crs": ("BYTES", 1), "bands": ("BYTES", None),
            "transform": ("BYTES", 1), "pair/dt_s": ("FLOAT", 1), "pair/valid_fraction": ("FLOAT", 1),
            "pair/shift_m": ("FLOAT", 2)}  # fmt: skip
# Texts of the Example whose values a schema lists. `crs` is no part of it: other ground is no anomaly.
_LISTED = ("level", "source", "landsat/spacecraft", "sentinel/spacecraft")


def infer(group: Group) -> schema_pb2.Schema:
    """The schema of records as they are: which features there are, which texts they have, the range of the code."""
    made = schema_pb2.Schema()
    features = dict(_EXAMPLE)
    for side in ("landsat", "sentinel"):
        if f"{side}/spacecraft" in group.texts:
            features |= {f"{side}/{name}": kind for name, kind in _SIDE.items()}
    if "landsat/pan" in group.features:
        features["landsat/pan"] = ("BYTES", 1)
    for name, (kind, number) in sorted(features.items()):
        feature = made.feature.add(name=name, type=schema_pb2.FeatureType.Value(kind))
        feature.presence.min_fraction = _presence(group, name)
        if number:
            feature.shape.dim.add(size=number)
        else:
            feature.value_count.min = 1
        if name in _LISTED:
            feature.string_domain.name = name
            feature.string_domain.value.extend(sorted(group.texts[name]))
    lowest, highest = CODES.values(radiometry.LOWEST_CODE), CODES.values(radiometry.HIGHEST_CODE)
    derived = {f"{REFLECTANCE}{name}": (lowest, highest) for name in group.features}
    for name, figure in group.figures.items():
        if name not in features:
            derived[name] = figure.axis.low, figure.axis.values(figure.axis.size - 1)
    for name, (low, high) in sorted(derived.items()):
        feature = made.feature.add(name=name, type=schema_pb2.FLOAT)
        feature.float_domain.min, feature.float_domain.max = float(low), float(high)
        feature.lifecycle_stage = schema_pb2.VALIDATION_DERIVED
        feature.validation_derived_source.deriver_name = "harmonize_tf"
    return made


def _presence(group: Group, name: str) -> float:
    """Share of the patches that have a feature of the Example."""
    if name == "landsat/pan":
        return group.pans / group.patches
    side = name.split("/")[0]
    there = sum(group.texts.get(f"{side}/spacecraft", {}).values())
    return there / group.patches if side in ("landsat", "sentinel") else 1.0


def violations(group: Group, content: bytes, where: str) -> Iterator[Anomaly]:
    """What in the records is not as a schema wants it.

    Args:
      group: all records.
      content: of schema.pbtxt.
      where: it was read, for messages.

    Raises:
      DatasetError: it is no schema, or of other records.
    """
    wanted = parsed(content, schema_pb2.Schema(), where)
    known = {feature.name for feature in wanted.feature}
    if "bands" not in known:
        raise DatasetError(f"expected a schema.pbtxt that `harmonize statistics` has written. Received: schema={where}")
    for name in group.features:
        if REFLECTANCE + name not in known:
            yield _violation(REFLECTANCE + name, "is in the records and not in the schema", "Add it, or leave it out.")
    for feature in wanted.feature:
        yield from _against(feature, group)


def _against(feature: schema_pb2.Feature, group: Group) -> Iterator[Anomaly]:
    name, derived = feature.name, feature.name.removeprefix(REFLECTANCE)
    if name != derived and derived not in group.bands:
        yield _violation(name, "is in the schema, and no pixel of it in the records", "Export it, or take it out.")
    if name in ("landsat/ms", "sentinel/ms", "landsat/pan") and _presence(group, name) < feature.presence.min_fraction:
        there, least = _presence(group, name), feature.presence.min_fraction
        told = f"is in {there:.1%} of the patches; the schema wants {least:.1%}"
        yield _violation(name, told, "Export it, or lower its min_fraction.")
    for value, count in group.texts.get(name, {}).items():
        if feature.HasField("string_domain") and value not in feature.string_domain.value:
            listed = ", ".join(feature.string_domain.value)
            told = f"is {value or 'empty'} in {count} of {group.patches} patches; the schema lists {listed}"
            yield _violation(name, told, "Add it there, or export without these scenes.")
    values = group.bands.get(derived) or group.figures.get(name)
    if feature.HasField("float_domain") and values is not None:
        domain, slack = feature.float_domain, values.axis.step / 2
        low = domain.min if domain.HasField("min") else -math.inf
        high = domain.max if domain.HasField("max") else math.inf
        if values.low < low - slack or values.high > high + slack:
            told = f"goes from {values.low:.4f} to {values.high:.4f}; the schema allows {low:g} to {high:g}"
            yield _violation(name, told, "Find out what is wrong, or widen its float_domain.")


def _violation(name: str, told: str, remedy: str) -> Anomaly:
    return Anomaly("schema", ALL, name, f"{name} {told}. {remedy}")
