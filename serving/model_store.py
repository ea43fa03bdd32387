"""Versions of exported models, replaced while they serve as TensorFlow Serving does it.

What is wanted comes from a ModelServerConfig: folders, version policies and labels (`serving.server_config`). Versions
are loaded by two threads, so that a slow or failing one keeps no other model waiting: TensorFlow Serving with
`--num_load_threads=2`. The rules are those of file_system_storage_path_source.cc, availability_preserving_policy.cc
and server_core.cc.
"""

import contextlib
import dataclasses
import enum
import logging
import pathlib
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent import futures

import grpc
from tensorflow_serving.config import model_server_config_pb2

from harmonize_tf import versions
from harmonize_tf.errors import ModelError
from serving import server_config
from serving.servable import RequestError, Servable

_log = logging.getLogger("harmonize.serving")
_LOAD_THREADS = 2


class State(enum.IntEnum):
    """States of a version, numbered as in get_model_status.proto."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass
class _Version:
    """One version known to the store; guarded by the store's lock."""

    path: pathlib.Path
    state: State = State.START
    error: str = ""
    servable: Servable | None = None
    running: int = 0
    fingerprint: tuple = ()


def _fingerprint(path: pathlib.Path) -> tuple:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


class ModelStore:
    """Keeps the wanted versions of each model loaded, looking for newer ones while it serves.

    A new version is loaded and warmed before an old one is dropped, and an old one is freed by the last request that
    uses it, so that no thread waits for requests. A version that fails to load is told in its status and tried again
    when its files change; the one before it goes on answering.
    """

    def __init__(
        self,
        models: Mapping[str, str | pathlib.Path] | model_server_config_pb2.ModelServerConfig,
        poll_seconds: float = 1.0,
        *,
        allow_labels_for_unavailable: bool = False,
    ) -> None:
        """Loads what is wanted of every model.

        Args:
          models: folder with version folders, by the model's name, of which the newest is served; or a configuration.
          poll_seconds: how often to look for new versions; 0: never again.
          allow_labels_for_unavailable: let a new label name a version that is not loaded yet.

        Raises:
          ModelError: the configuration is refused, or a model has no version that can be loaded.
        """
        self._allow_labels = allow_labels_for_unavailable
        self._models: dict[str, model_server_config_pb2.ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._versions: dict[str, dict[int, _Version]] = {}
        self._lock = threading.Lock()
        self._reloading = threading.Lock()
        self._updates: dict[str, futures.Future] = {}
        self._loaders = futures.ThreadPoolExecutor(_LOAD_THREADS, "model-loader")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, args=(poll_seconds,), name="model-store", daemon=True)
        is_config = isinstance(models, model_server_config_pb2.ModelServerConfig)
        try:
            missing = self._apply(models if is_config else server_config.models_config(models))
        except RequestError as error:
            self.close()
            raise ModelError(f"the configuration of models is refused. Received: {error}") from error
        if missing:
            self.close()
            name, base_path = missing[0], self._models[missing[0]].base_path
            raise ModelError(
                self._last_error(name)
                or "a model's folder must hold numbered versions with a saved_model.pb each. Received: "
                f"{name}={base_path}. Export a model into it with `harmonize push --serving_dir={base_path}`."
            )
        if poll_seconds:
            self._thread.start()

    @contextlib.contextmanager
    def servable(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[tuple[int, Servable]]:
        """The version asked for (by default the newest), kept loaded while the context lasts.

        Raises:
          RequestError: there is no such model, version or label.
        """
        with self._lock:
            if label is not None:
                version = self._labels.get(name, {}).get(label)
                if version is None:
                    text = f"Unrecognized servable version label: {label}"
                    raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, text)
            loaded = self._available(name)
            number = max(loaded, default=0) if version is None else version
            if number not in loaded:
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
            entry = loaded[number]
            entry.running += 1
        try:
            yield number, entry.servable
        finally:
            with self._lock:
                entry.running -= 1
            self._free_unused(entry)

    def knows(self, name: str) -> bool:
        """Whether a model is configured, or was."""
        with self._lock:
            return name in self._models or name in self._versions

    def status(self, name: str) -> list[tuple[int, State, str]]:
        """Number, state and error of each version known, newest first; empty for an unknown model."""
        with self._lock:
            return [(n, v.state, v.error) for n, v in sorted(self._versions.get(name, {}).items(), reverse=True)]

    def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Takes another configuration, and waits until the models that are new in it are available.

        Raises:
          RequestError: the configuration is refused, and nothing has changed; or a new model cannot be loaded, and
            will be tried again when its files change.
        """
        missing = self._apply(config)
        if missing:
            reasons = "".join(
                f"{{{{name: {name}}} due to error: {self._last_error(name) or 'it has no version'}}}, "
                for name in missing
            )
            raise RequestError(
                grpc.StatusCode.UNKNOWN, f"{len(missing)} model(s) did not become available: {{{reasons}}}"
            )

    def close(self) -> None:
        """Stops looking for versions, and frees each model as soon as no request uses it."""
        with self._lock:
            self._stop.set()
        if self._thread.ident:
            self._thread.join()
        # What is queued ends at once. If it were cancelled, `futures.wait` of a reload would not hear of it.
        self._loaders.shutdown()
        for versions_of_model in self._versions.values():
            for entry in versions_of_model.values():
                self._unload(entry)

    def _apply(self, config: model_server_config_pb2.ModelServerConfig) -> list[str]:
        """Changes to a configuration; names of those new models of which no version could be loaded."""
        server_config.check(config)
        models = {model.name: model for model in config.model_config_list.config}
        with self._reloading:
            with self._lock:
                labels = {name: self._checked_labels(model) for name, model in models.items()}
                new = [name for name in models if name not in self._models]
                self._models, self._labels = models, labels
                under_way = dict(self._updates)
            futures.wait([under_way[name] for name in new if name in under_way])
            futures.wait(self._update_all(new))
            # An update under way may have read the configuration before; another one must follow it.
            for name, update in under_way.items():
                update.add_done_callback(lambda _, name=name: self._update_all([name]))
        with self._lock:
            return [name for name in new if not self._available(name)]

    def _available(self, name: str) -> dict[int, _Version]:
        return {n: v for n, v in self._versions.get(name, {}).items() if v.state is State.AVAILABLE}

    def _checked_labels(self, model: model_server_config_pb2.ModelConfig) -> dict[str, int]:
        known = self._versions.get(model.name, {})
        for label, number in model.version_labels.items():
            allowed = self._allow_labels and self._labels.get(model.name, {}).get(label, number) == number
            if not allowed and (number not in known or known[number].state is not State.AVAILABLE):
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {number} of model {model.name}, which is not currently "
                    "available for inference",
                )
        return dict(model.version_labels)

    def _last_error(self, name: str) -> str:
        return next((error for _, _, error in self.status(name) if error), "")

    def _poll(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self._update_all(self._known_names())

    def _known_names(self) -> set[str]:
        with self._lock:
            return self._models.keys() | self._versions.keys()

    def _update_all(self, names: Collection[str]) -> list[futures.Future]:
        """Has models looked at by the loading threads, each by one at a time; none once the store is closed."""
        with self._lock:
            if self._stop.is_set():
                return []
            for name in names:
                if name not in self._updates or self._updates[name].done():
                    self._updates[name] = self._loaders.submit(self._update, name)
            return [self._updates[name] for name in names]

    def _update(self, name: str) -> None:
        """Loads what is wanted of a model and not loaded yet, then drops what is not wanted."""
        try:
            wanted = self._wanted(name)
            if wanted is None:
                return
            with self._lock:
                known = self._versions.setdefault(name, {})
            for number, path in wanted.items():
                if self._stop.is_set():
                    return
                if number not in known or known[number].state is not State.AVAILABLE:
                    self._load(name, number, path)
            if not wanted or not wanted.keys().isdisjoint(self._available(name)):
                for number in known.keys() - wanted.keys():
                    self._unload(known[number])
        except Exception:  # such as a folder that goes away while it is listed; the next poll tries again
            _log.exception("%s cannot be looked at for new versions", name)

    def _wanted(self, name: str) -> dict[int, pathlib.Path] | None:
        """The versions that the configuration asks for; None where the folder cannot say: nothing changes then."""
        model = self._models.get(name)
        if model is None:
            return {}
        base_path = pathlib.Path(model.base_path)
        found = versions.find(base_path)
        if not base_path.is_dir() or (not found and versions.numbered(path.name for path in base_path.glob("*"))):
            return None
        return {number: found[number] for number in server_config.aspired(model.model_version_policy, found)}

    def _load(self, name: str, number: int, path: pathlib.Path) -> None:
        fingerprint = _fingerprint(path)
        entry = _Version(path, State.LOADING, fingerprint=fingerprint)
        with self._lock:
            previous = self._versions[name].get(number)
            if previous is not None and previous.fingerprint == fingerprint:
                if previous.error:
                    return
                if previous.state is State.UNLOADING:  # wanted back before its last request has ended
                    previous.state = State.AVAILABLE
                    return
            self._versions[name][number] = entry
        try:
            servable = Servable(path)
        except ModelError as error:
            _log.warning("version %d of %s: %s", number, name, error)
            with self._lock:
                entry.state, entry.error = State.END, str(error)
            return
        with self._lock:
            entry.servable, entry.state = servable, State.AVAILABLE
        _log.info("version %d of %s is available", number, name)

    def _unload(self, entry: _Version) -> None:
        with self._lock:
            if entry.state is State.AVAILABLE:
                entry.state = State.UNLOADING
        self._free_unused(entry)

    def _free_unused(self, entry: _Version) -> None:
        with self._lock:
            if entry.state is not State.UNLOADING or entry.running:
                return
            servable, entry.servable, entry.state = entry.servable, None, State.END
        servable.close()
