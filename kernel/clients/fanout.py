"""Fan-out: new frames to every live client, with one write for each.

Theory of operation. A *walk* delivers one run of frames. It visits the audiences that exist when it starts, prepares
the bytes for each audience once, and writes them to the clients that are in the audience at that moment. It yields
after a millisecond of work or so: heartbeats, publishes and health checks go on while ten thousand sockets are written.

Between two steps clients may join, leave, fall behind or change their patterns. The hub tells the walk by `pass_over`
of each client that joins or leaves an audience, and the walk does not write to it any more:

- a client that joined stands at the end of the log, so it has these frames already, or does not want them;
- a client that left reads the log by itself, after its own place;
- a client that changes its patterns is given its frames first (`reach`), under the old patterns.

Invariants. A live client stands either where the previous walk ended, or at this walk's `end` once it was reached. No
client is given a frame twice, and none misses one. The log ends at the walk's `end` when the walk is created: appending
the frames and creating the walk is one step, without an await, or a client could join in between and get them twice.
"""

from collections.abc import Iterator

from kernel.clients.audiences import Audiences
from kernel.clients.client import Client
from kernel.clients.patterns import Patterns
from kernel.log.encodings import Encoding
from kernel.log.frames import Frame, saved_bytes
from kernel.observer import Written

__all__ = ["BYTES", "WRITES", "Walk"]

# How much a walk does in one step. A write costs about 5 µs of system time, and 1 µs more for each further 5 kB: both
# bounds are about a millisecond, and several times that on a busy machine.
WRITES = 150
BYTES = 2 * 1024 * 1024


class Walk:
    """One delivery of `frames`, one at least, to the live clients.

    `end` is the place of the last frame. `reached` is the number of clients that were written to, by their patterns.
    """

    __slots__ = (
        "_acks",
        "_audiences",
        "_messages",
        "_passed_over",
        "_recipients",
        "_saved",
        "end",
        "frames",
        "reached",
    )

    def __init__(self, frames: list[Frame], audiences: Audiences[Client, Encoding]) -> None:
        self.frames = frames
        self.end = frames[-1].place
        self.reached: dict[Patterns, int] = {}
        self._audiences = audiences
        self._passed_over: set[Client] = set()
        self._recipients: dict[tuple[str, ...] | None, int] = {}
        self._messages = self._acks = self._saved = 0

    @property
    def written(self) -> Written:
        """The total of what was written so far, over all clients."""
        return Written(self._messages, self._acks, self._saved)

    def __iter__(self) -> Iterator[None]:
        """Write to every client; each step ends where the event loop should run."""
        end, passed_over = self.end, self._passed_over
        writes, size = WRITES, BYTES
        for audience in self._audiences:
            encoding, matches = audience.encoding, audience.patterns.matches
            wanted = [frame for frame in self.frames if frame.names is None or matches(frame.names)]
            ready = [frame.ready(encoding) for frame in wanted]
            reached = 0
            writes -= 1  # an audience takes time too, even where nothing matches
            data = encoding.join(ready) if ready else None
            length = len(data) if isinstance(data, bytes) else 0
            for client in audience.snapshot():
                # while nothing has changed, an empty set is all that is looked at
                if passed_over and client in passed_over:
                    continue
                if data is not None:
                    client.sink.write(data)
                    reached += 1
                    writes -= 1
                    size -= length
                client.place = end
                if writes <= 0 or size <= 0:
                    yield
                    writes, size = WRITES, BYTES
            if reached:
                acks = sum([frame.wants_ack for frame in wanted])
                self._note(audience.patterns, reached, len(wanted), acks, saved_bytes(wanted, ready, encoding))

    def pass_over(self, client: Client) -> None:
        """Write no more to a client, because it joined or left an audience."""
        self._passed_over.add(client)

    def reach(self, client: Client) -> None:
        """Write a live client its frames now, unless it has them, because another message is about to be sent to it."""
        self.pass_over(client)
        if client.place != self.end:
            written = client.write(self.frames)
            if written.messages:
                self._note(client.patterns, 1, *written)

    def recipients(self, frame: Frame) -> int:
        """Return the number of clients to which a frame of this walk was written."""
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
