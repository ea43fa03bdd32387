"""The configuration files of tensorflow_model_server: read, checked and explained in its words.

Its protos for TLS and monitoring are not part of the tensorflow-serving-api package. A text proto needs names and types
only, so those few fields are declared here, from tensorflow_serving/config/{ssl,monitoring}_config.proto.
"""

import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

from harmonize_tf.errors import FlagError
from serving.servable import invalid

PLATFORM = "tensorflow"
_METRICS_PATH = "/monitoring/prometheus/metrics"
_FILES = """
name: "harmonize/server_config.proto"  package: "harmonize.server_config"  syntax: "proto3"
message_type {
  name: "SSLConfig"
  field { name: "server_key"    number: 1 type: TYPE_STRING }
  field { name: "server_cert"   number: 2 type: TYPE_STRING }
  field { name: "custom_ca"     number: 3 type: TYPE_STRING }
  field { name: "client_verify" number: 4 type: TYPE_BOOL }
}
message_type {
  name: "PrometheusConfig"
  field { name: "enable" number: 1 type: TYPE_BOOL }
  field { name: "path"   number: 2 type: TYPE_STRING }
}
message_type {
  name: "MonitoringConfig"
  field {
    name: "prometheus_config" number: 1 type: TYPE_MESSAGE type_name: ".harmonize.server_config.PrometheusConfig"
  }
}
"""
_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(text_format.Parse(_FILES, descriptor_pb2.FileDescriptorProto()).SerializeToString())


def _new(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"harmonize.server_config.{name}"))()


def _read(path: str | os.PathLike, message: Message) -> Any:
    try:
        return text_format.Parse(pathlib.Path(path).read_text(), message)
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error)
    except text_format.ParseError as error:  # its text quotes the line, which may be a private key
        reason = f"line {error.GetLine()}, column {error.GetColumn()}"
    raise FlagError(
        f"the file must be a {message.DESCRIPTOR.name} in protobuf's text format ({reason}). Received: {path}. "
        "serving/config/ has examples."
    )


def read_models(path: str | os.PathLike) -> model_server_config_pb2.ModelServerConfig:
    """Reads `--model_config_file`.

    Raises:
      FlagError: it cannot be read, or is no list of models.
    """
    config = _read(path, model_server_config_pb2.ModelServerConfig())
    if not config.model_config_list.config:
        raise FlagError(f"the file must hold a model_config_list with at least one config. Received: {path}")
    return config


def read_credentials(path: str | os.PathLike) -> grpc.ServerCredentials:
    """Reads `--ssl_config_file`: key, certificate and, for mutual TLS, the authority of clients' certificates, as PEM.

    Raises:
      FlagError: it cannot be read, or something is missing.
    """
    config = _read(path, _new("SSLConfig"))
    if not (config.server_key and config.server_cert) or (config.client_verify and not config.custom_ca):
        has = ", ".join(field.name for field, _ in config.ListFields()) or "nothing"
        raise FlagError(
            "server_key and server_cert must be given in PEM, and custom_ca as well where client_verify is true. "
            f"Received: {path} with {has}"
        )
    pair = (config.server_key.encode(), config.server_cert.encode())
    return grpc.ssl_server_credentials([pair], config.custom_ca.encode() or None, config.client_verify)


def read_metrics_path(path: str | os.PathLike) -> str | None:
    """Reads `--monitoring_config_file`: the HTTP path of the metrics; None where they are not enabled.

    Raises:
      FlagError: it cannot be read.
    """
    config = _read(path, _new("MonitoringConfig")).prometheus_config
    return (config.path or _METRICS_PATH) if config.enable else None


def models_config(models: Mapping[str, str | os.PathLike]) -> model_server_config_pb2.ModelServerConfig:
    """The configuration that serves the newest version of each model, from its folder by its name."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()
    for name, path in models.items():
        config.model_config_list.config.add(name=name, base_path=os.path.abspath(path), model_platform=PLATFORM)
    return config


def check(config: model_server_config_pb2.ModelServerConfig) -> None:
    """Checks what a configuration says, but for labels, which depend on what is loaded (server_core.cc).

    Raises:
      RequestError: it would not be accepted by TensorFlow Serving.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    models = config.model_config_list.config
    names = [model.name for model in models]
    for model in models:
        if names.count(model.name) > 1:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
    for model in models:
        if not os.path.isabs(model.base_path) and "://" not in model.base_path:
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
    for model in models:
        _check_platform(model)


def _check_platform(model: model_server_config_pb2.ModelConfig) -> None:
    if model.model_type and model.model_platform:
        raise invalid(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
        )
    if model.model_type not in (model_server_config_pb2.MODEL_TYPE_UNSPECIFIED, model_server_config_pb2.TENSORFLOW):
        raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    if not model.model_type and not model.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    if model.model_platform not in ("", PLATFORM):
        raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform}")


def aspired(
    policy: file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy,
    found: Collection[int],
) -> Sequence[int]:
    """The versions that a policy wants of those found, newest first; by default the newest one."""
    newest_first = sorted(found, reverse=True)
    match policy.WhichOneof("policy_choice"):
        case "all":
            return newest_first
        case "specific":
            return [number for number in newest_first if number in policy.specific.versions]
        case _:
            return newest_first[: max(policy.latest.num_versions, 1)]
