"""One client: its place in the log, its patterns and encoding, and what it has acknowledged."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from kernel.clients.audiences import Audience
from kernel.clients.close_reasons import MAX_AGE, CloseReason
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.clients.replay import Replay, Resume
from kernel.clients.selection import Selection
from kernel.clients.token_bucket import TokenBucket
from kernel.log.encodings import Encoding, Joined
from kernel.log.frames import Frame, ready_control
from kernel.messages.control import Closing, Control, Ping
from kernel.observer import Written
from kernel.position import NOWHERE, Position

__all__ = ["Client", "ClientState", "Sink"]

# The reasons that a client without close codes is told in a message.
_ANNOUNCED = (MAX_AGE,)


class ClientState(Enum):
    """The way in which a client gets its events; hub.py describes the transitions."""

    LIVE = "live"  # the fan-out writes to it
    BEHIND = "behind"  # a task of its own reads the log for it
    GONE = "gone"


class Sink(Protocol):
    """The sending side of a client's socket."""

    @property
    def blocked(self) -> bool:
        """True from when more is unsent than the high-water mark allows until the socket has drained."""
        ...

    def write(self, data: Joined) -> None:
        """Take messages for sending, at once and in order; never raises."""

    async def drained(self) -> None:
        """Return when no longer blocked; at once if the socket is gone."""

    def close(self, reason: CloseReason) -> None:
        """Start the closing handshake, or abort if the peer takes nothing."""


class Client:
    """A cursor into the log, with the patterns and the encoding of one connection.

    Every matching event up to `place` was written to the client's socket. `audience` is set while the client is live.
    `replay` is the replay under way, `resumes` are those that it asked for and that have not started, `resyncs` limits
    how often it may ask for one, and `notices` are the newest of each kind that came while its socket was full.
    """

    __slots__ = (
        "_acked",
        "_acked_epoch",
        "_reached",
        "_since",
        "acks",
        "audience",
        "encoding",
        "id",
        "notices",
        "patterns",
        "place",
        "replay",
        "resumes",
        "resyncs",
        "sink",
        "state",
    )

    def __init__(
        self, id: str, sink: Sink, encoding: Encoding, place: Position, patterns: Patterns = EVERYTHING
    ) -> None:
        self.id = id
        self.sink = sink
        self.encoding = encoding
        self.patterns = patterns
        self.place = place
        self.state = ClientState.BEHIND
        self.audience: Audience[Client, Encoding] | None = None
        self.replay: Replay | None = None
        self.resumes: list[Resume] = []  # an empty deque takes ten times as much memory
        self.resyncs: TokenBucket | None = None  # most clients never ask
        self.notices: dict[type[Control], Control] = {}
        self.acks = 0
        self._acked = 0
        self._acked_epoch = place.epoch
        self._reached = 0
        self._since = place.sequence

    @property
    def acked(self) -> int:
        """The highest number acknowledged in the epoch where the client stands, 0 if none."""
        return self._acked if self._acked_epoch == self.place.epoch else 0

    @property
    def settled(self) -> int:
        """The number after which acks are outstanding: the highest acknowledged, or the one before the first event."""
        if self._acked_epoch != self.place.epoch:
            return 0
        return self._acked if self._acked > self._since else self._since  # max() takes twice as long

    def tell(self, control: Control, place: Position | None = None) -> None:
        """Write a control message after all that was written before; `place` is where the client stands then."""
        self.sink.write(ready_control(control, self.encoding, place))

    def heartbeat(self) -> Ping:
        """Return a heartbeat, which contains the client's place.

        A one-way client keeps the place that it was told last, and resumes from there. So one that still waits for its
        replay to start, because Redis is away, gets a heartbeat without a place: its own may be of another epoch, or
        beyond this replica's.
        """
        waits = bool(self.resumes) if self.replay is None else not self.replay.started
        epoch, sequence = NOWHERE if waits and not self.encoding.two_way else self.place
        return Ping(sequence, epoch)

    def close(self, reason: CloseReason) -> None:
        """Close the connection; a client without close codes is told the reason in a message, if it matters to it."""
        if reason in _ANNOUNCED and not self.encoding.two_way:
            self.tell(Closing(*reason))
        self.sink.close(reason)

    def notify(self, notice: Control) -> None:
        """Write a notice now, or keep it until the socket has drained if it is full."""
        if self.sink.blocked or self.notices:
            self.notices[type(notice)] = notice
        else:
            self.tell(notice)

    def write(self, frames: Sequence[Frame], *, replay: bool = False) -> Written:
        """Select from `frames` without letting the event loop run, and write; see `take`."""
        selection = Selection(frames, self.patterns, self.encoding, replay=replay)
        for _ in selection:
            pass
        return self.take(selection)

    def take(self, selection: Selection) -> Written:
        """Write what was selected, and move to the last of the frames; return what was written.

        The frames follow the client's place, and there is at least one.
        """
        if selection.messages:
            self.sink.write(self.encoding.join(selection.messages))
        self.place = selection.frames[-1].place
        return selection.written

    def move_to(self, place: Position) -> None:
        """Move to the place where a replay starts; what was received before it can still be acknowledged."""
        self._update_epoch()
        self._reached = max(self._reached, self.place.sequence)
        self._since = min(self._since, place.sequence)
        self.place = place

    def clear_acks(self) -> None:
        """Clear outstanding acks up to the current place."""
        self._update_epoch()
        self._since = self.place.sequence

    def acknowledge(self, sequence: int) -> bool:
        """Count an ack of everything up to `sequence`; return True if it raised the highest one.

        The highest ack is never lowered, and an ack of more than was sent is counted and otherwise ignored.
        """
        self.acks += 1
        self._update_epoch()
        if sequence > max(self._reached, self.place.sequence) or sequence <= self._acked:
            return False
        self._acked = sequence
        return True

    def _update_epoch(self) -> None:
        if self._acked_epoch != self.place.epoch:
            self._acked_epoch = self.place.epoch
            self._acked = self._reached = self._since = 0
