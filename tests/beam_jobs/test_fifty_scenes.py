"""Fifty small real scenes and all that can happen to them."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
import scene_crops
import tiny_models

from harmonize_tf import products
from harmonize_tf.sources.geotiff import GeoTiffSource

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = 50
PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def start(*argv, limit=None):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=limited if limit else None, start_new_session=True, **pipes)


def serve(model, port=0):
    server = start("serving.server", f"--model_base_path={model}", "--model_name=tiny", f"--port={port}")
    return server, int(server.stdout.readline().rsplit(":", 1)[-1])


def made(out):
    """When each scene was made, by its name."""
    found = {}
    for path in out.glob("_outcomes/*.json"):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced
            if json.loads(path.read_text())["files"]:
                found[path.stem] = path.stat().st_mtime_ns
    return found


def dead(out):
    lines = [json.loads(line) for line in (out / "dead.jsonl").read_text().splitlines()]
    return {pathlib.Path(line["scene"]).name: line["kind"] for line in lines}


def ended(job, status, told):
    _, said = job.communicate(timeout=300)
    assert job.returncode == status, said
    assert told in said and "Traceback" not in said, said


def wait_until(out, count, job):
    while len(made(out)) < count:
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)


def damage(folders):
    """Four kinds of damage, and what mends them."""
    spare = {folder: shutil.copytree(folder, f"{folder}_spare") for folder in folders[:4]}
    truncated, bandless, unreadable, gone = folders[:4]
    os.truncate(truncated / "ms_30m.tif", 5000)
    manifest = json.loads((bandless / "manifest.json").read_text())
    manifest["scenes"][0]["files"][0]["bands"][4] = None  # nir
    (bandless / "manifest.json").write_text(json.dumps(manifest))
    (unreadable / "manifest.json").write_text('{"version": 1, "scenes": [')
    shutil.rmtree(gone)

    def mend():
        for folder, copy in spare.items():
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(copy, folder)

    return {folder.name for folder in folders[:4]}, mend


@pytest.mark.skipif("HARMONIZE_DRILLS" not in os.environ, reason="a drill of minutes; set HARMONIZE_DRILLS=1")
@pytest.mark.parametrize("how", ["threads", "processes", "servers"])
def test_every_scene_is_made_once_whatever_happens_and_a_rerun_heals(how, real_data, tmp_path):
    from serving.local import LocalPredictor

    folders = scene_crops.write(real_data, tmp_path / "scenes", COUNT)
    model, out = tmp_path / "tiny", tmp_path / "products"
    tiny_models.export(tiny_models.harmonizer(level="toa"), model)
    broken, mend = damage(folders)
    scenes = tmp_path / "scenes.txt"
    scenes.write_text("".join(f"{folder}\n" for folder in [*folders, *folders[10:20]]))
    job = ["harmonize_tf", "scenes", f"--scenes={scenes}", f"--out={out}"]
    if how == "servers":
        server, port = serve(model)
        job += [f"--target=127.0.0.1:{port}", "--model_name=tiny"]
    else:
        job += [f"--model={model}", *(PROCESSES if how == "processes" else [])]

    ended(start(*job, limit=100_000), 2, "make room on that disk")
    assert not made(out) and set(dead(out).values()) <= {"transient", "permanent"} and len(dead(out)) == COUNT

    before = {}
    for count in (8, 16):  # killed twice
        running = start(*job)
        wait_until(out, count, running)
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
        now = made(out)
        assert len(now) >= count and before.items() <= now.items(), "what was made is not made again"
        before = now

    if how == "servers":
        running = start(*job)
        wait_until(out, 24, running)
        os.kill(server.pid, signal.SIGKILL)
        server.communicate()
        time.sleep(2)
        server, _ = serve(model, port)  # the client waits for it

    else:
        running = start(*job)
    ended(running, 2, f"4 of {COUNT} scenes could not be made (0 for passing reasons, 4 for good)")
    now = made(out)
    assert before.items() <= now.items() and len(now) == COUNT - 4
    assert dead(out) == dict.fromkeys(broken, "permanent")

    mend()
    ended(start(*job), 0, f"4 scenes made; {COUNT - 4} there before")
    after = made(out)
    assert now.items() <= after.items() and len(after) == COUNT
    assert dead(out) == {} and not (out / "_staging").exists()
    ended(start(*job), 0, f"0 scenes made; {COUNT} there before")
    assert made(out) == after
    if how == "servers":
        server.kill()
        server.communicate()

    predictor = LocalPredictor(model)
    for folder in folders:
        source = GeoTiffSource(folder)
        products.harmonize(source, source.scenes()[0], predictor, tmp_path / "alone.tif")
        with (
            rasterio.open(tmp_path / "alone.tif") as alone,
            rasterio.open(out / folder.name / f"{folder.name}.tif") as x,
        ):
            assert alone.read(1).any()
            np.testing.assert_array_equal(x.read(), alone.read())
