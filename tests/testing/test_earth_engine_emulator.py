import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import ee
import numpy as np
import pytest
from earth_engine import loopback_only  # noqa: F401
from rasterio.io import MemoryFile

from harmonize_tf.errors import FlagError
from harmonize_tf.geometry import Grid
from harmonize_tf.sources import ee_products
from harmonize_tf.sources.simulated import SimulatedSource
from harmonize_tf.testing import earth_engine_emulator
from harmonize_tf.testing.earth_engine_emulator import Emulator
from harmonize_tf.testing.ee_limits import TOO_MANY, Fault, Limits

SOURCE = SimulatedSource(level="sr", size=1920, days=(0, 16), clouds=0.5, nodata=True)
LANDSAT = "LANDSAT/LC08/C02/T1_L2"
SENTINEL = "COPERNICUS/S2_SR_HARMONIZED"
IMAGE = f"{LANDSAT}/simulated_landsat_seed0_day0"


def connect(emulator):
    ee.Reset()
    ee.data.setMaxRetries(0)
    ee.Initialize(credentials=None, url=emulator.url, project="emulator-project")


@pytest.fixture(scope="module")
def running():
    with Emulator(SOURCE) as emulator:
        yield emulator


@pytest.fixture
def emulator(running):
    connect(running)
    running.faults, running.latency, running.gate.limits, running.gate.peak = [], 0.0, Limits(), 0
    running.log.clear()
    return running


def on(grid: Grid, **more):
    affine = {"scaleX": grid.pixel[0], "translateX": grid.left, "scaleY": -grid.pixel[1], "translateY": grid.top}
    size = {"width": grid.shape[1], "height": grid.shape[0]}
    return {"dimensions": size, "affineTransform": affine, "crsCode": grid.crs} | more


def compute(bands, grid, form="NUMPY_NDARRAY", image=IMAGE):
    expression = ee.Image(image).select(list(bands))
    return ee.data.computePixels({"expression": expression, "fileFormat": form, "grid": on(grid)})


def native(sensor, band):
    scene = SOURCE.scenes()[sensor == "sentinel"]
    return scene, scene.grids[band]


@pytest.mark.parametrize(
    ("more", "days"),
    [
        ({}, [0, 16]),
        ({"startTime": "2022-06-07T10:00:00Z", "endTime": "2022-06-08T00:00:00Z"}, [0]),
        ({"startTime": "2022-06-07T10:00:01Z"}, [16]),
        ({"properties": ["CLOUD_COVER<=4"]}, []),
        ({"properties": ["CLOUD_COVER>=5", 'SPACECRAFT_ID = "LANDSAT_8"']}, [0, 16]),
        ({"region": {"type": "Point", "coordinates": [12.14, 51.4]}}, [0, 16]),
        ({"region": {"type": "Point", "coordinates": [-12.14, 51.4]}}, []),
    ],
)
def test_images_are_listed_by_time_region_and_properties(emulator, more, days):
    images = ee.data.listImages({"parent": LANDSAT} | more)["images"]
    assert [image["id"] for image in images] == [f"{LANDSAT}/simulated_landsat_seed0_day{day}" for day in days]


def test_lists_come_in_pages_that_the_client_follows():
    with Emulator(SOURCE, page=1) as emulator:
        connect(emulator)
        assert len(ee.data.listImages(SENTINEL)["images"]) == 2
        assert len(emulator.requests("listAssets")) == 2


def test_a_long_query_comes_in_a_body_and_is_understood(emulator):
    ring = [[12 + 2e-3 * i, 51.0 + i % 2] for i in range(200)]
    region = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    assert len(ee.data.listImages({"parent": LANDSAT, "region": region})["images"]) == 2


def test_metadata_tell_every_bands_own_grid(emulator):
    asset = ee.data.getAsset(IMAGE)
    scene, grid = native("landsat", "red")
    found = {band["id"]: band["grid"] for band in asset["bands"]}["SR_B4"]
    assert found["affineTransform"] == {"scaleX": 30, "translateX": grid.left, "scaleY": -30, "translateY": grid.top}
    assert found["dimensions"] == {"width": grid.shape[1], "height": grid.shape[0]}
    assert asset["startTime"] == "2022-06-07T10:00:00Z"
    assert asset["properties"]["SUN_ELEVATION"] == 90 - scene.sun[0]


@pytest.mark.parametrize(("sensor", "band", "name"), [("landsat", "nir", "SR_B5"), ("sentinel", "swir1", "B11")])
def test_pixels_are_the_scenes_in_the_products_own_code(emulator, sensor, band, name):
    scene, grid = native(sensor, band)
    window = grid.window(-2, 3, 40, 30)
    image = f"{ee_products.product(scene.spacecraft, 'sr').collection}/{scene.id}"
    dn = compute([name], window, image=image)[name]
    expected = SOURCE.read(scene, [band], window)
    scale, offset = (2.75e-5, -0.2) if sensor == "landsat" else (1e-4, 0)
    assert dn.dtype == np.uint16
    np.testing.assert_array_equal(dn == 0, ~expected.valid)
    np.testing.assert_allclose((dn * scale + offset)[expected.valid], expected.values[expected.valid, 0], atol=1e-6)


def test_quality_bands_say_what_the_sources_masks_say(emulator):
    scene, grid = native("landsat", "red")
    window = grid.window(-2, -2, 60, 60)
    raster, qa = SOURCE.read(scene, ["red"], window), compute(["QA_PIXEL"], window)["QA_PIXEL"]
    assert set(np.unique(qa)) <= {0, 1, 21824, 22280}
    assert (qa[:2] == 0).all() and (qa[2:, 2:] != 0).all()
    np.testing.assert_array_equal(qa == 21824, raster.clear)
    scene, grid = native("sentinel", "red")
    cloudy = SOURCE.read(scene, ["red"], grid)
    scl = compute(["SCL"], grid.at(20), image=f"{SENTINEL}/{scene.id}")["SCL"].repeat(2, 0).repeat(2, 1)
    score = compute(["cs_cdf"], grid, image=f"{ee_products.CLOUD_SCORE}/{scene.id}")["cs_cdf"]
    assert not cloudy.clear.all() and not cloudy.clear[scl == 9].any()
    assert ((scl == 9) != ~cloudy.clear).mean() < 0.02  # the discs' edges
    np.testing.assert_array_equal(score, cloudy.clear)


def test_geotiff_and_getpixels_give_the_same_pixels(emulator):
    _, grid = native("landsat", "red")
    window = grid.window(5, 6, 20, 25)
    expected = compute(["SR_B4", "SR_B3"], window)
    for answer in (
        compute(["SR_B4", "SR_B3"], window, "GEO_TIFF"),
        ee.data.getPixels(
            {"assetId": IMAGE, "bandIds": ["SR_B4", "SR_B3"], "fileFormat": "GEO_TIFF", "grid": on(window)}
        ),
    ):
        with MemoryFile(answer).open() as file:
            assert (file.crs.to_string(), file.transform) == (window.crs, window.transform)
            np.testing.assert_array_equal(file.read(), [expected["SR_B4"], expected["SR_B3"]])


def test_finer_pixels_are_the_nearest_and_coarser_or_reprojected_ones_are_refused(emulator):
    _, grid = native("landsat", "red")
    window = grid.window(5, 6, 20, 25)
    native_pixels = compute(["SR_B4"], window)["SR_B4"]
    np.testing.assert_array_equal(compute(["SR_B4"], window.at(15))["SR_B4"], native_pixels.repeat(2, 0).repeat(2, 1))
    with pytest.raises(ee.EEException, match="no pyramids"):
        compute(["SR_B4"], window.window(0, 0, 20, 20).at(60))
    with pytest.raises(ee.EEException, match="does not reproject"):
        compute(["SR_B4"], Grid("EPSG:4326", 12.0, 51.0, (1e-4, 1e-4), (9, 9)))


def test_calls_are_held_against_the_signatures(emulator):
    with pytest.raises(ee.EEException, match="does not implement Image.normalizedDifference"):
        ee.data.computePixels({"expression": ee.Image(IMAGE).normalizedDifference(["SR_B4", "SR_B5"])})
    wrong = {"functionName": "Image.load", "arguments": {"name": {"constantValue": IMAGE}}}
    for call, message in (
        (wrong, "Unrecognized argument: name"),
        ({"functionName": "Image.load", "arguments": {}}, "'id' is required"),
        ({"functionName": "Image.conjure"}, "Unrecognized function: Image.conjure"),
    ):
        expression = {"result": "0", "values": {"0": {"functionInvocationValue": call}}}
        body = f'{{"expression": {json.dumps(expression)}}}'.encode()
        url = f"{emulator.url}/v1/projects/emulator-project/image:computePixels"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, body))
        assert refused.value.code == 400 and message in refused.value.read().decode()


def test_unknown_bands_and_images_are_told(emulator):
    _, grid = native("landsat", "red")
    with pytest.raises(ee.EEException, match="'B4' did not match any bands"):
        compute(["B4"], grid)
    with pytest.raises(ee.EEException, match="not found"):
        compute(["SR_B4"], grid, image=f"{LANDSAT}/nothing")
    with pytest.raises(ee.EEException, match="not found"):
        ee.data.listImages("LANDSAT/NOTHING")


@pytest.mark.parametrize(
    ("limits", "shape", "message"),
    [
        (
            Limits(),
            (6000, 6000),
            r"Total request size \(72000000 bytes\) must be less than or equal to 50331648",
        ),
        (Limits(), (1, 40_000), "32768"),
        (Limits(memory_pixels=99), (10, 10), "User memory limit exceeded."),
        (Limits(bands=0), (1, 1), "Number of bands"),
    ],
)
def test_what_is_too_large_is_refused_in_earth_engines_words(emulator, limits, shape, message):
    _, grid = native("landsat", "red")
    emulator.gate.limits = limits
    with pytest.raises(ee.EEException, match=message):
        compute(["SR_B4"], grid.window(0, 0, *shape))


def test_faults_come_as_often_as_planned(emulator):
    _, grid = native("landsat", "red")
    emulator.faults = [Fault(503, "computePixels", count=2)]
    assert [outcome(grid) for _ in range(4)] == ["The service is currently unavailable."] * 2 + ["ok"] * 2
    emulator.faults = [Fault(500, "SR_B5"), Fault(0, "SR_B6")]
    assert outcome(grid) == "ok"
    with pytest.raises(ConnectionError):
        compute(["SR_B6"], grid)
    emulator.faults = [Fault(503, share=0.3)]
    failed = sum(outcome(grid.window(0, 0, 1, 1)) != "ok" for _ in range(60))
    assert 8 < failed < 30


def outcome(grid):
    try:
        compute(["SR_B4"], grid)
    except ee.EEException as error:
        return str(error)
    return "ok"


def test_more_requests_than_the_quota_are_refused_and_all_are_logged(emulator):
    emulator.gate.limits, emulator.latency = Limits(concurrent=3), 0.3
    _, grid = native("landsat", "red")
    results = []
    threads = [threading.Thread(target=lambda: results.append(outcome(grid))) for _ in range(8)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start >= 0.3
    assert sorted(results) == sorted([TOO_MANY] * 5 + ["ok"] * 3)
    assert emulator.peak == 3
    assert sorted(request.status for request in emulator.requests("computePixels")) == [200] * 3 + [429] * 5


def test_a_rate_beyond_the_quota_is_refused(emulator):
    _, grid = native("landsat", "red")
    emulator.gate.limits = Limits(per_second=2)
    assert ["Quota exceeded" in outcome(grid.window(0, 0, 1, 1)) for _ in range(3)] == [False, False, True]


def test_tokens_are_required_and_only_given_for_the_accounts_key(tmp_path):
    with Emulator(SOURCE, auth=True) as emulator:
        with pytest.raises(Exception, match="invalid authentication credentials"):
            connect(emulator)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"{emulator.url}/token", b"assertion=forged")
        assert '"client_email"' in emulator.write_key(tmp_path / "key.json").read_text()


def test_the_command_prints_where_it_listens():
    command = [sys.executable, "-m", "harmonize_tf.testing.earth_engine_emulator", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/$discovery/rest?version=v1") as answer:
            assert b'"name": "earthengine"' in answer.read()
    finally:
        process.terminate()
        process.wait()


def test_a_port_that_is_taken_is_told(running):
    with pytest.raises(FlagError, match="port cannot be used"):
        earth_engine_emulator.main([f"--port={running.url.rpartition(':')[2]}"])
