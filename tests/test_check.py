import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tiny_examples
import web
from scene_files import FOUR, declare, landsat_folder, numbers, write_manifest, write_raster

from harmonize_tf import check
from harmonize_tf.errors import FlagError, HarmonizeError
from harmonize_tf.manifest import Manifest
from harmonize_tf.radiometry import Bandpass


def model(folder, bands=FOUR, level="toa", uses_pan=True):
    identity = Bandpass((1.0,) * len(bands), (0.0,) * len(bands), "identity")
    manifest = Manifest("subpixel", tuple(bands), level, uses_pan, 8, 1, (1.0,) * len(bands), identity)
    assets = folder / "7" / "assets.extra"
    assets.mkdir(parents=True)
    (assets / "harmonize.json").write_text(manifest.to_json())
    (folder / "7" / "saved_model.pb").touch()
    return folder


def run(capsys, *paths):
    """Lines printed, by their first word, and the error at the end or None."""
    error = None
    try:
        check.main([str(path) for path in paths])
    except HarmonizeError as raised:
        error = raised
    lines = capsys.readouterr().out.splitlines()
    return {word: [line for line in lines if line.startswith(f"{word}: ")] for word in ("ok", "note", "wrong")}, error


def assert_each_holds(words, lines):
    assert len(words) == len(lines)
    for word, line in zip(words, lines, strict=True):
        assert word in line


def test_sound_scenes_are_described(tmp_path, capsys):
    name = landsat_folder(tmp_path)
    lines, error = run(capsys, tmp_path)
    assert error is None
    assert not lines["wrong"] + lines["note"]
    (line,) = lines["ok"]
    assert f"scene {name}: landsat, toa, 90 x 80 pixels of 30 in EPSG:32633" in line
    assert "quality qa_pixel" in line
    assert "pan 0." in line


def test_scenes_elsewhere_are_described_as_well(tmp_path, capsys):
    name = landsat_folder(tmp_path)
    with web.serve(tmp_path) as server:
        lines, error = run(capsys, f"{server.url}/{name}_MTL.txt")
        assert error is None
        assert f"ok: scene {name}: landsat, toa" in lines["ok"][0]
        lines, _ = run(capsys, f"{server.url}/none_MTL.txt")
        assert "there is no such file" in lines["wrong"][0]


def test_every_wrong_scene_is_told_and_the_sound_ones_too(tmp_path, capsys):
    write_raster(tmp_path / "ms.tif", numbers())
    write_raster(tmp_path / "bad.tif", numbers(low=1, high=255, dtype=np.uint8))
    whole = write_raster(tmp_path / "cut.tif", numbers(shape=(400, 300)))
    whole.write_bytes(whole.read_bytes()[:200_000])
    manifest = write_manifest(
        tmp_path, declare("bad.tif", id="A"), declare(id="B"), declare("cut.tif", id="C"), declare(id="D", scale=None)
    )
    lines, error = run(capsys, manifest)
    assert [line.split(":")[1].strip() for line in lines["ok"]] == ["scene B"]
    assert [word in line for word, line in zip(("8-bit", "cut.tif", "scale"), lines["wrong"], strict=True)] == [
        True
    ] * 3
    assert "Received: 3 wrong of 4 looked at" in str(error)


def test_pairs_are_checked_unless_one_of_their_scenes_was_told_already(tmp_path, capsys):
    landsat = {"sensor": "landsat", "spacecraft": "LANDSAT_8"}
    write_raster(tmp_path / "ms.tif", numbers(), left=300_005.0)
    write_raster(tmp_path / "far.tif", numbers(), left=400_005.0)
    scenes = [declare(id="L", **landsat), declare("far.tif", id="F"), declare(id="S"), declare(id="X", scale=None)]
    pairs = [["L", "S"], ["L", "F"], ["L", "X"], ["L", "gone"]]
    lines, _ = run(capsys, write_manifest(tmp_path, *scenes, pairs=pairs))
    assert "ok: pair L, S" in lines["ok"]
    about_pairs = [line for line in lines["wrong"] if "pair" in line]
    assert len(about_pairs) == 2
    assert "no common ground" in about_pairs[0]
    assert "gone" in about_pairs[1]


def test_frequent_mistakes_are_noted_but_allowed(tmp_path, capsys):
    write_raster(tmp_path / "ms.tif", numbers())
    write_raster(tmp_path / "l.tif", numbers(), pixel=30.0)
    manifest = write_manifest(
        tmp_path,
        declare(id="S", processing_baseline="05.09", offset=0.0),
        declare("l.tif", id="L", sensor="landsat", spacecraft="LANDSAT_8", time=None),
    )
    lines, error = run(capsys, manifest)
    assert error is None
    assert [word in line for word, line in zip(("05.09", "corners", "no time"), lines["note"], strict=True)] == [
        True
    ] * 3


def test_a_model_is_held_against_the_scenes_beside_it(tmp_path, capsys):
    landsat_folder(tmp_path / "toa")
    landsat_folder(tmp_path / "sr", "L2SP")
    served = model(tmp_path / "subpixel")
    lines, error = run(capsys, tmp_path / "toa", served)
    assert error is None
    assert any("fits" in line for line in lines["ok"])
    lines, error = run(capsys, tmp_path / "sr", served)
    assert "made for level toa" in lines["wrong"][0]
    lines, _ = run(capsys, tmp_path / "sr", model(tmp_path / "sr_with_pan", level="sr"))
    assert "takes the panchromatic band" in lines["wrong"][0]
    for path in (tmp_path / "toa").glob("*_B5.TIF"):
        path.unlink()
    lines, _ = run(capsys, tmp_path / "toa", served)
    assert "takes bands blue,green,red,nir" in lines["wrong"][0]


def test_keras_files_are_read_without_their_weights(tmp_path, capsys):
    landsat_folder(tmp_path / "scene")
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        config = {"bands": FOUR, "level": "sr", "uses_pan": False}
        archive.writestr("config.json", json.dumps({"class_name": "Harmonizer", "config": config}))
    lines, error = run(capsys, path, tmp_path / "scene")
    assert "made for level sr" in lines["wrong"][0]
    assert error is not None
    path.write_bytes(b"no archive")
    lines, _ = run(capsys, path)
    assert "not a model of this project" in lines["wrong"][0]


def test_examples_are_read_to_the_last_record_and_held_against_a_model(tmp_path, capsys):
    tiny_examples.write(tmp_path / "examples", train=4, val=1, test=1)
    lines, error = run(capsys, tmp_path / "examples", model(tmp_path / "subpixel"))
    assert error is None
    assert_each_holds(("4 train", "bands blue,green,red,nir", "fits"), lines["ok"])
    lines, _ = run(capsys, tmp_path / "examples", model(tmp_path / "rgb", bands=FOUR[:3]))
    assert_each_holds(("takes bands blue,green,red;",), lines["wrong"])

    shard = next((tmp_path / "examples" / "train").glob("*.gz"))
    shard.write_bytes(shard.read_bytes()[:-2000])
    lines, error = run(capsys, tmp_path / "examples")
    assert_each_holds((shard.name,), lines["wrong"])
    assert error is not None


def test_nothing_named_and_nothing_there_are_mistakes(tmp_path, capsys):
    with pytest.raises(FlagError, match="name what to check"):
        check.main([])
    lines, error = run(capsys, tmp_path / "gone")
    assert "nothing at this path" in lines["wrong"][0]
    assert "1 wrong of 1" in str(error)


def test_the_command_ends_with_status_2_and_one_line_not_a_traceback(tmp_path):
    write_raster(tmp_path / "ms.tif", numbers())
    manifest = write_manifest(tmp_path, declare(scale=None))
    done = subprocess.run(
        [sys.executable, "-m", "harmonize_tf.check", manifest], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout.count("wrong: ") == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
