"""`--model=subpixel`: depth-to-space from 30 or 20 m, from pairs; with `--adversarial` an adversary sharpens it."""

from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.models.harmonizer import Harmonizer
from trainer.config import Config
from trainer.objectives import adversarial, base

STREAMS = ("paired",)
DEFAULTS = {
    "adversarial": False, "adversarial_weight": 0.04, "batch": 8, "blocks": 16, "crop": 32, "learning_rate": 1e-3
}  # fmt: skip


def build(config: Config, info: DatasetInfo) -> Harmonizer:
    """A new Harmonizer whose constants are the data's."""
    return base.build(config, info, "subpixel")


training = adversarial.training
