import concurrent.futures
import dataclasses
import os
import pickle
import time

import ee
import google.auth
import google.auth.exceptions
import numpy as np
import pytest
import real_scenes
from earth_engine import loopback_only, served  # noqa: F401

from harmonize_tf import sensors
from harmonize_tf.errors import FlagError, PermanentError, SceneError, TransientError
from harmonize_tf.radiometry import sentinel_to_landsat
from harmonize_tf.sources import earth_engine, ee_client, geotiff, read_onto, region
from harmonize_tf.sources.ee_client import Connection
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.testing.ee_limits import Fault, Limits

SIMULATED = SimulatedSource(level="sr", size=1920, days=(0, 16), clouds=0.6, clouds_move=True, nodata=True)
SMALL = SimulatedSource(size=1920)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Scenes without pixels."""

    found: tuple
    level: str = "toa"

    def scenes(self):
        return self.found


def groups(scene):
    """Bands by native grid."""
    for grid in dict.fromkeys(scene.grids.values()):
        yield [band for band in scene.grids if scene.grids[band] == grid], grid


def described(scenes):
    """What both sources know of a scene."""
    return sorted(repr(dataclasses.replace(scene, masks=(), footprint=None)) for scene in scenes)


@pytest.mark.parametrize("level", ["toa", "sr"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32723"])
def test_scenes_pairs_and_pixels_are_those_that_are_served(level, crs):
    simulated = dataclasses.replace(SIMULATED, level=level, crs=crs)
    with served(simulated) as (emulator, source):
        assert described(source.scenes()) == described(simulated.scenes())
        assert [[s.id for s in pair] for pair in source.pairs()] == [[s.id for s in p] for p in simulated.pairs()]
        for scene in source.pairs()[0]:
            for bands, grid in groups(scene):
                window = grid.window(-3, 5, 50, 47) if bands != ["pan"] else grid.window(2, 90, 60, 33)
                found, expected = (s.read(scene, bands, window) for s in (source, simulated))
                np.testing.assert_array_equal(found.values, expected.values)
                np.testing.assert_array_equal(found.valid, expected.valid)
                clear = expected.valid if bands == ["pan"] else expected.clear
                np.testing.assert_array_equal(found.clear, clear)
        assert not emulator.requests("getPixels|value:compute")


def test_a_pickled_source_leaves_its_list_behind_and_reads_without_one():
    with served(dataclasses.replace(SMALL, days=tuple(range(50)))) as (emulator, source):
        scenes = source.scenes()
        listed = len(emulator.requests("listAssets"))
        assert len(pickle.dumps(source)) < 1000 < len(pickle.dumps(scenes))
        again = pickle.loads(pickle.dumps(source))
        again.read(scenes[0], ["red"], scenes[0].grids["red"].window(0, 0, 5, 5))
        assert listed == len(emulator.requests("listAssets")) == 4  # LC08, LC09, Sentinel-2, Cloud Score+
        assert described(again.scenes()) == described(scenes)


def test_long_lists_come_page_by_page_and_a_failure_repeats_one_page():
    with served(dataclasses.replace(SMALL, days=tuple(range(0, 50, 5))), page=4) as (emulator, source):
        emulator.faults = [Fault(503, "pageToken=4", count=1)]
        assert len(source.scenes()) == 20
        assert sorted(r.status for r in emulator.requests("LC08.*listAssets")) == [200, 200, 200, 503]


def test_scenes_are_listed_by_cloud_cover_time_and_region():
    simulated = dataclasses.replace(SMALL, days=(0, 16, 40))
    ids = [scene.id for scene in simulated.scenes()]
    clouds = {ids[0]: {"CLOUD_COVER": 21.0}, ids[3]: {"CLOUDY_PIXEL_PERCENTAGE": 21.0}, ids[2]: {"CLOUD_COVER": -1}}
    with served(simulated, properties=clouds) as (_, source):
        found = lambda **more: [s.id for s in dataclasses.replace(source, **more).scenes()]  # noqa: E731
        assert found() == [ids[0], ids[4], ids[1], ids[3], ids[5]]
        assert found(cloud_cover=20.0) == [ids[4], ids[1], ids[5]]
        assert found(start="2022-06-08") == [ids[4], ids[1], ids[3], ids[5]]  # Sentinel-2 from 5 days before
        assert found(start="2022-06-08", max_days=0.5) == [ids[4], ids[3], ids[5]]
        assert found(region=meridians(-60)) == []
        with pytest.raises(SceneError, match="0 Landsat and 0 Sentinel-2"):
            dataclasses.replace(source, region=meridians(-60)).pairs()


def meridians(west):
    return region.parse(f"{west},10,{west + 1},60")


def test_of_reprocessed_granules_the_newest_baseline_is_kept():
    landsat, sentinel = SMALL.scenes()
    named = [dataclasses.replace(sentinel, id=name, processing_baseline=b) for name, b in
             (("a", "05.09"), ("b", "02.14"), ("c", "05.09"))]  # fmt: skip
    made = {"a": 1.0, "b": 9.0, "c": 2.0}
    takes = {n: {"DATATAKE_IDENTIFIER": f"GS2A_20220607T103000_036337_N0{i}.00", "GENERATION_TIME": made[n]}
             for i, n in enumerate(made)}  # fmt: skip
    other_tile = dataclasses.replace(sentinel, id="d", grids=moved(sentinel.grids, 99_960))
    with served(Catalogue((landsat, *named, other_tile)), properties=takes) as (_, source):
        assert [scene.id for scene in source.listing.sentinel] == ["c", "d"]
        assert source.listing.left_out == {"a": "processed anew", "b": "processed anew"}


def moved(grids, east):
    return {band: dataclasses.replace(grid, left=grid.left + east) for band, grid in grids.items()}


def test_every_tile_that_a_landsat_scene_meets_gives_pairs_the_nearest_in_time_first():
    landsat, sentinel = SMALL.scenes()
    day = 86_400_000
    scenes = [
        landsat,
        dataclasses.replace(sentinel, id="a_before", time_ms=landsat.time_ms - day),
        dataclasses.replace(sentinel, id="a_after", time_ms=landsat.time_ms + 2 * day),
        dataclasses.replace(sentinel, id="b_after", time_ms=landsat.time_ms + day, grids=moved(sentinel.grids, 960)),
        dataclasses.replace(sentinel, id="far", grids=moved(sentinel.grids, 6000)),
    ]
    with served(Catalogue(tuple(scenes))) as (_, source):
        assert [(a.id, b.id) for a, b in source.pairs()] == [
            (landsat.id, "a_before"),
            (landsat.id, "b_after"),
            (landsat.id, "a_after"),
        ]


def test_a_scene_without_cloud_score_is_masked_by_its_classes_alone_and_recorded():
    name = SIMULATED.pairs()[0][1].id
    with served(SIMULATED, without_cloud_score=[name]) as (emulator, source):
        scene = next(scene for scene in source.scenes() if scene.id == name)
        others = [s.masks for s in source.listing.sentinel if s.id != name]
        assert scene.masks == ("SCL",) and others == [("SCL", "Cloud Score+")] * len(others)
        grid = scene.grids["red"]
        found, exact = source.read(scene, ["red"], grid), SIMULATED.read(scene, ["red"], grid)
        assert not found.clear.all() and exact.clear.mean() < found.clear.mean() < exact.clear.mean() + 0.02
        assert not emulator.requests(rf"POST.*CLOUD_SCORE.*{name}")


def test_at_top_of_atmosphere_a_scene_without_cloud_score_is_left_out():
    name = SMALL.scenes()[1].id
    with served(SMALL, without_cloud_score=[name]) as (_, source):
        assert [scene.sensor for scene in source.scenes()] == ["landsat"]
        assert source.listing.left_out == {name: "no Cloud Score+"}


def test_a_band_that_is_dark_is_data_unless_all_are_or_nothing_is_classified(monkeypatch):
    """Earth Engine clips what the offset leaves below 0; water's near infrared is often there."""
    with served(SIMULATED) as (_, source):
        scene = source.listing.sentinel[0]
        array = np.zeros((1, 4), [("B4", np.uint16), ("B8", np.uint16), ("SCL", np.uint8), ("cs_cdf", np.float64)])
        array[0] = [(300, 0, 6, 1.0), (0, 0, 6, 1.0), (300, 200, 0, 1.0), (65535, 200, 4, 1.0)]
        monkeypatch.setattr(ee.data, "computePixels", lambda request: array)
        raster = source.read(scene, ["red", "nir"], scene.grids["red"].window(0, 0, 1, 4))
        assert raster.valid.tolist() == [[True, False, False, False]]
        assert raster.values[0, 0].tolist() == [pytest.approx(0.03), 0.0]


def test_two_datastrips_of_one_tile_are_two_scenes_and_reprocessing_still_is_one():
    landsat, sentinel = SMALL.scenes()
    named = [dataclasses.replace(sentinel, id=name, processing_baseline=b) for name, b in
             (("north", "05.09"), ("south", "05.09"), ("south_old", "02.14"))]  # fmt: skip
    take = "GS2A_20220607T103000_036337_N05.09"
    strips = {"north": "20220607T103001", "south": "20220607T103017", "south_old": "20220607T103017"}
    properties = {
        name: {"DATATAKE_IDENTIFIER": take, "DATASTRIP_ID": f"S2A_OPER_MSI_L1C_DS_EPAE_X_S{start}_N05.09"}
        for name, start in strips.items()
    }
    with served(Catalogue((landsat, *named)), properties=properties) as (_, source):
        assert [scene.id for scene in source.listing.sentinel] == ["north", "south"]
        assert source.listing.left_out == {"south_old": "processed anew"}


def test_a_metadata_server_that_does_not_answer_is_a_passing_failure():
    cause = google.auth.exceptions.TransportError("Compute Engine Metadata server unavailable")
    outcome, error = ee_client._classify(google.auth.exceptions.RefreshError(cause))
    assert outcome == "failed" and isinstance(error, TransientError)
    outcome, error = ee_client._classify(google.auth.exceptions.RefreshError("invalid_grant: Token has been revoked"))
    assert outcome == "denied" and isinstance(error, FlagError)


def test_masked_and_saturated_pixels_are_no_data_or_not_clear(monkeypatch):
    with served(SMALL) as (_, source):
        landsat, sentinel = source.scenes()
        names = ["B4", "QA_PIXEL", "QA_RADSAT"]
        array = np.zeros((1, 5), [("B4", np.float32), ("QA_PIXEL", np.uint16), ("QA_RADSAT", np.uint16)])
        #           outside, fill,      clear,         red saturated, cloud
        array[0] = [(0.0, 0, 0), (0.2, 1, 0), (0.2, 21824, 0), (0.9, 21824, 1 << 3), (0.5, 22280, 0)]
        monkeypatch.setattr(ee.data, "computePixels", lambda request: array[names])
        raster = source.read(landsat, ["red"], landsat.grids["red"].window(0, 0, 1, 5))
        assert raster.valid.tolist() == [[False, False, True, True, True]]
        assert raster.clear.tolist() == [[False, False, True, False, False]]
        array = np.zeros((1, 4), [("B4", np.uint16), ("cs_cdf", np.float64)])
        array[0] = [(0, 1.0), (65535, 1.0), (1, 0.6), (1, 0.59)]
        monkeypatch.setattr(ee.data, "computePixels", lambda request: array)
        raster = source.read(sentinel, ["red"], sentinel.grids["red"].window(0, 0, 1, 4))
        assert raster.valid.tolist() == [[False, False, True, True]]
        assert raster.clear.tolist() == [[False, False, True, False]]


def truth(simulated, scene, band, grid):
    east = grid.left + grid.pixel[0] * (np.arange(grid.shape[1]) + 0.5)
    north = (grid.top - grid.pixel[1] * (np.arange(grid.shape[0]) + 0.5))[:, None]
    optics = sensors.OLI_PAN if band == "pan" else (sensors.OLI if scene.sensor == "landsat" else sensors.MSI)[band]
    seen = simulated.truth(east, north, band, optics.sigma)
    return seen if band == "pan" or scene.sensor == "sentinel" else as_landsat(seen, band)


def as_landsat(seen, band):
    return sentinel_to_landsat([band], "toa", "SENTINEL_2A").apply(seen[..., None])[..., 0]


def check_locations(windows):
    """Reads windows of all bands by 64 threads and compares every pixel with the formula of the ground there."""
    simulated = SimulatedSource(seed=7, size=7680)
    random = np.random.default_rng(0)
    with served(simulated, connection={"max_concurrent": 64}) as (emulator, source):
        jobs = []
        for index in range(windows):
            scene = source.scenes()[index % 2]
            bands, grid = list(groups(scene))[index // 2 % 2]
            row, column = (int(random.integers(0, size - 30)) for size in grid.shape)
            jobs.append((scene, bands[:2], grid.window(row, column, 30, 24)))
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            rasters = list(pool.map(lambda job: source.read(*job), jobs))
        for (scene, bands, window), raster in zip(jobs, rasters, strict=True):
            assert window.left % window.pixel[0] == {30: 15, 15: 7.5, 10: 0, 20: 0}[window.pixel[0]]
            assert raster.clear.all()
            for index, band in enumerate(bands):
                expected = truth(simulated, scene, band, window)
                np.testing.assert_allclose(raster.values[..., index], expected, atol=5.1e-5)
        assert emulator.peak <= 64


def test_every_pixel_that_64_threads_read_is_where_it_says():
    check_locations(100)


@pytest.mark.skipif(not os.environ.get("HARMONIZE_DRILLS"), reason="a drill; set HARMONIZE_DRILLS=1 to run it")
def test_every_pixel_of_a_thousand_windows_is_where_it_says():
    check_locations(1000)


def test_a_window_off_the_lattice_is_refused():
    with served(SMALL) as (_, source):
        landsat, sentinel = source.scenes()
        with pytest.raises(SceneError, match="native grid"):
            source.read(landsat, ["red"], sentinel.grids["red"])


@pytest.mark.parametrize("limits", [Limits(bytes=20_000), Limits(memory_pixels=9_000)])
def test_a_window_that_is_refused_for_its_size_comes_in_parts(limits):
    with served(SIMULATED, limits=limits) as (emulator, source):
        scene = source.pairs()[0][1]
        grid = scene.grids["red"].window(-5, -7, 101, 93)
        found, expected = (s.read(scene, ["red", "green"], grid) for s in (source, SIMULATED))
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.clear, expected.clear)
        statuses = [request.status for request in emulator.requests("computePixels")]
        assert statuses.count(200) > statuses.count(400) > 0


def test_a_window_beyond_earth_engines_limit_is_asked_for_in_parts_at_once(monkeypatch):
    monkeypatch.setattr(earth_engine, "MOST_BYTES", 100_000)
    with served(SMALL) as (emulator, source):
        scene = source.scenes()[1]
        grid = scene.grids["red"].window(0, 0, 120, 100)
        np.testing.assert_array_equal(source.read(scene, ["red"], grid).values, SMALL.read(scene, ["red"], grid).values)
        assert [request.status for request in emulator.requests("computePixels")] == [200] * 4


def test_a_window_that_never_fits_is_given_up():
    with served(SMALL, limits=Limits(memory_pixels=1)) as (emulator, source):
        scene = source.scenes()[0]
        with pytest.raises(PermanentError, match="not split any more"):
            source.read(scene, ["red"], scene.grids["red"].window(0, 0, 60, 60))
        assert len(emulator.requests("computePixels")) == 2


def read_all(source, count, threads, scene=0):
    """Reads windows of a scene by some threads; the rasters, or the errors that they ended in."""
    scene = source.scenes()[scene]
    grid = scene.grids["red"]

    def read(index):
        try:
            return source.read(scene, ["red"], grid.window(index % 40, index // 40, 8, 8))
        except (PermanentError, TransientError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, range(count)))


def complete(results):
    return [r for r in results if not isinstance(r, Exception)]


def test_a_storm_of_refusals_loses_nothing_and_settles_within_the_quota():
    options = {"limits": Limits(concurrent=3), "latency": 0.02, "connection": {"max_concurrent": 16}}
    with served(SMALL, **options) as (emulator, source):
        attempts, _ = [], source.scenes()
        ee_client.observers.append(attempts.append)
        try:
            assert len(complete(read_all(source, 150, 16))) == 150
        finally:
            ee_client.observers.remove(attempts.append)
        statuses = [request.status for request in emulator.requests("computePixels")]
        assert statuses.count(200) == 150 and 0 < statuses.count(429) < 50
        assert statuses[-75:] == [200] * 75
        assert emulator.peak == 3
        refused = [attempt for attempt in attempts if attempt.outcome == "refused"]
        assert len(refused) == statuses.count(429) and all(attempt.pause > 0 for attempt in refused)
        assert sum(attempt.bytes > 256 for attempt in attempts if attempt.outcome == "ok") == 150


def test_refusals_are_borne_for_a_time_and_not_for_a_number_of_attempts():
    connection = {"attempts": 2, "throttle_budget_s": 0.5}
    with served(SMALL, connection=connection) as (emulator, source):
        source.scenes()
        emulator.faults = [Fault(429, "computePixels", count=4, message="Too many concurrent aggregations.")]
        assert len(complete(read_all(source, 1, 1))) == 1
        emulator.faults = [Fault(429, "computePixels")]
        start = time.monotonic()
        (error,) = read_all(source, 1, 1)
        assert isinstance(error, TransientError) and "quota" in str(error)
        assert 0.5 <= time.monotonic() - start < 5


def test_what_fails_now_and_then_is_repeated():
    with served(SMALL, connection={"attempts": 12}) as (emulator, source):
        source.scenes()
        emulator.faults = [Fault(503, "computePixels", share=0.3), Fault(0, "computePixels", share=0.1, seed=1)]
        assert len(complete(read_all(source, 60, 8))) == 60
        statuses = [request.status for request in emulator.requests("computePixels")]
        assert statuses.count(503) > 5 and statuses.count(0) > 1


def test_what_keeps_failing_is_given_up_as_transient():
    with served(SMALL, connection={"attempts": 3}) as (emulator, source):
        source.scenes()
        emulator.faults = [Fault(503, "computePixels")]
        (error,) = read_all(source, 1, 1)
        assert isinstance(error, TransientError) and "503" in str(error)
        assert len(emulator.requests("computePixels")) == 3


def test_a_server_that_hangs_is_left_at_the_deadline():
    with served(SMALL, connection={"deadline_s": 0.6, "attempts": 2}) as (emulator, source):
        source.scenes()
        emulator.faults = [Fault(200, "computePixels", count=1, hang=30)]
        start = time.monotonic()
        assert len(complete(read_all(source, 1, 1))) == 1
        assert 0.6 <= time.monotonic() - start < 5
        emulator.faults = [Fault(200, "computePixels", hang=30)]
        (error,) = read_all(source, 1, 1)
        assert isinstance(error, TransientError) and "TimeoutError" in str(error)


@pytest.mark.parametrize("status", [400, 403, 404, 501])
def test_what_is_denied_is_permanent_and_asked_once(status):
    with served(SMALL) as (emulator, source):
        source.scenes()
        emulator.faults = [Fault(status, "computePixels", message="no such thing")]
        (error,) = read_all(source, 1, 1)
        assert type(error) is PermanentError and f"{status}, no such thing" in str(error)
        assert len(emulator.requests("computePixels")) == 1


def test_refused_credentials_are_told_as_such():
    with served(SMALL) as (emulator, source):
        scene = source.scenes()[0]
        emulator.faults = [Fault(401, "computePixels", message="Request had invalid authentication credentials.")]
        with pytest.raises(FlagError, match="authenticate anew"):
            source.read(scene, ["red"], scene.grids["red"].window(0, 0, 5, 5))


def test_a_project_that_is_not_registered_is_told_as_such(monkeypatch, tmp_path):
    with served(SMALL, auth=True) as (emulator, source):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(emulator.write_key(tmp_path / "key.json")))
        monkeypatch.setattr(ee.oauth, "get_credentials_path", lambda: str(tmp_path / "none"))
        emulator.faults = [Fault(403, "algorithms", message="Project is not registered to use Earth Engine.")]
        with pytest.raises(FlagError, match="cannot use Earth Engine; register it.*403"):
            source.scenes()


def test_a_workload_tag_that_earth_engine_does_not_take_is_told():
    with served(SMALL, connection={"workload_tag": "Not So"}) as (_, source):
        with pytest.raises(FlagError, match="workload_tag=Not So"):
            source.scenes()


@pytest.mark.filterwarnings("ignore:Your project has exceeded")
def test_in_restricted_mode_one_request_is_in_flight(caplog):
    with served(SMALL, restricted=True, latency=0.01) as (emulator, source):
        with caplog.at_level("WARNING", "harmonize"):
            assert len(complete(read_all(source, 20, 8))) == 20
        assert emulator.peak == 1
        assert caplog.text.count("restricted mode") == 1


def test_requests_carry_the_workload_tag():
    with served(SMALL, connection={"workload_tag": "export-7"}) as (emulator, source):
        read_all(source, 1, 1)
        assert len(emulator.requests('"workloadTag": ?"export-7"')) == 1


def test_a_service_account_gets_tokens_and_new_ones_when_they_end(monkeypatch, tmp_path):
    with served(SMALL, auth=True) as (emulator, source):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(emulator.write_key(tmp_path / "key.json")))
        monkeypatch.setattr(ee.oauth, "get_credentials_path", lambda: str(tmp_path / "none"))
        assert len(complete(read_all(source, 4, 2))) == 4
        emulator.account.revoke()
        assert len(complete(read_all(source, 4, 2))) == 4
        assert len(emulator.requests("POST /token")) >= 2


def missing(**_):
    raise google.auth.exceptions.DefaultCredentialsError("none were found")


def test_without_credentials_the_remedy_is_told(monkeypatch, tmp_path):
    with served(SMALL, auth=True) as (_, source):
        monkeypatch.setattr(ee.oauth, "get_credentials_path", lambda: str(tmp_path / "none"))
        monkeypatch.setattr(google.auth, "default", missing)
        with pytest.raises(FlagError, match="earthengine authenticate"):
            source.scenes()


def test_without_a_project_the_remedy_is_told():
    with served(SMALL) as (_, source):
        nowhere = dataclasses.replace(source.connection, project=None)
        with pytest.raises(FlagError, match="--ee_project"):
            dataclasses.replace(source, connection=nowhere).scenes()


@pytest.mark.parametrize("url", ["http://earthengine.googleapis.com", "http://192.0.2.1:80", "ftp://127.0.0.1", "here"])
def test_tokens_never_travel_in_the_clear(url):
    with pytest.raises(FlagError, match="https"):
        ee_client.client(Connection("emulator-project", url))


def test_wrong_dates_are_told():
    with served(SMALL) as (_, source):
        with pytest.raises(FlagError, match="start=June"):
            dataclasses.replace(source, start="June").scenes()
        with pytest.raises(FlagError, match="before the end"):
            dataclasses.replace(source, end="2022-06-01").scenes()


@pytest.mark.parametrize(("name", "level"), [("alabama", "toa"), ("t33uuu", "toa"), ("manaus", "sr"), ("t32tmt", "sr")])
def test_real_scenes_come_as_they_are(real_data, tmp_path, name, level):
    files = geotiff.GeoTiffSource(real_scenes.manifest(real_data, tmp_path, name))
    time = {"source": {"start": "2015-01-01", "end": "2024-01-01", "level": level}}
    with served(files, **time) as (_, source):
        (scene,), (there,) = files.scenes(), source.scenes()
        assert (there.grids, there.time_ms, there.sun) == (
            scene.grids,
            scene.time_ms,
            pytest.approx(scene.sun, nan_ok=True),
        )
        for bands, grid in groups(scene):
            window = grid.window(100, 90, 64, 70)
            found, expected = (s.read(x, bands, window) for s, x in ((source, there), (files, scene)))
            np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
            np.testing.assert_array_equal(found.valid, expected.valid)
            if bands != ["pan"]:
                np.testing.assert_array_equal(found.clear, expected.clear)


def test_a_patch_on_the_pair_grid_equals_the_simulated_one():
    with served(SIMULATED) as (_, source):
        for scene in source.pairs()[0]:
            grid = dataclasses.replace(SIMULATED.pairs()[0][1].grid, left=300_010.0, top=5_699_980.0, shape=(96, 96))
            grid = grid.at(30) if scene.sensor == "landsat" else grid
            found, expected = (read_onto(s, scene, sensors.BANDS, grid) for s in (source, SIMULATED))
            np.testing.assert_array_equal(found.values, expected.values)
            np.testing.assert_array_equal(found.clear, expected.clear)
