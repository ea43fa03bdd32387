"""Landsat-8/9 imagery as Sentinel-2 would have shown it."""

__version__ = "0.1.0"
