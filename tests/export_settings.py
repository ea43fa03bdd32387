"""Settings of an export as the flags' defaults would make them, but for one split and small blocks."""

import dataclasses

from beam_jobs.settings import Settings
from harmonize_tf import sensors

SETTINGS = Settings(
    source="simulated", scenes=(), bands=sensors.BAND_SETS["rgbn"], level=None, nir="B8", pan=None, split=(1, 0, 0),
    split_block=1920, seed=0, area=None, start=None, end=None, landsat=("8", "9"), cloud_cover=50, max_days=5,
    min_valid=0.5, max_shift=20, min_correlation=0.5, shard_examples=256, request_side=4,
)  # fmt: skip


def change(**settings) -> Settings:
    return dataclasses.replace(SETTINGS, **settings)
