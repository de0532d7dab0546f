"""The hot loop and nothing else: new frames to every live client, one write per client.

A walk is resumable: it yields whenever the event loop should turn, so that heartbeats, publishes and health go on while
ten thousand sockets are written. Whoever joins, leaves, falls behind or changes its patterns meanwhile is told apart
by its place alone: a live client that the walk has not reached holds the very object `start`, one that it has reached
(or that joined later) holds `end`, and one that left the live ones holds a copy or something else.
"""

from collections.abc import Iterable, Iterator

from kernel.client import Client
from kernel.frames import Encoding, Frame
from kernel.subscriptions import Audiences
from kernel.transport import Position

__all__ = ["Walk", "chunks"]

# A socket write costs the kernel about 5 µs and 1 µs for each further 5 kB: both bounds are some milliseconds.
_WRITES = 400
_BYTES = 4 * 1024 * 1024


class Walk:
    """One delivery of `frames`, which begin behind `start`, to the live clients among `audiences`."""

    __slots__ = ("_audiences", "deliveries", "end", "frames", "start")

    def __init__(self, frames: list[Frame], start: Position, audiences: Audiences[Client, Encoding]) -> None:
        self.frames = frames
        self.start = start
        self.end = frames[-1].place
        self.deliveries = 0
        self._audiences = audiences

    def __iter__(self) -> Iterator[None]:
        """Write to everyone; each step ends where the loop should turn."""
        start, end = self.start, self.end
        writes, size = _WRITES, _BYTES
        for audience in self._audiences:
            encoding, matches = audience.encoding, audience.patterns.matches
            ready = [frame.ready(encoding) for frame in self.frames if frame.names is None or matches(frame.names)]
            count = len(ready)
            writes -= 1  # an audience has its price too, even where nothing matches
            data = encoding.join(ready) if ready else None
            length = len(data) if isinstance(data, bytes) else 0
            for client in audience.snapshot():
                if client.place is not start:
                    continue
                if data is not None:
                    client.sink.write(data)
                    self.deliveries += count
                    writes -= 1
                    size -= length
                client.place = end
                if writes <= 0 or size <= 0:
                    yield
                    writes, size = _WRITES, _BYTES

    def reach(self, client: Client) -> None:
        """Give a live client its part now, if it has not had it, because something else is about to be sent to it."""
        if client.place is self.start:
            self.deliveries += client.take(self.frames)


def chunks(frames: list[Frame], size: int) -> Iterable[list[Frame]]:
    """Cut frames into runs of about `size` bytes, each of one frame at least."""
    run: list[Frame] = []
    total = 0
    for frame in frames:
        if run and total + frame.size > size:
            yield run
            run, total = [], 0
        run.append(frame)
        total += frame.size
    if run:
        yield run
