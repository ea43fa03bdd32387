import keras
import numpy as np

from trainer.adam import Adam


def test_it_is_kerass_adam():
    def trained(kind):
        rng = np.random.default_rng(0)
        shapes = (3, 3, 4, 8), (8,)
        variables = [keras.Variable(rng.normal(size=shape), dtype="float32") for shape in shapes]
        rate = keras.optimizers.schedules.CosineDecay(0.0, 15, warmup_target=1e-2, warmup_steps=5)
        optimizer = kind(rate, beta_1=0.5)
        for _ in range(20):
            optimizer.apply([rng.normal(size=shape).astype(np.float32) for shape in shapes], variables)
        return variables + optimizer.variables

    for ours, expected in zip(trained(Adam), trained(keras.optimizers.Adam), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-6)  # of 20 steps of 1e-2
