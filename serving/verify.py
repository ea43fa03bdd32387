"""Whether an exported version does in a server what it did in the exporting process.

    harmonize verify RUN/serving/MODEL
    harmonize verify RUN/serving/MODEL --target=host:port --model_name=MODEL

The warm-up records of a version carry the answers that the exporting process got. Here they are asked of the V1
loader, which is TensorFlow Serving's, in a process of its own: a model whose variables are not found, or that ends the
process when a tensor has the wrong rank, is caught before any server sees it. With `--target` a server is asked
instead, which must serve that version.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import flags
from tensorflow.core.protobuf import saved_model_pb2

from harmonize_tf import command, predictors, versions
from harmonize_tf.errors import FlagError, ModelError
from harmonize_tf.manifest import FILE as MANIFEST_FILE
from harmonize_tf.manifest import Manifest
from harmonize_tf.sensors import CODE
from serving import tensors
from serving.client import Client
from serving.servable import RequestError, Servable, warmup_logs

FLAGS = flags.FlagValues()
predictors.define_server_flags(FLAGS)
# By what the network computes in, codes: what another order of the same operations can change. In bfloat16 each result
# is rounded to 8 bits, which on the warm-up requests' noise of 4000 codes made up to 50 codes (6 on real scenes).
_TOLERANCE = {"float32": 1, "bfloat16": 64}
# The share of "quality" that may differ: what is within a rounding error of the bit's threshold.
_QUALITY_SHARE = 0.01
# How TensorFlow marks what XLA is to compile: functions, and nodes that call them.
_XLA = "_XlaMustCompile"


def verify(path: pathlib.Path) -> None:
    """Asks a version for all its recorded answers, and for an error where a rank is wrong.

    Raises:
      ModelError: it cannot be loaded, needs a compiler that servers do not have, answers differently, or takes a tensor
        of the wrong rank.
    """
    servable = Servable(path)
    _check_not_compiled(path)
    missing = set(servable.signatures) - {log.request.model_spec.signature_name for log in warmup_logs(path)}
    if missing:
        raise ModelError(f"every signature needs a warm-up record. Received: none for {', '.join(sorted(missing))}")
    for name, inputs in _compare_all(path, servable.predict):
        for alias in inputs:
            _check_rank_guard(servable, name, inputs, alias)
    servable.close()


def verify_served(path: pathlib.Path, client: Client) -> None:
    """Asks a server for all recorded answers of a version.

    Raises:
      ModelError: it serves another version, or answers differently.
      ServerError: it gives no answer.
    """
    if str(client.version) != path.name:
        raise ModelError(
            f"the server is to serve version {path.name} of {client.model!r}; let it load that one. "
            f"Received: version={client.version} from {client.target}"
        )
    for _ in _compare_all(path, client.ask):
        pass


def _compare_all(path: pathlib.Path, ask: Callable) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Compares the answers to all recorded requests; yields each one's signature and inputs."""
    precision = Manifest.from_json((path / MANIFEST_FILE).read_bytes()).precision
    for log in warmup_logs(path):
        name = log.request.model_spec.signature_name
        inputs = {alias: tensors.decode(proto) for alias, proto in log.request.inputs.items()}
        outputs = ask(inputs, name)
        for alias, expected in log.response.outputs.items():
            _compare(f"{name}.{alias}", outputs.get(alias), tensors.decode(expected), _TOLERANCE[precision])
        yield name, inputs


def _compare(what: str, actual: np.ndarray | None, expected: np.ndarray, codes: int) -> None:
    if actual is None:
        raise ModelError(f"the exported model answers with less than the model it was made of. Received: no {what}")
    tolerance = {np.dtype(np.uint16): codes, np.dtype(np.float32): codes * CODE.scale}.get(expected.dtype, 0)
    same = (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if same:
        close = np.isclose(actual.astype(float), expected.astype(float), 0, tolerance, equal_nan=True)
        same = np.mean(~close) <= (_QUALITY_SHARE if what.endswith(".quality") else 0)
    if not same:
        raise ModelError(
            f"the exported model answers differently from the model it was made of. Received: {what}="
            f"{actual.dtype} {actual.shape}, expected {expected.dtype} {expected.shape}"
        )


def _check_not_compiled(path: pathlib.Path) -> None:
    """Here XLA is at hand; a server refuses such functions unless it was started with a flag for it."""
    saved = saved_model_pb2.SavedModel.FromString((path / versions.SAVED_MODEL).read_bytes())
    for graph in (meta_graph.graph_def for meta_graph in saved.meta_graphs):
        functions = {f.signature.name: [f.attr, *(node.attr for node in f.node_def)] for f in graph.library.function}
        functions[""] = [node.attr for node in graph.node]
        for name, attributes in functions.items():
            if any(_XLA in found and found[_XLA].b for found in attributes):
                raise ModelError(
                    "functions with jit_compile=True end in `XLA compilation disabled` on a server; make them without. "
                    f"Received: {name or 'one in the graph itself'}"
                )


def _check_rank_guard(servable: Servable, name: str, inputs: dict[str, np.ndarray], alias: str) -> None:
    """Feeds one input without its first axis; may end the process where there is no guard."""
    wrong = {**inputs, alias: inputs[alias][0]}
    try:
        servable.predict_unchecked(wrong, name)
    except RequestError:
        return
    raise ModelError(f"a tensor of the wrong rank must be refused. Received: {name}.{alias} of {wrong[alias].shape}")


def main(argv: Sequence[str] | None = None) -> None:
    """Verifies the version named on the command line, or the newest of the model named there."""
    paths = command.parse(FLAGS, argv)
    if len(paths) != 1:
        raise FlagError(f"expected one folder, a version's or a model's. Received: {' '.join(paths) or 'none'}")
    path = versions.newest(pathlib.Path(paths[0]))
    if not FLAGS.target:
        verify(path)
    else:
        with predictors.served(**predictors.server_of(FLAGS)) as client:
            verify_served(path, client)
    print(f"{path}: answers as it should")


if __name__ == "__main__":
    command.run(main)
