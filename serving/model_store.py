"""Versions of exported models, replaced while they serve as TensorFlow Serving does it.

TensorFlow Serving's default policy, the latest version of each model, is what there is; configuration files, other
policies and labels would start from `ModelStore._update`.
"""

import contextlib
import dataclasses
import enum
import logging
import pathlib
import threading
from collections.abc import Iterator, Mapping

import grpc

from harmonize_tf.errors import ModelError
from serving.servable import RequestError, Servable

_log = logging.getLogger("harmonize.serving")


def versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Versions under a model's folder, oldest first: children with numeric names that hold a SavedModel.

    A folder without `saved_model.pb` is being copied and is passed over until it is there.
    """
    found = {int(p.name): p for p in base_path.glob("*") if p.name.isdecimal() and (p / "saved_model.pb").is_file()}
    return dict(sorted(found.items()))


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
    """Keeps the newest version of each model loaded, looking for newer ones while it serves.

    A new version is loaded and warmed before the old one is dropped, and an old one is dropped when its last request
    has ended. A version that fails to load is told in its status and tried again when its files change; the one
    before it goes on answering.
    """

    def __init__(self, models: Mapping[str, str | pathlib.Path], poll_seconds: float = 1.0) -> None:
        """Loads the newest version of every model.

        Args:
          models: folder with version folders, by the model's name.
          poll_seconds: how often to look for new versions.

        Raises:
          ModelError: a model has no version, or its newest cannot be loaded.
        """
        self._models = {name: pathlib.Path(path) for name, path in models.items()}
        self._versions: dict[str, dict[int, _Version]] = {name: {} for name in models}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        for name, path in self._models.items():
            self._update(name)
            if not any(v.servable for v in self._versions[name].values()):
                errors = [v.error for v in self._versions[name].values()]
                raise ModelError(
                    errors[-1]
                    if errors
                    else "a model's folder must hold numbered versions with a saved_model.pb each. Received: "
                    f"{name}={path}. Export a model into it with `harmonize push --serving_dir={path}`."
                )
        self._thread = threading.Thread(target=self._poll, args=(poll_seconds,), name="model-store", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def servable(self, name: str, version: int | None = None) -> Iterator[tuple[int, Servable]]:
        """The version asked for (None: the newest), kept loaded while the context lasts.

        Raises:
          RequestError: there is no such model or version.
        """
        with self._changed:
            loaded = {n: v for n, v in self._versions.get(name, {}).items() if v.state is State.AVAILABLE}
            number = max(loaded, default=0) if version is None else version
            if number not in loaded:
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
            entry = loaded[number]
            entry.running += 1
        try:
            yield number, entry.servable
        finally:
            with self._changed:
                entry.running -= 1
                self._changed.notify_all()

    def status(self, name: str) -> list[tuple[int, State, str]]:
        """Number, state and error of each version known, newest first; empty for an unknown model."""
        with self._changed:
            return [(n, v.state, v.error) for n, v in sorted(self._versions.get(name, {}).items(), reverse=True)]

    def close(self) -> None:
        """Stops looking for versions, waits for requests under way and frees the models."""
        self._stop.set()
        self._thread.join()
        for versions_of_model in self._versions.values():
            for entry in versions_of_model.values():
                self._unload(entry)

    def _poll(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            for name in self._models:
                try:
                    self._update(name)
                except Exception:  # such as a folder that goes away while it is listed; the next poll tries again
                    _log.exception("%s cannot be looked at for new versions", name)

    def _update(self, name: str) -> None:
        """Loads the newest version on disk if it is not loaded yet, then drops the others."""
        known = self._versions[name]
        found = versions(self._models[name])
        if not found:
            return
        newest = max(found)
        if newest not in known or known[newest].servable is None:
            self._load(name, newest, found[newest])
        if known[newest].servable is not None:
            for number, entry in list(known.items()):
                if number != newest:
                    self._unload(entry)

    def _load(self, name: str, number: int, path: pathlib.Path) -> None:
        fingerprint = _fingerprint(path)
        previous = self._versions[name].get(number)
        if previous is not None and previous.error and previous.fingerprint == fingerprint:
            return
        entry = _Version(path, State.LOADING, fingerprint=fingerprint)
        with self._changed:
            self._versions[name][number] = entry
        try:
            servable = Servable(path)
        except ModelError as error:
            _log.warning("version %d of %s: %s", number, name, error)
            with self._changed:
                entry.state, entry.error = State.END, str(error)
            return
        with self._changed:
            entry.servable, entry.state = servable, State.AVAILABLE
        _log.info("version %d of %s is available", number, name)

    def _unload(self, entry: _Version) -> None:
        with self._changed:
            if entry.servable is None:
                return
            entry.state = State.UNLOADING
            self._changed.wait_for(lambda: entry.running == 0)
            servable, entry.servable, entry.state = entry.servable, None, State.END
        servable.close()
