"""That the text files are TFX's protos, say what numpy says, and that a schema is held against records."""

import dataclasses

import ground_pairs
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from harmonize_tf import records
from harmonize_tf.errors import DatasetError
from harmonize_tf.statistics import protos, schema
from harmonize_tf.statistics.groups import ALL


@pytest.fixture(scope="module")
def by_split():
    return ground_pairs.splits(6, 3, 2)


@pytest.fixture(scope="module")
def figures(by_split):
    return ground_pairs.described(by_split)[0]


@pytest.fixture(scope="module")
def datasets(figures):
    text = protos.to_text(protos.statistics(figures)).decode()
    return {one.name: one for one in text_format.Parse(text, statistics_pb2.DatasetFeatureStatisticsList()).datasets}


@pytest.fixture(scope="module")
def inferred(figures):
    return protos.to_text(schema.infer(figures[ALL]))


def feature(dataset, name):
    (found,) = [one for one in dataset.features if list(one.path.step) == [name]]
    return found


def test_there_is_a_dataset_for_each_split_with_its_examples(datasets):
    assert {name: one.num_examples for name, one in datasets.items()} == {"train": 6, "val": 3, "test": 2}


def test_a_bands_statistics_are_numpys(datasets, by_split):
    sides = [record.sentinel for record in by_split["train"]]
    values = np.concatenate([side.ms[side.valid > 0][:, 2] for side in sides]) * 1e-4 - 0.1
    stats = feature(datasets["train"], "reflectance/sentinel/red").num_stats
    np.testing.assert_allclose(
        [stats.mean, stats.std_dev, stats.min, stats.max, stats.median],
        [values.mean(), values.std(), values.min(), values.max(), np.quantile(values, 0.5, method="inverted_cdf")],
    )
    assert (stats.common_stats.num_non_missing, stats.common_stats.tot_num_values) == (6, values.size)
    standard, quantiles = stats.histograms
    edges = [standard.buckets[0].low_value, *(bucket.high_value for bucket in standard.buckets)]
    np.testing.assert_array_equal([bucket.sample_count for bucket in standard.buckets], np.histogram(values, edges)[0])
    assert quantiles.type == statistics_pb2.Histogram.QUANTILES
    assert sum(bucket.sample_count for bucket in quantiles.buckets) == pytest.approx(values.size)


def test_what_the_protos_have_no_field_for_is_in_custom_statistics(datasets):
    custom = {one.name: one.num for one in feature(datasets["val"], "reflectance/landsat/green").custom_stats}
    assert custom["saturated_fraction"] == 0 and 0 < custom["valid_fraction"] < 1
    assert custom["fit/LANDSAT_8/SENTINEL_2A/r"] > 0.99 and custom["effective_patches"] >= 3
    spacecraft = feature(datasets["val"], "sentinel/spacecraft").string_stats
    assert [(one.value, one.frequency) for one in spacecraft.top_values] == [("SENTINEL_2A", 3)]


def test_the_schema_lists_the_examples_features_with_their_types_and_sizes(inferred, by_split):
    """What a TFX parser would make of it is held against the features of a record."""
    parsed = text_format.Parse(inferred.decode(), schema_pb2.Schema())
    told = {one.name: one for one in parsed.feature if one.lifecycle_stage != schema_pb2.VALIDATION_DERIVED}
    written = records._decode_example(records.encode(by_split["train"][0]))
    assert set(told) == set(written)
    python = {schema_pb2.BYTES: bytes, schema_pb2.INT: int, schema_pb2.FLOAT: float}
    for name, values in written.items():
        assert all(isinstance(value, python[told[name].type]) for value in values), name
        if name != "bands":
            assert told[name].shape.dim[0].size == len(values), name


def test_records_hold_to_their_own_schema_and_to_that_of_others_alike(figures, inferred):
    assert list(schema.violations(figures[ALL], inferred, "s")) == []
    others = ground_pairs.described(ground_pairs.splits(2, 2, 1, first=50))[0]
    assert list(schema.violations(others[ALL], inferred, "s")) == []


@pytest.mark.parametrize(
    ("change", "name", "told"),
    [
        (
            lambda r: dataclasses.replace(r, level="sr"),
            "level",
            "level is sr in 11 of 11 patches; the schema lists toa",
        ),
        (
            lambda r: dataclasses.replace(r, sentinel=dataclasses.replace(r.sentinel, spacecraft="SENTINEL_2C")),
            "sentinel/spacecraft",
            "the schema lists SENTINEL_2A",
        ),
        (lambda r: dataclasses.replace(r, landsat=None), "landsat/ms", "is in 0.0% of the patches"),
        (
            lambda r: dataclasses.replace(r, landsat=dataclasses.replace(r.landsat, pan=None)),
            "landsat/pan",
            "the schema wants 100.0%",
        ),
        (
            lambda r: ground_pairs.with_codes(r, "sentinel", lambda codes: codes * [1, 1, 1, 0]),
            "reflectance/sentinel/nir",
            "no pixel of it in the records",
        ),
    ],
)
def test_what_a_schema_does_not_allow_is_named(by_split, inferred, change, name, told):
    figures = ground_pairs.described(ground_pairs.changed(by_split, change))[0]
    found = {one.feature: one.sentence for one in schema.violations(figures[ALL], inferred, "s")}
    assert told in found[name]


def test_a_range_narrowed_by_hand_counts(figures, inferred):
    parsed = text_format.Parse(inferred.decode(), schema_pb2.Schema())
    for one in parsed.feature:
        if one.name == "reflectance/sentinel/nir":
            one.float_domain.max = 0.2
    (found,) = schema.violations(figures[ALL], protos.to_text(parsed), "s")
    assert found.feature == "reflectance/sentinel/nir" and "the schema allows -0.0999 to 0.2" in found.sentence


def test_a_feature_that_a_schema_does_not_know_is_named(figures, inferred):
    parsed = text_format.Parse(inferred.decode(), schema_pb2.Schema())
    kept = [one for one in parsed.feature if one.name != "reflectance/landsat/pan"]
    (found,) = schema.violations(figures[ALL], protos.to_text(schema_pb2.Schema(feature=kept)), "s")
    assert found.feature == "reflectance/landsat/pan" and "not in the schema" in found.sentence


@pytest.mark.parametrize("content", [b"", b"feature { nonsense: 3 }", b'feature { name: "petal_length" }'])
def test_what_is_no_schema_of_records_is_refused(figures, content):
    with pytest.raises(DatasetError, match="Received: .*x.pbtxt"):
        list(schema.violations(figures[ALL], content, "x.pbtxt"))
