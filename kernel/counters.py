"""What this replica has done so far: plain numbers, raised per event, batch or connection, and read on request.

The names of these numbers outside and their formats belong to telemetry.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

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

__all__ = ["OTHER", "Counters", "Histogram"]

# What is not known by name counts here, so that nobody outside can make the tables grow.
OTHER: Final = "other"

# RFC 6455 section 7.4.1, and this service's own.
_CODES: Final = (1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 4008)
_SOURCES: Final = ("memory", "redis")
_VERDICTS: Final = ("recovered", "gap_too_old", "epoch_changed", "ahead")

# Seconds; a scrape costs a line each.
_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG_BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Histogram:
    """How often a value was at most each of `bounds`, or beyond them: one count more than bounds; and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = _BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value; one below 0, as clocks that differ make it, is 0."""
        value = max(0.0, value)
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Counters(Observer):
    """All numbers, each since the start.

    `accepts` and `closed` are for the web side to raise: the kernel does not see a handshake or a close code.
    """

    def __init__(self) -> None:
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
        """A WebSocket was closed with this code, by whichever side."""
        self.closes[name if (name := str(code)) in self.closes else OTHER] += 1

    def published(self, published: Published) -> None:
        """Count events and time; a repetition under a producer's key is no event."""
        if not published.replayed:
            _add(self.published_events, published.types)
        self.publish_duration.observe(published.seconds)

    def failed(self, failed: Failed) -> None:
        """Count events and time."""
        _add(self.failed_events, failed.types)
        self.publish_duration.observe(failed.seconds)

    def retried(self, retried: Retried) -> None:
        """Count it."""
        self.retries += 1

    def delivered(self, delivered: Delivered) -> None:
        """Count messages, and for each event how long it took from its publish."""
        self.batches += 1
        self.fanout_duration.observe(delivered.end - delivered.begin)
        self._write(delivered.written)
        for seconds, events in delivered.lags:
            self.delivery_lag.observe(seconds, events)

    def caught_up(self, written: Written) -> None:
        """Count messages."""
        self._write(written)

    def replayed(self, replayed: Replayed) -> None:
        """Count it by source and verdict."""
        self.replays[replayed.source, replayed.verdict] += 1

    def acknowledged(self, acknowledged: Acknowledged) -> None:
        """Count it, and the time that it took."""
        self.acks += 1
        if acknowledged.seconds is not None:
            self.acknowledge_duration.observe(acknowledged.seconds)

    def slowed(self) -> None:
        """Count it."""
        self.slow_clients += 1

    def left(self, unacknowledged: int) -> None:
        """Count what nobody will acknowledge any more."""
        self.unacknowledged_at_close += unacknowledged

    def refilled(self, refilled: Refilled) -> None:
        """Count it."""
        self.refills += 1

    def lost(self, lost: Lost) -> None:
        """Count the gap."""
        self.gaps += 1

    def renumbered(self, epoch: str) -> None:
        """Count it."""
        self.epoch_changes += 1

    def foreign(self, count: int) -> None:
        """Count documents."""
        self.foreign_documents += count

    def listener_restarted(self, reason: str) -> None:
        """Count it."""
        self.listener_restarts += 1

    def _write(self, written: Written) -> None:
        self.deliveries += written.messages
        self.acks_wanted += written.acks_wanted
        self.saved_bytes += written.saved


def _add(counts: dict[str, int], types: Sequence[str]) -> None:
    for type in types:
        counts[type if type in counts else OTHER] += 1
