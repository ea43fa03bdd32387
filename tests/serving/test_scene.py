import functools
import itertools
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import rasterio
import web
from rio_cogeo import cog_validate

from harmonize_tf import geometry, mgrs, radiometry, sources, unfinished
from harmonize_tf.errors import FlagError, ModelError, SceneError, ServerError
from harmonize_tf.sources.geotiff import GeoTiffSource
from harmonize_tf.sources.simulated import SimulatedSource
from serving import client, scene
from serving.server import DevelopmentServer

BANDS = ("blue", "green", "red", "nir")


def write_manifest(folder, *, level="sr", with_pan=True, ids=("LC08_TEST",), bands=BANDS):
    """A simulated Landsat scene of 124x124 cells as GeoTIFFs, under one or more ids."""
    source = SimulatedSource(seed=3, size=3600, nodata=True, clouds=0.3)
    landsat = source.scenes()[0]
    files = []
    for name, names in {"ms": bands, "pan": ("pan",)}.items():
        if name == "pan" and not with_pan:
            continue
        grid = landsat.grids[names[0]]
        raster = source.read(landsat, names, grid)
        dn = np.moveaxis(radiometry.encode(raster.values, raster.valid[..., None]), -1, 0)
        place = dict(crs=grid.crs, transform=grid.transform, height=grid.shape[0], width=grid.shape[1])
        with rasterio.open(folder / f"{name}.tif", "w", "GTiff", dtype="uint16", count=len(dn), nodata=0, **place) as f:
            f.write(dn)
        files.append({"path": f"{name}.tif", "bands": list(names), "scale": 1e-4, "offset": -0.1})
    entries = [
        {"id": i, "sensor": "landsat", "level": level, "spacecraft": "LANDSAT_8", "time": "2022-06-07T10:00:00Z"}
        | {"files": files}
        for i in ids
    ]
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "scenes": entries}))
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("scene"))


def read(path):
    with rasterio.open(path) as image:
        return image.read().transpose(1, 2, 0)


@pytest.fixture(scope="module")
def whole(manifest, local):
    """The scene through the exported model at once."""
    source = GeoTiffSource(manifest)
    landsat = source.scenes()[0]
    grid = geometry.pair_grid(landsat.grid)
    codes = []
    for bands, pixel in ((BANDS, 30.0), (["pan"], 15.0)):
        raster = sources.read_onto(source, landsat, bands, grid.at(pixel))
        codes.append(radiometry.encode(raster.values, raster.valid[..., None])[None])
    return local.predict(*codes)["sentinel_ms"][0]


@pytest.mark.parametrize("window", [23, 64, 256])
def test_a_real_model_gives_the_whole_scene_whatever_the_windows(window, manifest, exported, whole, tmp_path):
    out = tmp_path / "out.tif"
    scene.main([str(manifest), str(out), f"--model={exported.directory}", f"--window={window}"])
    assert cog_validate(out)[0]
    assert 0.5 < (whole != 0).mean() < 1
    assert np.abs(read(out).astype(int) - whole).max() <= 1


def test_a_server_gives_the_same_product_as_the_model_in_this_process(manifest, exported, server, tmp_path):
    target = [f"--target={server.address}", "--model_name=subpixel"]
    scene.main([str(manifest), str(tmp_path / "served.tif"), *target, "--window=40"])
    scene.main([str(manifest), str(tmp_path / "local.tif"), f"--model={exported.version}", "--window=40"])
    for suffix in (".tif", "_quality.tif", ".png"):
        assert (tmp_path / f"served{suffix}").read_bytes() == (tmp_path / f"local{suffix}").read_bytes()
    for name in ("served.tif", "local.tif"):
        with rasterio.open(tmp_path / name) as image:
            assert image.tags()["MODEL_VERSION"] == exported.version.name


def test_a_scene_on_a_web_server_gives_the_product_that_its_folder_gives(manifest, exported, whole, tmp_path):
    with web.serve(manifest.parent) as server:
        scene.main([f"{server.url}/{manifest.name}", str(tmp_path / "out.tif"), f"--model={exported.version}"])
    assert np.abs(read(tmp_path / "out.tif").astype(int) - whole).max() <= 1


def test_the_pictures_are_written_beside_the_product(manifest, exported, tmp_path):
    out, figure = tmp_path / "out.tif", tmp_path / "compared.png"
    scene.main([str(manifest), str(out), f"--model={exported.directory}", f"--figure={figure}"])
    names = ["compared.png", "out.json", "out.png", "out.tif", "out_quality.tif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for picture in (figure, out.with_suffix(".png")):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_of_several_scenes_must_be_named(exported, tmp_path):
    manifest = write_manifest(tmp_path, ids=("MORNING", "EVENING"))
    out = tmp_path / "out.tif"
    with pytest.raises(SceneError, match="MORNING, EVENING"):
        scene.main([str(manifest), str(out), f"--model={exported.directory}"])
    scene.main([str(manifest), str(out), f"--model={exported.directory}", "--scene=EVENING"])
    with rasterio.open(out) as image:
        assert image.tags()["SOURCE_SCENE"] == "EVENING"


@pytest.mark.parametrize(
    "declared, message",
    [
        ({"level": "toa"}, "made for level 'sr'"),
        ({"with_pan": False}, "uses the panchromatic band"),
        ({"bands": ("blue", "green", "red")}, "needs nir"),
    ],
)
def test_a_scene_that_does_not_fit_the_model_is_refused(declared, message, exported, tmp_path):
    manifest = write_manifest(tmp_path, **declared)
    with pytest.raises(SceneError, match=message):
        scene.main([str(manifest), str(tmp_path / "out.tif"), f"--model={exported.directory}"])
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (["{scene}"], FlagError, "a scene and the GeoTIFF"),
        (["{scene}", "{tmp}/out.tif"], FlagError, "either --model"),
        (["{scene}", "{tmp}/out.tif", "--model=a", "--target=b"], FlagError, "either --model"),
        (["{tmp}/none", "{tmp}/out.tif", "--model=a"], SceneError, "nothing at this path"),
        (["{scene}", "{tmp}/out.jpg", "--model=a"], FlagError, "end its name in .tif"),
        (["{scene}", "{tmp}/none/out.tif", "--model=a"], FlagError, "does not exist"),
        (["{scene}", "{tmp}/out.tif", "--model=a", "--figure={tmp}/out.png"], FlagError, "choose another"),
        (["{scene}", "{tmp}/out.tif", "--model=a", "--figure={tmp}/f.xyz"], FlagError, "PNG"),
        (["{scene}", "{tmp}/out.tif", "--model=a", "--window=0"], FlagError, "window"),
        (["{scene}", "{tmp}/out.tif", "--model={tmp}"], ModelError, "SavedModel"),
        (["{scene}", "{tmp}/out.tif", "--target=127.0.0.1:9", "--model_name=m"], ServerError, "no model server"),
    ],
)
def test_wrong_use_is_told_in_one_line_and_leaves_nothing(arguments, error, message, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "Client", functools.partial(client.Client, connect_timeout=0.3))
    with pytest.raises(error, match=message) as raised:
        scene.main([argument.format(scene=manifest, tmp=tmp_path) for argument in arguments])
    assert "\n" not in str(raised.value) or error is FlagError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["manifest.tif", "pan.tif"])
def test_a_scene_is_never_written_over_by_its_own_product(out, exported, tmp_path):
    manifest = write_manifest(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FlagError, match="is the scene's own; choose another name"):
        scene.main([str(manifest), str(tmp_path / out), f"--model={exported.directory}"])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def after_windows(monkeypatch, count, action):
    """Does something once, after that many windows of a scene are done."""
    add, done = unfinished.Work.add, itertools.count(1)

    def add_and_act(*args):
        add(*args)
        if next(done) == count:
            action()

    monkeypatch.setattr(unfinished.Work, "add", add_and_act)


def assert_same(folder, name, expected):
    for suffix in (".tif", "_quality.tif", ".png"):
        assert (folder / f"{name}{suffix}").read_bytes() == (folder / f"{expected}{suffix}").read_bytes(), suffix


def test_a_server_that_goes_away_midway_is_told_and_the_same_command_goes_on(manifest, exported, tmp_path, monkeypatch):
    running = DevelopmentServer({"subpixel": exported.directory})
    monkeypatch.setattr(client, "Client", functools.partial(client.Client, timeout=1.0))
    argv = [str(manifest), str(tmp_path / "out.tif"), "--model_name=subpixel", "--window=24"]
    with monkeypatch.context() as patched:
        after_windows(patched, 3, running.stop)
        with pytest.raises(ServerError, match="windows are done and kept in .*out.tif.unfinished"):
            scene.main([*argv, f"--target={running.address}"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif.unfinished"]
    with DevelopmentServer({"subpixel": exported.directory}) as again:
        scene.main([*argv, f"--target={again.address}"])
    scene.main([str(manifest), str(tmp_path / "whole.tif"), f"--model={exported.directory}", "--window=24"])
    assert_same(tmp_path, "out", "whole")


def serve(directory, port=0):
    """A server in a process of its own, and its port."""
    argv = [f"--model_base_path={directory}", "--model_name=subpixel", f"--port={port}"]
    command = [sys.executable, "-m", "serving.server", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return process, int(process.stdout.readline().rpartition(":")[2])


@pytest.mark.skipif("HARMONIZE_DRILLS" not in os.environ, reason="starts servers; set HARMONIZE_DRILLS=1")
def test_a_scene_outlives_its_server_killed_and_started_again(manifest, exported, tmp_path, monkeypatch):
    process, port = serve(exported.directory)
    try:

        def restart():
            nonlocal process
            process.kill()
            process.wait()
            # In the background: meanwhile the client asks again and again.
            threading.Thread(target=begin).start()

        def begin():
            nonlocal process
            process, _ = serve(exported.directory, port)

        after_windows(monkeypatch, 3, restart)
        target = [f"--target=127.0.0.1:{port}", "--model_name=subpixel"]
        scene.main([str(manifest), str(tmp_path / "out.tif"), *target, "--window=24"])
    finally:
        process.kill()
        process.wait()
    monkeypatch.undo()
    scene.main([str(manifest), str(tmp_path / "whole.tif"), f"--model={exported.directory}", "--window=24"])
    assert_same(tmp_path, "out", "whole")


def test_a_server_that_comes_back_with_another_version_never_mixes_two(manifest, base_path, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "Client", functools.partial(client.Client, timeout=20.0))
    first = DevelopmentServer({"subpixel": base_path})
    servers = [first]

    def replace():
        first.stop()
        (base_path / "1").rename(base_path / "2")
        servers.append(DevelopmentServer({"subpixel": base_path}, port=int(first.address.rpartition(":")[2])))

    argv = [str(manifest), str(tmp_path / "out.tif"), "--model_name=subpixel", f"--target={first.address}"]
    with monkeypatch.context() as patched:
        after_windows(patched, 3, replace)
        with pytest.raises(ServerError, match="windows are done and kept"):
            scene.main([*argv, "--window=24"])
    scene.main([*argv, "--window=24"])
    servers[-1].stop()
    with rasterio.open(tmp_path / "out.tif") as image:
        assert image.tags()["MODEL_VERSION"] == "2"
    scene.main([str(manifest), str(tmp_path / "whole.tif"), f"--model={base_path}", "--window=24"])
    assert_same(tmp_path, "out", "whole")


def test_a_sentinel_tile_is_cut_out_and_one_elsewhere_is_refused(manifest, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(mgrs, "SIDE", 300)  # pixels instead of 10980, for the sake of time
    argv = [str(manifest), str(tmp_path / "out.tif"), f"--model={exported.directory}"]
    with pytest.raises(SceneError, match="does not touch"):
        scene.main([*argv, "--tile=32TMT"])
    with pytest.raises(SceneError, match="Sentinel-2 tile"):
        scene.main([*argv, "--tile=99AAA"])
    assert list(tmp_path.iterdir()) == []
    scene.main([*argv, "--tile=T33UUS"])
    with rasterio.open(tmp_path / "out.tif") as image:
        assert (image.transform.c, image.transform.f, *image.shape) == (300_000, 5_700_000, 300, 300)
        assert (image.read(1) != 0).mean() > 0.5


def test_the_command_ends_with_status_2_and_a_line(manifest, tmp_path):
    command = [sys.executable, "-m", "serving.scene", str(manifest), str(tmp_path / "out.jpg"), "--model=a"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_client_needs_no_tensorflow(manifest, server, tmp_path):
    code = (
        "import sys\nfrom serving import scene\n"
        f"scene.main([{str(manifest)!r}, {str(tmp_path / 'out.tif')!r}, '--target={server.address}', "
        "'--model_name=subpixel'])\nassert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
