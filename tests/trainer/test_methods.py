"""What holds for every training method alike."""

import numpy as np
import pytest
import runs
import tiny_examples
from scipy import ndimage

from harmonize_tf import degradation, sensors
from harmonize_tf.metrics.planted_cloud import planted_cloud
from harmonize_tf.metrics.sharpness import SharpnessMeter
from harmonize_tf.models.harmonizer import load
from trainer import image_pool, task

RESUMED = ["subpixel --adversarial", "gan", "cyclegan", "harmonizer"]
SHARED = ["subpixel", "gan --gan_loss=relativistic", "cyclegan", "harmonizer"]
STEPS, EVERY = 8, 4  # the adversary comes in after the fourth
POOL = 3  # images, full after the third step


def argv(data, model_dir, method):
    name, *more = method.split()
    flags = runs.flags(data, model_dir, f"--model={name}", *more, steps=STEPS, every=EVERY)
    return [*flags, "--crop=16", "--filters=4"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """With cloud, so that replicas hold unequal numbers of valid pixels."""
    directory = tmp_path_factory.mktemp("run") / "examples"
    tiny_examples.write(directory, change=tiny_examples.cloudy)
    return directory


@pytest.fixture(scope="module", autouse=True)
def small_pool():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_pool, "SIZE", POOL)
        yield


@pytest.fixture(scope="module")
def undisturbed(examples, tmp_path_factory):
    """Trains by a method in one go, once for all tests; returns where."""
    done = {}

    def trained(method):
        if method not in done:
            done[method] = tmp_path_factory.mktemp("undisturbed")
            task.main(argv(examples, done[method], method))
        return done[method]

    return trained


@pytest.mark.parametrize("method", RESUMED)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(examples, undisturbed, tmp_path, monkeypatch, method):
    """With the adversary in it; `test_resume` stops the pretraining, in other ways too."""
    step = 6
    runs.killed_after(step, argv(examples, tmp_path, method), monkeypatch)
    task.main(argv(examples, tmp_path, method))
    whole, resumed = runs.everything(undisturbed(method)), runs.everything(tmp_path)
    assert whole.keys() == resumed.keys() and len(whole) > 20
    # Of both domains and both places of a batch, images and their count.
    assert sum(name.startswith("pool_") for name in whole) == (2 * 2 * 2 if method == "cyclegan" else 0)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)
    logged, again = (runs.scalars(d) for d in (undisturbed(method), tmp_path))
    for name in logged:
        if name != "examples_per_second":
            assert dict(again[name]).items() >= {s: v for s, v in logged[name] if s > step}.items(), name


@pytest.mark.parametrize("method", SHARED)
def test_two_replicas_train_the_same_model_as_one(examples, undisturbed, tmp_path, method):
    runs.on_two_replicas(argv(examples, tmp_path, method), f"image_pool.SIZE = {POOL}")
    one, two = runs.everything(undisturbed(method)), runs.everything(tmp_path)
    assert one.keys() == two.keys()
    for name, values in one.items():
        # Images in pools are in sixths of a standard deviation.
        np.testing.assert_allclose(two[name], values, atol=6e-5 if name.startswith("pool_") else 1e-5, err_msg=name)
    logged, again = runs.scalars(undisturbed(method)), runs.scalars(tmp_path)
    for name in logged:
        if name != "examples_per_second":
            np.testing.assert_allclose(again[name], logged[name], rtol=1e-5, atol=1e-5, err_msg=name)


SIDE = 60  # 30 m cells; a pixel's reach is at most 20


@pytest.fixture(scope="module")
def scene():
    """A textured scene at 10 m and what Landsat sees of it, one in a batch."""
    noise = np.random.default_rng(0).normal(0, 1, (3 * SIDE, 3 * SIDE, 4))
    texture = ndimage.gaussian_filter(noise, (0.7, 0.7, 0)) + 3 * ndimage.gaussian_filter(noise, (3, 3, 0))
    truth = (0.2 + 0.05 * texture / texture.std()).astype(np.float32)
    everywhere = np.ones(truth.shape[:2], bool)
    low, _ = degradation.degrade(
        truth, everywhere, degradation.pair_grid_sigma(sensors.blur_sigma(tiny_examples.BANDS))
    )
    rows = (np.arange(2 * SIDE) + 0.5) * 1.5 - 0.5
    pan, _ = degradation.sample_blurred(truth[..., :3].mean(-1, keepdims=True), everywhere, rows, rows, [0.7], 1.5)
    return truth, {
        "landsat_ms": low[None],
        "landsat_pan": pan[None],
        "landsat_valid": np.ones((1, SIDE, SIDE, 1), np.float32),
    }


def served(model_dir):
    model = load(model_dir / "model.keras")
    return model, lambda inputs: model({name: runs.tf.constant(x) for name, x in inputs.items()}).numpy()


TRAINED = ["subpixel", "gan", "cyclegan", "harmonizer"]


@pytest.mark.parametrize("method", TRAINED)
def test_a_cloud_is_not_clipped_and_clear_sky_beyond_its_reach_stays_as_it_was(undisturbed, scene, method):
    """Trainings as short as these cannot learn to leave it flat; `benchmarks/guards.py` measures that."""
    model, call = served(undisturbed(method))
    for brightness in (0.3, 1.2):
        found = planted_cloud(call, scene[1], brightness, side=15, halo=model.halo, bandpass=model.bandpass.apply)
        assert found.over_cloud < 0.1 and found.highest > brightness - 0.02
        assert found.beyond < 1e-4  # a digital number


@pytest.mark.parametrize("method", TRAINED)
def test_no_method_leaves_a_checkerboard(undisturbed, scene, method):
    truth, inputs = scene
    meter = SharpnessMeter(tiny_examples.BANDS)
    meter.update(truth, served(undisturbed(method))[1](inputs)[0], np.ones(truth.shape[:2], bool))
    assert max(meter.result().checkerboard) < 0.01


@pytest.mark.parametrize("method", TRAINED)
def test_windows_equal_the_whole_scene(undisturbed, scene, method):
    model, call = served(undisturbed(method))
    whole = call(scene[1])[0]
    halo, start, size = model.halo, 24, 8
    first, last = max(start - halo, 0), min(start + size + halo, SIDE)
    cut = {"landsat_ms": 1, "landsat_valid": 1, "landsat_pan": 2}
    window = {name: scene[1][name][:, f * first : f * last, f * first : f * last] for name, f in cut.items()}
    at = slice(3 * (start - first), 3 * (start - first + size))
    there = slice(3 * start, 3 * (start + size))
    np.testing.assert_allclose(call(window)[0][at, at], whole[there, there], atol=1e-5)
