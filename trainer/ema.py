"""The moving average of a Harmonizer's weights: what is validated, kept as the best and exported."""

import tensorflow as tf

from harmonize_tf.models.harmonizer import Harmonizer


class Average:
    """Keeps a float32 twin of a Harmonizer, whose weights are an exponential moving average of the trained ones.

    After step t (1, 2, ...) with trained weights w, the twin's are `a = d a + (1 - d) w` with
    `d = min(decay, t / (9 + t))`, and d = 0 at the first. So the average starts from the weights after the first step,
    and looks back over a ninth of the steps done until `decay` is reached (the warm-up of TensorFlow's
    ExponentialMovingAverage): otherwise 0.999 would leave half of the start in a training of 700 steps.

    Make it inside the strategy's scope.

    Args:
      trained: the Harmonizer that is trained, in any precision.
      decay: 0 (the twin is a copy) to below 1.

    Attributes:
      twin: a Harmonizer of the same arguments that computes in float32.
    """

    def __init__(self, trained: Harmonizer, decay: float) -> None:
        self.twin = trained.in_precision("float32")
        self._decay, self._pairs = decay, list(zip(self.twin.weights, trained.weights, strict=True))
        self._strategy = tf.distribute.get_strategy()
        self._update = tf.function(self._update)

    def update(self, step: int) -> None:
        """Takes in the trained weights after step number `step`, from 1."""
        decay = min(self._decay, step / (9 + step)) if step > 1 else 0.0
        self._update(tf.constant(decay, tf.float32))

    def _update(self, decay: tf.Tensor) -> None:
        def average(kept: tf.Variable, new: tf.Tensor) -> tf.Operation:
            return kept.assign(decay * kept + (1 - decay) * new)

        for kept, new in self._pairs:
            self._strategy.extended.update(kept.value, average, args=(new.value,), group=False)
