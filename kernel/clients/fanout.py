"""The hot loop and nothing else: new frames to every live client, one write per client.

A walk is resumable: it yields whenever the event loop should turn, so that heartbeats, publishes and health go on while
ten thousand sockets are written. Whoever joins, leaves, falls behind or changes its patterns meanwhile is told apart
by its place alone: a live client that the walk has not reached holds the very object `start`, one that it has reached
(or that joined later) holds `end`, and one that left the live ones holds a copy or something else.
"""

from collections.abc import Iterator

from kernel.clients.audiences import Audiences
from kernel.clients.client import Client
from kernel.clients.patterns import Patterns
from kernel.log.encodings import Encoding
from kernel.log.frames import Frame, saved_bytes
from kernel.observer import Written
from kernel.position import Position

__all__ = ["Walk"]

# A socket write costs the kernel about 5 µs and 1 µs for each further 5 kB: both bounds are a millisecond or less, and
# several times that on a machine that others use too.
_WRITES = 150
_BYTES = 2 * 1024 * 1024


class Walk:
    """One delivery of `frames`, which begin behind `start`, to the live clients among `audiences`.

    `reached` counts the clients that it wrote to, by their patterns.
    """

    __slots__ = ("_acks", "_audiences", "_messages", "_recipients", "_saved", "end", "frames", "reached", "start")

    def __init__(self, frames: list[Frame], start: Position, audiences: Audiences[Client, Encoding]) -> None:
        self.frames = frames
        self.start = start
        self.end = frames[-1].place
        self.reached: dict[Patterns, int] = {}
        self._audiences = audiences
        self._recipients: dict[tuple[str, ...] | None, int] = {}
        self._messages = self._acks = self._saved = 0

    @property
    def written(self) -> Written:
        """What was written so far, over all clients."""
        return Written(self._messages, self._acks, self._saved)

    def __iter__(self) -> Iterator[None]:
        """Write to everyone; each step ends where the loop should turn."""
        start, end = self.start, self.end
        writes, size = _WRITES, _BYTES
        for audience in self._audiences:
            encoding, matches = audience.encoding, audience.patterns.matches
            wanted = [frame for frame in self.frames if frame.names is None or matches(frame.names)]
            ready = [frame.ready(encoding) for frame in wanted]
            reached = 0
            writes -= 1  # an audience has its price too, even where nothing matches
            data = encoding.join(ready) if ready else None
            length = len(data) if isinstance(data, bytes) else 0
            for client in audience.snapshot():
                if client.place is not start:
                    continue
                if data is not None:
                    client.sink.write(data)
                    reached += 1
                    writes -= 1
                    size -= length
                client.place = end
                if writes <= 0 or size <= 0:
                    yield
                    writes, size = _WRITES, _BYTES
            if reached:
                acks = sum([frame.wants_ack for frame in wanted])
                self._note(audience.patterns, reached, len(wanted), acks, saved_bytes(wanted, ready, encoding))

    def reach(self, client: Client) -> None:
        """Give a live client its part now, if it has not had it, because something else is about to be sent to it."""
        if client.place is self.start:
            written = client.take(self.frames)
            if written.messages:
                self._note(client.patterns, 1, *written)

    def recipients(self, frame: Frame) -> int:
        """Return how many clients it wrote this one of its frames to."""
        names = frame.names
        known = self._recipients.get(names)
        if known is None:
            matching = (n for patterns, n in self.reached.items() if names is None or patterns.matches(names))
            known = self._recipients[names] = sum(matching)
        return known

    def _note(self, patterns: Patterns, clients: int, messages: int, acks: int, saved: int) -> None:
        self.reached[patterns] = self.reached.get(patterns, 0) + clients
        self._messages += messages * clients
        self._acks += acks * clients
        self._saved += saved * clients
