"""The Keras trainer and the evaluation."""
