"""Scenes in tar files, on web servers and in buckets are what they are in a folder."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import cloud
import numpy as np
import pytest
import rasterio
import web
from google.cloud import storage
from scene_files import declare, landsat_folder, numbers, write_manifest, write_raster

from harmonize_tf.errors import SceneError
from harmonize_tf.sources import folders, geotiff, rasters
from harmonize_tf.sources.geotiff import GeoTiffSource


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with a Level-1 and a Level-2 scene, each in its own."""
    folder = tmp_path_factory.mktemp("scenes")
    for level in ("L1TP", "L2SP"):
        landsat_folder(folder / level, level)
    return folder


@pytest.fixture
def served(scenes, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    with web.serve(scenes) as server:
        yield server


@pytest.fixture
def bucket(scenes, monkeypatch):
    """A bucket with the scenes, which GDAL asks without credentials."""
    with cloud.storage() as url:
        monkeypatch.setenv("CPL_GS_ENDPOINT", os.environ["STORAGE_EMULATOR_HOST"] + "/")
        monkeypatch.setenv("GS_NO_SIGN_REQUEST", "YES")
        upload(scenes)
        yield url


def upload(folder):
    bucket = storage.Client().bucket("bucket")
    for path in folder.rglob("*.*"):
        bucket.blob(f"landsat/{path.relative_to(folder)}").upload_from_filename(path)


def pack(folder, path, below=""):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, below + file.name)
    return path


def mtl(folder):
    return next(folder.glob("*_MTL.*"))


def assert_equal(given, folder):
    """All pixels of the scene at a path or URL are those of the scene in a folder."""
    found, plain = GeoTiffSource(given), GeoTiffSource(folder)
    (scene,), (expected,) = found.scenes(), plain.scenes()
    assert repr(scene) == repr(expected)  # angles may be NaN
    for band, grid in expected.grids.items():
        window = grid.window(-3, 5, grid.shape[0], grid.shape[1])
        rasters = [source.read(scene, [band], window) for source in (found, plain)]
        for array in ("values", "valid", "clear"):
            np.testing.assert_array_equal(*(getattr(raster, array) for raster in rasters))
        assert 0.8 < rasters[0].valid.mean() < 1


@pytest.mark.parametrize("level", ["L1TP", "L2SP"])
@pytest.mark.parametrize("below", ["", "./", "LC08/"])
def test_a_tar_file_gives_the_pixels_of_the_folder_it_was_made_of(level, below, scenes, tmp_path):
    assert_equal(pack(scenes / level, tmp_path / "a scene.tar", below), scenes / level)


def manifest_folder(folder, path="ms.tif", name="S"):
    """A scene with a manifest; gives the folder."""
    (folder / path).parent.mkdir(parents=True)
    write_raster(folder / path, numbers())
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "scenes": [declare(path, id=name)]}))
    return folder


@pytest.mark.parametrize("below", ["", "./", "a/b/"])
def test_a_manifest_in_a_tar_file_finds_what_lies_below_it(below, tmp_path):
    folder = manifest_folder(tmp_path / "scene", "img/ms.tif")
    assert_equal(pack(folder, tmp_path / "scene.tar", below), folder)


def test_a_manifest_in_a_tar_file_may_name_what_lies_elsewhere(tmp_path):
    folder = manifest_folder(tmp_path / "scene")
    (tmp_path / "packed").mkdir()
    with web.serve(folder) as server:
        manifest = {"version": 1, "scenes": [declare(f"{server.url}/ms.tif", id="S")]}
        (tmp_path / "packed" / "manifest.json").write_text(json.dumps(manifest))
        assert_equal(pack(tmp_path / "packed", tmp_path / "scene.tar"), folder)


@pytest.mark.parametrize("named", ["none.tif", "/tmp/none.tif", "../none.tif"])
def test_what_is_not_in_the_tar_file_is_told(named, tmp_path):
    manifest = {"version": 1, "scenes": [declare(named, id="S")]}
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SceneError, match="scene.tar/.*none.tif: there is no such file; check its name") as error:
        GeoTiffSource(pack(tmp_path / "packed", tmp_path / "scene.tar"))
    assert "\n" not in str(error.value)


def test_a_tar_file_with_scenes_in_several_folders_is_refused(tmp_path):
    for name in "AB":
        manifest_folder(tmp_path / "both" / name, name=name)
    with pytest.raises(SceneError, match="both.tar: expected scenes in one folder.*; unpack it.*scenes in A, B$"):
        GeoTiffSource(pack(tmp_path / "both", tmp_path / "both.tar"))
    # What lies below a manifest is the manifest's, as in a directory.
    manifest_folder(tmp_path / "whole", "C/ms.tif", "S")
    (tmp_path / "both" / "A").rename(tmp_path / "whole" / "A")
    assert_equal(pack(tmp_path / "whole", tmp_path / "whole.tar"), tmp_path / "whole")


def test_a_folder_of_scenes_may_hold_tar_files_of_them_or_of_other_things(scenes, tmp_path):
    pack(manifest_folder(tmp_path / "A", name="A"), tmp_path / "A.tar")
    pack(manifest_folder(tmp_path / "elsewhere" / "B", name="B"), tmp_path / "B.tar", "b/")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    pack(tmp_path / "code", tmp_path / "code.tar")
    assert [scene.id for scene in GeoTiffSource(tmp_path).scenes()] == ["A", "B"]


@pytest.mark.parametrize("level", ["L1TP", "L2SP"])
def test_a_web_server_gives_the_pixels_of_the_folder_it_serves(level, scenes, served):
    assert_equal(f"{served.url}/{level}/{mtl(scenes / level).name}", scenes / level)


@pytest.mark.parametrize("level", ["L1TP", "L2SP"])
@pytest.mark.parametrize("given", ["{folder}", "{folder}/", "{folder}/{mtl}"])
def test_a_bucket_gives_the_pixels_of_the_folder_that_was_put_there(level, given, scenes, bucket):
    url = given.format(folder=f"{bucket}/landsat/{level}", mtl=mtl(scenes / level).name)
    assert_equal(url, scenes / level)


def test_an_mtl_file_can_be_given_instead_of_its_folder(scenes):
    assert_equal(mtl(scenes / "L1TP"), scenes / "L1TP")


def test_a_manifest_may_lie_on_a_server_or_in_a_bucket_and_its_files_elsewhere(scenes, served, bucket, tmp_path):
    folder = scenes / "manifest"
    folder.mkdir()
    write_raster(folder / "ms.tif", numbers())
    write_manifest(folder, declare()).rename(folder / "manifest.json")
    upload(scenes)
    places = [f"{served.url}/manifest", f"{bucket}/landsat/manifest"]
    for given in (f"{places[0]}/manifest.json", f"{places[1]}/manifest.json", places[1]):
        assert_equal(given, folder)
    for place in places:
        assert_equal(write_manifest(tmp_path, declare(f"{place}/ms.tif")), folder)


def test_a_folder_may_hold_tar_files(scenes, tmp_path):
    for level in ("L1TP", "L2SP"):
        pack(scenes / level, tmp_path / f"{level}.tar")
    assert sorted(scene.level for scene in GeoTiffSource(tmp_path).scenes()) == ["sr", "toa"]


def test_the_real_alabama_scene_is_the_same_packed_and_served(real_data, tmp_path):
    stack, folder = real_data / "scenes" / "landsat8" / "alabama_020039_20150804", tmp_path / "scene"
    folder.mkdir()
    name = "LC80200392015216LGN00"
    shutil.copy(stack / "MTL.txt", folder / f"{name}_MTL.txt")
    bands = {f"B{band}": ("ms_30m", band) for band in range(1, 8)}
    for band, (file, index) in (bands | {"B8": ("pan_15m", 1), "BQA": ("bqa_30m", 1)}).items():
        with rasterio.open(stack / f"{file}.tif") as raster:
            with rasterio.open(folder / f"{name}_{band}.TIF", "w", **raster.profile | {"count": 1}) as out:
                out.write(raster.read(index), 1)
    assert_equal(pack(folder, tmp_path / "scene.tar"), folder)
    with web.serve(folder) as server:
        assert_equal(f"{server.url}/{name}_MTL.txt", folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A manifest of one raster of 2048 x 2048 pixels in blocks of 256."""
    folder = tmp_path_factory.mktemp("large")
    dn = numbers(1, (2048, 2048))
    write_raster(folder / "ms.tif", dn, tiled=True, blockxsize=256, blockysize=256, compress="deflate")
    write_manifest(folder, declare(bands=["red"]))
    return folder


def test_a_window_of_a_large_file_reads_a_small_part_of_it(large):
    with web.serve(large) as server:
        source = GeoTiffSource(f"{server.url}/scenes.json")
        sampled, asked = server.sent, len(server.requests)
        (scene,) = source.scenes()
        raster = source.read(scene, ["red"], scene.grid.window(300, 300, 200, 200))
    assert raster.valid.all()
    size = (large / "ms.tif").stat().st_size
    assert server.sent - sampled < size / 60  # one block of 64
    assert len(server.requests) - asked <= 2
    # Before that: the header, and 9 samples for the check of the scale, of which 5 lie across the corners of 4 blocks.
    assert sampled < size * 25 / 64
    assert asked < 20


def test_a_server_that_knows_no_ranges_is_told(large):
    with web.serve(large) as server:
        server.faults = {"ms.tif": "whole"}
        with pytest.raises(
            SceneError, match=f"{server.url}/ms.tif: the server sends whole files only; fetch the scene"
        ):
            GeoTiffSource(f"{server.url}/scenes.json")


@pytest.mark.parametrize("fault", [404, 503])
def test_a_file_that_goes_away_midway_is_told_and_may_come_back(fault, large, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with web.serve(large) as server:
        source, plain = GeoTiffSource(f"{server.url}/scenes.json"), GeoTiffSource(large / "scenes.json")
        (scene,) = source.scenes()
        window = scene.grid.window(700, 300, 200, 200)
        server.faults = {"ms.tif": fault}
        with pytest.raises(SceneError, match=f"{server.url}/ms.tif: the server stopped sending") as error:
            source.read(scene, ["red"], window)
        assert "\n" not in str(error.value)
        server.faults = {}
        values = [each.read(scene, ["red"], window).values for each in (source, plain)]
        np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("answered", range(2, 9))
def test_no_failure_is_taken_for_pixels(answered, tmp_path, monkeypatch):
    """GDAL, as it is by default, reads zeros where it failed to fetch the list of blocks, after 2 or 3 answers here."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    dn = numbers(1, (2048, 2048))
    write_raster(tmp_path / "ms.tif", dn, tiled=True, blockxsize=16, blockysize=16)
    with web.serve(tmp_path) as server:
        answer = server.answer
        monkeypatch.setattr(
            server, "answer", lambda *asked: answer(*asked) if len(server.requests) < answered else (503, b"", {})
        )
        with contextlib.suppress(SceneError, rasterio.errors.RasterioError):
            with rasters.open_raster(f"{server.url}/ms.tif") as raster:
                np.testing.assert_array_equal(
                    raster.read(1, window=((900, 1000), (300, 500))), dn[0, 900:1000, 300:500]
                )


def test_overlapping_windows_fetch_nothing_twice_and_may_be_read_by_threads(large):
    with web.serve(large) as server:
        source, plain = GeoTiffSource(f"{server.url}/scenes.json"), GeoTiffSource(large / "scenes.json")
        (scene,) = source.scenes()
        windows = [
            scene.grid.window(row, column, 420, 420)
            for row in range(-18, 2048, 384)
            for column in range(-18, 2048, 384)
        ]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda window: source.read(scene, ["red"], window).values, windows))
        for values, window in zip(read, windows, strict=True):
            np.testing.assert_array_equal(values, plain.read(scene, ["red"], window).values)
    # 1.01 to 1.15, as threads come to share a request; opened anew for each window it was 3.4.
    assert server.sent < 1.3 * (large / "ms.tif").stat().st_size


def test_what_fails_in_passing_is_asked_for_again(scenes, served):
    names = [path.name for path in (scenes / "L1TP").iterdir()]
    served.faults = {name: ((503, 429, 502)[i % 3], 2) for i, name in enumerate(names)}
    assert_equal(f"{served.url}/L1TP/{mtl(scenes / 'L1TP').name}", scenes / "L1TP")
    assert served.faults[mtl(scenes / "L1TP").name][1] < 0


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        (404, "there is no such file"),
        (403, "access is denied"),
        (503, "does not answer; try again later"),
        ("truncated", "truncated or damaged; try again"),
    ],
)
def test_what_fails_for_good_is_told_in_one_line_and_may_heal(fault, remedy, scenes, served, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    file = next((scenes / "L1TP").glob("*_B4.TIF"))
    served.faults = {file.name: fault}
    url = f"{served.url}/L1TP/{mtl(scenes / 'L1TP').name}"
    with pytest.raises(SceneError, match=remedy) as error:
        GeoTiffSource(url)
    assert f"{served.url}/L1TP/{file.name}" in str(error.value)
    assert "\n" not in str(error.value)
    served.faults = {}
    assert_equal(url, scenes / "L1TP")


@pytest.mark.parametrize(("fault", "remedy"), [(404, "there is no such file"), (403, "access is denied")])
def test_an_mtl_file_that_cannot_be_had_is_told_in_one_line(fault, remedy, served):
    served.faults = {"x_MTL.txt": fault}
    with pytest.raises(SceneError, match=f"{served.url}/x_MTL.txt: {remedy}") as error:
        GeoTiffSource(f"{served.url}/x_MTL.txt")
    assert "\n" not in str(error.value)


def test_a_server_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(rasters, "RETRIES", 0)
    monkeypatch.setattr(folders, "_session", folders._session.__wrapped__)
    with pytest.raises(SceneError, match="^http://127.0.0.1:9/x_MTL.txt: the server does not answer") as error:
        GeoTiffSource("http://127.0.0.1:9/x_MTL.txt?sig=a%2Fb")
    assert "sig" not in str(error.value)


def test_a_signature_goes_along_to_every_file_and_into_no_message(scenes, served, caplog):
    url = f"{served.url}/L1TP/{mtl(scenes / 'L1TP').name}?sig=a%2Fb"
    assert_equal(url, scenes / "L1TP")
    assert all(request.endswith("?sig=a%2Fb") for request in served.requests)
    served.faults = {next((scenes / "L1TP").glob("*_B4.TIF")).name: 503}
    rasters._kept.cache_clear()
    with pytest.raises(SceneError, match="does not answer") as error:
        GeoTiffSource(url)
    assert "Retrying again" in caplog.text
    assert "sig" not in str(error.value) + caplog.text


def test_what_urllib3_logs_of_a_connection_that_breaks_has_no_signature(served, monkeypatch, caplog):
    monkeypatch.setattr(rasters, "PAUSE_S", 0)
    monkeypatch.setattr(folders, "_session", folders._session.__wrapped__)
    served.faults = {"x_MTL.txt": "broken"}
    secret = "sig=TOP,SECRET(a);b"
    with caplog.at_level("DEBUG"), pytest.raises(SceneError, match="the server does not answer") as error:
        GeoTiffSource(f"{served.url}/x_MTL.txt?{secret}")
    assert len(served.requests) == 1 + rasters.RETRIES
    assert "Retrying" in caplog.text
    for part in ("sig", "TOP", "SECRET", "(a)", "b;"):
        assert part not in str(error.value) + caplog.text


@pytest.mark.parametrize("fault", [404, 503, "broken", "truncated", None])
def test_passwords_and_signatures_are_shown_nowhere(fault, scenes, served, caplog, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    file = next((scenes / "L1TP").glob("*_B4.TIF"))
    served.faults = {file.name: fault} if fault else {mtl(scenes / "L1TP").name: 404}
    url = f"{served.url}/L1TP/{mtl(scenes / 'L1TP').name}?sig=hunter2"
    with caplog.at_level("DEBUG"), pytest.raises(SceneError, match=f"{served.url}/L1TP/") as error:
        GeoTiffSource(url.replace("//", "//user:hunter2@", 1))
    assert "hunter2" not in str(error.value) + caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/x",
        "https://u:hunter2@example.com/x/",
        "https://example.com/x/?a=hunter2",
        "ftp://h/?hunter2",
    ],
)
def test_a_url_that_is_refused_is_shown_without_its_secrets(url):
    with pytest.raises(SceneError, match="Received: ") as error:
        GeoTiffSource(url)
    assert "hunter2" not in str(error.value)


def test_text_on_a_web_server_is_utf_8_whatever_its_header_says(tmp_path, monkeypatch):
    folder = manifest_folder(tmp_path / "scene")
    manifest = json.dumps({"version": 1, "scenes": [declare(id="Zürich")]}, ensure_ascii=False)
    (folder / "manifest.json").write_text(manifest, "utf-8")
    with web.serve(folder) as server:
        answer = server.answer
        # Without a charset, which HTTP once took for Latin-1.
        monkeypatch.setattr(server, "answer", lambda *asked: (*answer(*asked)[:2], {"Content-Type": "text/plain"}))
        (declared, _), *_ = geotiff.find(f"{server.url}/manifest.json")[0]
        assert declared["id"] == "Zürich"
        (folder / "manifest.json").write_text(manifest, "latin-1")
        with pytest.raises(SceneError, match=f"{server.url}/manifest.json: .*'utf-8' codec can't decode"):
            geotiff.find(f"{server.url}/manifest.json")


@pytest.mark.parametrize("place", ["", "below"])
def test_a_folder_that_must_not_be_read_is_told(place, tmp_path, monkeypatch):
    """By a patch, since root may read everything."""
    (tmp_path / "below").mkdir()
    locked, iterate = tmp_path / place, pathlib.Path.iterdir

    def iterdir(path):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterate(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", iterdir)
    with pytest.raises(SceneError, match=f"^{locked}: cannot be read; .* Received: Permission denied$"):
        GeoTiffSource(tmp_path)


def test_a_bucket_or_folder_that_is_not_there_is_told(bucket):
    for given, message in {
        "gs://elsewhere/scene": "no such file",
        f"{bucket}/landsat/none": "expected a manifest.json.*an empty folder",
        f"{bucket}/landsat/L1TP/x_MTL.txt": "no such file",
    }.items():
        with pytest.raises(SceneError, match=f"^{given}: .*{message}") as error:
            GeoTiffSource(given)
        assert "\n" not in str(error.value)


def test_a_service_accounts_key_opens_a_bucket(scenes, bucket, monkeypatch):
    monkeypatch.delenv("GS_NO_SIGN_REQUEST")
    key = json.loads(pathlib.Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
    monkeypatch.setenv("GO2A_AUD", key["token_uri"])  # where GDAL asks for tokens
    assert_equal(f"{bucket}/landsat/L1TP", scenes / "L1TP")


def test_without_credentials_what_public_buckets_need_is_told(bucket):
    hidden = ("GS_NO_SIGN_REQUEST", "GOOGLE_APPLICATION_CREDENTIALS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"NO_GCE_CHECK": "true"}
    # A process of its own: GDAL keeps the token that it has.
    command = [sys.executable, "-m", "harmonize_tf.check", f"{bucket}/landsat/L1TP"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stdout.startswith("wrong: gs://bucket/landsat/L1TP/LC08")
    assert "GS_NO_SIGN_REQUEST=YES in the environment" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("https://example.com/scene/", "cannot be listed; give the URL of the .*_MTL.txt"),
        ("https://example.com/scene.tar", "cannot be listed"),
        ("s3://usgs-landsat/scene", "https:// or gs://"),
        ("{tmp}/none", "nothing at this path"),
        (f"{'a' * 300}/x_MTL.txt", "cannot be read; check the path.*File name too long"),
        ("http://[bad/x_MTL.txt?sig=a", "no URL.*Received: http://.bad/x_MTL.txt$"),
        ("http://gpu1..local/x_MTL.txt", "^http://gpu1..local/x_MTL.txt: "),
        ("{tmp}/bad.json", "http://.bad/x.tif: .*Invalid IPv6 URL"),
        ("{tmp}/cut.tar", "cut.tar: no whole tar file; fetch it again"),
        ("{tmp}/scene.tar.gz", "unpack it first"),
        ("{tmp}/empty.tar", "expected a manifest.json"),
    ],
)
def test_what_cannot_be_read_from_is_refused_in_one_line(given, message, scenes, tmp_path):
    whole = pack(scenes / "L1TP", tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    pack(scenes / "L1TP", tmp_path / "scene.tar.gz")
    write_manifest(tmp_path, declare("http://[bad/x.tif")).rename(tmp_path / "bad.json")
    (tmp_path / "none_in_it").mkdir()
    pack(tmp_path / "none_in_it", tmp_path / "empty.tar")
    with pytest.raises(SceneError, match=message) as error:
        GeoTiffSource(given.format(tmp=tmp_path))
    assert "\n" not in str(error.value)


def test_a_member_that_is_damaged_is_told_with_the_tar_files_name(scenes, tmp_path):
    folder = shutil.copytree(scenes / "L1TP", tmp_path / "scene")
    file = next(folder.glob("*_B4.TIF"))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(SceneError, match=f"{tmp_path}/scene.tar/{file.name}: .*fetch it again"):
        GeoTiffSource(pack(folder, tmp_path / "scene.tar"))
