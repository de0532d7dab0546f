"""What the kernel tells whoever watches it: hooks that do nothing here, called per event, batch or connection.

Never per client and event: what a batch was to thousands of clients comes as one sum. An observer is a guest. Details
are frozen; one that raises is logged once and switched off (`Guarded`). Times are seconds since the epoch.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from kernel.clients.client import Written
from kernel.clients.patterns import Patterns
from kernel.log.envelope import TraceContext
from kernel.log.frames import Frame
from kernel.log.transport import Publication
from kernel.position import Position
from kernel.resilience.circuit import Transition

__all__ = [
    "Acknowledged",
    "Delivered",
    "Drained",
    "Failed",
    "Guarded",
    "Lost",
    "Observer",
    "Published",
    "Publishing",
    "Refilled",
    "Replayed",
    "Retried",
    "Run",
]

_logger = logging.getLogger(__name__)


class Publishing(msgspec.Struct, frozen=True):
    """A publish begins; `types` are the wire types of its events, `trace` is the producer's."""

    types: list[str]
    trace: TraceContext


class Published(msgspec.Struct, frozen=True):
    """A publish succeeded after `retries` retries and `seconds`."""

    types: list[str]
    publication: Publication
    retries: int
    seconds: float


class Failed(msgspec.Struct, frozen=True):
    """A publish failed, or the circuit refused it; `error` is the name of the error's class."""

    types: list[str]
    error: str
    seconds: float


class Retried(msgspec.Struct, frozen=True):
    """A retry is about to be made, the `attempt`th, after `delay` seconds; `error` is the name of the error's class."""

    types: list[str]
    attempt: int
    delay: float
    error: str


class Run(NamedTuple):
    """A part of a batch, joined into one write per client; `reached` counts those writes by patterns."""

    frames: list[Frame]
    reached: dict[Patterns, int]
    written: Written
    end: float

    def recipients(self, frame: Frame) -> int:
        """How many clients got this one of the frames."""
        names = frame.names
        return sum(n for patterns, n in self.reached.items() if names is None or patterns.matches(names))


class Delivered(msgspec.Struct, frozen=True):
    """Everything that had arrived was handed to the live clients."""

    first: Position
    last: Position
    begin: float
    end: float
    runs: list[Run]


class Replayed(msgspec.Struct, frozen=True):
    """A resume was answered with `count` messages from after `first` up to `last`.

    `verdict` is "recovered", "gap_too_old", "epoch_changed" or "ahead"; `source` is "memory", or "redis" if the history
    was read.
    """

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


class Drained(msgspec.Struct, frozen=True):
    """So many clients were sent away."""

    connections: int
    begin: float
    end: float


class Observer:
    """The hooks; override those of interest."""

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Surround a publish with all its retries; yields the trace context that its events will carry."""
        return nullcontext(publishing.trace)

    def sharing(self, contexts: Sequence[Context]) -> Context | None:
        """Several publishes (their contexts) are about to share one call; answers in which of them it shall run."""
        return None

    def published(self, published: Published) -> None:
        """A publish succeeded."""

    def failed(self, failed: Failed) -> None:
        """A publish failed."""

    def retried(self, retried: Retried) -> None:
        """A publish is tried again."""

    def delivered(self, delivered: Delivered) -> None:
        """A batch went to the live clients."""

    def caught_up(self, written: Written) -> None:
        """Messages went to a client that is not live."""

    def replayed(self, replayed: Replayed) -> None:
        """A resume was answered."""

    def acknowledged(self, acknowledged: Acknowledged) -> None:
        """An ack came."""

    def slowed(self) -> None:
        """A client's socket is full: it is no longer live."""

    def left(self, unacknowledged: int) -> None:
        """A client went, and so many events that it should have acknowledged are not."""

    def refilled(self, refilled: Refilled) -> None:
        """This replica had missed events and has them now."""

    def lost(self, lost: Lost) -> None:
        """Events are lost; clients were told by a gap."""

    def renumbered(self, epoch: str) -> None:
        """The numbering began anew, under this name; clients were told by epoch_changed."""

    def foreign(self, count: int) -> None:
        """Documents on the channel were none of ours."""

    def circuit_moved(self, transition: Transition) -> None:
        """The circuit of the link to Redis opened, half-opened or closed."""

    def listener_restarted(self, reason: str) -> None:
        """The subscription is made anew."""

    def drained(self, drained: Drained) -> None:
        """Every client has been sent away."""


class Guarded(Observer):
    """Passes everything on to a guest until the guest raises."""

    def __init__(self, guest: Observer) -> None:
        self._guest: Observer | None = guest

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401  one wrapper for every hook
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        if name == "publishing":
            return lambda publishing: _GuardedPublish(self, publishing)
        return lambda *details: self._tell(name, *details)

    def _tell(self, hook: str, *details: object) -> Any:  # noqa: ANN401
        if self._guest is not None:
            try:
                return getattr(self._guest, hook)(*details)
            except Exception:
                self._switch_off(hook)
        return None

    def _switch_off(self, hook: str) -> None:
        _logger.exception("an observer failed in %s and is switched off", hook)
        self._guest = None


class _GuardedPublish:
    """What a guest puts around a publish: it may fail, and can neither stop the publish nor hide its error."""

    __slots__ = ("_guard", "_inner", "_publishing")

    def __init__(self, guard: Guarded, publishing: Publishing) -> None:
        self._guard = guard
        self._publishing = publishing
        self._inner: AbstractContextManager[TraceContext] | None = None

    def __enter__(self) -> TraceContext:
        inner = self._guard._tell("publishing", self._publishing)
        if inner is not None:
            try:
                trace: TraceContext = inner.__enter__()
            except Exception:
                self._guard._switch_off("publishing")
            else:
                self._inner = inner
                return trace
        return self._publishing.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._inner is not None:
            try:
                self._inner.__exit__(kind, error, trace)
            except Exception:
                self._guard._switch_off("publishing")
