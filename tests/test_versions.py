import pytest

from harmonize_tf import versions


@pytest.fixture
def folder(tmp_path):
    for name in ("2", "00010", "exporting-11", "x", "-3", "12", "٣", str(2**63)):
        (tmp_path / name).mkdir()
        if name != "12":
            (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "7").touch()
    (tmp_path / "x" / "99").mkdir()
    (tmp_path / "x" / "99" / "saved_model.pb").touch()
    return tmp_path


def test_only_numbered_folders_with_a_saved_model_are_versions(folder):
    assert list(versions.find(folder).items()) == [(2, folder / "2"), (10, folder / "00010")]
    assert versions.newest(folder) == folder / "00010"
    assert versions.newest(folder / "2") == folder / "2"
    assert versions.find(folder / "missing") == {}


def test_names_in_a_bucket_tell_the_same_as_a_disk(folder):
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert versions.complete(names) == {2: "2", 10: "00010"}
