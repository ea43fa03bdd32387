"""The model that scenes go through: exported into a folder, or on a fleet of servers.

What it is can be told without TensorFlow, which only workers need that run a model themselves.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

import harmonize_tf
from beam_jobs.folder import Folder
from harmonize_tf import manifest, predictors, versions
from harmonize_tf.errors import ModelError
from harmonize_tf.manifest import Manifest
from harmonize_tf.products import Predictor


def identity(told: Manifest, version: str | int) -> dict[str, str]:
    """What decides the pixels of a product besides the scene: equal for a model and a server of it."""
    digest = hashlib.sha256(told.to_json().encode()).hexdigest()
    return {"model": digest, "version": str(version), "package_version": harmonize_tf.__version__}


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A version of a model that each process runs itself.

    Attributes:
      url: of the version's folder, on this machine or in a bucket.
    """

    url: str

    @classmethod
    def newest(cls, directory: str) -> "ExportedModel":
        """The newest version in RUN/serving/NAME, or the version that is given.

        Raises:
          ModelError: there is none.
        """
        folder = Folder(directory)
        sizes = folder.sizes()
        found = versions.complete(sizes)
        if not found and versions.SAVED_MODEL not in sizes:
            raise ModelError(
                "expected a SavedModel, or a folder with numbered versions of one; export one with `harmonize push`. "
                f"Received: model={directory}"
            )
        return cls([str(folder), *(f"{folder}/{name}" for name in found.values())][-1])

    def identity(self) -> dict[str, str]:
        """See the function of that name.

        Raises:
          ModelError: it was not exported by `harmonize push`.
        """
        try:
            content = Folder(self.url).read(manifest.FILE)
        except FileNotFoundError as error:
            raise ModelError(
                f"the SavedModel has no {manifest.FILE}, so its bands and scaling are not known; export it with "
                f"`harmonize push`. Received: model={self.url}"
            ) from error
        return identity(Manifest.from_json(content), self.url.rpartition("/")[2])

    @contextlib.contextmanager
    def open(self) -> Iterator[Predictor]:
        """Loads it; from a bucket by way of this machine's disk."""
        with contextlib.ExitStack() as stack:
            path = self.url
            if "://" in path:
                aside = stack.enter_context(tempfile.TemporaryDirectory())
                path = f"{aside}/{self.url.rpartition('/')[2]}"
                folder = Folder(self.url)
                for name in folder.sizes():
                    file = pathlib.Path(path, name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(folder.read(name))
            yield stack.enter_context(predictors.local(path))


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that servers run.

    Attributes:
      target: host:port, or several separated by commas.
      name: the model's name there.
      label: of the version; None: the newest.
      ca: PEM file of those who sign the servers' certificate, where each process runs; likewise what follows.
      certificate: PEM file by which the client shows who it is.
      key: PEM file with its private key.
    """

    target: str
    name: str
    label: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def identity(self) -> Mapping[str, str]:
        """See the function of that name.

        Raises:
          ServerError: no server answers, or it has no such model.
        """
        with self.open() as predictor:
            return identity(predictor.manifest, predictor.version)

    def open(self) -> contextlib.AbstractContextManager[Predictor]:
        """Connects; the version found is kept to until the context ends."""
        return predictors.served(**dataclasses.asdict(self))
