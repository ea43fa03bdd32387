"""Landsat-8/9 imagery as Sentinel-2 would have shown it."""

import os

__version__ = "0.1.0"

# TensorFlow's start-up notes would bury a command's own lines; whoever wants them sets this variable.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
