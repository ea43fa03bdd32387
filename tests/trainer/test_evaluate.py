import json

import keras
import numpy as np
import pytest
import tiny_examples

from harmonize_tf import artifacts, degradation, radiometry, sensors
from harmonize_tf.blessing import Blessing
from harmonize_tf.errors import FlagError, ModelError, RecordError
from harmonize_tf.metrics.consistency import ConsistencyMeter
from harmonize_tf.metrics.distribution import DistributionMeter
from harmonize_tf.metrics.fidelity import FidelityMeter
from harmonize_tf.metrics.sharpness import SharpnessMeter
from harmonize_tf.models.baselines import BASELINES
from harmonize_tf.models.harmonizer import Harmonizer
from trainer import evaluate


def harmonizer(bands=tiny_examples.BANDS, level="toa", pan=True, **changes):
    keras.utils.set_random_seed(0)
    bandpass = radiometry.landsat_to_sentinel(bands, level, "SENTINEL_2A")
    ones = (1.0,) * len(bands)
    return Harmonizer(
        bands, level, pan, bandpass, sensors.blur_sigma(bands), (0.25,) * len(bands), ones, blocks=0, filters=4,
        name="subpixel", **changes,
    )  # fmt: skip


def save(model, path):
    model.save(path)
    return path


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "examples"
    return directory, tiny_examples.write(directory)


@pytest.fixture(scope="module")
def evaluation(examples):
    directory = examples[0]
    path = save(harmonizer(), directory.parent / "model.keras")
    telling = save(harmonizer(uncertainty=True), directory.parent / "telling.keras")
    out = directory.parent / "evaluation"
    evaluate.main([f"--data={directory}", f"--model={path},{telling}", f"--out={out}", "--batch=2"])
    return json.loads((out / "metrics.json").read_text())


def test_all_baselines_and_models_are_measured(evaluation):
    assert list(evaluation["models"]) == sorted([*BASELINES, "subpixel", "subpixel_2"])
    telling = dict(evaluation["models"]["subpixel_2"])
    assert set(telling.pop("calibration")["coverage_all"]) == {"50", "80", "90"}
    assert evaluation["models"]["subpixel"] == telling
    assert evaluation["models"]["bicubic"]["rmse_all"] < evaluation["models"]["nearest"]["rmse_all"]
    assert evaluation["patches"] == 3 and evaluation["plan_sha256"] == "0" * 64
    assert evaluation["package_version"] and evaluation["flags"]["split"] == "test"


def test_every_trained_model_is_judged_and_found_by_its_file(examples, evaluation):
    found = Blessing.load(examples[0].parent / "evaluation" / "blessing.json")
    model = examples[0].parent / "model.keras"
    assert [verdict.name for verdict in found.verdicts] == ["subpixel", "subpixel_2"]
    verdict = found.about(artifacts.sha256(model))
    assert verdict.path == str(model) and found.plan_sha256 == "0" * 64
    sentences = " ".join(rule.sentence for rule in verdict.rules)
    for told in (
        "rmse_all is",
        "of the bandpass baseline's",
        "consistency.quantile is",
        "correctness.hallucination is",
    ):
        assert told in sentences
    assert evaluation["model_files"]["subpixel"]["sha256"] == verdict.sha256
    page = (examples[0].parent / "evaluation" / "report.html").read_text()
    assert f"subpixel is {'' if verdict.blessed else 'not '}blessed" in page


def test_figures_are_those_of_the_records_read_without_tensorflow(examples, evaluation):
    model, bands = harmonizer(), tiny_examples.BANDS
    fidelity, sharpness, distribution = FidelityMeter(bands), SharpnessMeter(bands), DistributionMeter(bands)
    for record in tiny_examples.in_reading_order(examples[1], "test"):
        inputs = {
            "landsat_ms": radiometry.decode(record.landsat.ms)[None],
            "landsat_valid": np.ones((1, tiny_examples.CELLS, tiny_examples.CELLS, 1), np.float32),
            "landsat_pan": radiometry.decode(record.landsat.pan)[None],
        }
        truth, output, mask = radiometry.decode(record.sentinel.ms), model(inputs).numpy()[0], record.sentinel.valid
        fidelity.update(truth, output, mask)
        sharpness.update(truth, output, mask)
        distribution.update_reference(truth, mask)
        distribution.update_prediction(output, mask)
    found, expected = evaluation["models"]["subpixel"], fidelity.result().to_dict()
    assert found["pixels"] == expected["pixels"]
    for name in ("rmse_all", "psnr", "ssim", "sam", "ergas"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    for name, meter in {"sharpness": sharpness, "distribution": distribution}.items():
        for figure, value in meter.result().to_dict().items():
            assert found[name][figure] == pytest.approx(value, rel=1e-2, abs=1e-6), figure


def test_a_model_is_held_to_the_blur_that_it_assumes_and_a_baseline_to_the_published_one(examples, evaluation):
    found = {name: figures["consistency"] for name, figures in evaluation["models"].items()}
    # The last batch is filled up with a patch that counts nowhere.
    assert {c["cells"] for c in found.values()} == {len(examples[1]["test"]) * tiny_examples.CELLS**2}
    assert found["subpixel"]["largest"] < 1e-3 < found["bicubic"]["rms_all"]
    sigma = degradation.pair_grid_sigma(sensors.blur_sigma(tiny_examples.BANDS))
    meter = ConsistencyMeter(tiny_examples.BANDS, sigma)
    for record in examples[1]["test"]:
        ms = radiometry.decode(record.landsat.ms)
        meter.update(ms.repeat(3, 0).repeat(3, 1), ms, record.landsat.valid)
    assert found["nearest"]["rms"] == pytest.approx(meter.result().to_dict()["rms"], rel=1e-4)


def test_baselines_are_blurred_and_without_checkerboard(evaluation):
    baselines = {name: evaluation["models"][name]["sharpness"] for name in BASELINES}
    assert baselines["bicubic"]["ratio_all"] < 0.5
    assert baselines["bicubic"]["coherence_all"] < baselines["pansharpen"]["coherence_all"]
    assert all(s["checkerboard"]["3"] < 0.01 for s in baselines.values())


def test_the_tables_name_models_figures_and_bands(examples, tmp_path, capsys):
    evaluate.main([f"--data={examples[0]}", f"--out={tmp_path}"])
    tables = [table.splitlines() for table in capsys.readouterr().out.strip("\n").split("\n\n")]
    assert tables[0][0].split() == ["RMSE", "PSNR", "SSIM", "SAM", "ERGAS", *tiny_examples.BANDS]
    assert tables[1][0].split()[:6] == ["sharpness", "coherence", "checkerboard", "comb", "spectra", "texture"]
    assert tables[2][0].split() == [
        "cPSNR", "UIQI", "NDVI", "edge", "reflectance", "angle", "shift", "improvement", "omission", "hallucination",
    ]  # fmt: skip
    for table in tables:
        assert [row.split()[0] for row in table[2:]] == list(BASELINES)
        assert len({len(row) for row in table}) == 1


def test_a_model_for_other_data_is_refused(examples, tmp_path):
    out = f"--out={tmp_path / 'evaluation'}"
    rgb = save(harmonizer(sensors.BAND_SETS["rgb"]), tmp_path / "rgb.keras")
    sr = save(harmonizer(level="sr"), tmp_path / "sr.keras")
    with pytest.raises(
        ModelError, match="made for bands blue,green,red at level toa.*Received: bands=blue,green,red,nir"
    ):
        evaluate.main([f"--data={examples[0]}", f"--model={rgb}", out])
    with pytest.raises(ModelError, match="at level sr.*Received: .*level=toa"):
        evaluate.main([f"--data={examples[0]}", f"--model={sr}", out])
    narrow = save(harmonizer(nir="B8A"), tmp_path / "narrow.keras")
    with pytest.raises(ModelError, match="nir from Sentinel-2's B8A.*Received: nir=B8 "):
        evaluate.main([f"--data={examples[0]}", f"--model={narrow}", out])
    tiny_examples.write(tmp_path / "nopan", pan=False)
    pan = save(harmonizer(), tmp_path / "pan.keras")
    with pytest.raises(ModelError, match="needs the panchromatic band"):
        evaluate.main([f"--data={tmp_path / 'nopan'}", f"--model={pan}", out])
    assert not (tmp_path / "evaluation").exists()


def test_a_model_without_the_panchromatic_band_is_measured_on_data_that_has_it(examples, tmp_path):
    path = save(harmonizer(pan=False), tmp_path / "model.keras")
    evaluate.main([f"--data={examples[0]}", f"--model={path}", f"--out={tmp_path}"])
    assert "subpixel" in json.loads((tmp_path / "metrics.json").read_text())["models"]


def test_a_damaged_test_shard_is_named_and_nothing_written(tmp_path):
    tiny_examples.write(tmp_path / "examples")
    shard = tmp_path / "examples" / "test" / "00000-of-00002.tfrecord.gz"
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(RecordError, match="test/00000-of-00002"):
        evaluate.main([f"--data={tmp_path / 'examples'}", f"--out={tmp_path / 'evaluation'}"])
    assert not (tmp_path / "evaluation").exists()


def test_figures_that_json_does_not_know_become_null():
    assert json.loads(artifacts.to_json({"a": float("nan"), "b": {"c": float("inf"), "d": 1.5}})) == {
        "a": None,
        "b": {"c": None, "d": 1.5},
    }


def test_flags_that_say_nothing_are_told_before_anything_is_measured(examples, tmp_path):
    (tmp_path / "thresholds.toml").write_text('[absolute]\n"rmse_all" = { below = 1 }')
    common = [f"--data={examples[0]}", f"--out={tmp_path / 'evaluation'}"]
    with pytest.raises(FlagError, match="with at_most, at_least or both"):
        evaluate.main([*common, f"--thresholds={tmp_path / 'thresholds.toml'}"])
    with pytest.raises(ModelError, match=f"Received: {tmp_path / 'none.json'}"):
        evaluate.main([*common, f"--last_blessed={tmp_path / 'none.json'}"])
    assert not (tmp_path / "evaluation").exists()
