"""`--model=gan`: a network at full resolution takes the blur away, learning from Sentinel-2 alone, blurred.

What it sees in training is Sentinel-2 as Landsat would have shown it (`harmonize_tf.synthesis`), with a blur that is
drawn for each band and patch; `--noadversarial` is the same without its adversary.
"""

from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.models.harmonizer import Harmonizer
from trainer.config import Config
from trainer.objectives import adversarial, base

STREAMS = ("degraded",)
DEFAULTS = {
    "adversarial": True, "adversarial_weight": 0.04, "batch": 8, "blocks": 9, "crop": 32, "learning_rate": 2e-4
}  # fmt: skip


def build(config: Config, info: DatasetInfo) -> Harmonizer:
    """A new Harmonizer whose constants are the data's."""
    return base.build(config, info, "resnet")


training = adversarial.training
