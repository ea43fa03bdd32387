import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import threading

import cloud
import numpy as np
import pytest
import rasterio
import scene_files
import tiny_models

from beam_jobs import harmonize_scenes, stopping
from beam_jobs.folder import Folder
from harmonize_tf import predictors, products
from harmonize_tf.errors import FlagError, HarmonizeError, ModelError, SceneError, ServerError, TransientError
from harmonize_tf.manifest import Manifest
from harmonize_tf.radiometry import Bandpass
from harmonize_tf.sources.geotiff import GeoTiffSource

BANDS = ("blue", "green", "red", "nir")
NAMES = ["alder", "birch", "cedar", "douglas_fir"]
MANIFEST = Manifest(
    "nearest", BANDS, "toa", True, halo=2, multiple=1, sigma=(1.1,) * 4, bandpass=Bandpass((1.0,) * 4, (0.0,) * 4, "")
)

# Names of the scenes that were begun, functions that are called with the product's path before each is made, and
# functions of the product afterwards.
BEGUN, TROUBLE, MORE = [], [], []


class Nearest:
    """Repeats pixels."""

    def __init__(self, directory):
        assert pathlib.Path(directory, "saved_model.pb").is_file()
        self.manifest, self.version = MANIFEST, pathlib.Path(directory).name

    def predict(self, ms, pan):
        codes = ms.repeat(3, 1).repeat(3, 2)
        return {"sentinel_ms": codes, "quality": np.ones((*codes.shape[:3], 1), np.uint8)}


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    harmonize = products.harmonize

    def watch(source, scene, predictor, path, **more):
        BEGUN.append(path.stem)
        for cause in TROUBLE:
            cause(path)
        product = harmonize(source, scene, predictor, path, **more)
        return MORE[0](product) if MORE else product

    for kept in (BEGUN, TROUBLE, MORE):
        kept.clear()
    monkeypatch.setattr(products, "harmonize", watch)
    monkeypatch.setattr(predictors, "local", lambda directory: contextlib.nullcontext(Nearest(directory)))


def begun():
    """The scenes that were begun since this was last asked."""
    found = sorted(BEGUN)
    BEGUN.clear()
    return found


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landsat")
    for name in NAMES:
        scene_files.landsat_folder(folder / name)
    return folder


@pytest.fixture
def landsat(originals, tmp_path):
    """Scenes of the test's own."""
    return shutil.copytree(originals, tmp_path / "landsat")


@pytest.fixture
def model(tmp_path):
    return push(tmp_path / "model", 1).parent


def push(directory, version):
    folder = directory / str(version)
    (folder / "assets.extra").mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    (folder / "assets.extra" / "harmonize.json").write_text(MANIFEST.to_json())
    return folder


def listed(folder, *paths):
    path = folder / "scenes.txt"
    path.write_text("# of the test\n\n" + "".join(f"{line}\n" for line in paths))
    return f"--scenes={path}"


def run(folder, landsat, *more):
    harmonize_scenes.main([listed(folder, *sorted(landsat.iterdir())), f"--out={folder / 'products'}", *more])
    return json.loads((folder / "products" / "scenes.json").read_text())


def dead(folder):
    lines = [json.loads(line) for line in (folder / "products" / "dead.jsonl").read_text().splitlines()]
    assert all(set(line) == {"scene", "kind", "error"} for line in lines)
    return {pathlib.Path(line["scene"]).name: (line["kind"], line["error"]) for line in lines}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read(path):
    with rasterio.open(path) as image:
        return image.read()


def test_every_scene_is_made_once_as_by_itself_and_a_second_run_makes_none(landsat, model, tmp_path, monkeypatch):
    monkeypatch.chdir(landsat)
    scenes = listed(tmp_path, *NAMES, "birch", f"{landsat}/cedar/", "./alder")
    flags = [scenes, f"--out={tmp_path / 'products'}", f"--model={model}"]
    harmonize_scenes.main(flags)
    assert begun() == NAMES
    (tmp_path / "alone").mkdir()
    source = GeoTiffSource(landsat / "birch")
    products.harmonize(source, source.scenes()[0], Nearest(model / "1"), tmp_path / "alone/birch.tif")
    begun()
    np.testing.assert_array_equal(read(tmp_path / "products/birch/birch.tif"), read(tmp_path / "alone/birch.tif"))
    products_of = [f"{name}/{file.replace('birch', name)}" for name in NAMES for file in files(tmp_path / "alone")]
    of_the_job = ["dead.jsonl", "flags.txt", "scenes.json", *(f"_outcomes/{name}.json" for name in NAMES)]
    assert files(tmp_path / "products") == sorted(products_of + of_the_job)
    told = json.loads((tmp_path / "products/scenes.json").read_text())
    pixels = sum(read(tmp_path / f"products/{name}/{name}.tif")[0].size for name in NAMES)
    assert (told["scenes"], told["made"], told["made_before"]) == (4, 4, 0)
    assert told["megapixels"] == pytest.approx(pixels / 1e6, abs=1e-3)
    assert told["bytes"] == sum((tmp_path / "products" / name).stat().st_size for name in products_of)
    harmonize_scenes.main(flags)
    assert begun() == []
    harmonize_scenes.main([f"--flagfile={tmp_path}/products/flags.txt"])
    assert begun() == []


def test_what_cannot_be_made_is_listed_with_its_reason_and_a_rerun_heals_it_alone(landsat, model, originals, tmp_path):
    next((landsat / "alder").glob("*_B3.TIF")).unlink()
    band = next((landsat / "birch").glob("*_B4.TIF"))
    band.write_bytes(band.read_bytes()[:3000])
    next((landsat / "cedar").glob("*_MTL.txt")).write_text("GROUP = NONSENSE\n")
    with pytest.raises(FlagError, match="3 of 4 scenes could not be made.*dead.jsonl.*--max_dead_fraction"):
        run(tmp_path, landsat, f"--model={model}")
    assert {name: kind for name, (kind, _) in dead(tmp_path).items()} == dict.fromkeys(NAMES[:3], "permanent")
    assert "Received: " in dead(tmp_path)["birch"][1]
    assert not (tmp_path / "products/scenes.json").exists()
    begun()
    assert run(tmp_path, landsat, f"--model={model}", "--max_dead_fraction=0.75")["dead"]["permanent"] == 3
    assert "douglas_fir" not in begun()
    shutil.rmtree(landsat)
    shutil.copytree(originals, landsat)
    told = run(tmp_path, landsat, f"--model={model}")
    assert begun() == NAMES[:3]
    assert (told["made"], told["made_before"]) == (3, 1)
    assert dead(tmp_path) == {}


def test_a_bug_costs_the_scene_that_it_meets_and_leaves_its_traceback(landsat, model, tmp_path):
    def fail(path):
        if path.stem == "birch":
            raise ZeroDivisionError("a bug")

    TROUBLE.append(fail)
    with pytest.raises(FlagError, match="1 of 4.*ZeroDivisionError"):
        run(tmp_path, landsat, f"--model={model}")
    ((name, (kind, error)),) = dead(tmp_path).items()
    assert (name, kind) == ("birch", "permanent") and "in fail" in error


def test_a_worker_without_tensorflow_is_told_what_it_lacks(landsat, model, tmp_path, monkeypatch):
    def missing(directory):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(predictors, "local", missing)
    with pytest.raises(FlagError, match=r"4 of them: No module named 'tensorflow'; install harmonize_tf\[serve\]"):
        run(tmp_path, landsat, f"--model={model}")
    assert begun() == []


def test_what_passes_is_told_from_what_lasts(landsat, model, tmp_path):
    def fail(path):
        if path.stem == "cedar":
            raise TransientError("the archive is away")

    TROUBLE.append(fail)
    with pytest.raises(FlagError, match="1 for passing reasons, 0 for good"):
        run(tmp_path, landsat, f"--model={model}")
    assert dead(tmp_path) == {"cedar": ("transient", "the archive is away")}


def test_a_disk_without_room_for_a_product_is_told_and_no_more_is_begun(landsat, model, tmp_path):
    def full(path):
        raise HarmonizeError("make room on that disk")

    TROUBLE.append(full)
    with pytest.raises(FlagError, match="4 for passing reasons.*make room on that disk"):
        run(tmp_path, landsat, f"--model={model}")
    assert len(begun()) == 1
    TROUBLE.clear()
    assert run(tmp_path, landsat, f"--model={model}")["made"] == 4


def test_a_disk_that_is_full_when_a_product_is_there_leaves_it_out_and_begins_no_more(
    landsat, model, tmp_path, monkeypatch
):
    write = Folder._write

    def full(self, name, chunks):
        if name.startswith("_outcomes/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "_write", full)
        with pytest.raises(FlagError, match="4 of 4 scenes are not there yet.*run the same command again"):
            run(tmp_path, landsat, f"--model={model}")
    assert len(begun()) == 1
    assert run(tmp_path, landsat, f"--model={model}")["made"] == 4
    assert not (tmp_path / "products/_staging").exists()


def test_scenes_whose_files_or_path_have_changed_are_made_again_and_no_other(landsat, model, tmp_path):
    run(tmp_path, landsat, f"--model={model}")
    begun()
    (tmp_path / "products/alder/alder.tif").unlink()
    os.truncate(tmp_path / "products/birch/birch.tif", 1000)
    (tmp_path / "elsewhere").mkdir()
    (landsat / "cedar").rename(tmp_path / "elsewhere/cedar")
    harmonize_scenes.main(
        [
            listed(tmp_path, *landsat.iterdir(), tmp_path / "elsewhere/cedar"),
            f"--out={tmp_path / 'products'}",
            f"--model={model}",
        ]
    )
    assert begun() == ["alder", "birch", "cedar"]


@dataclasses.dataclass(frozen=True)
class Described(products.Product):
    """A product with one file more."""

    notes: pathlib.Path


def described(product):
    notes = product.path.with_name(f"{product.path.stem}_notes.json")
    notes.write_text("{}")
    return Described(**vars(product), notes=notes)


def test_a_new_version_makes_all_again_and_nothing_of_the_old_products_is_left(landsat, model, tmp_path):
    MORE.append(described)
    run(tmp_path, landsat, f"--model={model}")
    MORE.clear()
    assert (tmp_path / "products/cedar/cedar_notes.json").exists()
    push(model, 10)  # newer than 9
    push(model, 9)
    told = run(tmp_path, landsat, f"--model={model}")
    assert (told["made"], told["version"]) == (4, "10")
    assert (tmp_path / "products/cedar/cedar.tif").exists()
    assert not (tmp_path / "products/cedar/cedar_notes.json").exists()


def test_what_a_dead_scene_keeps_of_an_older_model_goes_when_it_is_made_at_last(landsat, model, tmp_path):
    MORE.append(described)
    run(tmp_path, landsat, f"--model={model}")
    MORE.clear()
    push(model, 2)

    def fail(path):
        if path.stem == "cedar":
            raise TransientError("the archive is away")

    TROUBLE.append(fail)
    unreadable = next((landsat / "birch").glob("*_MTL.txt"))
    text = unreadable.read_text()
    unreadable.write_text("GROUP = NONSENSE\n")
    for _ in range(2):
        run(tmp_path, landsat, f"--model={model}", "--max_dead_fraction=0.5")
        assert set(dead(tmp_path)) == {"birch", "cedar"}
    for name in ("birch", "cedar"):
        assert (tmp_path / f"products/{name}/{name}_notes.json").exists()
    TROUBLE.clear()
    unreadable.write_text(text)
    assert run(tmp_path, landsat, f"--model={model}")["made"] == 2
    assert not list((tmp_path / "products").rglob("*_notes.json"))


def test_a_job_that_is_killed_does_not_forget_what_the_older_model_has_left(landsat, model, tmp_path):
    MORE.append(described)
    run(tmp_path, landsat, f"--model={model}")
    MORE.clear()
    push(model, 2)

    def kill(path):
        raise MemoryError  # nothing is written down any more

    TROUBLE.append(kill)
    with pytest.raises(FlagError, match="ended early"):
        run(tmp_path, landsat, f"--model={model}")
    TROUBLE.clear()
    assert run(tmp_path, landsat, f"--model={model}")["made"] == 4
    assert not list((tmp_path / "products").rglob("*_notes.json"))


def test_all_files_of_a_product_come_into_a_bucket_and_its_item_last(landsat, model, tmp_path, monkeypatch):
    stored, write = [], Folder._write
    monkeypatch.setattr(Folder, "_write", lambda self, name, x: (stored.append(name), write(self, name, x)))
    MORE.append(described)
    with cloud.storage() as bucket:
        for name in files(model):
            Folder(f"{bucket}/model").write(name, (model / name).read_bytes())
        Folder(f"{bucket}/lists").write("scenes.txt", "".join(f"{path}\n" for path in landsat.iterdir()).encode())
        flags = [f"--scenes={bucket}/lists/scenes.txt", f"--model={bucket}/model", f"--out={bucket}/products"]
        stored.clear()
        harmonize_scenes.main(flags)
        assert begun() == NAMES
        harmonize_scenes.main(flags)
        assert begun() == []
        sizes = Folder(bucket).sizes("products")
        content = Folder(f"{bucket}/products").read("birch/birch.tif")
    *birch, outcome = [name for name in stored if "birch" in name]
    assert {"birch/birch.png", "birch/birch.tif"} < set(birch)
    assert (birch[-1], outcome) == ("birch/birch_notes.json", "_outcomes/birch.json")
    assert {f"products/{name}" for name in birch} < set(sizes)
    assert not [name for name in sizes if "_staging" in name]
    MORE.clear()
    run(tmp_path, landsat, f"--model={model}")
    assert content == (tmp_path / "products/birch/birch.tif").read_bytes()


def test_ctrl_c_ends_in_order_and_the_same_command_goes_on(landsat, model, tmp_path):
    def interrupt(path):
        if path.stem == "cedar":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert stopping.cancelled.wait(10)

    TROUBLE.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, landsat, f"--model={model}")
    there = [name for name in NAMES if (tmp_path / f"products/_outcomes/{name}.json").exists()]
    assert sorted([*there, "cedar"]) == begun()
    assert not (tmp_path / "products/cedar").exists()
    TROUBLE.clear()
    assert run(tmp_path, landsat, f"--model={model}")["made_before"] == len(there)
    assert dead(tmp_path) == {}


def test_dataflow_gets_the_job_with_image_and_accelerator(model, tmp_path):
    accelerator = "worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver"
    with cloud.storage() as bucket, cloud.dataflow() as dataflow:
        for name in files(model):
            Folder(f"{bucket}/model").write(name, (model / name).read_bytes())
        more = [
            f"--out={bucket}/products", *dataflow.flags, f"--temp_location={bucket}/tmp", "--max_num_workers=3",
            "--sdk_container_image=europe-docker.pkg.dev/p/i/harmonize:1", f"--dataflow_service_options={accelerator}",
            "--experiments=no_use_multiple_sdk_containers",
        ]  # fmt: skip
        with pytest.raises(FlagError, match="buckets only; give --scenes=gs://BUCKET"):
            harmonize_scenes.main([listed(tmp_path, "here"), f"--model={bucket}/model", *more])
        with pytest.raises(FlagError, match="buckets only; give --model=gs://BUCKET"):
            harmonize_scenes.main([listed(tmp_path, "gs://b/c"), "--model=m", *more])
        assert not dataflow.jobs
        # The job that this endpoint says is done has made no scene.
        with pytest.raises(FlagError, match="1 of 1 scenes are not there yet"):
            harmonize_scenes.main([listed(tmp_path, "gs://landsat/c"), f"--model={bucket}/model", *more])
    (job,) = dataflow.jobs
    (pool,) = job["environment"]["workerPools"]
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [
        "europe-docker.pkg.dev/p/i/harmonize:1"
    ]
    assert accelerator in job["environment"]["serviceOptions"]


def test_a_tile_of_a_scene_is_a_product_of_its_own(landsat, model, tmp_path):
    # The scenes' ground, 300 km east and 5,700 km north in zone 33, lies in 33UUT and 33UUS.
    lines = [f"{landsat}/birch", f"{landsat}/birch\t33UUT"]
    flags = [listed(tmp_path, *lines), f"--out={tmp_path / 'products'}", f"--model={model}"]
    harmonize_scenes.main(flags)
    assert begun() == ["birch", "birch_33UUT"]
    with rasterio.open(tmp_path / "products/birch_33UUT/birch_33UUT.tif") as tile:
        assert tile.shape == (10980, 10980)
    harmonize_scenes.main(flags)
    assert begun() == []
    with pytest.raises(SceneError, match="expected a Sentinel-2 tile"):
        harmonize_scenes.main([listed(tmp_path, f"{landsat}/birch\t33UUO"), *flags[1:]])


def test_names_come_from_paths_and_signatures_of_urls_are_never_written_down(model, tmp_path):
    given = {
        "LC08_1": "https://h/a/LC08_1_MTL.json?token=secret1",
        "LC09_2": "gs://b/LC09_2.tar",
        "a_b": f"{tmp_path}/a b/manifest.json",
        "LC08_3": "http://someone:secret3@localhost:1/LC08_3.tar?sig=secret4",
    }
    again = "https://h/a/LC08_1_MTL.json?token=secret2"
    flags = [listed(tmp_path, *given.values(), again), f"--out={tmp_path / 'products'}", f"--model={model}"]
    with pytest.raises(FlagError, match="4 of 4"):
        harmonize_scenes.main(flags)
    found = files(tmp_path / "products")
    assert {f"_outcomes/{name}.json" for name in given} < set(found)
    assert not [name for name in found if "secret" in (tmp_path / "products" / name).read_text()]


def test_no_scene_has_the_name_of_a_file_of_the_job(originals, model, tmp_path):
    names = ["flags.txt", "dead.jsonl", "scenes.json", "scenes.json.json", "_outcomes", "_staging"]
    for number, name in enumerate(names):
        shutil.copytree(originals / "alder", tmp_path / f"landsat/{number}/{name}")
    tasks = [
        harmonize_scenes.scene_list.read(listed(tmp_path, path).partition("=")[2])[0].name
        for path in (tmp_path / "landsat").glob("*/*")
    ]
    assert set(tasks) == {"flags", "dead", "scenes", "outcomes", "staging"}
    flags = [listed(tmp_path, tmp_path / "landsat/0/flags.txt"), f"--out={tmp_path / 'products'}", f"--model={model}"]
    harmonize_scenes.main([*flags, "--direct_num_workers=2", "--experiments=a", "--experiments", "b"])
    told = (tmp_path / "products/flags.txt").read_text().splitlines()
    assert told[-4:] == ["--direct_num_workers=2", "--experiments=a", "--experiments", "b"]
    (tmp_path / "products/flags/flags.tif").unlink()
    harmonize_scenes.main([f"--flagfile={tmp_path}/products/flags.txt"])
    assert (tmp_path / "products/flags.txt").read_text().splitlines()[-4:] == told[-4:]


@pytest.mark.parametrize(
    "paths, told",
    [
        ([], "no line has one"),
        (["a/scene", "b/scene"], "two scenes would be scene.*a/scene and /.*b/scene"),
        (["a/scene.tar", "https://h/scene"], "two scenes would be scene"),
        (["a/..."], "whose last part can name the products"),
    ],
)
def test_a_list_that_cannot_name_its_products_is_refused(paths, told, model, tmp_path):
    with pytest.raises(FlagError, match=told):
        harmonize_scenes.main([listed(tmp_path, *paths), f"--out={tmp_path / 'products'}", f"--model={model}"])
    assert not (tmp_path / "products").exists()


@pytest.mark.parametrize(
    "flags, error, told",
    [
        (["--model={model}", "--out={out}"], FlagError, "--scenes is needed"),
        (["--scenes={list}", "--model={model}"], FlagError, "--out is needed"),
        (["--scenes={list}", "--out={out}"], FlagError, "either --model"),
        (["--scenes={list}", "--out={out}", "--model=a", "--target=b"], FlagError, "either --model"),
        (["--scenes={out}.txt", "--out={out}", "--model={model}"], FlagError, "a text file with a scene a line"),
        (["--scenes={list}", "--out={list}", "--model={model}"], FlagError, "nothing can be written there"),
        (["--scenes={list}", "--out={out}", "--model={out}"], ModelError, "a SavedModel"),
        (["--scenes={list}", "--out={out}", "--model=nope://b/m"], HarmonizeError, "not known: nope"),
        (["--scenes={list}", "--out=nope://b/m", "--model={model}"], FlagError, "not known: nope"),
        (["--scenes=nope://b/m.txt", "--out={out}", "--model={model}"], FlagError, "not known: nope"),
        (["--scenes={list}", "--out={out}", "--model={model}", "--modle=b"], FlagError, "did you mean --model"),
    ],
)
def test_wrong_use_is_told_before_anything_is_made(flags, error, told, model, originals, tmp_path):
    places = {"model": model, "out": tmp_path / "products", "list": tmp_path / "scenes.txt"}
    listed(tmp_path, originals / "alder")
    with pytest.raises(error, match=told):
        harmonize_scenes.main([flag.format(**places) for flag in flags])
    assert begun() == []


class Away:
    """A server: it is there as often as it is told, then away, and the window in work waits in vain."""

    def __init__(self, times):
        self.times = times

    @contextlib.contextmanager
    def __call__(self, **server):
        if not self.times:
            raise ServerError("no model server answers")
        yield self

    manifest, version = MANIFEST, 1

    def predict(self, ms, pan):
        self.times -= 1
        if not self.times:
            raise ServerError("gave no answer")
        return Nearest.predict(self, ms, pan)


def test_a_server_that_goes_away_costs_the_scene_in_work_and_no_more_are_begun(landsat, model, tmp_path, monkeypatch):
    target = ["--target=models:8500", "--model_name=nearest"]
    monkeypatch.setattr(predictors, "served", Away(2))
    with pytest.raises(FlagError, match="3 for passing reasons, 0 for good.* 2 of them: no model server answers"):
        run(tmp_path, landsat, *target)
    assert len(begun()) == 2
    with pytest.raises(ServerError, match="no model server answers"):
        run(tmp_path, landsat, *target)
    monkeypatch.setattr(predictors, "served", Away(100))
    told = run(tmp_path, landsat, *target)
    assert (told["made"], told["made_before"]) == (3, 1)
    assert dead(tmp_path) == {}
    assert run(tmp_path, landsat, f"--model={model}")["made"] == 0, "it is the same model"


def test_servers_are_asked_for_a_label_over_tls(landsat, model, tmp_path, monkeypatch):
    asked = []

    def served(**told):
        asked.append({name: value for name, value in told.items() if value})
        return contextlib.nullcontext(Nearest(model / "1"))

    monkeypatch.setattr(predictors, "served", served)
    target = ["--target=a:1,b:1", "--model_name=nearest"]
    run(tmp_path, landsat, *target)
    plain = {"target": "a:1,b:1", "name": "nearest"}
    assert all(one == plain for one in asked) and asked
    pem = {"ca": "ca.pem", "certificate": "me.pem", "key": "me.key"}
    asked.clear()
    run(tmp_path, landsat, *target, "--model_label=stable", *(f"--tls_{name}={path}" for name, path in pem.items()))
    assert asked == [plain | {"label": "stable"} | pem]


def test_a_server_gives_what_the_model_gives(landsat, tmp_path, monkeypatch):
    from serving.local import LocalPredictor
    from serving.server import DevelopmentServer

    exported = tiny_models.export(tiny_models.harmonizer(level="toa"), tmp_path / "tiny")
    with DevelopmentServer({"tiny": exported.parent}) as server:
        run(tmp_path, landsat, f"--target={server.address}", "--model_name=tiny")
    begun()
    monkeypatch.setattr(predictors, "local", lambda directory: contextlib.nullcontext(LocalPredictor(directory)))
    (tmp_path / "products/birch/birch.tif").rename(tmp_path / "served.tif")
    run(tmp_path, landsat, f"--model={exported.parent}")
    assert begun() == ["birch"]
    np.testing.assert_array_equal(read(tmp_path / "served.tif"), read(tmp_path / "products/birch/birch.tif"))
