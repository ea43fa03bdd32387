import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import real_scenes
import tiny_examples
from scipy.ndimage import gaussian_filter, map_coordinates

from beam_jobs import export_pairs, settings
from harmonize_tf import blur_fit, degradation, estimate_blur, geometry, radiometry, records, sensors
from harmonize_tf.blur import BlurEstimate
from harmonize_tf.errors import DatasetError, FlagError, RecordError
from harmonize_tf.sources import read_onto
from harmonize_tf.sources.degraded import DegradedSource
from harmonize_tf.sources.geotiff import GeoTiffSource

SIGMA = dict(zip(sensors.BANDS, (0.9, 1.1, 0.7, 1.3, 1.2, 1.4), strict=True))  # planted, 10 m pixels
SHIFT = (6.0, -8.0)  # planted, m
WITHIN = 0.05  # 10 m pixels
SCENES = ("t33uuu", "t32tmt")  # level toa, and sr whose partner has another radiometry


def export(out, *flags):
    export_pairs.main([f"--out={out}", *flags])
    return out


def estimated(data, out, *flags) -> dict:
    estimate_blur.main([f"--data={data}", f"--out={out}", *flags])
    return json.loads(out.read_text())


def read(data) -> list[records.Record]:
    return [records.decode(r) for path in sorted(data.glob("*/*.tfrecord.gz")) for r in records.read_shard(path)]


def folder(path, found):
    """A folder of these records, all in one split, as an export would leave it."""
    (path / "train").mkdir(parents=True)
    shard = records.shard(records.encode(record) for record in found)
    (path / "train" / "00000-of-00001.tfrecord.gz").write_bytes(shard)
    told = {"bands": found[0].bands, "level": found[0].level, "nir": "B8", "plan_sha256": "0", "schema": records.SCHEMA}
    (path / "dataset_info.json").write_text(json.dumps(told))
    return path


@pytest.fixture(scope="module")
def planted(real_data, tmp_path_factory):
    """Exports of real scenes and their degraded partners, with planted blur and shift, by the scene's name."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            settings.SOURCES,
            "degraded",
            lambda wanted, _: DegradedSource(GeoTiffSource(*wanted.scenes), sigma=tuple(SIGMA.values()), shift_m=SHIFT),
        )
        for name in SCENES:
            path = tmp_path_factory.mktemp(name)
            flags = ["--source=degraded", f"--scenes={real_scenes.manifest(real_data, path, name)}", "--bands=rgbn"]
            found[name] = export(path / "examples", *flags, "--split=0.6,0.2,0.2", "--split_block=1920", "--nopan")
    return found


def check(measured, sigma, shift=SHIFT, gain=1.0, offset=0.0, within=WITHIN):
    np.testing.assert_allclose(measured["sigma"], sigma, atol=within)
    np.testing.assert_allclose(measured["shift_m"]["median"], shift, atol=10 * within)
    assert measured["gain"]["median"] == pytest.approx(gain, rel=0.005)
    assert measured["offset"]["median"] == pytest.approx(offset, abs=1e-3)


def check_planted(values, level, within=WITHIN):
    bandpass = radiometry.sentinel_to_landsat(values["bands"], level, "SENTINEL_2A")
    for index, band in enumerate(values["bands"]):
        check(values["sensors"][band], [SIGMA[band]] * 2, SHIFT, bandpass.slope[index], bandpass.offset[index], within)


@pytest.mark.parametrize("scene", SCENES)
def test_planted_blur_shift_and_gain_of_real_scenes_are_recovered(planted, tmp_path, scene):
    values = estimated(planted[scene], tmp_path / "blur.json")
    check_planted(values, values["level"], within=0.01)
    assert values["patches"] >= 25 and values["scene_pairs"] == 1
    for band in values["bands"]:
        own, grid = values["sensors"][band], values["pair_grid"][band]
        # What the warp leaves of the noise, and no more.
        assert own["residual_after"] < 3e-4 < own["residual_before"]
        assert own["residual_after"] < grid["residual_after"]
        quartiles = np.array(own["sigma_quartiles"])
        assert (quartiles[0] < quartiles[2]).all() and np.abs(quartiles[1] - own["sigma"]).max() < WITHIN


@pytest.mark.parametrize("scene", SCENES)
def test_on_the_pair_grid_the_warp_has_widened_the_blur_as_the_models_assume(planted, tmp_path, scene):
    values = estimated(planted[scene], tmp_path / "blur.json")
    sigma = [SIGMA[band] for band in values["bands"]]
    measured = [values["pair_grid"][band]["sigma"] for band in values["bands"]]
    # `pair_grid_sigma` is one number for all bands, fitted with a flat minimum.
    np.testing.assert_allclose(np.mean(measured, 1), degradation.pair_grid_sigma(sigma), atol=0.1)
    assert BlurEstimate.load(tmp_path / "blur.json").sigma == pytest.approx(np.mean(measured, 1), abs=0.01)


@pytest.mark.parametrize("scene", SCENES)
def test_what_changed_between_the_scenes_and_a_masked_cloud_do_not_matter(planted, tmp_path, scene):
    rng = np.random.default_rng(5)

    def changed(record):
        landsat, sentinel = record.landsat, record.sentinel
        ms, clear = landsat.ms.copy(), landsat.valid.copy()
        cells = ms.shape[0]
        for _ in range(round(0.05 * cells**2 / 16)):  # fields of 4 x 4 cells, 5 % of all, darker or brighter in Landsat
            row, column = rng.integers(cells - 4, size=2)
            field = ms[row : row + 4, column : column + 4]
            field[field > 0] = np.maximum(field[field > 0] + rng.choice([-400, 600, 2000]), 1)
        fine, fine_clear = sentinel.ms.copy(), sentinel.valid.copy()
        y, x = np.mgrid[: 3 * cells, : 3 * cells]
        for image, mask, scale, middle in ((ms, clear, 3, 60), (fine, fine_clear, 1, 100)):  # it drifts in between
            cloud = ((y - middle) ** 2 + (x - middle) ** 2 < 25**2)[::scale, ::scale]
            image[cloud] = np.where(image[cloud] > 0, 7000, 0)
            mask[cloud] = 0
        return dataclasses.replace(
            record,
            landsat=dataclasses.replace(landsat, ms=ms, valid=clear),
            sentinel=dataclasses.replace(sentinel, ms=fine, valid=fine_clear),
        )

    found = [changed(record) for record in read(planted[scene])]
    values = estimated(folder(tmp_path / "examples", found), tmp_path / "blur.json")
    check_planted(values, values["level"])
    for band in values["bands"]:
        assert 0.7 < values["sensors"][band]["counted"] < 0.95


@pytest.mark.parametrize("scene", SCENES)
def test_a_blur_that_differs_in_x_and_y_is_recovered(real_data, tmp_path, scene):
    """Scipy blurs, and looks from Landsat's lattice; GDAL warps."""
    sigma_x, sigma_y, shift, bands = 1.25, 0.85, (-3.0, 4.0), ("green", "nir")
    source = GeoTiffSource(real_scenes.manifest(real_data, tmp_path, scene))
    (sentinel,) = source.scenes()
    whole = geometry.pair_grid(sentinel.grid)
    found = []
    for row, column in ((60, 60), (60, 480), (480, 60), (480, 480)):
        grid = whole.window(row, column, 192, 192)
        near = whole.window(row - 60, column - 60, 312, 312)
        fine = read_onto(source, sentinel, bands, near)
        lattice = geometry.Grid(grid.crs, near.left + 425, near.top - 415, (30.0, 30.0), (74, 74))
        assert (lattice.left % 30, lattice.top % 30) == (15, 15)
        rows = (near.top - lattice.top - shift[1]) / 10 + 3 * np.arange(74) + 1
        columns = (lattice.left - near.left + shift[0]) / 10 + 3 * np.arange(74) + 1
        places = np.meshgrid(rows, columns, indexing="ij")
        seen = np.stack(
            [
                0.9 * map_coordinates(gaussian_filter(plane.astype(float), (sigma_y, sigma_x)), places, order=5) + 0.02
                for plane in np.moveaxis(fine.values, -1, 0)
            ],
            axis=-1,
        )
        landsat, valid = geometry.warp(seen.astype(np.float32), np.ones((74, 74), bool), lattice, grid.at(30.0))
        assert valid.all()
        image = fine.values[60:252, 60:252]
        found.append(
            records.Record(
                f"{row}/{column}", "train", "block", "test", sentinel.level, bands, grid.crs, tuple(grid.transform)[:6],
                records.Capture(radiometry.encode(landsat), np.ones((64, 64), np.uint8), "L", "test", "LANDSAT_8"),
                records.Capture(radiometry.encode(image), np.ones((192, 192), np.uint8), "S", "test", "SENTINEL_2A"),
            )
        )  # fmt: skip
    values = estimated(folder(tmp_path / "examples", found), tmp_path / "blur.json")
    for band in bands:
        check(values["sensors"][band], (sigma_x, sigma_y), shift, gain=0.9, offset=0.02)


def test_pairs_of_scenes_have_one_blur_and_each_its_own_shift_gain_and_offset(planted):
    looked = [
        estimate_blur.Looked(record, blur_fit.usable(record.landsat.valid > 0, record.sentinel.valid > 0))
        for scene in SCENES
        for record in read(planted[scene])
    ]
    looked = [patch for patch in looked if patch.cells.mean() > estimate_blur.CLEAR]
    values = estimate_blur.estimate(looked, sensors.BAND_SETS["rgbn"], "B8", 0)
    assert values["scene_pairs"] == 2
    for band in sensors.BAND_SETS["rgbn"]:
        np.testing.assert_allclose(values["sensors"][band]["sigma"], SIGMA[band], atol=0.01)
    low, _, high = values["sensors"]["blue"]["gain"]["quartiles"]
    assert high - low == pytest.approx((1 - 0.9778) / 2, rel=0.05)


def test_the_spread_is_that_over_pairs_of_scenes_where_there_are_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_examples.sensors, "blur_sigma", lambda bands: (0.8 + 0.04 * next(numbers),) * len(bands))
    numbers = iter(range(99))

    def renamed(record):
        return dataclasses.replace(record, landsat=dataclasses.replace(record.landsat, scene_id=record.id))

    tiny_examples.write(tmp_path / "examples", train=11, val=0, test=0, change=renamed)
    monkeypatch.undo()
    values = estimated(tmp_path / "examples", tmp_path / "blur.json")
    assert (values["samples_of"], values["scene_pairs"]) == ("scene pairs", 11)
    for band in values["bands"]:
        measured = values["pair_grid"][band]
        samples = np.array(measured["sigma_samples"])
        np.testing.assert_allclose(measured["sigma"], 1.0, atol=WITHIN)
        planted = 0.8 + 0.04 * np.arange(11)
        nearest = planted[np.abs(samples.mean(1) - planted[:, None]).argmin(0)]
        np.testing.assert_allclose(samples.mean(1), nearest, atol=0.01)
        assert len(set(nearest)) == len(samples) >= 8  # the others are too small to tell on their own
        np.testing.assert_allclose(measured["sigma_quartiles"], np.percentile(samples, (25, 50, 75), axis=0), atol=1e-6)
        np.testing.assert_allclose(measured["shift_m"]["quartiles"], np.zeros((3, 2)), atol=0.5)


@pytest.mark.parametrize(
    ("name", "shift", "tolerance"),
    # As in test_export_pairs: the first pair's own description says a pixel to the east; the second's was aligned.
    [("l8s2ps", (10, -5), 5), ("oli2msi", (0, 0), 5)],
)
def test_a_real_pair_of_an_unknown_history_gives_a_blur_wider_than_the_published(
    real_data, tmp_path, name, shift, tolerance
):
    path = real_scenes.manifest(real_data, tmp_path, f"{name}_landsat", f"{name}_sentinel")
    flags = ["--source=geotiff", f"--scenes={path}", "--bands=rgb", "--split=0,0,1", "--min_valid=0.3"]
    values = estimated(export(tmp_path / "examples", *flags), tmp_path / "blur.json")
    for band in values["bands"]:
        measured = values["pair_grid"][band]
        assert 1.2 < min(measured["sigma"]) <= max(measured["sigma"]) < 2.6
        np.testing.assert_allclose(measured["shift_m"]["median"], shift, atol=tolerance)
        assert measured["residual_after"] < 0.7 * measured["residual_before"]


def test_the_file_says_what_was_measured_and_how_and_the_table_shows_it(tmp_path, capsys):
    tiny_examples.write(tmp_path / "examples")
    values = estimated(tmp_path / "examples", tmp_path / "new" / "blur.json", "--split=train", "--patches=4")
    assert values["flags"] == {"data": str(tmp_path / "examples"), "split": "train", "patches": 4, "seed": 0}
    assert (values["plan_sha256"], values["level"], values["patches"]) == ("0" * 64, "toa", 4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["blur.json"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(tiny_examples.BANDS) and len(set(map(len, lines))) == 1


def test_records_made_on_the_pair_grid_show_the_blur_they_were_made_with(tmp_path):
    tiny_examples.write(tmp_path / "examples", train=12)
    values = estimated(tmp_path / "examples", tmp_path / "blur.json")
    for band, sigma in zip(tiny_examples.BANDS, sensors.blur_sigma(tiny_examples.BANDS), strict=True):
        check(values["pair_grid"][band], (sigma, sigma), (0, 0))
        assert values["pair_grid"][band]["residual_after"] < values["sensors"][band]["residual_after"]


def test_the_same_command_gives_the_same_bytes_and_another_seed_the_same_estimate(tmp_path):
    tiny_examples.write(tmp_path / "examples")
    first = estimated(tmp_path / "examples", tmp_path / "a.json")
    estimated(tmp_path / "examples", tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    other = estimated(tmp_path / "examples", tmp_path / "c.json", "--seed=1")
    assert other["pair_grid"]["red"]["sigma"] == first["pair_grid"]["red"]["sigma"]
    assert other["pair_grid"]["red"]["sigma_samples"] != first["pair_grid"]["red"]["sigma_samples"]


def flat(record):
    """Nothing but noise of one code."""
    rng = np.random.default_rng(0)

    def noise(capture):
        return dataclasses.replace(capture, ms=(3000 + rng.integers(0, 3, capture.ms.shape)).astype(np.uint16))

    return dataclasses.replace(record, landsat=noise(record.landsat), sentinel=noise(record.sentinel))


def clouded(record):
    return dataclasses.replace(
        record, landsat=dataclasses.replace(record.landsat, valid=np.zeros_like(record.landsat.valid))
    )


def uneven(record):
    smaller = dataclasses.replace(record.sentinel, ms=record.sentinel.ms[3:].copy(), valid=record.sentinel.valid[3:])
    return dataclasses.replace(record, sentinel=smaller)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: dataclasses.replace(r, sentinel=None), DatasetError, "records of one sensor only.*12 records, 0 of"),
        (lambda r: dataclasses.replace(r, landsat=None), DatasetError, "records of one sensor only"),
        (clouded, DatasetError, "at least 25% can be compared.*too little clear ground.*12 of them pairs"),
        (flat, DatasetError, "blue is too flat.*Received: sigma="),
        (uneven, RecordError, "expected square patches.*Received: landsat"),
    ],
)
def test_records_that_show_no_blur_are_refused(tmp_path, change, error, message):
    tiny_examples.write(tmp_path / "examples", change=change)
    with pytest.raises(error, match=message):
        estimated(tmp_path / "examples", tmp_path / "blur.json")
    assert not (tmp_path / "blur.json").exists()


def test_a_folder_without_an_export_or_an_empty_split_is_refused_and_so_is_a_folder_as_output(tmp_path):
    with pytest.raises(DatasetError, match="finished `harmonize export`.*Received: data="):
        estimated(tmp_path, tmp_path / "blur.json")
    tiny_examples.write(tmp_path / "examples", val=0)
    with pytest.raises(DatasetError, match="there is no record.*split=val"):
        estimated(tmp_path / "examples", tmp_path / "blur.json", "--split=val")
    with pytest.raises(FlagError, match="name of a file.*Received: out="):
        estimated(tmp_path / "examples", tmp_path)
    with pytest.raises(DatasetError, match="cannot be written there.*Received: out="):
        estimated(tmp_path / "examples", tmp_path / "examples" / "dataset_info.json" / "blur.json")


def test_a_users_mistake_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "harmonize_tf", "estimate-blur", f"--data={tmp_path}", "--out=blur.json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_examples.write(path / "examples")
    return estimated(path / "examples", path / "blur.json"), path / "blur.json"


def test_training_reads_the_blur_of_its_bands_and_its_samples_in_their_order(written):
    values, path = written
    loaded = BlurEstimate.load(path, ("red", "blue"))
    assert loaded.bands == ("red", "blue") and (loaded.level, loaded.nir) == ("toa", "B8")
    np.testing.assert_array_equal(loaded.sigma_xy, [values["pair_grid"][band]["sigma"] for band in loaded.bands])
    np.testing.assert_allclose(loaded.sigma, np.sqrt((loaded.sigma_xy**2).mean(1)))
    for number, band in enumerate(loaded.bands):
        np.testing.assert_array_equal(loaded.samples[:, number], values["pair_grid"][band]["sigma_samples"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v["pair_grid"].pop("red"), "says nothing about red.*Received: bands=blue,green,nir"),
        (lambda v: v.pop("pair_grid"), "the JSON that `harmonize estimate-blur` writes"),
        (lambda v: v.pop("level"), "the JSON that `harmonize estimate-blur` writes"),
        (lambda v: v["pair_grid"]["red"].update(sigma=[0.1, 1.0]), "at least 0.3.*Received: sigma=0.1"),
        (lambda v: v["pair_grid"]["red"].update(sigma="wide"), "the JSON that"),
        (lambda v: [band.update(sigma_samples=[]) for band in v["pair_grid"].values()], "at least one sample"),
        (lambda v: [b.update(sigma_samples=[[1.0]]) for b in v["pair_grid"].values()], "x and y for each band"),
        (lambda v: [b["sigma_samples"].append([float("nan")] * 2) for b in v["pair_grid"].values()], "at least 0.3"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(written, tmp_path, damage, message):
    values = json.loads(written[1].read_text())
    damage(values)
    path = tmp_path / "blur.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=message):
        BlurEstimate.load(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DatasetError, match="expected a blur estimate; run `harmonize estimate-blur`.*blur.json"):
        BlurEstimate.load(tmp_path / "blur.json")
