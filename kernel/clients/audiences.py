"""Audiences: clients with the same patterns and the same encoding, the unit of fan-out.

Frames are filtered and joined once for an audience; only the write is made once for each client.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from kernel.clients.patterns import Patterns

__all__ = ["Audience", "Audiences"]

ClientT = TypeVar("ClientT")
EncodingT = TypeVar("EncodingT")


class Audience(Generic[ClientT, EncodingT]):
    """The clients with the same patterns and the same encoding, both hashable.

    `Audiences` adds and removes clients. `clients` keeps the order of joining.
    """

    __slots__ = ("_snapshot", "clients", "encoding", "patterns")

    def __init__(self, patterns: Patterns, encoding: EncodingT) -> None:
        self.patterns: Final = patterns
        self.encoding: Final = encoding
        self.clients: Final[dict[ClientT, None]] = {}
        self._snapshot: tuple[ClientT, ...] | None = ()

    def __len__(self) -> int:
        return len(self.clients)

    def snapshot(self) -> tuple[ClientT, ...]:
        """Return the clients as they are now, in order of joining; copied only after a client joined or left."""
        if self._snapshot is None:
            self._snapshot = tuple(self.clients)
        return self._snapshot

    def _add(self, client: ClientT) -> None:
        self.clients[client] = None
        self._snapshot = None

    def _remove(self, client: ClientT) -> None:
        del self.clients[client]
        self._snapshot = None


class Audiences(Generic[ClientT, EncodingT]):
    """All audiences with at least one client; `len()` is the number of clients. Joining and leaving are O(1)."""

    def __init__(self) -> None:
        self._audiences: dict[tuple[Patterns, EncodingT], Audience[ClientT, EncodingT]] = {}
        self._clients = 0

    def __len__(self) -> int:
        return self._clients

    def __iter__(self) -> Iterator[Audience[ClientT, EncodingT]]:
        """Iterate over the audiences as they are now, except those that lose their last client meanwhile."""
        return (audience for audience in tuple(self._audiences.values()) if audience.clients)

    def join(self, client: ClientT, patterns: Patterns, encoding: EncodingT) -> Audience[ClientT, EncodingT]:
        """Add the client to the audience with these patterns and this encoding, and return that audience.

        A client that changes its patterns leaves its audience first and joins again.
        """
        audience = self._audiences.get((patterns, encoding))
        if audience is None:
            audience = self._audiences[patterns, encoding] = Audience(patterns, encoding)
        if client not in audience.clients:
            audience._add(client)
            self._clients += 1
        return audience

    def leave(self, client: ClientT, audience: Audience[ClientT, EncodingT]) -> None:
        """Remove the client from its audience; a client that has left already is no error."""
        if client in audience.clients:
            audience._remove(client)
            self._clients -= 1
            if not audience.clients:
                del self._audiences[audience.patterns, audience.encoding]
