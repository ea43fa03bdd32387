"""The published rule, and that the draws depend on neither the number of replicas nor where a training was stopped."""

import subprocess
import sys

import numpy as np
import pytest
import runs
import tensorflow as tf

from trainer import image_pool
from trainer.image_pool import ImagePool

STEPS = 60


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(image_pool, "SIZE", 5)


def numbered(step, place):
    """An image that says which it is."""
    return tf.fill([1, 3, 3, 2], float(10 * step + place))


def exchange(pool, steps, places=2):
    """The numbers that come back, [step, place]."""
    call = tf.function(pool)
    ones = tf.ones([places, 3, 3, 1])
    return np.array([
        call(tf.concat([numbered(step, place) for place in range(places)], 0), ones)[0][:, 0, 0, 0] for step in steps
    ])  # fmt: skip


def test_it_fills_first_and_then_exchanges_about_every_other_image_for_a_random_older_one():
    pool = ImagePool(2, (3, 3, 2), seed=0)
    out = exchange(pool, range(400))
    for place in range(2):
        kept = [10 * step + place for step in range(5)]
        np.testing.assert_array_equal(out[:5, place], kept)
        exchanged = []
        for step in range(5, 400):
            new, returned = 10 * step + place, int(out[step, place])
            if returned != new:
                exchanged.append(kept.index(returned))  # it was there, in this place's own history
                kept[exchanged[-1]] = new
        np.testing.assert_array_equal(pool.state[2 * place][:, 0, 0, 0], kept)
        assert 160 < len(exchanged) < 235
        assert np.bincount(exchanged, minlength=5).min() > 20
    assert ((out[:, 0] % 10) == 0).all() and not np.array_equal(out[5:, 0] + 1, out[5:, 1])


def test_a_mask_stays_with_its_image_and_what_it_hides_is_forgotten():
    pool = ImagePool(1, (3, 3, 2), seed=3)
    for step in range(40):
        mask = tf.reshape(tf.one_hot([step % 9, (step + 1) % 9], 9, axis=0), [1, 3, 3, 2])[..., :1]
        image = tf.where(mask > 0, numbered(step, 0), float("nan"))
        out, its_mask = pool(image, mask)
        number = int(tf.reduce_max(out)) // 10
        wanted = tf.reshape(tf.one_hot([number % 9, (number + 1) % 9], 9, axis=0), [1, 3, 3, 2])[..., :1]
        np.testing.assert_array_equal(its_mask, wanted)
        np.testing.assert_array_equal(out, tf.where(wanted > 0, numbered(number, 0), 0.0))


def test_one_that_is_saved_and_restored_goes_on_as_if_it_had_not_been(tmp_path):
    whole = exchange(ImagePool(2, (3, 3, 2), seed=1), range(STEPS))
    first, second = (ImagePool(2, (3, 3, 2), seed=1) for _ in range(2))
    exchange(first, range(20))
    path = tf.train.Checkpoint(pool=first.state).write(str(tmp_path / "state"))
    tf.train.Checkpoint(pool=second.state).read(path).assert_consumed()
    np.testing.assert_array_equal(exchange(second, range(20, STEPS)), whole[20:])


TWO_REPLICAS = f"""
import sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from trainer import image_pool
image_pool.SIZE = 5
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    pools = [image_pool.ImagePool(1, (3, 3, 2), seed=1) for _ in range(2)]
@tf.function
def step(pool, number):
    def one():
        place = tf.distribute.get_replica_context().replica_id_in_sync_group
        image = tf.fill([1, 3, 3, 2], tf.cast(10 * number + place, tf.float32))
        return pool(image, tf.ones([1, 3, 3, 1]))[0]
    return strategy.gather(strategy.run(one), 0)[:, 0, 0, 0]
out = [step(pools[0], tf.constant(n)) for n in range(20)]
path = tf.train.Checkpoint(pool=pools[0].state).write(sys.argv[1] + "/state")
tf.train.Checkpoint(pool=pools[1].state).read(path).assert_consumed()
for one, two in zip(pools[0].state, pools[1].state):
    assert one.device == two.device and np.array_equal(one.numpy(), two.numpy())
out += [step(pools[1], tf.constant(n)) for n in range(20, {STEPS})]
np.save(sys.argv[1] + "/out.npy", out)
"""


def test_replicas_keep_the_histories_of_their_own_places_and_a_state_of_two_serves_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS, str(tmp_path)], cwd=runs.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = exchange(ImagePool(2, (3, 3, 2), seed=1), range(STEPS))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), whole)
    alone = ImagePool(2, (3, 3, 2), seed=1)
    tf.train.Checkpoint(pool=alone.state).read(str(tmp_path / "state")).assert_consumed()
    np.testing.assert_array_equal(exchange(alone, range(20, STEPS)), whole[20:])
