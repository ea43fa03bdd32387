"""Optimizers that leave a step out, whole, when a gradient in it is not finite."""

import keras

INITIAL_SCALE = 2.0**15  # of a float16 loss: Micikevicius et al. 2018, arXiv:1710.03740
GROWTH_STEPS = 2000  # finite ones, after which the scale doubles


def guarded(optimizer: keras.optimizers.Optimizer, precision: str) -> keras.optimizers.LossScaleOptimizer:
    """An optimizer that leaves a step out, whole, when a gradient in it is not finite; see `Objective.apply`.

    float16 has no numbers below 6e-8, so its loss is scaled: the scale halves with each step that is left out and
    doubles after `GROWTH_STEPS` that were not. The other types have float32's range; their scale begins at one.
    """
    if precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, INITIAL_SCALE, GROWTH_STEPS)
    return keras.optimizers.LossScaleOptimizer(optimizer, 1.0, dynamic_growth_steps=2**31 - 1)
