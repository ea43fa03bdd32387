"""TensorFlow Addons 0.23.0 on TensorFlow 2.21, in a process of its own. Nothing else in this repository imports it.

Two things stand between them:

* `tf.keras` must be Keras 2 (the package tf-keras), or TFA's first `register_keras_serializable` fails. TensorFlow
  reads TF_USE_LEGACY_KERAS once, while it is imported itself.
* TFA asks for the module `keras.src.engine`, which Keras 3 no longer has. Its twin in tf-keras is entered under that
  name. Keras 3 has nothing so called, so nothing of it is replaced, and `import keras` stays Keras 3.

It must not be pytest's process. TensorFlow has been imported there, by this test or another, and then the variable
comes too late, whether `tf.keras` was used or not ("ValueError: Cannot register a class that does not have a
get_config() method"). Set before all else, it would make `tf.keras` Keras 2 for every other test and for the processes
that they start. So arrays go over and arrays come back.
"""

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def process() -> Iterator[Callable[..., Any]]:
    """Yields `run(function, *args, **kwargs)`, which returns what `function(tfa, *args, **kwargs)` does over there.

    The function stands in a module, since it is sent by its name; arguments and result are pickled. What it raises is
    raised here, and so is a ModuleNotFoundError where TFA is not installed. From a script of your own, guard what it
    imports and does by `if __name__ == "__main__"`: the other process imports the script first.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, initializer=_choose_keras_2) as pool:
        yield lambda function, *args, **kwargs: pool.submit(_call, function, args, kwargs).result()


def _choose_keras_2() -> None:
    assert "tensorflow" not in sys.modules, "TensorFlow has read TF_USE_LEGACY_KERAS already"
    os.environ["TF_USE_LEGACY_KERAS"] = "1"


def _call(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return function(_imported(), *args, **kwargs)


def _imported() -> Any:
    sys.modules["keras.src.engine"] = importlib.import_module("tf_keras.src.engine")
    with warnings.catch_warnings():  # of its end of life, and of a TensorFlow that it was not made for
        warnings.simplefilter("ignore", UserWarning)
        return importlib.import_module("tensorflow_addons")
