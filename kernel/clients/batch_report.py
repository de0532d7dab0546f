"""Sums up what one delivered batch meant for the live clients, in the plain values that observers are given."""

from collections import Counter

from kernel.clients.fanout import Walk
from kernel.observer import Delivered, DeliveredEvent, Observer, TraceContext, Written
from kernel.position import Position

__all__ = ["BatchReport"]


class BatchReport:
    """Collects the walks of one batch; `first` is the position before it, `begin` when its delivery started."""

    def __init__(self, observer: Observer, first: Position, begin: float) -> None:
        self._observer = observer
        self._first = first
        self._begin = begin
        self._events = self._messages = self._acks_wanted = self._saved = 0
        self._lags: list[tuple[float, int]] = []
        self._followed: list[DeliveredEvent] = []

    def add(self, walk: Walk, now: float) -> None:
        """Count a walk that is over."""
        messages, acks_wanted, saved = walk.written
        self._messages += messages
        self._acks_wanted += acks_wanted
        self._saved += saved
        entries = [frame.entry for frame in walk.frames if frame.entry is not None]
        self._events += len(entries)
        # the events of one publish share its time
        for published_at, events in Counter(entry.published_at for entry in entries).items():
            if published_at is not None:
                self._lags.append((now - published_at, events))
        for frame in walk.frames:
            entry = frame.entry
            if entry is None or entry.traceparent is None or not self._observer.follows(entry.traceparent):
                continue
            event = DeliveredEvent(
                frame.place,
                entry.id,
                entry.type,
                TraceContext(entry.traceparent, entry.tracestate, entry.baggage),
                entry.published_at,
                now,
                walk.recipients(frame),
            )
            self._followed.append(event)

    def delivered(self, last: Position, now: float) -> Delivered:
        """Return the sum; `last` is the position after the batch."""
        written = Written(self._messages, self._acks_wanted, self._saved)
        return Delivered(self._first, last, self._begin, now, self._events, written, self._lags, self._followed)
