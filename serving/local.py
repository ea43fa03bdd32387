"""A model run in this process: what `serving.client` is without a server."""

import logging
import pathlib

import numpy as np

from harmonize_tf import versions
from harmonize_tf.errors import ModelError
from harmonize_tf.manifest import FILE as MANIFEST_FILE
from harmonize_tf.manifest import Manifest
from harmonize_tf.precision import fastest
from serving.servable import RequestError, Servable

_log = logging.getLogger("harmonize.serving")


class LocalPredictor:
    """An exported model, loaded as a server loads it.

    Attributes:
      manifest: what the model is.
      path: folder of the version.
      version: its name, a number unless it was copied elsewhere.
    """

    def __init__(self, directory: str | pathlib.Path) -> None:
        """Loads a version.

        Args:
          directory: a version's folder, or that of a model, whose newest version is taken.

        Raises:
          ModelError: there is no model, or it was not exported by `harmonize push`.
        """
        directory = pathlib.Path(directory)
        self.path = versions.newest(directory)
        if not (self.path / versions.SAVED_MODEL).is_file():
            raise ModelError(
                "expected a SavedModel, or a folder with numbered versions of one. "
                f"Received: model={directory}. Export one with `harmonize push --serving_dir={directory}`."
            )
        if not (self.path / MANIFEST_FILE).is_file():
            raise ModelError(
                f"the SavedModel has no {MANIFEST_FILE}, so its bands and scaling are not known. "
                f"Received: {self.path}. Export it with `harmonize push`."
            )
        self.manifest = Manifest.from_json((self.path / MANIFEST_FILE).read_bytes())
        self.version = self.path.name
        best, reason = fastest()
        if self.manifest.precision not in ("float32", best):
            _log.warning("%s computes in %s, which is slow here: %s", self.path, self.manifest.precision, reason)
        self._servable = Servable(self.path)

    def predict(self, ms: np.ndarray, pan: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Harmonises windows; may be called from several threads.

        Args:
          ms: uint16 codes [N, h, w, B], 0 = no data.
          pan: uint16 codes [N, 2h, 2w, 1] where the model uses the panchromatic band.

        Returns:
          As `serving.client.Client.predict`.

        Raises:
          ModelError: the windows do not fit the model.
        """
        try:
            return self._servable.predict(self.manifest.inputs(ms, pan))
        except RequestError as error:
            raise ModelError(f"the model refuses the windows: {error}. Received: ms={ms.shape}, {self.path}") from error
