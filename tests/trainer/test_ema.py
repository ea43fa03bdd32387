import numpy as np
import pytest
import runs
import tiny_examples

from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.radiometry import Bandpass
from trainer import loop
from trainer.ema import Average


def harmonizer(**more):
    bandpass = Bandpass((1.0,), (0.0,), "none")
    return Harmonizer(["red"], "toa", False, bandpass, [1.0], [0.2], [0.1], blocks=1, filters=2, **more)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.5])
def test_the_average_is_the_closed_form(decay):
    model, steps = harmonizer(), 30
    average, rng = Average(model, decay), np.random.default_rng(0)
    history = []
    for step in range(1, steps + 1):
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        history.append(model.get_weights())
        average.update(step)
    # Each step's share is its own (1 - d) times the d of all that follow it; the first has no (1 - d).
    d = np.array([0.0] + [min(decay, t / (9 + t)) for t in range(2, steps + 1)])
    shares = np.array([(1 - d[k]) * np.prod(d[k + 1 :]) for k in range(steps)])
    assert shares.sum() == pytest.approx(1)
    for i, kept in enumerate(average.twin.get_weights()):
        expected = np.einsum("k,k...->...", shares, np.stack([w[i] for w in history]).astype(np.float64))
        np.testing.assert_allclose(kept, expected, atol=2e-6)


def test_without_decay_the_twin_is_a_copy_of_what_is_trained_in_any_precision():
    model = harmonizer(dtype="mixed_bfloat16")
    average = Average(model, 0.0)
    for step in (1, 2):
        model.set_weights([w + 0.1 * step for w in model.get_weights()])
        average.update(step)
        for kept, trained in zip(average.twin.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(kept, trained)
    assert average.twin.generator.compute_dtype == "float32" and model.generator.compute_dtype == "bfloat16"


def test_what_is_validated_and_exported_is_the_average_of_the_trained_weights(tmp_path, monkeypatch):
    tiny_examples.write(tmp_path / "examples")
    history, models = [], []

    class Watched(Average):
        def __init__(self, trained, decay):
            super().__init__(trained, decay)
            models.append(trained)

        def update(self, step):
            history.append(models[0].get_weights())
            super().update(step)

    monkeypatch.setattr("trainer.task.Average", Watched)
    found = []
    end_round = loop._end_round
    monkeypatch.setattr(
        loop, "_end_round", lambda config, model, *rest: (found.append(model.served), end_round(config, model, *rest))
    )
    runs.train(tmp_path / "examples", tmp_path / "training", "--ema=0.8", steps=6, every=6)
    expected = history[0]
    for step, now in enumerate(history[1:], 2):
        d = min(0.8, step / (9 + step))
        expected = [d * a + (1 - d) * w for a, w in zip(expected, now, strict=True)]
    assert len(found) == 1 and found[0] is not models[0]
    for exported, average, last in zip(runs.weights(tmp_path / "training"), expected, history[-1], strict=True):
        np.testing.assert_allclose(exported, average, atol=1e-6)
        assert np.abs(exported - last).max() > 1e-4
