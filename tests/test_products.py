import dataclasses
import errno
import hashlib
import itertools
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent import futures

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rio_cogeo import cog_validate
from scipy import ndimage

import harmonize_tf
from harmonize_tf import cog, geometry, products, radiometry, sources, windows
from harmonize_tf.errors import HarmonizeError, ModelError, SceneError
from harmonize_tf.geometry import Grid
from harmonize_tf.manifest import Manifest
from harmonize_tf.radiometry import Bandpass
from harmonize_tf.sources import Raster
from harmonize_tf.sources.simulated import SimulatedSource

BANDS = ("blue", "green", "red", "nir")
HALO = 3


def manifest(**changes):
    one, zero = (1.0,) * 4, (0.0,) * 4
    facts = dict(name="smooth", bands=BANDS, level="toa", uses_pan=True, halo=HALO, multiple=1, sigma=one)
    return Manifest(**facts | {"bandpass": Bandpass(one, zero, "identity")} | changes)


class Smooth:
    """Mean over 7x7 cells of what is valid, plus the panchromatic band's contrast: a halo of exactly 3 cells."""

    def __init__(self, **changes):
        self.manifest = manifest(**changes)
        self.shapes = []

    def predict(self, ms, pan):
        self.shapes.append(ms.shape)
        valid = (ms != 0).all(-1, keepdims=True)
        size = (1, 2 * HALO + 1, 2 * HALO + 1, 1)
        weight = ndimage.uniform_filter(valid.astype(np.float64), size, mode="constant")
        mean = ndimage.uniform_filter(ms * valid.astype(np.float64), size, mode="constant") / np.maximum(weight, 1e-9)
        out = mean.repeat(3, 1).repeat(3, 2)
        if pan is not None:
            # Sub-pixel 0, 1, 2 of a cell look at its pan pixels 0, 0, 1.
            index = [np.arange(n)[:, None] * 2 + [0, 0, 1] for n in ms.shape[1:3]]
            out += 0.1 * pan[:, index[0].ravel()][:, :, index[1].ravel()]
        dn = np.clip(np.rint(out), 1, 65535) * valid.repeat(3, 1).repeat(3, 2)
        dn = dn.astype(np.uint16)
        outputs = {"sentinel_ms": dn, "quality": (3 * (dn[..., :1] != 0)).astype(np.uint8)}
        told = {"uncertainty": np.where(dn > 0, dn // 2 + 1000, 0).astype(np.uint16)}
        return outputs | (told if self.manifest.uncertainty else {})


@dataclasses.dataclass
class Cropped:
    """A source whose Landsat scenes are cut to some cells."""

    source: SimulatedSource
    rows: int
    columns: int
    row: int = 20
    column: int = 50

    def scenes(self):
        scene = self.source.scenes()[0]
        grids = {}
        for band, grid in scene.grids.items():
            k = 2 if band == "pan" else 1
            grids[band] = grid.window(k * self.row, k * self.column, k * self.rows, k * self.columns)
        return [dataclasses.replace(scene, grids=grids)]

    def read(self, scene, bands, window):
        raster = self.source.read(self.source.scenes()[0], bands, window)
        row, column = window.offset_in(scene.grids[bands[0]])
        rows, columns = (o + np.arange(n) for o, n in zip((row, column), window.shape, strict=True))
        native = scene.grids[bands[0]].shape
        inside = ((rows >= 0) & (rows < native[0]))[:, None] & ((columns >= 0) & (columns < native[1]))
        valid = raster.valid & inside
        return Raster(np.where(valid[..., None], raster.values, 0), valid, raster.clear & inside, window)


def run(source, path, predictor=None, **options):
    scene = source.scenes()[0]
    product = products.harmonize(source, scene, predictor or Smooth(), path, **options)
    with rasterio.open(product.path) as image:
        return product, image.read().transpose(1, 2, 0)


def expected_whole(source, predictor):
    """The scene through the model at once, read and encoded without any window."""
    scene = source.scenes()[0]
    grid = geometry.pair_grid(scene.grid)
    ms, pan = (
        sources.read_onto(source, scene, bands, grid.at(pixel)) for bands, pixel in ((BANDS, 30.0), (["pan"], 15.0))
    )
    codes = [radiometry.encode(raster.values, raster.valid[..., None])[None] for raster in (ms, pan)]
    return predictor.predict(*codes)["sentinel_ms"][0], ms.valid


@pytest.fixture(scope="module")
def wedge():
    """A scene of 124x124 cells with a swath edge, missing pixels and clouds."""
    return SimulatedSource(size=3600, clouds=0.4, nodata=True)


@pytest.mark.parametrize("window", [16, 37, 64, 1000])
def test_windows_of_any_size_give_the_whole_scene(window, wedge, tmp_path):
    whole, _ = expected_whole(wedge, Smooth())
    _, tiled = run(wedge, tmp_path / "out.tif", window=window)
    assert tiled.shape == whole.shape and (tiled != 0).mean() > 0.5
    assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_windows_start_at_multiples_and_share_one_shape(wedge, tmp_path):
    predictor = Smooth(multiple=2, halo=HALO)
    _, tiled = run(wedge, tmp_path / "out.tif", predictor, window=33)
    assert len(set(predictor.shapes)) == 1 and predictor.shapes[0][1] % 2 == 0
    assert np.abs(tiled.astype(int) - expected_whole(wedge, Smooth())[0]).max() <= 1


def test_no_data_stays_exactly_where_it_was_and_spreads_nowhere(wedge, tmp_path):
    _, dn = run(wedge, tmp_path / "out.tif", window=40)
    _, valid = expected_whole(wedge, Smooth())
    assert 0.02 < (~valid).mean() < 0.5
    for band in range(len(BANDS)):
        np.testing.assert_array_equal(dn[..., band] != 0, valid.repeat(3, 0).repeat(3, 1))


def test_clouds_are_data(wedge, tmp_path):
    clear = SimulatedSource(size=3600, nodata=True)
    _, cloudy = run(wedge, tmp_path / "cloudy.tif")
    _, free = run(clear, tmp_path / "clear.tif")
    np.testing.assert_array_equal(cloudy != 0, free != 0)
    assert (cloudy.astype(int) - free > 2000).any()


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 40), (5, 7)])
def test_the_smallest_scenes_work(rows, columns, tmp_path):
    source = Cropped(SimulatedSource(size=3600), rows, columns)
    product, dn = run(source, tmp_path / "out.tif")
    assert product.grid.shape == (3 * (rows + 1), 3 * (columns + 1))
    # A cell needs the (up to four) native pixels nearest to its centre.
    assert dn.shape == (*product.grid.shape, 4) and (dn != 0).all(-1).sum() == 9 * (rows - 1) * (columns - 1)
    assert cog_validate(product.path)[0] and product.picture.exists()


def test_a_scene_without_any_data_is_an_empty_product(tmp_path):
    source = Cropped(SimulatedSource(size=3600), 40, 40, row=-100)
    predictor = Smooth()
    product, dn = run(source, tmp_path / "out.tif", predictor, window=16)
    assert product.skipped == product.windows == 9 and predictor.shapes == []
    assert not dn.any()


@pytest.mark.parametrize("crs, epsg", [("EPSG:32633", 32633), ("EPSG:32723", 32723)])
def test_the_product_is_a_cog_on_the_sentinel_lattice_that_tells_what_it_is(crs, epsg, tmp_path):
    source = SimulatedSource(size=6000, crs=crs)
    scene = source.scenes()[0]
    product, dn = run(source, tmp_path / "out.tif")
    valid, errors, warnings = cog_validate(product.path, strict=True)
    assert valid, (errors, warnings)
    with rasterio.open(product.path) as image:
        assert image.crs.to_epsg() == epsg and image.res == (10.0, 10.0)
        assert image.transform.c % 10 == 0 and image.transform.f % 10 == 0
        assert image.nodata == 0 and image.dtypes == ("uint16",) * 4
        assert image.descriptions == BANDS
        assert image.scales == (1e-4,) * 4 and image.offsets == (-0.1,) * 4
        assert [c.name for c in image.colorinterp] == list(BANDS)
        assert image.profile["compress"] == "deflate" and image.block_shapes == [(512, 512)] * 4
        assert image.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
        assert image.tags(1, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"] == "0.492"
        tags = image.tags()
    assert tags["SOURCE_SCENE"] == scene.id and tags["SPACECRAFT"] == "LANDSAT_8" and tags["LEVEL"] == "toa"
    assert tags["ACQUIRED"].startswith("2022-06-07T10:00:00")
    assert tags["TIFFTAG_SOFTWARE"] == f"harmonize_tf {harmonize_tf.__version__}"
    assert Manifest.from_json(tags["MODEL_MANIFEST"]) == manifest()
    assert json.loads(tags["MODEL_MANIFEST"])["name"] == tags["MODEL"] == "smooth"


def test_a_product_carries_the_uncertainty_of_each_band_as_a_band_in_the_same_code(wedge, tmp_path):
    plain, _ = run(wedge, tmp_path / "plain.tif")
    _, pixels = run(wedge, tmp_path / "telling.tif", Smooth(uncertainty=True))
    with rasterio.open(tmp_path / "plain.tif") as expected, rasterio.open(tmp_path / "telling.tif") as product:
        assert product.descriptions == BANDS + tuple(f"{band}_uncertainty" for band in BANDS)
        assert set(product.scales) == {1e-4} and set(product.offsets) == {-0.1}
        values = expected.read().transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels[..., :4], values)
    np.testing.assert_array_equal(pixels[..., 4:], np.where(values > 0, values // 2 + 1000, 0))


def test_overviews_average_what_has_data_and_nothing_else(tmp_path):
    product, dn = run(Cropped(SimulatedSource(size=7200, nodata=True), 203, 203, column=20), tmp_path / "out.tif")
    assert dn.shape[:2] == (612, 612) and (dn == 0).any()
    with rasterio.open(product.path) as image:
        assert image.overviews(1) and all(image.overviews(b) == image.overviews(1) for b in image.indexes)
    with rasterio.open(product.path, overview_level=0) as image:
        overview = image.read(1)
    blocks = dn[..., 0].astype(float).reshape(306, 2, 306, 2)
    there = (blocks != 0).sum((1, 3))
    np.testing.assert_array_equal(overview != 0, there > 0)
    assert np.abs(overview - blocks.sum((1, 3)) / np.maximum(there, 1)).max() <= 0.5 + 1e-6


def test_two_runs_give_the_same_bytes(wedge, tmp_path):
    first, _ = run(wedge, tmp_path / "a.tif", window=24, in_flight=4)
    second, _ = run(wedge, tmp_path / "b.tif", window=24, in_flight=2)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.picture.read_bytes() == second.picture.read_bytes()


class Failing(Smooth):
    def predict(self, ms, pan):
        if len(self.shapes) == 5:
            raise HarmonizeError("the server is gone")
        return super().predict(ms, pan)


def test_a_failure_midway_keeps_what_is_done_says_so_and_ends_all_threads(wedge, tmp_path):
    with pytest.raises(HarmonizeError, match="the server is gone.* windows are done and kept in .*out.tif.unfinished"):
        run(wedge, tmp_path / "out.tif", Failing(), window=24)
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif.unfinished"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("window")]
    rest = Smooth()
    product, _ = run(wedge, tmp_path / "out.tif", rest, window=24)
    assert product.kept > 0 and 0 < len(rest.shapes) < product.windows - product.skipped
    assert_same(product, run(wedge, tmp_path / "whole.tif", window=24)[0])


def assert_same(product, expected):
    """That all files of two products hold the same bytes; of the items, all but the names."""
    for name in ("path", "quality", "picture"):
        assert getattr(product, name).read_bytes() == getattr(expected, name).read_bytes(), name
    items = [p.item.read_text().replace(p.path.stem, "NAME") for p in (product, expected)]
    assert items[0] == items[1]
    assert product.skipped == expected.skipped
    assert not product.path.with_name(product.path.name + ".unfinished").exists()


def test_a_failure_midway_leaves_the_product_that_was_there(wedge, tmp_path):
    files = {name: f"{name} of yesterday" for name in ("out.tif", "out_quality.tif", "out.png", "out.json")}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(HarmonizeError):
        run(wedge, tmp_path / "out.tif", Failing(), window=24)
    assert {name: (tmp_path / name).read_text() for name in files} == files
    run(wedge, tmp_path / "out.tif", window=24)
    assert cog_validate(tmp_path / "out.tif")[0]


def test_windows_of_another_model_scene_or_plan_are_never_mixed_in(wedge, tmp_path):
    other = SimulatedSource(size=3600, clouds=0.4, nodata=True, seed=9)
    for source, changes, window in ((wedge, {"sigma": (2.0,) * 4}, 16), (other, {}, 16), (wedge, {}, 20)):
        with pytest.raises(HarmonizeError):
            run(wedge, tmp_path / "out.tif", Failing(), window=24)
        product, _ = run(source, tmp_path / "out.tif", Smooth(**changes), window=window)
        assert product.kept == 0


def test_windows_of_another_version_on_the_server_are_never_mixed_in(wedge, tmp_path):
    old, new = Failing(), Smooth()
    old.version, new.version = 1, 2
    with pytest.raises(HarmonizeError):
        run(wedge, tmp_path / "out.tif", old, window=24)
    product, _ = run(wedge, tmp_path / "out.tif", new, window=24)
    assert product.kept == 0 and len(new.shapes) == product.windows - product.skipped


# Runs a scene with a slow model; the arguments are the product and how many seconds a window takes.
SLOW = """
import pathlib, sys, time
sys.path.insert(0, {tests!r})
from test_products import Smooth, SimulatedSource, products

class Slow(Smooth):
    def predict(self, ms, pan):
        time.sleep(float(sys.argv[2]))
        return super().predict(ms, pan)

source = SimulatedSource(size=3600, clouds=0.4, nodata=True)
product = products.harmonize(source, source.scenes()[0], Slow(), pathlib.Path(sys.argv[1]), window=24)
print(product.kept)
"""


def slow(path, seconds, **options):
    code = SLOW.format(tests=str(pathlib.Path(__file__).parent))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, str(path), str(seconds)], **pipes, **options)


def wait_for_windows(path, count, process):
    """Waits until a process has noted that many windows as done."""
    journal = path.with_name(path.name + ".unfinished") / "windows.txt"
    while not journal.exists() or journal.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_a_killed_scene_goes_on_where_it_was(wedge, tmp_path):
    process = slow(tmp_path / "out.tif", 0.02)
    wait_for_windows(tmp_path / "out.tif", 20, process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out.tif").exists()
    # The kill may also have come in the middle of a line.
    with open(tmp_path / "out.tif.unfinished" / "windows.txt", "a") as journal:
        journal.write("48 6")
    rest = Smooth()
    product, _ = run(wedge, tmp_path / "out.tif", rest, window=24)
    assert product.kept >= 20 and len(rest.shapes) <= product.windows - product.skipped
    assert_same(product, run(wedge, tmp_path / "whole.tif", window=24)[0])


@pytest.mark.parametrize("doing", ["pixels", "quality", "picture", "item", "path"])
def test_a_scene_that_is_killed_while_its_files_are_made_is_whole_after_the_next_run(
    doing, wedge, tmp_path, monkeypatch
):
    """A stop at any of the last steps, as SIGKILL would stop it: nothing is tidied up."""

    class Killed(BaseException):
        pass

    def kill(*args, **options):
        raise Killed

    targets = {
        "pixels": (cog, "publish"),
        "quality": (cog, "_verify"),
        "picture": (products.quicklook, "write"),
        "item": (products.stac, "item"),
        "path": (products.artifacts, "write"),
    }
    run(wedge, tmp_path / "out.tif", Smooth(sigma=(2.0,) * 4), window=24)
    with monkeypatch.context() as patched:
        if doing == "path":
            patched.setattr(
                products.artifacts, "write", lambda path, text: kill() if path.suffix else path.write_text(text)
            )
        else:
            patched.setattr(*targets[doing], kill)
        patched.setattr(products.unfinished.shutil, "rmtree", lambda *args, **options: None)
        with pytest.raises(Killed):
            run(wedge, tmp_path / "out.tif", window=24)
    # An item is there only beside the files that it was written for.
    if (tmp_path / "out.json").exists():
        assert_checksums(tmp_path / "out.json")
    product, _ = run(wedge, tmp_path / "out.tif", window=24)
    assert product.kept == product.windows
    assert_same(product, run(wedge, tmp_path / "whole.tif", window=24)[0])


@pytest.mark.parametrize("survives", ["windows.txt", "made_of", "nothing"])
def test_a_kill_while_the_work_is_taken_away_costs_nothing(survives, wedge, tmp_path, monkeypatch):
    """Some files of the folder are gone by then and some are not."""

    real = shutil.rmtree

    def killed(folder, **options):
        if folder.exists():
            for file in folder.iterdir():
                if file.name != survives:
                    real(file) if file.is_dir() else file.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(wedge, tmp_path / "out.tif", window=24)
    assert_checksums(tmp_path / "out.json")
    product, _ = run(wedge, tmp_path / "out.tif", window=24)
    assert product.kept == 0
    assert_same(product, run(wedge, tmp_path / "whole.tif", window=24)[0])
    assert not list(tmp_path.glob("*unfinished*"))


class Stopping(Smooth):
    def predict(self, ms, pan):
        if len(self.shapes) == 6:
            raise KeyboardInterrupt
        return super().predict(ms, pan)


class Mended:
    """A source whose scene was corrected: other pixels or another mask of some bands, or other facts."""

    def __init__(self, source, bands=(), gain=1.0, clear=True, **facts):
        self.source, self.bands, self.gain, self.clear, self.facts = source, bands, gain, clear, facts

    def scenes(self):
        return [dataclasses.replace(scene, **self.facts) for scene in self.source.scenes()]

    def read(self, scene, bands, window):
        raster = self.source.read(self.source.scenes()[0], bands, window)
        gain = np.array([self.gain if band in self.bands else 1.0 for band in bands], np.float32)
        return dataclasses.replace(raster, values=raster.values * gain, clear=raster.clear & self.clear)


@pytest.mark.parametrize(
    "mended", [{"bands": ["pan"], "gain": 1.01}, {"clear": False}, {"spacecraft": "LANDSAT_9"}], ids=str
)
def test_work_on_a_scene_that_was_corrected_since_begins_anew(mended, wedge, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(wedge, tmp_path / "out.tif", Stopping(), window=24, in_flight=1)
    assert (tmp_path / "out.tif.unfinished").is_dir()
    product, _ = run(Mended(wedge, **mended), tmp_path / "out.tif", window=24)
    assert product.kept == 0
    assert_same(product, run(Mended(wedge, **mended), tmp_path / "whole.tif", window=24)[0])


def test_what_keeps_work_from_being_opened_deletes_none_of_it(wedge, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(wedge, tmp_path / "out.tif", Stopping(), window=24, in_flight=1)
    with (tmp_path / "out.tif.unfinished" / "windows.txt").open("a") as journal:
        journal.write("48 48 96 1\n")  # two lines that a full disk made one
    with monkeypatch.context() as patched:
        patched.setattr(cog.os, "open", lambda *args: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        with pytest.raises(HarmonizeError, match="Too many open files"):
            run(wedge, tmp_path / "out.tif", window=24)
    product, _ = run(wedge, tmp_path / "out.tif", window=24)
    assert product.kept >= 5
    assert_same(product, run(wedge, tmp_path / "whole.tif", window=24)[0])


def assert_checksums(path):
    """That the files beside an item are those it was written for."""
    for asset in json.loads(path.read_text())["assets"].values():
        content = (path.parent / asset["href"]).read_bytes()
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
        assert asset["file:size"] == len(content)


def test_two_processes_never_write_one_product(wedge, tmp_path):
    process = slow(tmp_path / "out.tif", 0.02)
    wait_for_windows(tmp_path / "out.tif", 2, process)
    with pytest.raises(HarmonizeError, match="another process is making this product"):
        run(wedge, tmp_path / "out.tif", window=24)
    output, errors = process.communicate()
    assert process.returncode == 0 and output.split() == ["0"], errors
    assert_checksums(tmp_path / "out.json")


@pytest.mark.parametrize("limit", [1_000, 2_000_000])
def test_a_disk_with_too_little_room_to_begin_is_told_and_left_as_it_was(limit, tmp_path):
    """A limit on the size of a file: rasterio keeps quiet about the first, the system tells of the second."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = slow(tmp_path / "out.tif", 0, preexec_fn=limited)
    _, errors = process.communicate()
    assert "make room on that disk" in errors and process.returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_fills_up_is_told_and_what_is_done_is_of_use_once_there_is_room(call, wedge, tmp_path, monkeypatch):
    calls, real = itertools.count(), getattr(os, call)

    def full(*args):
        if next(calls) > {"pwrite": 1000, "fdatasync": 15}[call]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(HarmonizeError, match="No space left on device.* make room on that disk.* the same command"):
            run(wedge, tmp_path / "out.tif", window=32)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("window")]
    product, _ = run(wedge, tmp_path / "out.tif", window=32)
    assert 0 < product.kept < product.windows
    assert_same(product, run(wedge, tmp_path / "whole.tif", window=32)[0])


@pytest.mark.skipif("HARMONIZE_DRILLS" not in os.environ, reason="mounts file systems; set HARMONIZE_DRILLS=1")
@pytest.mark.parametrize("kilobytes", range(8, 2100, 200))
def test_real_disks_of_many_sizes_fill_up_and_what_is_done_is_of_use_on_a_larger_one(kilobytes, wedge, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], check=True)
    try:
        with pytest.raises(HarmonizeError, match="make room on that disk"):
            run(wedge, disk / "out.tif", window=32)
        assert {path.name for path in disk.iterdir()} <= {"out.tif.unfinished"}
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        product, _ = run(wedge, disk / "out.tif", window=32)
        assert_same(product, run(wedge, disk / "whole.tif", window=32)[0])
    finally:
        subprocess.run(["umount", disk], check=True)


def pixels_of(path, dn, **changes):
    grid = Grid("EPSG:32633", 0, 0, (10.0, 10.0), dn.shape[:2])
    raster = cog.Pixels(path, cog.Image(grid, tuple(f"b{k}" for k in range(dn.shape[2])), {}, **changes))
    raster.write(dn, slice(0, dn.shape[0]), slice(0, dn.shape[1]))
    raster.close()
    return raster


class Nearest(Smooth):
    """Every cell three by three times: a product whose pixels are those of the warped scene."""

    def predict(self, ms, pan):
        dn = ms.repeat(3, 1).repeat(3, 2)
        return {"sentinel_ms": dn, "quality": (3 * (dn[..., :1] != 0)).astype(np.uint8)}


class Counted:
    """A source that counts what is read of it."""

    def __init__(self, source):
        self.source, self.reads = source, []

    def scenes(self):
        return self.source.scenes()

    def read(self, scene, bands, window):
        self.reads.append(window)
        return self.source.read(scene, bands, window)


def written_scene(path):
    """The red band of a simulated scene at the western edge of zone 33, as a file for rasterio."""
    source = SimulatedSource(size=3600)
    scene = source.scenes()[0]
    native = scene.grids["red"]
    raster = source.read(scene, ["red"], native)
    place = {"crs": native.crs, "transform": native.transform, "height": native.shape[0], "width": native.shape[1]}
    with rasterio.open(path, "w", "GTiff", dtype="float32", count=1, **place) as file:
        file.write(raster.values[..., 0], 1)
    return source, native


def reprojected(path, grid):
    """Cubic, by rasterio alone, on the 30 m cells with corners at 10 mod 30 m in which a grid's pixels lie."""
    left, top = (grid.left - 10) // 30 * 30 + 10, -((10 - grid.top) // 30) * 30 + 10
    rows, columns = ((size + 5) // 3 + 1 for size in grid.shape)
    cells = np.full((rows, columns), np.nan, np.float32)
    with rasterio.open(path) as file:
        rasterio.warp.reproject(
            rasterio.band(file, 1),
            cells,
            dst_crs=grid.crs,
            dst_transform=rasterio.Affine(30, 0, left, 0, -30, top),
            dst_nodata=np.nan,
            resampling=rasterio.enums.Resampling.cubic,
            tolerance=0,
            XSCALE=1,
            YSCALE=1,
        )
    x = grid.left + 10 * np.arange(grid.shape[1]) + 5
    y = grid.top - 10 * np.arange(grid.shape[0]) - 5
    return cells[np.ix_(((top - y) // 30).astype(int), ((x - left) // 30).astype(int))]


@pytest.mark.parametrize("crs, left, top", [("EPSG:32633", 299_940, 5_700_060), ("EPSG:32632", 717_000, 5_701_320)])
def test_a_scene_at_a_zones_edge_lies_where_rasterio_puts_it_on_a_tiles_grid_of_either_zone(crs, left, top, tmp_path):
    source, _ = written_scene(tmp_path / "scene.tif")
    grid = Grid(crs, left, top, (10.0, 10.0), (400, 430))
    assert left % 60 == 0 and top % 60 == 0
    product, dn = run(source, tmp_path / "out.tif", Nearest(), grid=grid, window=40)
    with rasterio.open(product.path) as image:
        assert Grid.of(image.crs, image.transform, image.shape) == grid == product.grid
    _, other = run(source, tmp_path / "other.tif", Nearest(), grid=grid, window=1000)
    assert np.abs(dn.astype(int) - other).max() <= 1
    expected = reprojected(tmp_path / "scene.tif", grid)
    seen = (dn[..., 2] != 0) & np.isfinite(expected)
    assert seen.sum() > 60_000 and (np.isfinite(expected) & ~seen).sum() < 0.1 * seen.sum()  # the scene's rim

    def error(shift):
        return np.abs(radiometry.decode(dn[..., 2]) - np.roll(expected, shift, 1))[seen]

    # A pixel of 10 m aside is twenty times worse.
    assert np.percentile(error(0), 99) < 2e-4 and np.nanpercentile(error(1), 99) > 4e-3


def test_windows_beyond_the_scene_are_not_read(tmp_path):
    source = Counted(SimulatedSource(size=3600))
    whole = geometry.pair_grid(source.scenes()[0].grid)
    wide = whole.window(-600, -900, 1500, 1800)
    predictor = Smooth()
    product, dn = run(source, tmp_path / "out.tif", predictor, grid=wide, window=32)
    assert product.windows == 16 * 19 and product.skipped > 250
    # For each window read one for the multispectral bands and one for the panchromatic; five for the fingerprint.
    assert len(source.reads) <= 2 * (product.windows - product.skipped + 12) + 5
    _, alone = run(source, tmp_path / "alone.tif", predictor, window=32)
    there = dn[600:][: whole.shape[0], 900:][:, : whole.shape[1]]
    assert np.abs(there.astype(int) - alone).max() <= 1 and (dn != 0).sum() == (there != 0).sum() == (alone != 0).sum()


def test_windows_beyond_a_scenes_footprint_are_not_read(tmp_path):
    source = SimulatedSource(size=3600)
    scene = source.scenes()[0]
    left, bottom, right, top = scene.grid.bounds
    corners = [(left, top), (left + 1200, top), (left + 1200, bottom), (left, bottom), (left, top)]
    degrees = np.transpose(rasterio.warp.transform(scene.grid.crs, "EPSG:4326", *np.transpose(corners)))
    footprint = {"type": "Polygon", "coordinates": [degrees.tolist()]}
    product = products.harmonize(
        source, dataclasses.replace(scene, footprint=footprint), Smooth(), tmp_path / "out.tif", window=12
    )
    with rasterio.open(product.path) as image:
        seen = (image.read(1) != 0).any(0)
    assert seen[6:125].all() and not seen[200:].any()


@pytest.mark.parametrize(
    "grid, message",
    [
        (Grid("EPSG:32633", 600_000, 5_700_000, (10.0, 10.0), (60, 60)), "does not touch"),
        (Grid("EPSG:32601", 600_000, 5_700_000, (10.0, 10.0), (60, 60)), "does not touch"),
        (Grid("EPSG:32733", 300_000, 5_700_000, (10.0, 10.0), (60, 60)), "does not touch"),
        (Grid("EPSG:32633", 300_005, 5_700_000, (10.0, 10.0), (60, 60)), "multiples of 10 m"),
        (Grid("EPSG:32633", 300_000, 5_700_000, (20.0, 20.0), (60, 60)), "multiples of 10 m"),
        (Grid("EPSG:3857", 300_000, 5_700_000, (10.0, 10.0), (60, 60)), "multiples of 10 m"),
    ],
)
def test_a_grid_that_cannot_be_filled_is_told_and_leaves_nothing(grid, message, wedge, tmp_path):
    with pytest.raises(SceneError, match=message):
        run(wedge, tmp_path / "out.tif", grid=grid)
    assert list(tmp_path.iterdir()) == []


def test_quality_is_a_file_of_bits_of_its_own_with_the_landsat_bands_clear_sky(wedge, tmp_path):
    product, dn = run(wedge, tmp_path / "out.tif", window=40)
    assert product.quality == tmp_path / "out_quality.tif" and cog_validate(product.quality, strict=True)[0]
    scene = wedge.scenes()[0]
    cells = geometry.pair_grid(scene.grid).at(30.0)
    clear = sources.read_onto(wedge, scene, BANDS, cells).clear.repeat(3, 0).repeat(3, 1)
    with rasterio.open(product.quality) as image:
        assert image.descriptions == ("quality",) and image.dtypes == ("uint8",) and image.nodata == 0
        assert image.scales == (1.0,) and image.offsets == (0.0,)
        tags, bits = image.tags(), image.read(1)
    assert 0.2 < clear.mean() < 0.9
    np.testing.assert_array_equal(bits, np.where((dn != 0).all(-1), 3 + 4 * clear, 0))
    assert [tags[f"BIT_{k}"].split(":")[0] for k in range(3)] == ["data", "consistent", "clear"]


def test_overviews_of_quality_hold_bits_that_are_there(tmp_path):
    source = Cropped(SimulatedSource(size=7200, nodata=True, clouds=0.5), 203, 203, column=20)
    product, _ = run(source, tmp_path / "out.tif")
    with rasterio.open(product.quality, overview_level=0) as image:
        assert set(np.unique(image.read(1))) == {0, 3, 7}


def test_a_file_that_lost_pixels_is_found_out(tmp_path, monkeypatch):
    copy, dn = cog.rasterio.shutil.copy, np.full((600, 600, 1), 1000, np.uint16)
    raster = pixels_of(tmp_path / "raw.tif", dn)

    def lossy(source, target, **options):
        dn[599, 599] = 0
        copy(pixels_of(tmp_path / "lossy.tif", dn).path, target, **options)

    monkeypatch.setattr(cog.rasterio.shutil, "copy", lossy)
    with pytest.raises(OSError, match="does not hold what was written"):
        cog.publish(raster.path, tmp_path / "out.tif", "AVERAGE")


@pytest.mark.parametrize("bands, dtype", [(1, np.uint8), (1, np.uint16), (4, np.uint16), (8, np.uint16)])
def test_pixels_are_where_they_were_written_for_any_reader(bands, dtype, tmp_path):
    draw, shape = np.random.default_rng(0), (1100, 1300)
    expected, grid = np.zeros((*shape, bands), dtype), Grid("EPSG:32633", 0, 0, (10.0, 10.0), shape)
    image = cog.Image(grid, tuple("abcdefgh"[:bands]), {}, np.dtype(dtype).name)
    for _ in range(12):
        top, left = draw.integers(0, shape)
        bottom, right = np.minimum(shape, (top, left) + draw.integers(1, 700, 2))
        part = expected[top:bottom, left:right]
        part[:] = draw.integers(1, np.iinfo(dtype).max, part.shape)
        raster = cog.Pixels(tmp_path / "raw.tif", image)  # opened anew each time, as a resumed process does
        raster.write(part, slice(top, bottom), slice(left, right))
        raster.close()
    with rasterio.open(tmp_path / "raw.tif") as file:
        np.testing.assert_array_equal(file.read().transpose(1, 2, 0), expected)


def test_a_missing_folder_is_told(wedge, tmp_path):
    with pytest.raises(HarmonizeError, match="choose a folder that exists"):
        run(wedge, tmp_path / "nowhere" / "out.tif")


@pytest.mark.parametrize(
    "changes, scene_changes, message",
    [
        ({"level": "sr"}, {}, "level 'sr'"),
        ({"bands": (*BANDS, "swir1", "swir2")}, {}, "needs swir1, swir2"),
        ({}, {"pan": None}, "panchromatic"),
        ({}, {"sensor": "sentinel"}, "takes Landsat"),
    ],
)
def test_a_scene_that_does_not_fit_the_model_is_refused_before_any_pixel_is_read(
    changes, scene_changes, message, tmp_path
):
    class Unreadable(SimulatedSource):
        def read(self, scene, bands, window):
            raise AssertionError("read")

    source = Unreadable(bands=BANDS)
    scene = source.scenes()[0]
    if "pan" in scene_changes:
        scene_changes = {"grids": {band: scene.grids[band] for band in BANDS}}
    with pytest.raises(SceneError, match=message):
        products.harmonize(source, dataclasses.replace(scene, **scene_changes), Smooth(**changes), tmp_path / "out.tif")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_answers_with_another_shape_is_told(wedge, tmp_path):
    class Wrong(Smooth):
        def predict(self, ms, pan):
            return {name: x[:, :-1] for name, x in super().predict(ms, pan).items()}

    with pytest.raises(ModelError, match="should answer with uint16"):
        run(wedge, tmp_path / "out.tif", Wrong())
    assert list(tmp_path.iterdir()) == []


def test_windows_in_flight_never_exceed_the_bound():
    lock, live, most = threading.Lock(), 0, 0

    def begin(item):
        nonlocal live, most
        with lock:
            live += 1
            most = max(most, live)
        time.sleep(0.001 * (item % 3))
        return item

    taken = []
    for item in windows.bounded(begin, iter(range(60)), 3):
        taken.append(item)
        time.sleep(0.002)
        with lock:
            live -= 1
    assert sorted(taken) == list(range(60)) and most == 3


class Counting(Smooth):
    def __init__(self):
        super().__init__()
        self.live, self.most, self.lock = 0, 0, threading.Lock()

    def predict(self, ms, pan):
        with self.lock:
            self.live += 1
            self.most = max(self.most, self.live)
        time.sleep(0.02)
        with self.lock:
            self.live -= 1
        return super().predict(ms, pan)


class CountingClient(Counting):
    def __init__(self):
        super().__init__()
        self.pool = futures.ThreadPoolExecutor(8)

    def predict_async(self, ms, pan):
        return self.pool.submit(self.predict, ms, pan)


def test_a_local_model_predicts_one_window_at_a_time_and_a_client_several(wedge, tmp_path):
    local, client = Counting(), CountingClient()
    run(wedge, tmp_path / "out.tif", local, window=24)
    run(wedge, tmp_path / "out.tif", client, window=24, in_flight=3)
    assert local.most == 1
    assert 2 <= client.most <= 3


def test_memory_does_not_grow_with_the_scene():
    """Four times the scene, the same memory: measured in processes of their own, pixels never held at once."""
    code = """
        import pathlib, resource, sys, tempfile
        import numpy as np
        from harmonize_tf import cog, products
        from harmonize_tf.manifest import Manifest
        from harmonize_tf.radiometry import Bandpass
        from harmonize_tf.sources import Raster, Scene
        from harmonize_tf.geometry import Grid

        cells = int(sys.argv[1])

        class Flat:
            def read(self, scene, bands, window):
                valid = np.ones(window.shape, bool)
                return Raster(np.full((*window.shape, len(bands)), 0.2, np.float32), valid, valid, window)

        class Nearest:
            manifest = Manifest("nearest", ("blue", "green", "red"), "toa", False, 0, 1, (1,) * 3,
                                Bandpass((1,) * 3, (0,) * 3, ""))
            def predict(self, ms, pan):
                dn = ms.repeat(3, 1).repeat(3, 2)
                return {"sentinel_ms": dn, "quality": np.full((*dn.shape[:3], 1), 3, np.uint8)}

        cog.CACHE = 16
        grid = Grid("EPSG:32633", 300010, 5000020, (30.0, 30.0), (cells, cells))
        scene = Scene("flat", "landsat", "toa", "", "LANDSAT_8", 0, {b: grid for b in Nearest.manifest.bands})
        with tempfile.TemporaryDirectory() as folder:
            products.harmonize(Flat(), scene, Nearest(), pathlib.Path(folder, "out.tif"), window=128)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for cells in (700, 1500):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(cells)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) / 1024)
    # The products hold 26 and 122 MB of pixels.
    assert peaks[1] - peaks[0] < 40, peaks
