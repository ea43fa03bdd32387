import threading

import pytest
from apache_beam.metrics import Metrics

from beam_jobs import tally
from beam_jobs.tally import Tally
from harmonize_tf.sources import ee_client
from harmonize_tf.sources.ee_client import Attempt

ATTEMPTS = [
    Attempt("ok", 1.5, 1000, 0.25),
    Attempt("refused", 0.5, 90, 2.0),
    Attempt("ok", 0.25, 3000, 0.0),
    Attempt("failed", 20.0, 0, 0.0),
]
NOTHING = {"requests": 0, "bytes": 0, "latency_s": {"sum": 0, "max": 0.0}, "throttled_s": 0, "outcomes": {}}


def told(attempt):
    """As the client tells what became of a request."""
    for observer in ee_client.observers:
        observer(attempt)


def of(attempts):
    counted = Tally()
    for attempt in attempts:
        counted.add(attempt)
    return counted.summary()


def test_requests_are_counted_by_outcome_and_the_latency_is_that_of_the_answered():
    assert of(ATTEMPTS) == {
        "requests": 4, "bytes": 4090, "latency_s": {"sum": 1.75, "max": 1.5}, "throttled_s": 2.25,
        "outcomes": {"failed": 1, "ok": 2, "refused": 1},
    }  # fmt: skip


def test_what_a_thread_asks_is_counted_where_it_is_asked_and_only_while_it_counts():
    tallies = [Tally() for _ in range(4)]
    together = threading.Barrier(4)

    def answered(number):
        together.wait()
        for _ in range(number):
            told(ATTEMPTS[0])
        together.wait()

    def ask(number):
        told(ATTEMPTS[3])
        tallies[number].counted(answered)(number)
        told(ATTEMPTS[3])

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.summary()["requests"] for each in tallies] == [0, 1, 2, 3]
    assert all("failed" not in each.summary()["outcomes"] for each in tallies)


def test_several_threads_count_into_one():
    counted = Tally()

    def ask():
        for _ in range(200):
            told(ATTEMPTS[0])

    threads = [threading.Thread(target=counted.counted(ask)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.summary()["requests"] == 1600 and counted.summary()["bytes"] == 1_600_000


def test_an_error_ends_the_counting():
    counted = Tally()
    with pytest.raises(ZeroDivisionError):
        counted.counted(lambda: 1 / 0)()
    told(ATTEMPTS[0])
    assert counted.summary() == NOTHING


def test_parts_add_up_to_the_whole_however_they_are_divided():
    whole = of(ATTEMPTS)
    for cut in range(5):
        assert tally.merged([of(ATTEMPTS[:cut]), of(ATTEMPTS[cut:])]) == whole
        assert tally.merged([tally.merged([of(ATTEMPTS[cut:])]), of(ATTEMPTS[:cut]), tally.merged([])]) == whole
    assert tally.merged([]) == NOTHING == of([])


def test_a_line_tells_what_a_person_wants_to_know():
    line = tally.told(of([*ATTEMPTS, Attempt("ok", 1.25, 5_000_000, 0)]))
    assert line == "5 requests (1 failed, 1 refused), 5 MB, 1.00 s each, waited 2 s for quota"
    assert tally.told(of([ATTEMPTS[3]])).startswith("1 requests (1 failed), 0 MB, 0.00 s each")


def test_beam_is_told_by_the_names_that_its_autoscaler_knows(monkeypatch):
    class Cell:
        def __init__(self, name):
            self.name = name

        def inc(self, count=1):
            seen[self.name] = seen.get(self.name, 0) + count

        def update(self, value):
            seen.setdefault(self.name, []).append(value)

    seen = {}
    for kind in ("counter", "distribution"):
        monkeypatch.setattr(Metrics, kind, lambda namespace, name: Cell(f"{namespace}/{name}"))
    counted = Tally()
    for attempt in ATTEMPTS:
        counted.add(attempt)
    counted.report()
    assert seen.pop("ee/latency_ms") == [1500, 500, 250, 20000]
    assert seen == {
        "ee/ok": 2, "ee/refused": 1, "ee/failed": 1, "ee/bytes": 4090, "ee/requests": 4,
        "ee/cumulativeThrottlingSeconds": 2,
    }  # fmt: skip
