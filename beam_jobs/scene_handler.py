"""What Beam's RunInference does with a scene: through the process's model, into the folder of products."""

import contextlib
import dataclasses
import logging
import pathlib
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from beam_jobs import models, outcomes, progress
from beam_jobs.folder import Folder, StorageError
from beam_jobs.models import ExportedModel, ServedModel
from beam_jobs.outcomes import Outcome
from beam_jobs.scene_list import Task
from beam_jobs.shards import PERMANENT, TRANSIENT
from beam_jobs.stopping import cancelled
from harmonize_tf import products
from harmonize_tf.errors import HarmonizeError, ModelError, PermanentError, SceneError, ServerError, TransientError
from harmonize_tf.mgrs import mgrs_tile
from harmonize_tf.products import Predictor
from harmonize_tf.sources import Scene
from harmonize_tf.sources.geotiff import GeoTiffSource

_log = logging.getLogger("harmonize")


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker has to know.

    Attributes:
      folder: the products go there.
      model: that the scenes go through.
    """

    folder: Folder
    model: ExportedModel | ServedModel


class SceneHandler(ModelHandler[Task, str, "Maker"]):
    """`Task` to what became of the scene: "made", "dead" or "left out".

    One scene is one element: what is finished stays finished, whatever happens to the job.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(max_batch_size=1)
        self._job = job

    def load_model(self) -> "Maker":
        """Opens the model, once in each process."""
        maker = Maker(self._job)
        maker.open()
        return maker

    def run_inference(
        self, batch: Sequence[Task], model: "Maker", inference_args: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Makes scenes, one after the other."""
        return [model.make(task) for task in batch]


class Maker:
    """A process's model. Threads share it: one scene at a time bounds the memory, and has all cores."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()
        self._predictor: Predictor | None = None
        self._stopped: str | None = None  # why no more scenes are begun
        self._full = False

    def open(self) -> None:
        """Opens the model; where it cannot be opened, no scene is begun."""
        try:
            self._predictor = self._opened.enter_context(self._job.model.open())
        except (HarmonizeError, ImportError) as error:
            remedy = "; install harmonize_tf[serve] where the job runs" if isinstance(error, ImportError) else ""
            self._stopped = f"{error}{remedy}"
            _log.error("the model cannot be opened: %s", self._stopped)

    def make(self, task: Task) -> str:
        """Makes a scene, unless it is there; one that cannot be stored is left out, for the same command to make."""
        with self._lock:
            if self._full or cancelled.is_set():
                return "left out"
            try:
                outcome = self._outcome(task)
            except CancelledError:
                return "left out"
            except StorageError as error:
                self._full = error.lasting  # what were made now would be lost
                _log.error("scene %s: %s", task.scene, error)
                outcome = None
        state = "left out" if outcome is None else "dead" if outcome.kind else "made"
        Metrics.counter("scenes", f"{state}, {outcome.kind}" if state == "dead" else state).inc()
        progress.advance(1)
        return state

    def _outcome(self, task: Task) -> Outcome:
        """What becomes of a scene; nothing that happens to it ends a job of a week."""
        try:
            return self._made(task)
        except (CancelledError, MemoryError, StorageError):
            raise
        except ServerError as error:
            self._opened.close()  # the next scene finds out whether the server is there again, and with which version
            self._predictor = None
            outcome = _dead(task, TRANSIENT, str(error))
        except TransientError as error:
            outcome = _dead(task, TRANSIENT, str(error))
        except (PermanentError, SceneError, ModelError) as error:
            outcome = _dead(task, PERMANENT, str(error))
        except HarmonizeError as error:  # no scene will fare better until a person has mended it
            self._stopped = str(error)
            outcome = _dead(task, TRANSIENT, str(error))
        except Exception as error:  # a bug must not stop the other scenes, nor be lost
            if cancelled.is_set():
                raise CancelledError from error
            _log.exception("scene %s", task.scene)
            outcome = _dead(task, PERMANENT, f"{error!r}\n{traceback.format_exc()}")
        if earlier := outcomes.of(self._job.folder, task):  # its products stay until others replace them
            outcome = dataclasses.replace(outcome, files=earlier.files)
        outcomes.store(self._job.folder, task, outcome)
        return outcome

    def _made(self, task: Task) -> Outcome:
        if self._predictor is None and self._stopped is None:
            self.open()
        if self._stopped is not None:
            raise TransientError(self._stopped)
        identity = models.identity(self._predictor.manifest, self._predictor.version)
        folder = self._job.folder
        known = outcomes.of(folder, task)
        if known and known.stands(task, identity, folder.sizes(task.name)):
            return known  # Beam had lost what it knew of it
        started = time.monotonic()
        source = GeoTiffSource(task.path)
        scene = _scene(source, task)
        earlier = outcomes.begin(folder, task)
        with folder.workplace(task.name) as place:
            path, grid = place / f"{task.name}.tif", mgrs_tile(task.tile) if task.tile else None
            product = products.harmonize(source, scene, _Interruptible(self._predictor), path, grid=grid)
            paths = [path for path in vars(product).values() if isinstance(path, pathlib.Path)]
            paths.sort(key=lambda path: (path.suffix == ".json", path.name))  # a STAC item describes the others
            files = {f"{task.name}/{path.name}": path for path in paths}
            folder.delete(name for name in earlier if name not in files)
            folder.store(files)
            sizes = {name: path.stat().st_size for name, path in files.items()}
        rows, columns = product.grid.shape
        outcome = Outcome(task.scene, identity, sizes, rows * columns, round(time.monotonic() - started, 3))
        outcomes.store(folder, task, outcome)
        return outcome


class _Interruptible:
    """A predictor that Ctrl-C stops between two windows."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        if cancelled.is_set():
            raise CancelledError
        return getattr(self._predictor, name)


def _scene(source: GeoTiffSource, task: Task) -> Scene:
    landsat = [scene for scene in source.scenes() if scene.sensor == "landsat"]
    if len(landsat) != 1:
        raise SceneError(
            f"expected one Landsat scene, a line of the list for each. Received: {len(landsat)} in {task.scene}"
        )
    return landsat[0]


def _dead(task: Task, kind: str, error: str) -> Outcome:
    for secret in task.secrets:
        error = error.replace(secret, "...")
    return Outcome(task.scene, kind=kind, error=error)
