"""Whether an exported version does in a server what it did in the exporting process.

    python -m serving.verify RUN/serving/MODEL/VERSION

The warm-up records of a version carry the answers that the exporting process got. Here they are asked of the V1
loader, which is TensorFlow Serving's, in a process of its own: a model whose variables are not found, or that ends the
process when a tensor has the wrong rank, is caught before any server sees it.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from harmonize_tf import command
from harmonize_tf.errors import FlagError, ModelError
from serving import tensors
from serving.servable import RequestError, Servable, warmup_logs

FLAGS = flags.FlagValues()
# One code or 1e-4 reflectance: what another order of the same float32 operations can change.
_TOLERANCE = {np.dtype(np.uint16): 1, np.dtype(np.float32): 1e-4}


def verify(path: pathlib.Path) -> None:
    """Asks a version for all its recorded answers, and for an error where a rank is wrong.

    Raises:
      ModelError: it cannot be loaded, answers differently, or takes a tensor of the wrong rank.
    """
    servable = Servable(path)
    logs = list(warmup_logs(path))
    missing = set(servable.signatures) - {log.request.model_spec.signature_name for log in logs}
    if missing:
        raise ModelError(f"every signature needs a warm-up record. Received: none for {', '.join(sorted(missing))}")
    for log in logs:
        name = log.request.model_spec.signature_name
        inputs = {alias: tensors.decode(proto) for alias, proto in log.request.inputs.items()}
        outputs = servable.predict(inputs, name)
        for alias, expected in log.response.outputs.items():
            _compare(f"{name}.{alias}", outputs[alias], tensors.decode(expected))
        for alias in inputs:
            _check_rank_guard(servable, name, inputs, alias)
    servable.close()


def _compare(what: str, actual: np.ndarray, expected: np.ndarray) -> None:
    tolerance = _TOLERANCE.get(expected.dtype, 0)
    same_shape = (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if not same_shape or not np.allclose(actual.astype(float), expected.astype(float), 0, tolerance, equal_nan=True):
        raise ModelError(
            f"the exported model answers differently from the model it was made of. Received: {what}="
            f"{actual.dtype} {actual.shape}, expected {expected.dtype} {expected.shape}"
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
    """Verifies the version named on the command line."""
    paths = command.parse(FLAGS, argv)
    if len(paths) != 1:
        raise FlagError(f"expected one version's folder. Received: {' '.join(paths) or 'none'}")
    verify(pathlib.Path(paths[0]))
    print(f"{paths[0]}: answers as it should")


if __name__ == "__main__":
    command.run(main)
