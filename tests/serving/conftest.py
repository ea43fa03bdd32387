import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
from tiny_models import BANDS


@pytest.fixture(scope="session")
def make_harmonizer():
    """Makes a tiny Harmonizer with given arguments; equal arguments give equal weights."""
    return tiny_models.harmonizer


@pytest.fixture(scope="session")
def exported(tmp_path_factory, make_harmonizer):
    """A tiny Harmonizer and the folder with the one version that was exported of it."""
    harmonizer = make_harmonizer()
    directory = tmp_path_factory.mktemp("serving") / "subpixel"
    version = tiny_models.export(harmonizer, directory)
    return SimpleNamespace(harmonizer=harmonizer, directory=directory, version=version)


@pytest.fixture(scope="session")
def local(exported):
    """The exported version in this process."""
    from serving.local import LocalPredictor

    return LocalPredictor(exported.directory)


@pytest.fixture
def base_path(exported, tmp_path):
    """A model's folder of the test's own, with version 1."""
    shutil.copytree(exported.version, tmp_path / "subpixel" / "1")
    return tmp_path / "subpixel"


@pytest.fixture(scope="session")
def tiny_version(tmp_path_factory):
    """A SavedModel that a server loads in a moment: `y` is twice `x`."""
    import tensorflow as tf

    module, path = tf.Module(), tmp_path_factory.mktemp("tiny") / "1"
    module.factor = tf.Variable(2.0)
    specs = [tf.TensorSpec([None], tf.float32, "x")]
    double = tf.function(lambda x: {"y": module.factor * x}, input_signature=specs)
    tf.saved_model.save(module, str(path), {"serving_default": double})
    (path / "assets.extra").mkdir()
    return path


@pytest.fixture
def tiny_path(tiny_version, tmp_path):
    """A tiny model's folder of the test's own, with version 1."""
    shutil.copytree(tiny_version, tmp_path / "tiny" / "1")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def server(exported):
    """A running server for tests that do not change what it serves."""
    from serving.server import DevelopmentServer

    with DevelopmentServer({"subpixel": exported.directory}) as running:
        yield running


@pytest.fixture(scope="session")
def windows():
    """Makes codes of Landsat windows, ms and pan, with some pixels that have no data."""
    return _windows


def _windows(n=1, h=12, w=10, seed=0, nodata=True):
    draw = np.random.default_rng(seed)
    ms = draw.integers(1000, 5000, (n, h, w, len(BANDS)), np.uint16)
    pan = draw.integers(1000, 5000, (n, 2 * h, 2 * w, 1), np.uint16)
    if nodata:
        ms[:, :3, :2] = 0
        ms[:, 7, 5, 1] = 0
        pan[:, 14, 3] = 0
    return ms, pan
