"""Who judges whether an image looks like Sentinel-2's, patch by patch, and what its verdict costs.

A verdict is a map of logits, [N, h', w', 1]: positive for "real". Every loss takes those of real and of generated
images with their weights, `PatchGAN.weight`, and is a mean over what has weight: cloud and no-data have none.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from harmonize_tf.errors import ModelError
from harmonize_tf.models.layers import bent, masked, standardized
from harmonize_tf.models.resnet import INITIAL_STDDEV, SLOPE

NORMS = ("none", "spectral", "instance")

SIZE = 4
"""Side of all convolutions."""


class PatchGAN(keras.layers.Layer):
    """Convolutions of 4x4, `n_layers` of stride 2 and two of stride 1, whose every output judges a patch.

    Isola et al. 2017 (pix2pix, arXiv:1611.07004) as in CycleGAN (C64-C128-C256-C512): 70 x 70 pixels with 3 layers, no
    normalization in the first and the last, zero padding of one pixel.

    Args:
      channels: of the images; an image that is judged along with its input has those of both.
      n_layers: convolutions of stride 2.
      filters: channels of the first; they double from layer to layer, up to eight times as many.
      norm: "spectral" (Miyato et al. 2018, arXiv:1802.05957), "none", or "instance" as published, with which a verdict
        depends on the whole image.

    Attributes:
      receptive_field: side of the patch that a logit judges, pixels.
      smallest: side of the smallest image that gets a logit, pixels.

    Raises:
      ModelError: there is no such normalization.
    """

    def __init__(
        self, channels: int, n_layers: int = 3, filters: int = 64, norm: str = "spectral", **kwargs: object
    ) -> None:
        if norm not in NORMS:
            raise ModelError(f"A discriminator's norm is one of {NORMS}. Received: norm={norm!r}. Choose one of them.")
        super().__init__(autocast=False, **kwargs)
        self.channels, self.n_layers, self.filters, self.norm = channels, n_layers, filters, norm
        self.strides = _strides(n_layers)
        self.receptive_field, self.smallest = _sides(self.strides)
        widths = [filters * min(2**n, 8) for n in range(n_layers + 1)]
        # The first reads and the last writes float32 under every policy; what lies between may be faster.
        policies = ["float32", *[self.dtype_policy] * n_layers, "float32"]
        self.convolutions = [self._convolution(*x) for x in zip([*widths, 1], self.strides, policies, strict=True)]
        self._inputs = [channels, *widths]

    def build(self, input_shape: object = None) -> None:
        """Creates the weights; the shapes follow from the arguments."""
        for convolution, width in zip(self.convolutions, self._inputs, strict=True):
            convolution.build((None, None, None, width))
        self.built = True

    def call(self, image: tf.Tensor, valid: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Judges images.

        Args:
          image: float32 [N, H, W, channels], normalised so that 0 is nothing special; what invalid pixels hold, NaN
            too, is not used: they count as zero.
          valid: float32 [N, H, W, 1], 0 or 1.
          training: whether spectral norms are brought up to date.

        Returns:
          float32 logits [N, h', w', 1], those of a patch whose corner lies at every 2**n_layers-th pixel.

        Raises:
          ModelError: the image is too small for a single verdict.
        """
        if any(size is not None and size < self.smallest for size in image.shape[1:3]):
            raise ModelError(
                f"A discriminator with n_layers={self.n_layers} judges images of at least {self.smallest} pixels a "
                f"side. Received: shape={tuple(image.shape)}. Train on larger crops."
            )
        del training  # spectral normalization gets it from Keras
        x = masked(image, valid)
        for number, convolution in enumerate(self.convolutions):
            x = convolution(_framed(x))
            valid = _share(valid, self.strides[number])
            if self.norm == "instance" and 0 < number <= self.n_layers:
                x = standardized(x, tf.cast(valid > 0, tf.float32))
            if number <= self.n_layers:
                x = tf.cast(bent(x, slope=SLOPE), self.compute_dtype if number < self.n_layers else tf.float32)
        return x

    def weight(self, clear: tf.Tensor) -> tf.Tensor:
        """What each logit counts for: the share of what it sees that is clear, [N, h', w', 1], 0 to 1.

        Pixels of the patch count by the number of paths that lead from them to the logit, which is how much they move
        it in a network whose weights are random (the effective receptive field, Luo et al. 2016, arXiv:1701.04128):
        the middle of the patch more than its rim. The centre alone would give a verdict on 69 cloudy pixels full
        weight, and none to one with a single cloud in 4900 pixels. What lies outside the image is not clear.

        Args:
          clear: float32 [N, H, W, 1], 0 or 1: no cloud, and data on the side that is judged and on that it is made of.
        """
        for stride in self.strides:
            clear = _share(clear, stride)
        return clear

    def _convolution(self, filters: int, stride: int, policy: object) -> keras.layers.Layer:
        start = keras.initializers.RandomNormal(stddev=INITIAL_STDDEV)
        layer = keras.layers.Conv2D(filters, SIZE, stride, kernel_initializer=start, dtype=policy)
        # In float32, or Keras would round the kernels themselves to bfloat16 each time it normalises them.
        return keras.layers.SpectralNormalization(layer, dtype="float32") if self.norm == "spectral" else layer

    def get_config(self) -> dict[str, object]:
        """Returns the arguments."""
        names = ("channels", "n_layers", "filters", "norm")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def smallest(n_layers: int = 3) -> int:
    """Side of the smallest image that gets a verdict, pixels."""
    return _sides(_strides(n_layers))[1]


def _strides(n_layers: int) -> tuple[int, ...]:
    return (2,) * n_layers + (1, 1)


def _sides(strides: Sequence[int]) -> tuple[int, int]:
    """Of what a logit looks at, and of the smallest image that gives one: a pixel's frame on each side is for free."""
    field = least = 1
    for stride in reversed(strides):
        field, least = field * stride + SIZE - stride, least * stride + SIZE - stride - 2
    return field, least


def _framed(x: tf.Tensor) -> tf.Tensor:
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


def _share(clear: tf.Tensor, stride: int) -> tf.Tensor:
    return tf.nn.avg_pool2d(_framed(clear), SIZE, stride, "VALID")


def weighted_part(x: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """This replica's part of the mean of `x` where each value counts `weight`, a scalar; 0 where nothing counts.

    The parts of all replicas add up to the mean over the global batch, so that how many there are changes nothing.
    """
    return tf.math.divide_no_nan(tf.reduce_sum(x * weight), _over_replicas(tf.reduce_sum(weight)))


def _weighted_mean(x: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    return _over_replicas(weighted_part(x, weight))


def _over_replicas(x: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


# The losses below take float32 logits [N, h', w', 1] of real and of generated images, then what each counts for, of the
# same shape, and return this replica's part of a scalar. Generators' losses that do not depend on real images take
# them all the same, so that a method can take any of them by name.
Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def lsgan_discriminator(real: tf.Tensor, fake: tf.Tensor, real_weight: tf.Tensor, fake_weight: tf.Tensor) -> tf.Tensor:
    """Half of E[(real - 1)^2] + E[fake^2]: least squares, Mao et al. 2017 (arXiv:1611.04076), equation 9."""
    return 0.5 * (weighted_part(tf.square(real - 1.0), real_weight) + weighted_part(tf.square(fake), fake_weight))


def lsgan_generator(real: tf.Tensor, fake: tf.Tensor, real_weight: tf.Tensor, fake_weight: tf.Tensor) -> tf.Tensor:
    """E[(fake - 1)^2], without Mao's half, as CycleGAN has it (arXiv:1703.10593, section 4)."""
    del real, real_weight
    return weighted_part(tf.square(fake - 1.0), fake_weight)


def relativistic_discriminator(
    real: tf.Tensor, fake: tf.Tensor, real_weight: tf.Tensor, fake_weight: tf.Tensor
) -> tf.Tensor:
    """-E[log s(real - E fake)] - E[log(1 - s(fake - E real))], s the logistic function: which is the more real one.

    The relativistic average of Jolicoeur-Martineau 2018 (arXiv:1807.00734) as in ESRGAN (Wang et al. 2018,
    arXiv:1809.00219, equation 1). E runs over the global batch.
    """
    above, below = real - _weighted_mean(fake, fake_weight), fake - _weighted_mean(real, real_weight)
    # -log s(x) is softplus(-x), and -log(1 - s(x)) softplus(x), without overflow.
    return weighted_part(tf.nn.softplus(-above), real_weight) + weighted_part(tf.nn.softplus(below), fake_weight)


def relativistic_generator(
    real: tf.Tensor, fake: tf.Tensor, real_weight: tf.Tensor, fake_weight: tf.Tensor
) -> tf.Tensor:
    """-E[log(1 - s(real - E fake))] - E[log s(fake - E real)]: ESRGAN's equation 2, with the parts changed over."""
    return relativistic_discriminator(fake, real, fake_weight, real_weight)


def hinge_discriminator(real: tf.Tensor, fake: tf.Tensor, real_weight: tf.Tensor, fake_weight: tf.Tensor) -> tf.Tensor:
    """E[max(0, 1 - real)] + E[max(0, 1 + fake)]: Lim and Ye 2017 (arXiv:1705.02894), Miyato et al. 2018."""
    return weighted_part(tf.nn.relu(1.0 - real), real_weight) + weighted_part(tf.nn.relu(1.0 + fake), fake_weight)


def hinge_generator(real: tf.Tensor, fake: tf.Tensor, real_weight: tf.Tensor, fake_weight: tf.Tensor) -> tf.Tensor:
    """-E[fake]: the same sources."""
    del real, real_weight
    return -weighted_part(fake, fake_weight)


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "lsgan": (lsgan_discriminator, lsgan_generator),
    "relativistic": (relativistic_discriminator, relativistic_generator),
    "hinge": (hinge_discriminator, hinge_generator),
}
"""By name: the discriminator's loss and the generator's."""


class Adversary:
    """A loss at both ends of a discriminator; real and generated images are judged under one mask.

    Args:
      name: of the loss, one of `LOSSES`.
    """

    def __init__(self, name: str) -> None:
        self._judged, self._generated = LOSSES[name]
        self._relative = name == "relativistic"  # the others' generators do not ask about real images

    def generator(self, judge: PatchGAN, real: tf.Tensor, fake: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """This replica's part of the generator's loss; the discriminator only looks on.

        Args:
          judge: the discriminator.
          real: images [N, H, W, channels], normalised.
          fake: the generated ones, of the same shape.
          mask: [N, H, W, 1], 0 or 1: where either may be judged.
        """
        verdicts = _verdicts(judge, real, fake, mask, training=False) if self._relative else (None, judge(fake, mask))
        weight = judge.weight(mask)
        return self._generated(*verdicts, weight, weight)

    def discriminator(self, judge: PatchGAN, real: tf.Tensor, fake: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """This replica's part of the discriminator's loss, in a step of its own; the arguments are `generator`'s."""
        weight = judge.weight(mask)
        return self._judged(*_verdicts(judge, real, fake, mask, training=True), weight, weight)


def _verdicts(judge: PatchGAN, real: tf.Tensor, fake: tf.Tensor, mask: tf.Tensor, *, training: bool) -> list[tf.Tensor]:
    """The logits of both, judged in one batch, since each pass in training renews the spectral norms."""
    return tf.split(judge(tf.concat([real, fake], 0), tf.concat([mask, mask], 0), training=training), 2)
