"""What trained models make of a cloud, reflectance 0.3 to 1.2, planted into held-out scenes.

    python benchmarks/guards.py --data=RUN/examples --model=A/model.keras,B/model.keras

Asked for is a change over the cloud of at most 0.02, nothing clipped, and clear sky beyond the model's reach unchanged
to a digital number, 1e-4.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from harmonize_tf import command, dataset
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.errors import DatasetError
from harmonize_tf.metrics.planted_cloud import planted_cloud
from harmonize_tf.models.harmonizer import load

FLAGS = flags.FlagValues()
_DATA = flags.DEFINE_string("data", None, "Folder of `harmonize export`.", required=True, flag_values=FLAGS)
_MODEL = flags.DEFINE_list("model", [], "Trained models, separated by commas.", flag_values=FLAGS)

BRIGHTNESS = (0.3, 0.6, 0.9, 1.2)
SIDE = 30  # cells of cloud


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each model and brightness."""
    command.parse(FLAGS, argv)
    info = DatasetInfo.load(_DATA.value)
    patches = (inputs for inputs, _ in dataset.paired(info, "test", batch=1, pan=info.pan))
    patch = next((x for x in patches if all(np.all(v) for name, v in x.items() if "valid" in name)), None)
    if patch is None:
        raise DatasetError(f"a patch without gaps is needed. Received: none in {info.directory / 'test'}")
    # Mirrored at its right and lower edge, so that there is sky beyond the cloud's reach.
    scene = {
        name: np.pad(x, ((0, 0), (0, x.shape[1]), (0, x.shape[2]), (0, 0)), "symmetric") for name, x in patch.items()
    }
    for path in _MODEL.value:
        model = load(path)
        if model.halo is None:
            print(f"{path}: looks at the whole image, so that nothing is beyond a cloud's reach; not measured")
            continue

        def call(inputs: Mapping[str, np.ndarray], model: tf.keras.Model = model) -> np.ndarray:
            return model({name: tf.constant(x) for name, x in inputs.items()}).numpy()

        for brightness in BRIGHTNESS:
            found = planted_cloud(call, scene, brightness, side=SIDE, halo=model.halo, bandpass=model.bandpass.apply)
            print(
                f"{path}: cloud of {brightness}: change over it {found.over_cloud:.4f}, beyond its reach "
                f"{found.beyond:.6f}, highest value {found.highest:.3f}"
            )


if __name__ == "__main__":
    command.run(main)
