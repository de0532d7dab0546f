"""The transport: the protocol of the link between replicas.

`kernel.redis` implements it on Redis, and the tests' fake in memory; the same tests run against both. Errors are
`TransportUnavailable`, `NotSent` and `WriteRefused`. Every call except `listen` ends within the deadline; for a publish
that includes the time for which it waits for the call in flight.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

from kernel.log.envelope import Announcement, Entry
from kernel.position import Fence, Position
from kernel.resilience.circuit import CircuitState

__all__ = ["Batch", "Outgoing", "Page", "Publication", "Transport"]


class Outgoing(NamedTuple):
    """One publish: its id (the same for each retry), the producer's key if any, and (id, tail) per event."""

    id: str
    key: str | None
    events: Sequence[tuple[str, bytes]]


class Publication(NamedTuple):
    """The outcome of a publish: the numbers `first` to `first + size - 1` of the epoch.

    `subscribers` is the number of replicas that Redis handed it to. `replayed` is true if this is the outcome of an
    earlier publish with the same idempotency key.
    """

    epoch: str
    first: int
    size: int
    subscribers: int
    replayed: bool


class Batch(NamedTuple):
    """The announcements since the last batch; `foreign` is the number of messages that could not be decoded."""

    announcements: list[Announcement]
    foreign: int


class Page(NamedTuple):
    """A part of the history, read at one instant together with the position.

    `oldest` is the number of the oldest event kept, `beyond` that of the first one after this part (position + 1 if
    there is none). The part ends before the last event that was asked for if its events are large; `beyond` shows it.
    `witness` is the id of the event that the reader named, "" if it is not kept.
    """

    position: Position
    oldest: int
    entries: list[Entry]
    beyond: int
    witness: str = ""


class Transport(Protocol):
    """A link that numbers events once for all replicas.

    `kept` is the number of events in the history at the last position check.
    """

    kept: int

    async def close(self) -> None:
        """Close every connection. Safe to call twice; the transport can be used again afterwards."""

    async def publish(self, outgoing: Outgoing, fence: Fence) -> Publication:
        """Number, store and announce events in one step; the same id twice is one publish.

        Raises `NotSent` if it is certain that nothing was sent.
        """
        ...

    def circuit_changed(self, state: CircuitState) -> None:
        """Fail the publishes that were not sent yet with `NotSent` if the circuit has opened."""

    def end_publishes(self) -> None:
        """Fail every publish: with `NotSent` those that were not sent yet, the others with `TransportUnavailable`."""

    async def position(self, fence: Fence, *, probe: bool = False) -> Position:
        """Return the current position; start a new epoch if there is none, or if `fence` proves a fork.

        With `probe` it also writes, so that success means that publishing works.
        """
        ...

    async def read(self, first: int, last: int, witness: int = 0) -> Page:
        """Return the kept events numbered `first` to `last`, both included, and the id of the event `witness`.

        One answer holds a bounded number of bytes, or one event. The bound is lower after an answer that missed its
        deadline.
        """
        ...

    def listen(self, idle: float) -> AsyncGenerator[Batch, None]:
        """Subscribe, yield an empty batch, then a batch of what has arrived, at least every `idle` seconds."""
        ...
