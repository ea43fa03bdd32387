"""The model that scenes go through: in this process, or on a server.

What runs models is `serving`'s, which this package does not import: it is looked up by name when a command asks for it,
as `harmonize COMMAND` looks up the command's module. A client needs no TensorFlow, a model in this process does.
"""

import contextlib
import importlib
from collections.abc import Iterator

from harmonize_tf.products import Predictor


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
