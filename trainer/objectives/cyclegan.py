"""`--model=cyclegan`: from Landsat's images and Sentinel-2's of other places and days, without a single pair.

Zhu et al. 2017 (CycleGAN, arXiv:1703.10593) with the settings of the authors' code: least squares, cycles of weight 10,
identities of half as much, Adam at 2e-4 that falls to zero over the second half of the steps, batches of one, a history
of 50 images, two ResNets of nine blocks and two PatchGANs of 70 x 70 pixels. Gradients are clipped, as in all methods.

    A    Landsat brought to 10 m, the base of a Harmonizer
    B    Sentinel-2
    G    A -> B, the Harmonizer, consistency included; of any other image at 10 m `image + refine(image)`
    F    B -> A, a network like the Harmonizer's, which adds to an image as that does

`--norm=instance --consistency=none` is the published thing, down to the number of weights.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from harmonize_tf import precision
from harmonize_tf.dataset import DatasetInfo, Tensors
from harmonize_tf.degradation import FACTOR
from harmonize_tf.errors import FlagError
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.models.landsat import Bicubic, prepare
from harmonize_tf.models.layers import masked, repeat_pixels
from harmonize_tf.models.resnet import ResNet
from trainer.adam import Adam
from trainer.config import Config
from trainer.discriminators import Adversary, PatchGAN
from trainer.image_pool import ImagePool
from trainer.objectives import base
from trainer.objectives.adversarial import BETA_1, Contest, discriminator
from trainer.objectives.base import across_replicas, guarded
from trainer.objectives.pixelwise import masked_part

STREAMS = ("unpaired",)
DEFAULTS = {
    "adversarial": True, "adversarial_weight": 1.0, "batch": 1, "blocks": 9, "crop": 64, "learning_rate": 2e-4
}  # fmt: skip

CYCLE = 10.0
"""What both cycles count, as published for images that go from -1 to 1."""

REFLECTANCE = 2.0
"""A reflectance of 1 in the units of such images, which hold what lies between 0 and 1. Counted in the bands' standard
deviations instead, some 15 times as much, the two losses left nothing to the adversary: an output that was the base."""

IDENTITY = 0.5 * CYCLE
"""What both identities count."""

DETAIL = 1 / 6
"""Standard deviation of what Sentinel-2 shows beyond 30 m, of a band's whole: T33UUU, T32TMT."""

JUDGE_RATE = 4.0
"""The learning rate of discriminators with spectral normalization, of the generators': Zhang et al. 2019 (SAGAN,
arXiv:1805.08318), 4e-4 and 1e-4. With instance normalization both have one, as published."""

CONSTANT = 0.5
"""Share of the steps before the learning rate falls: 100 of 200 epochs."""


class ConstantThenLinear(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that stays, and then falls to zero along a line.

    Args:
      rate: the first.
      steps: in all.
    """

    def __init__(self, rate: float, steps: int) -> None:
        self.rate, self.steps = rate, steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The rate of a step, from 0."""
        left = 1.0 - tf.cast(step, tf.float32) / self.steps
        return self.rate * tf.clip_by_value(left / (1.0 - CONSTANT), 0.0, 1.0)

    def get_config(self) -> dict[str, object]:
        """Returns the arguments."""
        return {"rate": self.rate, "steps": self.steps}


class CycleGAN(Contest):
    """The training of a Harmonizer along with the way back and a discriminator at both ends.

    Every loss is a mean over what it may ask about: of images made of Landsat's where Landsat's ground is clear, of
    images made of Sentinel-2's where Sentinel-2's is. Discriminators see real and generated images under both masks at
    once, so that no mask tells one from the other.

    The weights of the last step are exported; validation, on pairs, tells but does not choose.

    Args:
      harmonizer: what is trained, of the generator "resnet".
      backward: the network of the way back, built.
      judges: of Landsat's images at 10 m and of Sentinel-2's, built.
      pools: of images generated like those.
      config: of the run.
    """

    keeps_best = False

    def __init__(
        self,
        harmonizer: Harmonizer,
        backward: ResNet,
        judges: tuple[PatchGAN, PatchGAN],
        pools: tuple[ImagePool, ImagePool],
        config: Config,
    ) -> None:
        super().__init__(harmonizer)
        self.backward, self._pools = backward, pools
        self._to_10m = Bicubic(len(harmonizer.bands))
        self.judge_a, self.judge_b = judges
        self._adversary, self._weight = Adversary(config.gan_loss), config.adversarial_weight

    @property
    def state(self) -> dict[str, list[keras.Variable | tf.Variable]]:
        """All that a step changes."""
        networks = {"backward": self.backward, "discriminator_a": self.judge_a, "discriminator_b": self.judge_b}
        return (
            super().state
            | {name: network.weights for name, network in networks.items()}
            | {f"pool_{name}": pool.state for name, pool in zip("ab", self._pools, strict=True)}
        )

    @property
    def generator_variables(self) -> list[keras.Variable]:
        """Of both generators."""
        return self.harmonizer.trainable_variables + self.backward.trainable_variables

    @property
    def discriminator_variables(self) -> list[keras.Variable]:
        """Of both discriminators."""
        return self.judge_a.trainable_variables + self.judge_b.trainable_variables

    def shown(self, image: tf.Tensor, clear: tf.Tensor) -> tf.Tensor:
        """Reflectance [N, H, W, B] as discriminators are shown it; `clear` is made of whole cells of 30 m.

        What an image shows at 30 m is Landsat's by consistency, and nothing to be judged; bright and dark places would
        hide from a discriminator what lies beyond. Without consistency, as published, it is shown all.
        """
        if self.harmonizer.consistency == "none":
            return self.standardized(image)
        cells = clear[:, ::FACTOR, ::FACTOR]
        beyond = image - self._to_10m(self.harmonizer.degrade(image, cells), cells)
        return masked(beyond / (DETAIL * tf.constant(self.harmonizer.std)), repeat_pixels(cells, FACTOR))

    def train_step(self, batch: tuple[Tensors, Tensors]) -> dict[str, tf.Tensor]:
        """One step of all four networks; "loss" is what the generators' step makes smaller. There is no RMSE."""
        inputs, targets = batch
        landsat = prepare(inputs, self.harmonizer.bands, self.harmonizer.uses_pan)
        a, valid_a = self.harmonizer.base(landsat), repeat_pixels(landsat.valid, FACTOR)
        clear_a = valid_a * repeat_pixels(inputs["landsat_clear"], FACTOR)
        clear_b = self._judged_ground(targets["mask"])
        b = masked(targets["sentinel_ms"], clear_b)
        real_a, real_b = self.shown(a, clear_a), self.shown(b, clear_b)
        with tf.GradientTape() as tape:
            # Two passes of each generator: what does not wait for the other's answer goes in one.
            detail_a, detail_b = _both(self.harmonizer.refine, (a, valid_a), (b, clear_b))
            like_b, same_b = self.harmonizer.consistent(a + detail_a, landsat), b + detail_b
            blur_b, blur_a = _both(self._blurred, (b, clear_b), (a, valid_a))
            like_a, same_a = b + blur_b, a + blur_a
            again_a = like_b + self._blurred(like_b, valid_a)
            again_b = like_a + self.harmonizer.refine(like_a, clear_b)
            cycle = self._distance(again_a, a, clear_a) + self._distance(again_b, b, clear_b)
            identity = self._distance(same_a, a, clear_a) + self._distance(same_b, b, clear_b)
            fake_a, fake_b = self.shown(like_a, clear_b), self.shown(like_b, clear_a)
            shared = clear_a * clear_b
            adversarial = self._adversary.generator(self.judge_a, real_a, fake_a, shared)
            adversarial += self._adversary.generator(self.judge_b, real_b, fake_b, shared)
            loss = CYCLE * cycle + IDENTITY * identity + self._weight * adversarial
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.generator_variables)
        loss, cycle, identity, adversarial = across_replicas(loss, cycle, identity, adversarial)
        norm = self.apply(self.optimizer, loss, gradients, self.generator_variables)
        pool_a, pool_b = self._pools
        old_a, mask_a = pool_a(tf.stop_gradient(fake_a), clear_b)
        old_b, mask_b = pool_b(tf.stop_gradient(fake_b), clear_a)
        judged, its_norm = self.minimize(
            self.discriminator_optimizer,
            self.discriminator_variables,
            lambda: self._adversary.discriminator(self.judge_a, real_a, old_a, clear_a * mask_a)
            + self._adversary.discriminator(self.judge_b, real_b, old_b, clear_b * mask_b),
        )
        return {
            "loss": loss,
            "cycle_loss": cycle,
            "identity_loss": identity,
            "adversarial_loss": adversarial,
            "discriminator_loss": judged,
            "gradient_norm": norm,
            "gradient_norm_discriminator": its_norm,
        }

    def _judged_ground(self, mask: tf.Tensor) -> tf.Tensor:
        """Of Sentinel-2's clear pixels those in cells of 30 m that are all clear, as `shown` needs them."""
        if self.harmonizer.consistency == "none":
            return mask
        return repeat_pixels(-tf.nn.max_pool2d(-mask, FACTOR, FACTOR, "VALID"), FACTOR)

    def _blurred(self, image: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """What the way back adds to an image, reflectance."""
        return self.backward(masked(self.standardized(image), valid), valid) * tf.constant(self.harmonizer.std)

    def _distance(self, image: tf.Tensor, wanted: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """This replica's part of the mean absolute difference, in units of images from -1 to 1."""
        return masked_part(REFLECTANCE * tf.reduce_mean(tf.abs(image - wanted), -1, keepdims=True), mask)


Masked = tuple[tf.Tensor, tf.Tensor]


def _both(network: Callable[..., tf.Tensor], first: Masked, second: Masked) -> list[tf.Tensor]:
    """A network's answers on two batches of images and masks, in one pass."""
    return tf.split(network(*(tf.concat(x, 0) for x in zip(first, second, strict=True))), 2)


def build(config: Config, info: DatasetInfo) -> Harmonizer:
    """A new Harmonizer whose constants are the data's.

    Raises:
      FlagError: it is to learn without an adversary.
    """
    if not config.adversarial:
        raise FlagError(
            "cyclegan learns from its adversaries alone what Sentinel-2's images look like; leave --noadversarial out, "
            "or take another --model, such as gan. Received: adversarial=False"
        )
    return base.build(config, info, "resnet")


def training(config: Config, harmonizer: Harmonizer) -> CycleGAN:
    """The training of a Harmonizer as the flags say; call it inside the strategy's scope."""
    bands, policy = len(harmonizer.bands), precision.policy(config.precision)
    backward = ResNet(bands, config.blocks, config.filters, config.norm, dtype=policy)
    backward.build()
    norm = "instance" if config.norm == "instance" else "spectral"
    judges = tuple(discriminator(config, harmonizer, norm) for _ in range(2))
    places = config.batch // tf.distribute.get_strategy().num_replicas_in_sync
    side = FACTOR * config.crop
    pools = tuple(ImagePool(places, (side, side, bands), 2 * config.seed + number) for number in range(2))
    model = CycleGAN(harmonizer, backward, judges, pools, config)
    rates = (1.0, 1.0 if norm == "instance" else JUDGE_RATE)
    adams = [Adam(ConstantThenLinear(rate * config.learning_rate, config.steps), beta_1=BETA_1) for rate in rates]
    variables = model.generator_variables, model.discriminator_variables
    model.compile(*(guarded(adam, listed, config) for adam, listed in zip(adams, variables, strict=True)))
    return model
