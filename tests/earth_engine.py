import contextlib

import ee
import pytest

from harmonize_tf.sources import ee_client, region
from harmonize_tf.sources.earth_engine import EarthEngineSource
from harmonize_tf.sources.ee_client import Connection
from harmonize_tf.testing.earth_engine_emulator import Emulator

EVERYWHERE = region.parse("-180,-80,180,80")


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """Keeps the client from asking for its list of deprecated assets, and pauses short."""
    monkeypatch.setattr(ee.deprecation, "_FetchDataCatalogStac", dict)
    monkeypatch.setattr(ee_client, "PAUSE", 0.01)


@contextlib.contextmanager
def served(simulated, *, connection=None, source=None, **options):
    """An emulator of a source's scenes, and an Earth Engine source connected to it."""
    with Emulator(simulated, **options) as emulator:
        there = Connection("emulator-project", emulator.url, **(connection or {}))
        more = {"region": EVERYWHERE, "start": "2022-06-01", "end": "2022-08-01", "connection": there}
        yield emulator, EarthEngineSource(**more | {"level": getattr(simulated, "level", "toa")} | (source or {}))
