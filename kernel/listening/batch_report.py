"""Sums up what one delivered batch meant for the live clients, in the plain values that observers are given."""

from collections import Counter
from typing import Protocol

from kernel.log.frames import Frame
from kernel.observer import Delivered, DeliveredEvent, Observer, TraceContext, Written
from kernel.position import Position

__all__ = ["BatchReport", "RunResult"]


class RunResult(Protocol):
    """The outcome of handing one run of frames to the live clients."""

    @property
    def written(self) -> Written:
        """The sums over all clients."""
        ...

    def recipients(self, frame: Frame) -> int:
        """Return how many clients this event of the run was written to; it must belong to a trace."""
        ...


class BatchReport:
    """Adds up the runs of one batch; `first` is the position before it, `begin` when its delivery started."""

    def __init__(self, observer: Observer, first: Position, begin: float) -> None:
        self._observer = observer
        self._first = first
        self.begin = begin
        self._events = self._messages = self._acks_wanted = self._saved = 0
        self._lags: list[tuple[float, int]] = []
        self._followed: list[DeliveredEvent] = []

    def add(self, frames: list[Frame], result: RunResult, now: float) -> None:
        """Count a run that was handed over."""
        messages, acks_wanted, saved = result.written
        self._messages += messages
        self._acks_wanted += acks_wanted
        self._saved += saved
        entries = [frame.entry for frame in frames if frame.entry is not None]
        self._events += len(entries)
        # the events of one publish share its time
        for published_at, events in Counter(entry.published_at for entry in entries).items():
            if published_at is not None:
                self._lags.append((now - published_at, events))
        for frame in frames:
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
                result.recipients(frame),
            )
            self._followed.append(event)

    def delivered(self, last: Position, now: float) -> Delivered:
        """Return the sum; `last` is the position after the batch."""
        written = Written(self._messages, self._acks_wanted, self._saved)
        return Delivered(self._first, last, self.begin, now, self._events, written, self._lags, self._followed)
