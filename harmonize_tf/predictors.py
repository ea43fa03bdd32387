"""The model that scenes go through: in this process, or on a server.

What runs models is `serving`'s, which this package does not import: it is looked up by name when a command asks for it,
as `harmonize COMMAND` looks up the command's module. A client needs no TensorFlow, a model in this process does.
"""

import contextlib
import importlib
from collections.abc import Iterator

from absl import flags

from harmonize_tf.errors import FlagError
from harmonize_tf.products import Predictor


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines `--model`, for a model in this process, and those for one on a server."""
    told = "Exported model, RUN/serving/NAME (its newest version) or one version."
    flags.DEFINE_string("model", None, told, flag_values=flag_values)
    define_server_flags(flag_values)


def check_flags(flag_values: flags.FlagValues) -> None:
    """Wants a model in this process or a server.

    Raises:
      FlagError: both are given, or none.
    """
    model, target = flag_values["model"].value, flag_values["target"].value
    if bool(model) == bool(target):
        raise FlagError(
            f"expected either --model (a folder) or --target (a server). Received: model={model}, target={target}"
        )


def define_server_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that say which servers to ask for which model, and how."""
    for name, default, told in (
        ("target", None, "Server to ask, host:port; several separated by commas take turns."),
        ("model_name", "default", "The model's name there."),
        ("model_label", None, "Label of the version to ask for, such as stable; without one the newest is."),
        ("tls_ca", None, "PEM file of those who sign the server's certificate; TLS is then spoken."),
        ("tls_certificate", None, "PEM file by which the client shows who it is, where the server asks."),
        ("tls_key", None, "PEM file with its private key."),
    ):
        flags.DEFINE_string(name, default, told, flag_values=flag_values)


def server_of(flag_values: flags.FlagValues) -> dict[str, str | None]:
    """What those flags say, as `served` takes it."""
    names = {"target": "target", "name": "model_name", "label": "model_label", "ca": "tls_ca"}
    names |= {"certificate": "tls_certificate", "key": "tls_key"}
    return {argument: flag_values[flag].value for argument, flag in names.items()}


@contextlib.contextmanager
def local(directory: str) -> Iterator[Predictor]:
    """An exported model in this process.

    Args:
      directory: RUN/serving/NAME, whose newest version is taken, or one version's folder.

    Raises:
      ModelError: there is none that can be loaded.
    """
    yield importlib.import_module("serving.local").LocalPredictor(directory)


@contextlib.contextmanager
def served(
    target: str,
    name: str,
    *,
    label: str | None = None,
    ca: str | None = None,
    certificate: str | None = None,
    key: str | None = None,
) -> Iterator[Predictor]:
    """A model on a server, one version of it for as long as the context lasts.

    Args:
      target: host:port, or several separated by commas.
      name: the model's name there.
      label: label of the version there; None: the newest.
      ca: PEM file with those whose signature on the server's certificate is trusted; with any of these, TLS is spoken.
      certificate: PEM file by which the client shows who it is.
      key: PEM file with its key.

    Raises:
      ServerError: no server answers, or it has no such model.
      FlagError: the target cannot be one, or a PEM file cannot be read.
    """
    module = importlib.import_module("serving.client")
    credentials = module.tls(ca, certificate, key) if ca or certificate or key else None
    with module.Client(target, name, label=label, credentials=credentials) as client:
        yield client
