import pytest
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from serving import messages

# Protobuf's field types that are the same on the wire as our int32.
INTEGER = {"int32": 5, "enum": 14}
PAIRS = {
    "TensorProto": tensor_pb2.TensorProto,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
}


def assert_same_on_the_wire(ours, theirs, seen):
    if ours.name in seen:
        return
    seen.add(ours.name)
    for field in ours.fields:
        original = theirs.fields_by_name[field.name]
        assert field.number == original.number, f"{ours.name}.{field.name}"
        assert field.is_repeated == original.is_repeated
        if field.message_type is not None:
            assert_same_on_the_wire(field.message_type, original.message_type, seen)
        elif field.type != original.type:
            assert {field.type, original.type} == set(INTEGER.values()), f"{ours.name}.{field.name}"


@pytest.mark.parametrize("name", PAIRS)
def test_each_message_has_the_field_numbers_and_types_of_the_original(name):
    assert_same_on_the_wire(getattr(messages, name).DESCRIPTOR, PAIRS[name].DESCRIPTOR, set())


def test_a_request_survives_the_way_through_the_original_message():
    request = messages.PredictRequest(output_filter=["a"])
    request.model_spec.name = "subpixel"
    request.model_spec.version.value = 7
    request.inputs["landsat_ms"].dtype = 17
    request.inputs["landsat_ms"].tensor_shape.dim.add(size=3)
    original = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert original.model_spec.version.value == 7
    assert original.inputs["landsat_ms"].tensor_shape.dim[0].size == 3
    assert messages.PredictRequest.FromString(original.SerializeToString()) == request


def test_a_request_names_a_version_or_a_label_and_never_both():
    request = messages.PredictRequest()
    request.model_spec.version_label = "stable"
    original = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert original.model_spec.WhichOneof("version_choice") == "version_label"
    assert original.model_spec.version_label == "stable"
    request.model_spec.version.value = 7
    assert not request.model_spec.HasField("version_label")


def test_metadata_of_tensorflow_is_read():
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    signatures = get_model_metadata_pb2.SignatureDefMap()
    signatures.signature_def["serving_default"].inputs["x"].CopyFrom(meta_graph_pb2.TensorInfo(name="x:0", dtype=17))
    response.metadata["signature_def"].Pack(signatures)
    ours = messages.GetModelMetadataResponse.FromString(response.SerializeToString())
    read = messages.SignatureDefMap.FromString(ours.metadata["signature_def"].value)
    assert read.signature_def["serving_default"].inputs["x"].name == "x:0"
