"""Metrics: fidelity, sharpness, distribution, consistency."""
