"""The files that servers are deployed with: each parsed by its own schema, and true to one another."""

import importlib.resources
import json
import pathlib
import re
import shlex
import shutil

import grpc
import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import serving
from harmonize_tf import command
from harmonize_tf.errors import FlagError
from serving import server, server_config, tensors
from serving.server import DevelopmentServer
from trainer.task import OBJECTIVES

SERVING = pathlib.Path(serving.__file__).parent
CONFIG = SERVING / "config"
KUBERNETES = {
    document["kind"]: document
    for path in sorted((SERVING / "kubernetes").glob("*.yaml"))
    if path.name != "prometheus_adapter.yaml"
    for document in yaml.safe_load_all(path.read_text())
}
ADAPTER = yaml.safe_load((SERVING / "kubernetes" / "prometheus_adapter.yaml").read_text())
COMPOSE = yaml.safe_load((SERVING / "docker-compose.yml").read_text())
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
COMMANDS = {
    "cpu": COMPOSE["services"]["cpu"]["command"],
    "gpu": COMPOSE["services"]["gpu"]["command"],
    "kubernetes": CONTAINER["args"],
}
# The flags of tensorflow_model_server: flag_list in tensorflow_serving/model_servers/main.cc.
REAL_FLAGS = set(
    """
    allow_version_labels_for_unavailable_models batching_parameters_file enable_batching
    enable_grpc_healthcheck_service enable_model_warmup enable_per_model_batching_parameters enable_profiler
    enable_serialization_as_tensor_content enable_signature_method_name_check file_system_poll_wait_seconds
    flush_filesystem_caches grpc_channel_arguments grpc_max_threads grpc_socket_path load_retry_interval_micros
    max_num_load_retries mixed_precision model_base_path model_config_file model_config_file_poll_wait_seconds
    model_name monitoring_config_file num_load_threads num_request_iterations_for_warmup
    num_tflite_interpreters_per_pool num_tflite_pools num_unload_threads per_process_gpu_memory_fraction
    platform_config_file port prefer_tflite_model remove_unused_fields_from_bundle_metagraph
    rest_api_enable_cors_support rest_api_num_threads rest_api_port rest_api_timeout_in_ms saved_model_tags
    skip_initialize_tpu ssl_config_file tensorflow_inter_op_parallelism tensorflow_intra_op_parallelism
    tensorflow_session_config_file tensorflow_session_parallelism thread_pool_factory_config_file
    use_alts_credentials version xla_cpu_compilation_enabled xla_gpu_compilation_enabled
    """.split()
)
# tensorflow_serving/servables/tensorflow/session_bundle_config.proto, which tensorflow-serving-api does not carry.
BATCHING = """
name: "batching.proto" package: "test" syntax: "proto3" dependency: "google/protobuf/wrappers.proto"
message_type {
  name: "BatchingParameters"
  field { name: "max_batch_size"       number: 1 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "batch_timeout_micros" number: 2 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "max_enqueued_batches" number: 3 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "num_batch_threads"    number: 4 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "thread_pool_name"     number: 5 type: TYPE_MESSAGE type_name: ".google.protobuf.StringValue" }
  field { name: "allowed_batch_sizes"  number: 6 type: TYPE_INT64 label: LABEL_REPEATED }
  field { name: "pad_variable_length_inputs" number: 7 type: TYPE_BOOL }
}
"""


def flags_of(arguments):
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


@pytest.fixture(scope="module")
def batching():
    """Reads a file of batching parameters."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(text_format.Parse(BATCHING, descriptor_pb2.FileDescriptorProto()).SerializeToString())
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("test.BatchingParameters"))
    return lambda name: text_format.Parse((CONFIG / name).read_text(), message())


def test_all_methods_are_served_with_both_labels_on_versions_that_are_loaded():
    models = server_config.read_models(CONFIG / "models.config").model_config_list.config
    server_config.check(server_config.read_models(CONFIG / "models.config"))
    assert {model.name for model in models} == set(OBJECTIVES)
    for model in models:
        assert model.base_path == f"/models/{model.name}"
        assert set(model.version_labels) == {"stable", "canary"}
        assert set(model.version_labels.values()) == set(model.model_version_policy.specific.versions)


def test_the_development_server_starts_from_the_configuration_of_models(tiny_version, tmp_path):
    config = server_config.read_models(CONFIG / "models.config")
    for model in config.model_config_list.config:
        model.base_path = f"{tmp_path}/{model.name}"
        for version in (*model.model_version_policy.specific.versions, 1764999999):
            shutil.copytree(tiny_version, pathlib.Path(model.base_path, str(version)))
    request = predict_pb2.PredictRequest()
    tensors.encode(np.ones(3, np.float32), request.inputs["x"])
    with DevelopmentServer(config, allow_labels_for_unavailable=True) as running:
        with grpc.insecure_channel(running.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for model in config.model_config_list.config:
                request.model_spec.name = model.name
                for label, version in model.version_labels.items():
                    request.model_spec.version_label = label
                    assert stub.Predict(request).model_spec.version.value == version


@pytest.mark.parametrize(("name", "threads"), [("batching_parameters.pbtxt", 4), ("batching_parameters_gpu.pbtxt", 1)])
def test_batching_parameters_are_what_the_server_accepts(batching, name, threads):
    found = batching(name)
    sizes = list(found.allowed_batch_sizes)
    assert sizes == sorted(set(sizes)) and sizes[-1] == found.max_batch_size.value == 8
    assert found.batch_timeout_micros.value == 5000 and found.max_enqueued_batches.value == 16
    assert found.num_batch_threads.value == threads
    assert not found.pad_variable_length_inputs


def test_metrics_are_enabled_where_prometheus_is_told_to_look():
    path = server_config.read_metrics_path(CONFIG / "monitoring.pbtxt")
    annotations = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert path == annotations["prometheus.io/path"]
    assert annotations["prometheus.io/port"] == flags_of(CONTAINER["args"])["rest_api_port"]


@pytest.mark.parametrize("where", COMMANDS)
def test_every_flag_is_one_of_the_real_server_and_its_files_are_there(where):
    flags = flags_of(COMMANDS[where])
    assert flags.keys() <= REAL_FLAGS
    server._check_unknown(command.parse(server.FLAGS, COMMANDS[where], known_only=True))
    assert len(flags) == len(COMMANDS[where]), "a flag twice"
    files = {name: value for name, value in flags.items() if name.endswith("_file")}
    assert set(files) == {"model_config_file", "monitoring_config_file", "batching_parameters_file"}
    for value in files.values():
        assert value.startswith("/config/") and (CONFIG / value.removeprefix("/config/")).is_file()
    for name in ("enable_grpc_healthcheck_service", "allow_version_labels_for_unavailable_models"):
        assert flags[name] == "true"


def test_the_development_server_takes_every_flag_of_the_real_one_but_the_one_that_would_protect_nothing():
    assert server._WITHOUT_EFFECT == REAL_FLAGS - set(server.FLAGS) - {"use_alts_credentials"}
    with pytest.raises(FlagError, match="unknown argument"):
        server._check_unknown(["--use_alts_credentials=true"])


def test_the_three_commands_differ_in_what_a_gpu_and_a_cluster_need_only():
    cpu, gpu, kubernetes = (set(COMMANDS[where]) for where in ("cpu", "gpu", "kubernetes"))
    differing = {argument.split("=")[0] for argument in (cpu ^ gpu) | (cpu ^ kubernetes)}
    assert differing == {
        "--batching_parameters_file", "--per_process_gpu_memory_fraction", "--grpc_channel_arguments",
    }  # fmt: skip


def test_the_compose_file_follows_the_compose_specification():
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    jsonschema.validate(COMPOSE, json.loads((schemas / "compose-spec.json").read_text()))


@pytest.mark.parametrize("service", ["cpu", "gpu"])
def test_compose_shows_its_ports_to_this_machine_only_and_mounts_read_only(service):
    found = COMPOSE["services"][service]
    flags = flags_of(found["command"])
    assert found["profiles"] == [service]
    assert found["ports"] == [f"127.0.0.1:{port}:{port}" for port in (flags["port"], flags["rest_api_port"])]
    assert all(volume.endswith(":ro") for volume in found["volumes"])
    assert f"/127.0.0.1/{flags['port']}" in found["healthcheck"]["test"][-1]


@pytest.mark.parametrize("kind", KUBERNETES)
def test_a_kubernetes_object_follows_its_schema(kind):
    kubernetes_validate.validate(KUBERNETES[kind], "1.30", strict=True)


def test_kubernetes_objects_find_one_another():
    deployment, service, policy = (KUBERNETES[kind] for kind in ("Deployment", "Service", "NetworkPolicy"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    target = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    claim = KUBERNETES["PersistentVolumeClaim"]
    assert {"claimName": claim["metadata"]["name"], "readOnly": True} in [
        volume.get("persistentVolumeClaim") for volume in POD["volumes"]
    ]
    assert claim["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert {document["metadata"]["namespace"] for document in KUBERNETES.values()} == {"harmonize"}


def test_ports_probes_and_volumes_agree():
    flags = flags_of(CONTAINER["args"])
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"grpc": int(flags["port"]), "http": int(flags["rest_api_port"])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["grpc"] == {"port": ports["grpc"], "service": "PredictionService"}
    (port,) = KUBERNETES["Service"]["spec"]["ports"]
    assert KUBERNETES["Service"]["spec"]["clusterIP"] == "None"
    assert (port["port"], port["targetPort"]) == (ports["grpc"], "grpc")
    allowed = [rule["ports"] for rule in KUBERNETES["NetworkPolicy"]["spec"]["ingress"]]
    assert [[entry["port"] for entry in rule] for rule in allowed] == [[ports["grpc"]], [ports["http"]]]
    assert [mount["name"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")] == ["tmp"]
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    images = {COMPOSE["services"]["cpu"]["image"], CONTAINER["image"]}
    assert len(images) == 1 and COMPOSE["services"]["gpu"]["image"] == f"{images.pop()}-gpu"


def test_a_batch_has_a_core_for_each_thread(batching):
    threads = batching("batching_parameters.pbtxt").num_batch_threads.value
    assert CONTAINER["resources"]["requests"]["cpu"] == str(threads)


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes_of_the_queue(batching):
    (rule,) = ADAPTER["rules"]["custom"]
    (metric,) = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(":tensorflow:serving:batching_session:queuing_latency_bucket{")
    timeout = batching("batching_parameters.pbtxt").batch_timeout_micros.value
    assert int(metric["pods"]["target"]["averageValue"]) == 4 * timeout


def test_the_commands_of_the_documentation_are_understood():
    text = (SERVING.parent / "docs" / "serving.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^(tensorflow_model_server|harmonize serve) (.*)$", text, re.MULTILINE)
    assert len(lines) == 3
    for program, line in lines:
        if program == "tensorflow_model_server":
            assert flags_of(shlex.split(line)).keys() <= REAL_FLAGS
        server._check_unknown(command.parse(server.FLAGS, shlex.split(line), known_only=True))
    described = set(re.findall(r"^\| `--(\w+)=", text, re.MULTILINE)) - {"port"}
    described |= set(re.findall(r"`, `--(\w+)=", text))
    assert described and described <= {name for where in COMMANDS for name in flags_of(COMMANDS[where])}
