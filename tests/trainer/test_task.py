import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_examples
from runs import ROOT, scalars, train, weights

import harmonize_tf
from harmonize_tf import augmentation, dataset, degradation, sensors
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import DatasetError, FlagError, ModelError, RecordError
from harmonize_tf.models.harmonizer import Harmonizer
from trainer import task
from trainer.config import Config
from trainer.objectives import pixelwise, subpixel


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "examples"
    tiny_examples.write(directory)
    return directory


@pytest.fixture(scope="module")
def trained(examples):
    """Twenty steps in one go."""
    model_dir = examples.parent / "training"
    train(examples, model_dir)
    return model_dir


def test_training_beats_the_baseline_and_its_own_start(trained):
    found = scalars(trained)
    losses = [value for _, value in found["loss/validation"]]
    assert losses[-1] < losses[0]
    errors = [value for _, value in found["rmse/validation"]]
    assert errors[-1] < errors[0] < found["rmse/validation_bandpass"][0][1]
    assert [step for step, _ in found["rmse/validation"]] == [10, 20]
    assert found["learning_rate/harmonizer"][-1][1] == pytest.approx(0, abs=1e-4)


def test_what_is_left_is_complete(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {"checkpoints", "flags.txt", "model.keras", "summary.json", "tensorboard", "training.json"}
    assert {"best.weights.h5", "checkpoint", "ckpt-20.index"} <= {p.name for p in (trained / "checkpoints").iterdir()}


def test_the_summary_says_what_came_out_against_the_baseline_and_what_made_it(examples, trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["steps"], summary["seed"], summary["precision"], summary["ema"]) == (20, 0, "float32", 0.999)
    assert summary["examples"] == 40 and summary["package_version"] == harmonize_tf.__version__
    assert summary["examples_per_second"] == pytest.approx(40 / summary["seconds"], rel=0.01)
    assert summary["flags"]["filters"] == 8 and summary["flags"]["data"] == str(examples)
    found = scalars(trained)
    best = min(found["rmse/validation"], key=lambda pair: pair[1])
    assert (summary["best_step"], summary["best_rmse"]) == (best[0], pytest.approx(best[1]))
    model, bandpass = summary["validation"]["subpixel"], summary["validation"]["bandpass"]
    assert model["rmse_all"] == pytest.approx(best[1], rel=1e-4)
    assert bandpass["rmse_all"] == pytest.approx(found["rmse/validation_bandpass"][0][1], rel=1e-4)
    assert set(model["rmse"]) == set(DatasetInfo.load(examples).bands)


def test_tensorboard_tells_the_speed_and_the_share_of_the_baselines_error(trained):
    found = scalars(trained)
    assert all(value > 0 for _, value in found["examples_per_second"])
    for name in ("loss/train", "train/gradient_norm", "rmse/validation_over_bandpass"):
        assert [step for step, _ in found[name]] == [10, 20]
    errors, baselines = found["rmse/validation"], found["rmse/validation_bandpass"]
    shares = [error / baseline for (_, error), (_, baseline) in zip(errors, baselines, strict=True)]
    assert [value for _, value in found["rmse/validation_over_bandpass"]] == pytest.approx(shares, rel=1e-5)


def test_the_model_is_a_harmonizer_with_the_datas_constants(examples, trained):
    model = keras.saving.load_model(trained / "model.keras", compile=False)
    info = DatasetInfo.load(examples)
    assert isinstance(model, Harmonizer) and model.name == "subpixel"
    assert (model.bands, model.level, model.uses_pan) == (info.bands, info.level, True)
    assert model.bandpass == info.bandpass and model.sigma == degradation.pair_grid_sigma(
        sensors.blur_sigma(info.bands)
    )
    assert model.mean == info.statistics["landsat"].mean and model.std == info.statistics["sentinel"].std
    assert (model.scale, model.blocks, model.filters, model.consistency) == (3, 1, 8, "exact")


@pytest.mark.parametrize("colour", ["natural", "infrared"])
def test_tensorboard_shows_input_output_target_and_error_of_validation_patches(examples, trained, colour):
    pictures = [
        tf.image.decode_image(value.tensor.string_val[2]).numpy()
        for path in (trained / "tensorboard").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "images" and value.tag.startswith(colour)
    ]
    side = 3 * tiny_examples.CELLS
    assert pictures and all(picture.shape == (side, 4 * side, 3) for picture in pictures)
    low, output, target, error = np.split(pictures[-1].astype(float), 4, axis=1)
    np.testing.assert_array_equal(low[::3, ::3], low[2::3, 2::3])  # 30 m pixels as they are
    assert np.abs(output - target).mean() < np.abs(low - target).mean()
    inside = (np.minimum(output, target) > 0) & (np.maximum(output, target) < 255)  # not cut off by the stretch
    np.testing.assert_allclose(error[inside], (127.5 + output - target)[inside], atol=1.5)
    bands = {"natural": [2, 1, 0], "infrared": [3, 2, 1]}[colour]
    inputs, targets = next(iter(dataset.paired(DatasetInfo.load(examples), "val", batch=1, pan=False)))
    truth = targets["sentinel_ms"].numpy()[0][..., bands]
    low_end, high_end = np.percentile(truth.reshape(-1, 3), [2, 98], axis=0)
    shown = 255 * np.clip((truth - low_end) / (high_end - low_end), 0, 1)
    np.testing.assert_allclose(target, shown, atol=1)


def test_flags_txt_repeats_the_run(trained, tmp_path):
    task.main([f"--flagfile={trained / 'flags.txt'}", f"--model_dir={tmp_path}"])
    for again, first in zip(weights(tmp_path), weights(trained), strict=True):
        np.testing.assert_allclose(again, first, atol=1e-5)


def test_steps_that_rounds_do_not_divide_are_done_exactly(examples, tmp_path):
    train(examples, tmp_path, steps=5, every=3)
    assert [step for step, _ in scalars(tmp_path)["loss/train"]] == [3, 5]


@pytest.mark.parametrize("flags", [["--scale=2"], ["--nopan"], ["--consistency=none", "--blocks=0"]])
def test_every_kind_of_network_trains(examples, tmp_path, flags):
    train(examples, tmp_path, *flags, steps=1, every=1)
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert model.scale == (2 if "--scale=2" in flags else 3)
    assert model.uses_pan == ("--nopan" not in flags)
    assert model.consistency == ("none" if "--consistency=none" in flags else "exact")


def test_another_network_or_other_data_does_not_continue_a_training(examples, trained, tmp_path):
    with pytest.raises(ModelError, match=r"There: filters=8\. Received: filters=16"):
        train(examples, trained, "--filters=16")
    tiny_examples.write(tmp_path / "examples", bands=sensors.BAND_SETS["rgb"], level="sr")
    with pytest.raises(ModelError, match=r"There: level=toa, bands=.*Received: level=sr, bands="):
        train(tmp_path / "examples", trained)


def test_other_constants_or_another_augmentation_do_not_continue_a_training(examples, trained, tmp_path, monkeypatch):
    shutil.copytree(examples, tmp_path / "examples")
    path = tmp_path / "examples" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["statistics"]["landsat"]["mean"][0] += 0.01
    path.write_text(json.dumps(info))
    with pytest.raises(ModelError, match=r"There: mean=\[0\.25, .*\. Received: mean=\[0\.26, "):
        train(tmp_path / "examples", trained)
    monkeypatch.setattr(augmentation, "VERSION", augmentation.VERSION + 1)
    with pytest.raises(ModelError, match=r"There: augmentation=3\. Received: augmentation=4"):
        train(examples, trained)


def test_a_training_that_diverges_says_so_and_goes_on_from_its_last_state_at_a_lower_rate(examples, tmp_path):
    flags = ["--consistency=none", "--blocks=0"]
    with pytest.raises(ModelError, match=r"diverged by step 2; .*lower --learning_rate.*learning_rate=1e\+30"):
        train(examples, tmp_path, *flags, "--learning_rate=1e30", steps=4, every=2)
    assert not list((tmp_path / "checkpoints").glob("*"))
    train(examples, tmp_path, *flags, steps=2, every=2)
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    with pytest.raises(ModelError, match="diverged by step 4"):
        train(examples, tmp_path, *flags, "--learning_rate=1e30", steps=4, every=2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == saved
    train(examples, tmp_path, *flags, steps=4, every=2)
    assert all(np.isfinite(w).all() for w in weights(tmp_path))


def test_what_data_and_flags_lack_is_told_before_anything_is_written(examples, tmp_path):
    model_dir = tmp_path / "training"
    with pytest.raises(DatasetError, match="crop=17"):
        train(examples, model_dir, "--crop=17")
    with pytest.raises(FlagError, match="crop=7"):
        train(examples, model_dir, "--scale=2", "--crop=7")
    with pytest.raises(FlagError, match="8 pixels of 30 m or more. Received: crop=7"):
        train(examples, model_dir, "--adversarial", "--crop=7")
    with pytest.raises(DatasetError, match="harmonize export"):
        train(tmp_path / "nothing", model_dir)
    with pytest.raises(FlagError, match="model"):
        train(examples, model_dir, "--model=oracle")
    tiny_examples.write(tmp_path / "nopan", pan=False, val=0)
    with pytest.raises(FlagError, match="no panchromatic band"):
        train(tmp_path / "nopan", model_dir, "--pan")
    with pytest.raises(DatasetError, match="'val' holds no records"):
        train(tmp_path / "nopan", model_dir)
    assert not model_dir.exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_shard_is_named(tmp_path, split):
    tiny_examples.write(tmp_path / "examples")
    shard = tmp_path / "examples" / split / "00001-of-00002.tfrecord.gz"
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(RecordError, match=rf"{split}/00001-of-00002"):
        train(tmp_path / "examples", tmp_path / "training")
    assert not (tmp_path / "training" / "model.keras").exists()


def objective(examples):
    keras.utils.set_random_seed(1)
    info = DatasetInfo.load(examples)
    values = {
        "model": "subpixel",
        "data": examples,
        "model_dir": "",
        "scale": 3,
        "blocks": 0,
        "filters": 4,
        "pan": False,
    }
    values |= {"consistency": "none", "batch": 2, "crop": 8, "steps": 2, "learning_rate": 1e-3}
    config = Config.of(values | {"validate_every": 1, "seed": 0}, info, subpixel.DEFAULTS, subpixel.STREAMS)
    return pixelwise.Pixelwise(subpixel.build(config, info))


def test_the_loss_is_the_closed_form_in_standard_deviations_of_the_bands(examples):
    model = objective(examples)
    truth = np.random.default_rng(0).uniform(0, 0.5, (2, 24, 24, 4)).astype(np.float32)
    output = truth + np.random.default_rng(1).normal(0, 0.02, truth.shape).astype(np.float32)
    penalty = model.penalty(output, {"sentinel_ms": truth}).numpy()[..., 0]
    error = (output - truth).astype(np.float64) / 0.05
    np.testing.assert_allclose(penalty, np.sqrt(error**2 + 5e-3**2).mean(-1), rtol=1e-4)


def test_what_masked_pixels_hold_has_no_influence(examples):
    rng = np.random.default_rng(0)
    x = {"landsat_ms": rng.uniform(0, 0.5, (2, 8, 8, 4)), "landsat_valid": np.ones((2, 8, 8, 1))}
    mask = np.ones((2, 24, 24, 1), np.float32)
    mask[0, :9] = 0
    truth = rng.uniform(0, 0.5, (2, 24, 24, 4))
    after = []
    for rubbish in (0.0, 1e3):
        model = objective(examples)
        model.compile(optimizer=keras.optimizers.SGD(0.1))
        y = {"sentinel_ms": np.where(mask > 0, truth, rubbish), "mask": mask}
        logs = model.train_step(tf.nest.map_structure(lambda a: tf.constant(a, tf.float32), (x, y)))
        after.append([float(logs["loss"]), *model.harmonizer.get_weights()])
    for a, b in zip(*after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_without_a_valid_pixel_changes_nothing(examples):
    model = objective(examples)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    before = model.harmonizer.get_weights()
    x = {"landsat_ms": tf.fill([2, 8, 8, 4], 0.2), "landsat_valid": tf.ones([2, 8, 8, 1])}
    y = {"sentinel_ms": tf.zeros([2, 24, 24, 4]), "mask": tf.zeros([2, 24, 24, 1])}
    assert float(model.train_step((x, y))["loss"]) == 0
    for a, b in zip(before, model.harmonizer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_users_mistake_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "trainer.task", f"--data={tmp_path}", f"--model_dir={tmp_path / 'm'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: expected the folder of a finished `harmonize export`")
    assert "Traceback" not in done.stderr
