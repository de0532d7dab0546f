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

from collections.abc import Callable, Iterator
from itertools import compress
from typing import cast

from kernel.clients.audiences import Audiences
from kernel.clients.client import Client
from kernel.clients.pace import Pace
from kernel.clients.selection import Selection, written
from kernel.log.encodings import Encoding, Ready
from kernel.log.frames import Frame
from kernel.observer import Written

__all__ = ["LOOK", "Walk"]

# How much a walk does between two looks at the clock, in writes or comparisons. One of them takes 5 µs or less, and
# 1 µs more for each further 5 kB, or 1 µs for each message where they are not joined, so large writes count several
# times.
LOOK = 16
_LARGE_SHIFT = 14
_MANY_SHIFT = 2


class Walk:
    """One delivery of `frames`, one at least, to the live clients.

    `timer()` is in seconds on any clock. `end` is the place of the last frame.
    """

    __slots__ = (
        "_acks",
        "_audiences",
        "_messages",
        "_pace",
        "_passed_over",
        "_recipients",
        "_saved",
        "end",
        "frames",
    )

    def __init__(self, frames: list[Frame], audiences: Audiences[Client, Encoding], timer: Callable[[], float]) -> None:
        self.frames = frames
        self.end = frames[-1].place
        self._audiences = audiences
        self._pace = Pace(timer)
        self._passed_over: set[Client] = set()
        # Counted while the walk goes, for the names of events that belong to a trace; counting afterwards would compare
        # them with all patterns in one step.
        traced = (frame for frame in frames if frame.entry is not None and frame.entry.traceparent is not None)
        self._recipients: dict[tuple[str, ...] | None, int] = {frame.names: 0 for frame in traced}
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
            wanted = list(compress(self.frames, verdicts))
            messages = cast("list[Ready]", [frame.made(encoding) for frame in wanted])
            if None in verdicts or None in messages:
                selection = Selection(self.frames, audience.patterns, encoding)
                for _ in selection:
                    if pace.over:
                        yield
                        pace.restart()
                wanted, messages = selection.wanted, selection.messages
            reached = 0
            # an audience takes time too, even where nothing matches
            left -= 1 + len(self.frames) // LOOK
            data = encoding.join(messages) if messages else None
            cost = 1 + (len(data or ()) >> (_LARGE_SHIFT if isinstance(data, bytes) else _MANY_SHIFT))
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
                self._note(reached, wanted, written(wanted, messages, encoding))

    def pass_over(self, client: Client) -> None:
        """Write no more to a client, because it joined or left an audience."""
        self._passed_over.add(client)

    def reach(self, client: Client) -> bool:
        """Write a live client its frames now, unless it has them, because another message is about to be sent to it.

        Return False, and write nothing, if its patterns must be compared or frames be encoded first.
        """
        if client.place != self.end:
            verdicts = client.patterns.all_known([frame.names for frame in self.frames])
            wanted = list(compress(self.frames, verdicts))
            if None in verdicts or not all(frame.made(client.encoding) for frame in wanted):
                return False
            self._note(1, wanted, client.write(self.frames))
        self.pass_over(client)
        return True

    def recipients(self, frame: Frame) -> int:
        """Return the number of clients to which an event of this walk was written; it must belong to a trace."""
        return self._recipients[frame.names]

    def _note(self, clients: int, frames: list[Frame], written: Written) -> None:
        """Add up what was written to each of these clients."""
        self._messages += written.messages * clients
        self._acks += written.acks_wanted * clients
        self._saved += written.saved * clients
        if self._recipients:
            for names in self._recipients.keys() & {frame.names for frame in frames}:
                self._recipients[names] += clients
