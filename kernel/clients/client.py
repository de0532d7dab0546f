"""One client's delivery state: where it stands in the log, what it wants, what it has acknowledged."""

from enum import Enum
from typing import Protocol

from kernel.clients.audiences import Audience
from kernel.clients.close_reasons import CloseReason
from kernel.clients.patterns import EVERYTHING, Patterns
from kernel.clients.replay import Resume
from kernel.log.encodings import Encoding, Joined
from kernel.log.frames import Frame, ready_control, saved_bytes
from kernel.messages.control import Control
from kernel.observer import Written
from kernel.position import Position

__all__ = ["Client", "Delivery", "Sink"]


class Delivery(Enum):
    """How a client gets its events."""

    LIVE = "live"  # the fan-out writes to it
    BEHIND = "behind"  # a task of its own reads the log for it
    GONE = "gone"


class Sink(Protocol):
    """Where a client's messages go: a socket that the server room owns."""

    @property
    def blocked(self) -> bool:
        """Whether more is unsent than the high-water mark allows."""
        ...

    def write(self, data: Joined) -> None:
        """Take messages for sending, at once and in order; never raises."""

    async def drained(self) -> None:
        """Return when no longer blocked; at once if the socket is gone."""

    def close(self, reason: CloseReason) -> None:
        """Begin the closing handshake, or abort if the peer takes nothing."""


class Client:
    """A cursor into the log, with the patterns and the encoding of one connection.

    `place` is the client's own place: every matching event up to it was handed to its socket.
    """

    __slots__ = (
        "_acked",
        "_acked_epoch",
        "_reached",
        "_since",
        "acks",
        "audience",
        "delivery",
        "encoding",
        "id",
        "notices",
        "patterns",
        "place",
        "resumes",
        "sink",
    )

    def __init__(
        self, id: str, sink: Sink, encoding: Encoding, place: Position, patterns: Patterns = EVERYTHING
    ) -> None:
        self.id = id
        self.sink = sink
        self.encoding = encoding
        self.patterns = patterns
        self.place = place
        self.delivery = Delivery.BEHIND
        self.audience: Audience[Client, Encoding] | None = None
        self.resumes: list[Resume] = []  # an empty deque weighs ten times as much
        self.notices: dict[type[Control], Control] = {}  # those that came while the socket was full
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
        """The number up to which no ack is owed: acknowledged, or before the first that it was sent."""
        return max(self._acked, self._since) if self._acked_epoch == self.place.epoch else 0

    def tell(self, control: Control) -> None:
        """Send a control message, behind everything that was sent before."""
        self.sink.write(ready_control(control, self.encoding))

    def notify(self, notice: Control) -> None:
        """Send a notice now, or when the socket has drained if it is full; of each kind the newest counts."""
        if self.sink.blocked or self.notices:
            self.notices[type(notice)] = notice
        else:
            self.tell(notice)

    def take(self, frames: list[Frame], *, replay: bool = False) -> Written:
        """Send what matches of `frames`, and stand behind them; return what was written.

        The frames follow the client's place, and there is one at least.
        """
        matches, encoding = self.patterns.matches, self.encoding
        wanted = [frame for frame in frames if frame.names is None or matches(frame.names)]
        made = [f.replayed(encoding) if replay else f.ready(encoding) for f in wanted]
        if made:
            self.sink.write(encoding.join(made))
        self.place = frames[-1].place
        return Written(len(wanted), sum(f.wants_ack for f in wanted), saved_bytes(wanted, made, encoding))

    def step_back(self, place: Position) -> None:
        """Stand at another place, as a resume asks for; what was received before can still be acknowledged."""
        self._begin_epoch()
        self._reached = max(self._reached, self.place.sequence)
        self._since = min(self._since, place.sequence)
        self.place = place

    def absolve(self) -> None:
        """Owe no ack for anything up to here."""
        self._begin_epoch()
        self._since = self.place.sequence

    def acknowledge(self, sequence: int) -> bool:
        """Count an ack; whether it raised the highest one (never lowered, never beyond what was sent)."""
        self.acks += 1
        self._begin_epoch()
        if sequence > max(self._reached, self.place.sequence) or sequence <= self._acked:
            return False
        self._acked = sequence
        return True

    def _begin_epoch(self) -> None:
        if self._acked_epoch != self.place.epoch:
            self._acked_epoch = self.place.epoch
            self._acked = self._reached = self._since = 0
