"""Metrics: fidelity, consistency, sharpness, hallucination."""
