"""The messages of TensorFlow Serving's API that a client needs, without importing TensorFlow.

`tensorflow_serving.apis` imports all of TensorFlow (5-6 s, and 500 MB to install). What a client exchanges are a
handful of small messages, so they are declared here from their field numbers and built by protobuf itself, in a
descriptor pool of their own that cannot clash with TensorFlow's. On the wire they are the same.

Source of names and numbers: tensorflow/core/framework/{tensor,tensor_shape}.proto, tensorflow/core/protobuf/
meta_graph.proto and tensorflow_serving/apis/{model,predict,get_model_metadata}.proto of TensorFlow 2.21; a test
compares each with the original.
"""

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "harmonize.serving"
# One message a line; `*` marks a repeated field, `%` a map from string, `|` those of which one at most is set.
# Enumerations are int32, the same on the wire.
_SCHEMA = """
Dim: int64 size = 1
TensorShapeProto: Dim* dim = 2, bool unknown_rank = 3
TensorProto: int32 dtype = 1, TensorShapeProto tensor_shape = 2, bytes tensor_content = 4, float* float_val = 5,
  double* double_val = 6, int32* int_val = 7, bytes* string_val = 8, int64* int64_val = 10, bool* bool_val = 11,
  int32* half_val = 13, uint32* uint32_val = 16, uint64* uint64_val = 17
TensorInfo: string name = 1, int32 dtype = 2, TensorShapeProto tensor_shape = 3
SignatureDef: TensorInfo% inputs = 1, TensorInfo% outputs = 2, string method_name = 3
SignatureDefMap: SignatureDef% signature_def = 1
Int64Value: int64 value = 1
Any: string type_url = 1, bytes value = 2
ModelSpec: string name = 1, Int64Value| version = 2, string signature_name = 3, string| version_label = 4
PredictRequest: ModelSpec model_spec = 1, TensorProto% inputs = 2, string* output_filter = 3
PredictResponse: TensorProto% outputs = 1, ModelSpec model_spec = 2
GetModelMetadataRequest: ModelSpec model_spec = 1, string* metadata_field = 2
GetModelMetadataResponse: ModelSpec model_spec = 1, Any% metadata = 2
"""
_FIELD = re.compile(r"(\w+)([*%|]?) (\w+) = (\d+)")


def _set_type(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    scalar = getattr(field, f"TYPE_{kind.upper()}", None)
    if scalar is not None:
        field.type = scalar
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"


def _add_map_entry(message: descriptor_pb2.DescriptorProto, name: str, kind: str) -> str:
    entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
    entry.options.map_entry = True
    _set_type(entry.field.add(name="key", number=1), "string")
    _set_type(entry.field.add(name="value", number=2), kind)
    return f"{message.name}.{entry.name}"


def _build() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="harmonize/serving.proto", package=_PACKAGE, syntax="proto3")
    for line in _SCHEMA.replace(",\n", ",").strip().splitlines():
        name, fields = line.split(": ", 1)
        message = file.message_type.add(name=name)
        for kind, many, field_name, number in _FIELD.findall(fields):
            field = message.field.add(name=field_name, number=int(number))
            field.label = field.LABEL_REPEATED if many in ("*", "%") else field.LABEL_OPTIONAL
            if many == "|":
                if not message.oneof_decl:
                    message.oneof_decl.add(name=f"{field_name}_choice")
                field.oneof_index = 0
            _set_type(field, _add_map_entry(message, field_name, kind) if many == "%" else kind)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _build()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


TensorProto = _message("TensorProto")
SignatureDefMap = _message("SignatureDefMap")
PredictRequest = _message("PredictRequest")
PredictResponse = _message("PredictResponse")
GetModelMetadataRequest = _message("GetModelMetadataRequest")
GetModelMetadataResponse = _message("GetModelMetadataResponse")
