"""A history of generated images, so that a discriminator does not forget what a generator used to do.

Shrivastava et al. 2017 (arXiv:1612.07828), with the rule of CycleGAN's code.
"""

import tensorflow as tf

from harmonize_tf.models.layers import masked

SIZE = 50
"""Images kept in each place of a batch: as many as CycleGAN has (Zhu et al. 2017, arXiv:1703.10593), batches of one."""


class ImagePool:
    """Gives back now an image that it is given, now an older one, as published.

    Until it is full it keeps what it is given and gives it back. Then, one time in two, it gives back one that it has
    and keeps the new one in its place; or else the new one, which it does not keep.

    Each of the places in the global batch has a history of its own, on the replica that has the place, and its draws
    depend on the seed, the place and how many images came before: neither how many replicas there are nor where a
    training was stopped makes a difference. Make it inside the strategy's scope; call it in a replica.

    Args:
      places: in a batch, of each replica.
      shape: of an image, (H, W, B).
      seed: of the draws.
    """

    def __init__(self, places: int, shape: tuple[int, int, int], seed: int) -> None:
        height, width, bands = shape
        self._seed, self._strategy = seed, tf.distribute.get_strategy()
        self._images = [_of_each_replica(tf.zeros([SIZE, height, width, bands + 1])) for _ in range(places)]
        self._counts = [_of_each_replica(tf.zeros([], tf.int64)) for _ in range(places)]

    @property
    def state(self) -> list[tf.Variable]:
        """All that a call changes, in the order of the places in the global batch."""
        parts = self._strategy.experimental_local_results
        places = [zip(parts(i), parts(c), strict=True) for i, c in zip(self._images, self._counts, strict=True)]
        return [variable for replica in zip(*places, strict=True) for place in replica for variable in place]

    def __call__(self, images: tf.Tensor, masks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Exchanges images along with their masks.

        Args:
          images: float32 [places, H, W, B]; what is masked is forgotten, NaN too.
          masks: float32 [places, H, W, 1], 0 or 1.

        Returns:
          Images and masks of the same shapes.
        """
        new = tf.unstack(tf.concat([masked(images, masks), masks], -1), len(self._images))
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * len(new)
        out = tf.stack([self._exchanged(place, first + place, x) for place, x in enumerate(new)])
        return out[..., :-1], out[..., -1:]

    def _exchanged(self, place: int, draws: int, new: tf.Tensor) -> tf.Tensor:
        """One image with its mask, [H, W, B + 1]; `draws` is the place's number in the global batch."""
        # Resource operations, as a variable that each replica has its own of knows no other access to its rows.
        images, count = self._images[place].handle, self._counts[place]
        before = count.read_value()
        count.assign_add(tf.ones([], tf.int64))
        fold = tf.random.experimental.stateless_fold_in
        seeds = tf.random.experimental.stateless_split(fold(fold([self._seed, 0], before), draws), 2)
        which = tf.random.stateless_uniform([], seeds[0], 0, SIZE, tf.int64)
        filling = before < SIZE
        old = ~filling & (tf.random.stateless_uniform([], seeds[1]) < 0.5)
        row = tf.where(filling, before, which)
        stored = tf.raw_ops.ResourceGather(resource=images, indices=row, dtype=tf.float32)
        kept = tf.where(filling | old, new, stored)
        tf.raw_ops.ResourceScatterUpdate(resource=images, indices=row, updates=kept)
        return tf.where(old, stored, new)


def _of_each_replica(start: tf.Tensor) -> tf.Variable:
    return tf.Variable(
        start,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.NONE,
    )
