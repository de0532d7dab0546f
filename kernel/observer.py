"""Observers: typed hooks that the kernel calls once per event, batch or connection.

No hook is called per client and event: what a batch meant for thousands of clients arrives as one sum. Details are
plain values (numbers, strings, positions), so an observer depends on nothing else of the kernel. Times are seconds
since 1970. An observer that raises is logged once and switched off; it cannot disturb the kernel.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from types import TracebackType
from typing import Concatenate, NamedTuple, ParamSpec

import msgspec

from kernel.position import Position

__all__ = [
    "Acknowledged",
    "CircuitMoved",
    "Delivered",
    "DeliveredEvent",
    "Drained",
    "Failed",
    "Lost",
    "Observer",
    "Observers",
    "Published",
    "Publishing",
    "Refilled",
    "Replayed",
    "Retried",
    "TraceContext",
    "Written",
]

_logger = logging.getLogger(__name__)

_P = ParamSpec("_P")


class TraceContext(NamedTuple):
    """The trace that an event belongs to: the values of the W3C headers of these names, None where absent."""

    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None


class Publishing(msgspec.Struct, frozen=True):
    """A publish starts; `types` are the wire types of its events, `trace` is the producer's.

    `id` is the id of the publish; if it has one event, that event has the same id.
    """

    types: list[str]
    trace: TraceContext
    id: str


class Published(msgspec.Struct, frozen=True):
    """A publish succeeded after `retries` retries and `seconds`.

    Its events have the numbers from `first.sequence` on. `subscribers` is how many replicas Redis handed them to;
    `replayed` is true if an idempotency key was known, so that nothing was published again. `traceparent` is that of
    its events if an observer follows it.
    """

    types: list[str]
    first: Position
    subscribers: int
    replayed: bool
    retries: int
    seconds: float
    traceparent: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """A publish failed after `retries` retries and `seconds`; `error` is the name of the error's class.

    `refused` says why no further attempt was made: "circuit open", "stopped", or "suspended" (the process slept too
    long for another attempt under the same id). It is None if the retries were exhausted.

    `traceparent` is that of its events if an observer follows it.
    """

    types: list[str]
    error: str
    retries: int
    refused: str | None
    seconds: float
    traceparent: str | None = None


class Retried(msgspec.Struct, frozen=True):
    """Retry number `attempt` will be made in `delay` seconds; `error` is the class name of the error before it."""

    types: list[str]
    attempt: int
    delay: float
    error: str


class Written(NamedTuple):
    """The number of messages written, how many of them require an ack, and the bytes that compression saved."""

    messages: int
    acks_wanted: int
    saved: int


class DeliveredEvent(msgspec.Struct, frozen=True):
    """An event that `Observer.follows`: `recipients` clients of this replica had it at `written_at`."""

    position: Position
    id: str
    type: str
    trace: TraceContext
    published_at: float | None
    written_at: float
    recipients: int


class Delivered(msgspec.Struct, frozen=True):
    """A batch was handed to the live clients: everything that had arrived, after `first` up to `last`.

    `events` is how many events it had, `lags` their seconds from publish to write (each with its number of events),
    and `followed` those whose trace an observer follows.
    """

    first: Position
    last: Position
    begin: float
    end: float
    events: int
    written: Written
    lags: Sequence[tuple[float, int]]
    followed: Sequence[DeliveredEvent]


class Replayed(msgspec.Struct, frozen=True):
    """A resume was answered with `count` messages from after `first` up to `last`.

    `requested` is the number that the client named; it may be beyond the log, or of another epoch than `first`.
    `verdict` is "recovered", "gap_too_old", "epoch_changed" or "ahead"; `source` is "memory", or "redis" if the history
    was read.
    """

    requested: int
    first: Position
    last: Position
    count: int
    verdict: str
    source: str
    begin: float
    end: float


class Acknowledged(msgspec.Struct, frozen=True):
    """An ack came; `seconds` is how long the newest event that it settles had been out, None if it settles none."""

    seconds: float | None


class Refilled(msgspec.Struct, frozen=True):
    """Events that did not arrive by themselves were fetched from the history: those after `first` up to `last`."""

    first: Position
    last: Position


class Lost(msgspec.Struct, frozen=True):
    """Events `first` to `last` of an epoch were no longer in the history when this replica looked for them."""

    epoch: str
    first: int
    last: int


class CircuitMoved(msgspec.Struct, frozen=True):
    """The circuit of the link to Redis went from one state to another: "closed", "open" or "half_open".

    `failure_count` is the number of failures in a row that led to it.
    """

    before: str
    after: str
    reason: str
    failure_count: int


class Drained(msgspec.Struct, frozen=True):
    """Every client was sent away; `connections` is how many there were."""

    connections: int
    begin: float
    end: float


class Observer:
    """The hooks; override those of interest."""

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Surround a publish with all its retries; yields the trace context that its events will carry."""
        return nullcontext(publishing.trace)

    def sharing(self, contexts: Sequence[Context], waited: Sequence[float]) -> Context | None:
        """Choose the context in which a call runs that publishes share; None: no preference.

        The call is made next. It is that of one publish or several; `contexts` are theirs, and `waited` is for how many
        seconds each of them waited for the calls before.
        """
        return None

    def follows(self, traceparent: str) -> bool:
        """Return True to be told of each single delivery, and of the trace of each publish, with this context."""
        return False

    def published(self, published: Published) -> None:
        """A publish succeeded."""

    def failed(self, failed: Failed) -> None:
        """A publish failed."""

    def retried(self, retried: Retried) -> None:
        """A publish will be tried again."""

    def delivered(self, delivered: Delivered) -> None:
        """A batch was handed to the live clients."""

    def caught_up(self, written: Written) -> None:
        """Messages were written to a client that is not live."""

    def replayed(self, replayed: Replayed) -> None:
        """A resume was answered."""

    def acknowledged(self, acknowledged: Acknowledged) -> None:
        """An ack came."""

    def slowed(self) -> None:
        """A client's socket is full: it is no longer live."""

    def left(self, unacknowledged: int) -> None:
        """A client left, with this number of events that it should have acknowledged and had not."""

    def refilled(self, refilled: Refilled) -> None:
        """This replica had missed events and has fetched them."""

    def lost(self, lost: Lost) -> None:
        """Events are lost; clients were told by a gap."""

    def renumbered(self, epoch: str) -> None:
        """A new epoch began; clients were told by epoch_changed."""

    def foreign(self, count: int) -> None:
        """Messages on the Redis channel were skipped: invalid, or announcing events that Redis does not have."""

    def circuit_moved(self, moved: CircuitMoved) -> None:
        """The circuit of the link to Redis opened, half-opened or closed."""

    def listener_restarted(self, reason: str) -> None:
        """The subscription will be made again."""

    def drained(self, drained: Drained) -> None:
        """Every client was sent away."""


class Observers(Observer):
    """A list of observers that looks like one: each is told in its turn, and switched off when it raises."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._active = tuple(observers)

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Nest the context managers of all; each is given the trace context of the one before it."""
        surrounding = [each for each in self._active if type(each).publishing is not Observer.publishing]
        return _Surrounded(self, surrounding, publishing) if surrounding else nullcontext(publishing.trace)

    def sharing(self, contexts: Sequence[Context], waited: Sequence[float]) -> Context | None:
        """Return the first choice that one of them makes."""
        for observer in self._active:
            try:
                chosen = observer.sharing(contexts, waited)
            except Exception:
                self._switch_off(observer, Observer.sharing.__name__)
            else:
                if chosen is not None:
                    return chosen
        return None

    def follows(self, traceparent: str) -> bool:
        """Return True if one of them follows it."""
        for observer in self._active:
            try:
                if observer.follows(traceparent):
                    return True
            except Exception:
                self._switch_off(observer, Observer.follows.__name__)
        return False

    def published(self, published: Published) -> None:
        """Pass it to all."""
        self._tell(Observer.published, published)

    def failed(self, failed: Failed) -> None:
        """Pass it to all."""
        self._tell(Observer.failed, failed)

    def retried(self, retried: Retried) -> None:
        """Pass it to all."""
        self._tell(Observer.retried, retried)

    def delivered(self, delivered: Delivered) -> None:
        """Pass it to all."""
        self._tell(Observer.delivered, delivered)

    def caught_up(self, written: Written) -> None:
        """Pass it to all."""
        self._tell(Observer.caught_up, written)

    def replayed(self, replayed: Replayed) -> None:
        """Pass it to all."""
        self._tell(Observer.replayed, replayed)

    def acknowledged(self, acknowledged: Acknowledged) -> None:
        """Pass it to all."""
        self._tell(Observer.acknowledged, acknowledged)

    def slowed(self) -> None:
        """Pass it to all."""
        self._tell(Observer.slowed)

    def left(self, unacknowledged: int) -> None:
        """Pass it to all."""
        self._tell(Observer.left, unacknowledged)

    def refilled(self, refilled: Refilled) -> None:
        """Pass it to all."""
        self._tell(Observer.refilled, refilled)

    def lost(self, lost: Lost) -> None:
        """Pass it to all."""
        self._tell(Observer.lost, lost)

    def renumbered(self, epoch: str) -> None:
        """Pass it to all."""
        self._tell(Observer.renumbered, epoch)

    def foreign(self, count: int) -> None:
        """Pass it to all."""
        self._tell(Observer.foreign, count)

    def circuit_moved(self, moved: CircuitMoved) -> None:
        """Pass it to all."""
        self._tell(Observer.circuit_moved, moved)

    def listener_restarted(self, reason: str) -> None:
        """Pass it to all."""
        self._tell(Observer.listener_restarted, reason)

    def drained(self, drained: Drained) -> None:
        """Pass it to all."""
        self._tell(Observer.drained, drained)

    def _tell(self, hook: Callable[Concatenate[Observer, _P], None], *details: _P.args, **named: _P.kwargs) -> None:
        for observer in self._active:
            try:
                getattr(observer, hook.__name__)(*details, **named)
            except Exception:
                self._switch_off(observer, hook.__name__)

    def _switch_off(self, observer: Observer, hook: str) -> None:
        _logger.exception("observer %s failed in %s and is switched off", type(observer).__name__, hook)
        self._active = tuple(each for each in self._active if each is not observer)


class _Surrounded:
    """The context managers that observers put around one publish.

    One that fails is switched off; it can neither stop the publish nor hide its error.
    """

    __slots__ = ("_entered", "_observers", "_publishing", "_surrounding")

    def __init__(self, observers: Observers, surrounding: Sequence[Observer], publishing: Publishing) -> None:
        self._observers = observers
        self._surrounding = surrounding
        self._publishing = publishing
        self._entered: list[tuple[Observer, AbstractContextManager[TraceContext]]] = []

    def __enter__(self) -> TraceContext:
        publishing = self._publishing
        for observer in self._surrounding:
            try:
                manager = observer.publishing(publishing)
                trace = manager.__enter__()
            except Exception:
                self._observers._switch_off(observer, Observer.publishing.__name__)
            else:
                self._entered.append((observer, manager))
                if trace != publishing.trace:
                    publishing = Publishing(publishing.types, trace, publishing.id)
        return publishing.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for observer, manager in reversed(self._entered):
            try:
                manager.__exit__(kind, error, trace)
            except Exception:
                self._observers._switch_off(observer, Observer.publishing.__name__)
