"""The link between replicas, as the kernel sees it: what a transport takes, gives and promises.

`kernel.redis` keeps these promises on Redis, the tests' fake keeps them in memory, and one contract test holds both
to them. Errors are `TransportUnavailable` and `WriteRefused`. Every call but `listen` ends within the deadline; a
publish that has to wait for the one under way, within two.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

from kernel.log.envelope import Announcement, Entry
from kernel.position import Fence, Position

__all__ = ["Batch", "Outgoing", "Page", "Publication", "Transport"]


class Outgoing(NamedTuple):
    """One publish: its id (the same for each retry), the producer's key if any, and (id, tail) per event."""

    id: str
    key: str | None
    events: Sequence[tuple[str, bytes]]


class Publication(NamedTuple):
    """What became of a publish: numbers `first` to `first + size - 1` of the epoch.

    `subscribers` is how many replicas Redis handed it to; `replayed` says that an earlier publish under the same
    producer's key is answered here instead.
    """

    epoch: str
    first: int
    size: int
    subscribers: int
    replayed: bool


class Batch(NamedTuple):
    """Everything that has arrived since the last one; `foreign` counts the documents that were none of ours."""

    announcements: list[Announcement]
    foreign: int


class Page(NamedTuple):
    """A part of the history, read at one instant together with the position.

    `oldest` is the number of the oldest event kept, `beyond` that of the first one behind this part (position + 1 if
    there is none).
    """

    position: Position
    oldest: int
    entries: list[Entry]
    beyond: int


class Transport(Protocol):
    """A link that numbers events once for all replicas.

    `kept` is how many events the history held at the last position check.
    """

    kept: int

    async def close(self) -> None:
        """Give up every connection; safe to call twice, and usable again afterwards."""

    async def publish(self, outgoing: Outgoing, fence: Fence) -> Publication:
        """Number, keep and announce events in one step; the same id twice is one publish."""
        ...

    async def position(self, fence: Fence, *, probe: bool = False) -> Position:
        """The current position; begins an epoch where there is none or where `fence` proves a fork.

        With `probe` it also writes, so that success means that publishing works.
        """
        ...

    async def read(self, first: int, last: int) -> Page:
        """The kept events numbered `first` to `last`, both included."""
        ...

    def listen(self, idle: float) -> AsyncGenerator[Batch, None]:
        """Subscribe, yield an empty batch, then what arrives; an empty batch at least every `idle` seconds."""
        ...
