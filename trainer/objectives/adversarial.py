"""Learning from pairs, first pixel by pixel and then against a discriminator as well, which asks for sharpness.

As in SRGAN and ESRGAN practice the generator is trained alone until it cannot be told from a blurred image by its
errors any more, and the adversary's part in the loss then rises along a cosine.
"""

import math

import keras
import tensorflow as tf

from harmonize_tf import precision
from harmonize_tf.augmentation import Tensors, by_daylight
from harmonize_tf.models.harmonizer import Harmonizer
from harmonize_tf.models.layers import padded
from trainer.adam import Adam
from trainer.config import Config
from trainer.discriminators import Adversary, PatchGAN
from trainer.objectives import pixelwise
from trainer.objectives.base import across_replicas, adam, guarded, squared_error
from trainer.objectives.pixelwise import Pixelwise, masked_part

PRETRAINING = 0.5
"""Share of the steps before the adversary comes in. ESRGAN (Wang et al. 2018, arXiv:1809.00219) trains 1,000,000 steps
before 400,000 with it; OpenSR-SRGAN 20,000."""

RAMP = 0.1
"""Share of the steps over which its part in the loss then rises; a quarter of the pretraining in OpenSR-SRGAN."""

BETA_1 = 0.5
"""Of the discriminator's Adam: Radford et al. 2016 (arXiv:1511.06434), as in pix2pix and CycleGAN."""

DISCRIMINATOR_RATE = 2e-4
"""Its learning rate: pix2pix's and CycleGAN's."""

PATTERN = 10.0
"""What a pattern of depth-to-space counts: the square of the mean error of each place in a cell (nine from 30 m, four
from 20 m), in standard deviations of a band. An adversary that asks for detail is content with a checkerboard for a
while: without this its energy was 1 % of the detail's (T33UUU, `SharpnessMeter.checkerboard`)."""

PIXELWISE = "pixelwise"


class Contest(Pixelwise):
    """A training of two sides, each with an optimizer: what generates, and what judges."""

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """Those of both sides."""
        return super().optimizers | {"discriminator": self.discriminator_optimizer}

    def compile(
        self, optimizer: keras.optimizers.Optimizer, discriminator_optimizer: keras.optimizers.Optimizer
    ) -> None:
        """Takes both optimizers, built."""
        super().compile(optimizer=optimizer)
        self.discriminator_optimizer = discriminator_optimizer

    def standardized(self, image: tf.Tensor) -> tf.Tensor:
        """Reflectance [N, H, W, B] as discriminators are shown it."""
        return (image - tf.constant(self.harmonizer.mean)) / tf.constant(self.harmonizer.std)


class Adversarial(Contest):
    """The training of a Harmonizer with a discriminator that knows Sentinel-2's images.

    Real and generated images are judged where `targets["mask"]` is 1, both under the same mask. The last weights are
    exported, not those of the least error: an adversary costs error, and buys sharpness.

    Args:
      harmonizer: what is trained.
      discriminator: built.
      config: of the run; where it wants no adversary all of it is the pretraining.

    Attributes:
      discriminator: the same.
    """

    def __init__(self, harmonizer: Harmonizer, discriminator: PatchGAN, config: Config) -> None:
        super().__init__(harmonizer)
        self.discriminator = discriminator
        self._adversary = Adversary(config.gan_loss)
        self._weight = config.adversarial_weight
        self.keeps_best = not config.adversarial
        self._pretraining = math.ceil(PRETRAINING * config.steps) if config.adversarial else config.steps
        self._ramp = math.ceil(RAMP * config.steps)

    @property
    def state(self) -> dict[str, list[keras.Variable]]:
        """All that a step changes; a discriminator's spectral norms are among its weights."""
        return super().state | {"discriminator": self.discriminator.weights}

    def phase_of(self, step: int) -> str:
        """Alone, or with the adversary."""
        return PIXELWISE if step <= self._pretraining else ""

    def train_step(self, batch: tuple[Tensors, Tensors]) -> dict[str, tf.Tensor]:
        """One step of both networks; "loss" is what the Harmonizer's step makes smaller."""
        if self.phase == PIXELWISE:
            return super().train_step(batch)
        inputs, targets = batch
        mask, variables = targets["mask"], self.harmonizer.trainable_variables
        real = self._by_daylight(targets["sentinel_ms"], targets)
        with tf.GradientTape() as tape:
            output = self.harmonizer(inputs, training=True)
            fake = self._by_daylight(output, targets)
            pixel = masked_part(self.penalty(output, targets), mask)
            adversarial = self._adversary.generator(self.discriminator, real, fake, mask)
            loss = pixel + self._ramped() * adversarial + PATTERN * self._pattern(output - targets["sentinel_ms"], mask)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        squared = masked_part(squared_error(output, targets), mask)
        loss, pixel, adversarial, squared = across_replicas(loss, pixel, adversarial, squared)
        norm = self.apply(self.optimizer, loss, gradients, variables)
        fake = tf.stop_gradient(fake)
        judged, its_norm = self.minimize(
            self.discriminator_optimizer,
            self.discriminator.trainable_variables,
            lambda: self._adversary.discriminator(self.discriminator, real, fake, mask),
        )
        return {
            "loss": loss,
            "rmse": tf.sqrt(squared),
            "pixel_loss": pixel,
            "adversarial_loss": adversarial,
            "discriminator_loss": judged,
            "gradient_norm": norm,
            "gradient_norm_discriminator": its_norm,
        }

    def _by_daylight(self, image: tf.Tensor, targets: Tensors) -> tf.Tensor:
        """What the discriminator is shown: by daylight, since it is to know ground and not lamps."""
        return self.standardized(by_daylight(image, targets))

    def _pattern(self, error: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """This replica's part of the mean square of the places' mean errors, over the global batch."""

        def by_phase(x: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.nn.space_to_depth(padded(x, scale), scale), (0, 1, 2))

        scale = self.harmonizer.scale

        error = error * mask / tf.constant(self.harmonizer.std)
        total, count = across_replicas(by_phase(error), by_phase(tf.broadcast_to(mask, tf.shape(error))))
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        return tf.reduce_mean(tf.square(tf.math.divide_no_nan(total, count))) / replicas

    def _ramped(self) -> tf.Tensor:
        """What the adversary's loss counts in this step."""
        done = tf.cast(self.optimizer.iterations, tf.float32) - self._pretraining
        return self._weight * 0.5 * (1.0 - tf.cos(math.pi * tf.clip_by_value(done / self._ramp, 0.0, 1.0)))


def training(config: Config, harmonizer: Harmonizer) -> Pixelwise:
    """The training of a Harmonizer, with an adversary or without; call it inside the strategy's scope."""
    if not config.adversarial:
        return pixelwise.training(config, harmonizer)
    model = Adversarial(harmonizer, discriminator(config, harmonizer), config)
    compile_both(model, config)
    return model


def discriminator(config: Config, harmonizer: Harmonizer, norm: str = "spectral") -> PatchGAN:
    """A new one for the Harmonizer's bands, as wide as its network."""
    policy = precision.policy(config.precision)
    made = PatchGAN(len(harmonizer.bands), filters=config.filters, norm=norm, dtype=policy)
    made.build()
    return made


def compile_both(model: Adversarial, config: Config) -> None:
    """Gives it Adam for both networks."""
    alternating = Adam(DISCRIMINATOR_RATE, beta_1=BETA_1)
    model.compile(
        guarded(adam(config), model.harmonizer.trainable_variables, config),
        guarded(alternating, model.discriminator.trainable_variables, config),
    )
