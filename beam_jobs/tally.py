"""What a shard's requests to Earth Engine came to: counted where they are made, told to Beam, kept in its manifest."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from apache_beam.metrics import Metrics

from harmonize_tf.sources import ee_client
from harmonize_tf.sources.ee_client import Attempt

# The name by which Dataflow's autoscaler knows that workers wait rather than work (adaptive_throttler.py in Beam).
Result = TypeVar("Result")
THROTTLED = "cumulativeThrottlingSeconds"
_here = threading.local()


class Tally:
    """Counts the requests of several threads."""

    def __init__(self) -> None:
        self._lock, self._attempts = threading.Lock(), list[Attempt]()

    def counted(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, counting what it asks in whichever thread it runs."""

        def count(*args: Any) -> Result:
            _here.tally = self
            try:
                return function(*args)
            finally:
                _here.tally = None

        return count

    def add(self, attempt: Attempt) -> None:
        """Counts one."""
        with self._lock:
            self._attempts.append(attempt)

    def summary(self) -> dict[str, Any]:
        """For a manifest; `merged` adds these up. Latencies are those of requests that were answered well."""
        outcomes = [attempt.outcome for attempt in self._attempts]
        latency = [attempt.seconds for attempt in self._attempts if attempt.outcome == "ok"]
        return {
            "requests": len(outcomes),
            "bytes": sum(attempt.bytes for attempt in self._attempts),
            "latency_s": {"sum": round(sum(latency), 3), "max": round(max(latency, default=0.0), 3)},
            "throttled_s": round(sum(attempt.pause for attempt in self._attempts), 3),
            "outcomes": {name: outcomes.count(name) for name in sorted(set(outcomes))},
        }

    def report(self) -> None:
        """Tells Beam. Only the thread in which Beam runs a DoFn can."""
        for attempt in self._attempts:
            Metrics.counter("ee", attempt.outcome).inc()
            Metrics.counter("ee", "bytes").inc(attempt.bytes)
            Metrics.distribution("ee", "latency_ms").update(round(attempt.seconds * 1000))
        Metrics.counter("ee", "requests").inc(len(self._attempts))
        Metrics.counter("ee", THROTTLED).inc(round(sum(attempt.pause for attempt in self._attempts)))


def merged(summaries: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds up what tallies came to."""
    outcomes = sorted({name for summary in summaries for name in summary["outcomes"]})
    return {
        "requests": sum(summary["requests"] for summary in summaries),
        "bytes": sum(summary["bytes"] for summary in summaries),
        "latency_s": {
            "sum": round(sum(summary["latency_s"]["sum"] for summary in summaries), 3),
            "max": max((summary["latency_s"]["max"] for summary in summaries), default=0.0),
        },
        "throttled_s": round(sum(summary["throttled_s"] for summary in summaries), 3),
        "outcomes": {name: sum(summary["outcomes"].get(name, 0) for summary in summaries) for name in outcomes},
    }


def told(merged: Mapping[str, Any]) -> str:
    """What tallies came to, in a few words."""
    answered = merged["outcomes"].get("ok", 0)
    mean = merged["latency_s"]["sum"] / max(answered, 1)
    others = ", ".join(f"{count} {name}" for name, count in merged["outcomes"].items() if name != "ok")
    return (
        f"{merged['requests']} requests{f' ({others})' if others else ''}, {merged['bytes'] / 1e6:,.0f} MB, "
        f"{mean:.2f} s each, waited {merged['throttled_s']:.0f} s for quota"
    )


def _observe(attempt: Attempt) -> None:
    tally = getattr(_here, "tally", None)
    if tally is not None:
        tally.add(attempt)


ee_client.observers.append(_observe)
