import threading
import time

from harmonize_tf.sources.ee_limiter import PATIENCE, Limiter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def rounds(limiter, quota, workers, count):
    """Waves of requests that come at once, of which the quota is granted; the refusals of each wave."""
    refused = []
    for _ in range(count):
        permits = [limiter.acquire() for _ in range(min(workers, limiter.limit))]
        late = permits[quota:]
        for permit in late:
            limiter.release(permit, refused=True)
        for permit in permits[:quota]:
            limiter.release(permit, refused=False)
        refused.append(len(late))
    return refused


def test_a_quota_is_found_and_then_kept_to():
    for quota in (1, 3, 5, 11):
        limiter = Limiter(40, Clock())
        refused = rounds(limiter, quota, 16, 60)
        assert sum(refused[:20]) > 0
        assert refused[20:] == [0] * 40
        assert limiter.limit == quota


def test_one_wave_of_refusals_cuts_once():
    limiter = Limiter(16, Clock())
    permits = [limiter.acquire() for _ in range(16)]
    for permit in permits:
        limiter.release(permit, refused=True)
    assert limiter.limit == 8


def test_after_a_quiet_time_one_more_is_tried():
    clock = Clock()
    limiter = Limiter(16, clock)
    rounds(limiter, 3, 16, 30)
    clock.now += 100 * PATIENCE
    assert sum(rounds(limiter, 16, 16, 10)) == 0
    assert limiter.limit == 4


def test_without_refusals_nothing_is_held_back():
    limiter = Limiter(7)
    permits = [limiter.acquire() for _ in range(7)]
    waiting = threading.Thread(target=limiter.acquire, daemon=True)
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    limiter.release(permits[0], refused=False)
    waiting.join(5)
    assert not waiting.is_alive()


def test_in_restricted_mode_one_request_is_left():
    limiter = Limiter(7)
    limiter.restrict()
    rounds(limiter, 7, 7, 20)
    assert limiter.limit == 1
