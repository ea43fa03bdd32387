import json

import pytest
from export_settings import SETTINGS, change

import harmonize_tf
from beam_jobs import settings
from harmonize_tf.errors import FlagError
from harmonize_tf.sources.earth_engine import EarthEngineSource
from harmonize_tf.sources.ee_client import Connection
from harmonize_tf.sources.simulated import SimulatedSource

NOBODY = Connection(url="http://127.0.0.1:1")
EARTH = {"source": "earthengine", "area": "12,51,13,52", "start": "2022-06-01", "end": "2022-07-01"}


def opened(**changes):
    return settings.open_source(change(**changes), NOBODY)


def test_attributes_of_simulated_scenes_come_from_a_file(tmp_path):
    path = tmp_path / "scenes.json"
    path.write_text('{"clouds": 0.5, "days": [0, 16]}')
    assert opened(scenes=(str(path),), seed=5) == SimulatedSource(seed=5, clouds=0.5, days=(0, 16))
    for text in ("{", '{"cloudz": 1}', "[1]"):
        path.write_text(text)
        with pytest.raises(FlagError, match="JSON object with any of seed, bands"):
            opened(scenes=(str(path),))


def test_sources_of_files_need_paths_that_exist():
    with pytest.raises(FlagError, match="needs --scenes"):
        opened(source="geotiff")
    with pytest.raises(FlagError, match="no such file or folder.*nowhere"):
        opened(source="degraded", scenes=("nowhere",))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"area": "1,2,3,4"}, "--area does not go with --source=simulated. Received: area=1,2,3,4"),
        ({"start": "2022-06-01"}, "--start does not go with"),
        ({"end": "2022-06-01"}, "--end does not go with"),
        (EARTH | {"scenes": (__file__,)}, "--scenes does not go with --source=earthengine"),
        (EARTH | {"area": None}, "needs --area, --start and --end.*Received: area=None"),
        (EARTH | {"end": None}, "Received: end=None"),
        (EARTH | {"landsat": ("8", "7")}, "some of 8,9. Received: landsat=8,7"),
        (EARTH | {"landsat": ()}, "some of 8,9"),
        (EARTH | {"level": "uncalibrated"}, "levels toa and sr"),
        (EARTH | {"area": "1,2"}, "west,south,east,north.*=1,2"),
    ],
)
def test_flags_that_do_not_fit_the_source_are_refused(changes, told):
    with pytest.raises(FlagError, match=told):
        opened(**changes)


def test_earth_engine_is_opened_without_asking_it_with_what_the_flags_say():
    source = opened(**EARTH, landsat=("9",), cloud_cover=20, max_days=2, nir="B8A")
    assert isinstance(source, EarthEngineSource)
    assert (source.level, source.spacecraft, source.cloud_cover) == ("toa", ("LANDSAT_9",), 20)
    assert (source.start, source.end, source.max_days, source.nir) == ("2022-06-01", "2022-07-01", 2, "B8A")
    assert source.connection is NOBODY
    assert opened(**EARTH, level="sr", landsat=("9", "8")).spacecraft == ("LANDSAT_8", "LANDSAT_9")


def test_what_makes_an_export_this_one_survives_json_and_names_the_version():
    found = settings.identity(SETTINGS)
    assert json.loads(json.dumps(found)) == found
    assert found["package_version"] == harmonize_tf.__version__
    assert found["flags"]["bands"] == list(SETTINGS.bands)
    assert settings.identity(change(min_valid=0.6)) != found


def test_scenes_that_changed_make_another_export(tmp_path):
    manifest, folder, area = tmp_path / "m.json", tmp_path / "scene", tmp_path / "area.json"
    folder.mkdir()
    for path in (manifest, folder / "a.tif", area):
        path.write_text("one")
    wanted = change(scenes=(str(manifest), str(folder)), area=str(area))
    seen = [settings.identity(wanted)]
    for path, text in ((manifest, "two"), (folder / "a.tif", "longer"), (folder / "b.tif", ""), (area, "two")):
        path.write_text(text)
        seen.append(settings.identity(wanted))
    assert all(one != other for one, other in zip(seen[:-1], seen[1:], strict=True))
    assert settings.identity(wanted) == seen[-1]
