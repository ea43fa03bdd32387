"""The Keras trainer and the evaluation."""

import harmonize_tf  # noqa: F401  before TensorFlow, whose start-up notes it silences
