"""Fan-out: new frames to every live client, with one write for each.

Theory of operation. A *walk* delivers one run of frames. It visits the audiences that exist when it starts, prepares
the bytes for each audience once, and writes them to the clients that are in the audience at that moment. It yields by
the clock, whatever the work consists of: comparing patterns, compressing frames, or writing. So heartbeats, publishes
and health checks go on while ten thousand sockets are written.

Between two steps clients may join, leave, fall behind or change their patterns. The hub tells the walk by `pass_over`
of each client that joins or leaves an audience, and the walk does not write to it any more:

- a client that joined stands at the end of the log, so it has these frames already, or does not want them;
- a client that left reads the log by itself, after its own place;
- a client that changes its patterns is given its frames first (`reach`), under the old patterns; if that would take
  long, because they must be compared or encoded first, the client reads the log by itself.

Invariants. A live client stands either where the previous walk ended, or at this walk's `end` once it was reached. No
client is given a frame twice, and none misses one. The log ends at the walk's `end` when the walk is created: appending
the frames and creating the walk is one step, without an await, or a client could join in between and get them twice.
"""

from collections.abc import Callable, Generator, Iterator
from itertools import compress
from typing import cast

from kernel.clients.audiences import Audiences
from kernel.clients.client import Client
from kernel.clients.pace import Pace
from kernel.clients.patterns import Patterns
from kernel.log.encodings import Encoding, Ready
from kernel.log.frames import Frame, saved_bytes
from kernel.observer import Written

__all__ = ["LOOK", "Walk"]

# How much a walk does between two looks at the clock, in writes or comparisons. One of them takes 5 µs or less, and
# 1 µs more for each further 5 kB, so large writes count several times.
LOOK = 16
_LARGE_SHIFT = 14


class Walk:
    """One delivery of `frames`, one at least, to the live clients.

    `timer()` is in seconds on any clock. `end` is the place of the last frame. `reached` is the number of clients that
    were written to, by their patterns.
    """

    __slots__ = (
        "_acks",
        "_audiences",
        "_decided",
        "_messages",
        "_pace",
        "_passed_over",
        "_recipients",
        "_saved",
        "end",
        "frames",
        "reached",
    )

    def __init__(self, frames: list[Frame], audiences: Audiences[Client, Encoding], timer: Callable[[], float]) -> None:
        self.frames = frames
        self.end = frames[-1].place
        self.reached: dict[Patterns, int] = {}
        self._audiences = audiences
        self._pace = Pace(timer)
        # Verdicts on names that patterns did not remember, perhaps because they are long.
        self._decided: dict[tuple[Patterns, tuple[str, ...]], bool] = {}
        self._passed_over: set[Client] = set()
        self._recipients: dict[tuple[str, ...] | None, int] = {}
        self._messages = self._acks = self._saved = 0

    @property
    def written(self) -> Written:
        """The total of what was written so far, over all clients."""
        return Written(self._messages, self._acks, self._saved)

    def __iter__(self) -> Iterator[None]:
        """Write to every client; each step ends where the event loop should run."""
        end, passed_over, pace = self.end, self._passed_over, self._pace
        pace.restart()
        left = LOOK
        names = [frame.names for frame in self.frames]
        for audience in self._audiences:
            encoding = audience.encoding
            verdicts = audience.patterns.all_known(names)
            if None in verdicts:
                verdicts = yield from self._decide(audience.patterns)
            wanted = list(compress(self.frames, verdicts))
            ready = [frame.made(encoding) for frame in wanted]
            if None in ready:
                ready = yield from self._encode(wanted, encoding)
            messages = cast("list[Ready]", ready)
            reached = 0
            # an audience takes time too, even where nothing matches
            left -= 1 + len(self.frames) // LOOK
            data = encoding.join(messages) if messages else None
            cost = 1 + ((len(data) if isinstance(data, bytes) else 0) >> _LARGE_SHIFT)
            for client in audience.snapshot():
                # while nothing has changed, an empty set is all that is looked at
                if passed_over and client in passed_over:
                    continue
                if data is not None:
                    client.sink.write(data)
                    reached += 1
                    left -= cost
                client.place = end
                if left <= 0:
                    left = LOOK
                    if pace.over:
                        yield
                        pace.restart()
            if reached:
                acks = sum([frame.wants_ack for frame in wanted])
                self._note(audience.patterns, reached, len(wanted), acks, saved_bytes(wanted, messages, encoding))

    def _decide(self, patterns: Patterns) -> Generator[None, None, list[bool | None]]:
        """Compare the patterns with the frames, some of whose names they do not remember."""
        for names in dict.fromkeys(frame.names for frame in self.frames if frame.names is not None):
            verdict = patterns.known(names)
            if verdict is None:
                for verdict in patterns.steps(names):  # noqa: B007  the last one counts
                    if self._pace.over:
                        yield
                        self._pace.restart()
            self._decided[patterns, names] = bool(verdict)
        return [frame.names is None or self._decided[patterns, frame.names] for frame in self.frames]

    def _encode(self, frames: list[Frame], encoding: Encoding) -> Generator[None, None, list[Ready | None]]:
        """Make the messages of an audience, some of which do not exist yet."""
        ready: list[Ready | None] = []
        for frame in frames:
            ready.append(frame.ready(encoding))
            if self._pace.over:
                yield
                self._pace.restart()
        return ready

    def pass_over(self, client: Client) -> None:
        """Write no more to a client, because it joined or left an audience."""
        self._passed_over.add(client)

    def reach(self, client: Client) -> bool:
        """Write a live client its frames now, unless it has them, because another message is about to be sent to it.

        Return False, and write nothing, if its patterns must be compared or frames be encoded first.
        """
        if client.place != self.end:
            verdicts = client.patterns.all_known([frame.names for frame in self.frames])
            wanted = compress(self.frames, verdicts)
            if None in verdicts or not all(each.is_made(client.encoding, replay=False) for each in wanted):
                return False
            written = client.write(self.frames)
            if written.messages:
                self._note(client.patterns, 1, *written)
        self.pass_over(client)
        return True

    def recipients(self, frame: Frame) -> int:
        """Return the number of clients to which a frame of this walk was written."""
        names = frame.names
        known = self._recipients.get(names)
        if known is None:
            matching = (n for patterns, n in self.reached.items() if names is None or self._matched(patterns, names))
            known = self._recipients[names] = sum(matching)
        return known

    def _matched(self, patterns: Patterns, names: tuple[str, ...]) -> bool:
        decided = self._decided.get((patterns, names)) if self._decided else None
        return patterns.matches(names) if decided is None else decided

    def _note(self, patterns: Patterns, clients: int, messages: int, acks: int, saved: int) -> None:
        self.reached[patterns] = self.reached.get(patterns, 0) + clients
        self._messages += messages * clients
        self._acks += acks * clients
        self._saved += saved * clients
