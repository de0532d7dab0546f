"""Counters of this replica: plain numbers, increased per event, batch or connection, never per delivery.

`telemetry` reads them, and defines their public names and formats.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from kernel.messages.messages import MESSAGE_TYPES
from kernel.observer import (
    Acknowledged,
    Delivered,
    Failed,
    Lost,
    Observer,
    Published,
    Refilled,
    Replayed,
    Retried,
    Written,
)

__all__ = ["OTHER", "Counters", "Exemplar", "Histogram"]

# The key for unknown close codes and message types, so that outside input cannot make the tables grow.
OTHER: Final = "other"

# The codes of RFC 6455 section 7.4.1 and the later registrations 1012 and 1013, and 4008 of this service.
_CODES: Final = (1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 4008)
_SOURCES: Final = ("memory", "redis")
_VERDICTS: Final = ("recovered", "gap_too_old", "epoch_changed", "ahead")

# In seconds. Each bound is one more line in a scrape.
_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG_BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Exemplar(NamedTuple):
    """A measured value, the `traceparent` of the event that it was measured on, and its time in seconds since 1970."""

    value: float
    traceparent: str
    at: float


class Histogram:
    """A histogram with fixed buckets, and the sum of the values.

    `counts[i]` is the number of values that are at most `bounds[i]` and above the bound before; the last count, one
    more than there are bounds, is that of the values above all bounds. `exemplars[i]` is the newest exemplar of that
    bucket; a bucket without one has no entry.
    """

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float] = _BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: dict[int, Exemplar] = {}
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value `times` times; a negative one, which clocks that differ can cause, counts as 0."""
        value = max(0.0, value)
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def exemplify(self, value: float, traceparent: str, at: float) -> None:
        """Keep a value that `observe` has counted as the exemplar of its bucket."""
        value = max(0.0, value)
        self.exemplars[bisect_left(self.bounds, value)] = Exemplar(value, traceparent, at)


class Counters(Observer):
    """All counters, each since the start of the process.

    The web layer increases `accepts` and calls `closed`, because the kernel sees neither handshakes nor close codes.
    `publish_duration` and `delivery_lag` have exemplars: events whose trace an observer follows. `clock()` is in
    seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.accepts = 0
        self.closes = dict.fromkeys([*map(str, _CODES), OTHER], 0)
        self.published_events = dict.fromkeys([*MESSAGE_TYPES, OTHER], 0)
        self.failed_events = dict.fromkeys([*MESSAGE_TYPES, OTHER], 0)
        self.retries = 0
        self.batches = 0
        self.deliveries = 0
        self.saved_bytes = 0
        self.replays = {(source, verdict): 0 for source in _SOURCES for verdict in _VERDICTS}
        self.gaps = 0
        self.refills = 0
        self.epoch_changes = 0
        self.slow_clients = 0
        self.foreign_documents = 0
        self.listener_restarts = 0
        self.acks = 0
        self.acks_wanted = 0
        self.unacknowledged_at_close = 0
        self.publish_duration = Histogram()
        self.fanout_duration = Histogram()
        self.delivery_lag = Histogram()
        self.loop_lag = Histogram()
        self.acknowledge_duration = Histogram(_LONG_BOUNDS)

    def closed(self, code: int) -> None:
        """Count a closed WebSocket by its close code, whichever side closed it."""
        self.closes[name if (name := str(code)) in self.closes else OTHER] += 1

    def published(self, published: Published) -> None:
        """Count the events and the duration; a publish answered from an idempotency record has no new events."""
        if not published.replayed:
            _add(self.published_events, published.types)
        self._ended(published)

    def failed(self, failed: Failed) -> None:
        """Count the events and the duration."""
        _add(self.failed_events, failed.types)
        self._ended(failed)

    def retried(self, retried: Retried) -> None:
        """Count the retry."""
        self.retries += 1

    def delivered(self, delivered: Delivered) -> None:
        """Count the batch and its messages, and for each event the time since its publish."""
        self.batches += 1
        self.fanout_duration.observe(delivered.end - delivered.begin)
        self._write(delivered.written)
        for seconds, events in delivered.lags:
            self.delivery_lag.observe(seconds, events)
        # the events of one publish have the same lag
        newest = {e.written_at - e.published_at: e for e in delivered.followed if e.published_at is not None}
        for lag, event in newest.items():
            if event.trace.traceparent is not None:
                self.delivery_lag.exemplify(lag, event.trace.traceparent, event.written_at)

    def caught_up(self, written: Written) -> None:
        """Count the messages written to clients that caught up."""
        self._write(written)

    def replayed(self, replayed: Replayed) -> None:
        """Count the replay by source and verdict."""
        self.replays[replayed.source, replayed.verdict] += 1

    def acknowledged(self, acknowledged: Acknowledged) -> None:
        """Count the ack, and the time since the delivery if it is known."""
        self.acks += 1
        if acknowledged.seconds is not None:
            self.acknowledge_duration.observe(acknowledged.seconds)

    def slowed(self) -> None:
        """Count a client that became slow."""
        self.slow_clients += 1

    def left(self, unacknowledged: int) -> None:
        """Count the acks that were still outstanding when a connection closed."""
        self.unacknowledged_at_close += unacknowledged

    def refilled(self, refilled: Refilled) -> None:
        """Count the refill."""
        self.refills += 1

    def lost(self, lost: Lost) -> None:
        """Count the gap."""
        self.gaps += 1

    def renumbered(self, epoch: str) -> None:
        """Count the new epoch."""
        self.epoch_changes += 1

    def foreign(self, count: int) -> None:
        """Count messages on the Redis channel that were skipped."""
        self.foreign_documents += count

    def listener_restarted(self, reason: str) -> None:
        """Count the restart."""
        self.listener_restarts += 1

    def _ended(self, publish: Published | Failed) -> None:
        self.publish_duration.observe(publish.seconds)
        if publish.traceparent is not None:
            self.publish_duration.exemplify(publish.seconds, publish.traceparent, self._clock())

    def _write(self, written: Written) -> None:
        self.deliveries += written.messages
        self.acks_wanted += written.acks_wanted
        self.saved_bytes += written.saved


def _add(counts: dict[str, int], types: Sequence[str]) -> None:
    for type in types:
        counts[type if type in counts else OTHER] += 1
