"""Replay: the answer to one resume, decided without I/O.

A client that comes back, or that found a hole, asks for what it missed after a position (`Resume`). It gets the missed
events, each marked as replayed, and after them a `ResyncAck` with the verdict. `Replay` decides all of that from what
it is told; `kernel.clients.catchup` reads the log and writes to the client.

States. A replay is *requested* at first. It is *asking* while a position check is made for it. `start` makes it
*reading*: it has a `target`, which is where the log ends at that moment, and a `place`, after which the log is to be
read next. It is *over* when the place has reached the target, or when another epoch has begun meanwhile. Then `verdict`
and `ack` are final.

Before the start, Redis must be asked if the answer depends on where Redis is now (`must_ask`), because the client names
an epoch that is not this replica's, or a number that this replica does not have yet. Example: the replica stands at 40
and the client has seen 42 on another replica. If Redis is at 45, this replica is late, and 43 to 45 will be replayed.
If Redis is at 40, the client speaks of a numbering that is lost.

Events while reading:

- `read`: the log returned the next frames. Those of the target's epoch are to be written. A gap marker among them is
  written as well; it means that events are lost. If none of the frames is of the target's epoch, the log has gone over
  to another epoch and what was left of this one is gone: the replay is over. The new epoch follows as live frames.
- `learned`: the number of the oldest event that the history has now. It is needed before anything is sent if memory
  alone cannot answer (`must_learn`). Pages that this replica kept may be older than the history, and with them the
  replay would have a hole between the page and what the history still has.
- `gone`: the log no longer has the next events. The replay skips to the oldest event that is kept. If events were read
  before, a gap marker is to be written where the hole is.
- `wrote`: events were written to the client. Its patterns may have let fewer events through than were read.

Verdicts. RECOVERED promises that the client now has every matching event up to the target. GAP_TOO_OLD says that events
between the request and the target are lost; `oldest_available` is the first one after the newest loss. EPOCH_CHANGED
says that the client asked for another epoch than the target's, or that the epoch changed while reading; the ack names
`oldest_available` as well if events of the target's epoch are lost. AHEAD says that the client asked for a number that
the target's epoch has not reached; nothing is replayed.

Invariants. The target never moves, and the place never goes back. The client's own place is the replay's place whenever
nothing is being written. Live frames continue where the last frame that was read ends, without a hole or a repeat.
"""

from enum import Enum
from typing import NamedTuple

from kernel.log.frames import Frame
from kernel.messages.control import ResyncAck
from kernel.position import NOWHERE, Position

__all__ = ["Replay", "ReplayState", "Resume", "Verdict"]


class Resume(NamedTuple):
    """A request for what was missed after `last_sequence`; `epoch` is None if the client did not name one."""

    channel: str
    last_sequence: int
    epoch: str | None

    def provisional_place(self, here: Position) -> Position:
        """Return where the client stands until its replay starts.

        That is where the client says it is, as far as it can be true in a log that ends at `here`.
        """
        if not here.epoch:
            return here
        possible = self.epoch in (None, here.epoch)
        return Position(here.epoch, min(self.last_sequence, here.sequence) if possible else 0)


class ReplayState(Enum):
    """The progress of a replay."""

    REQUESTED = "requested"
    ASKING = "asking"
    READING = "reading"
    OVER = "over"


class Verdict(Enum):
    """The outcome of a replay; the values are those that observers get."""

    RECOVERED = "recovered"
    GAP_TOO_OLD = "gap_too_old"
    EPOCH_CHANGED = "epoch_changed"
    AHEAD = "ahead"


class Replay:
    """One resume from the request to the verdict.

    `first` is the position where the replay started, `place` the one after which the log is to be read next, `target`
    the one where the replay ends; `count` is the number of events written so far.
    """

    def __init__(self, resume: Resume) -> None:
        self.state = ReplayState.REQUESTED
        self.verdict = Verdict.RECOVERED
        self.first = self.place = self.target = NOWHERE
        self.count = 0
        self._resume = resume
        self._oldest: int | None = None
        self._learned = self._has_read = False

    def must_ask(self, here: Position) -> bool:
        """Return True if a position check must be made before `start`, which is so once at most.

        `here` is where the log ends.
        """
        if self.state is not ReplayState.REQUESTED:
            return False
        epoch, last_sequence = self._resume.epoch, self._resume.last_sequence
        if not here.epoch or epoch not in (None, here.epoch) or last_sequence > here.sequence:
            self.state = ReplayState.ASKING
            return True
        return False

    @property
    def requested(self) -> int:
        """The number after which the client asked for events."""
        return self._resume.last_sequence

    @property
    def started(self) -> bool:
        """True from `start` on."""
        return self.state in (ReplayState.READING, ReplayState.OVER)

    def start(self, told: str, here: Position) -> Frame | None:
        """Start reading; `told` is the epoch that the client was told last, `here` is where the log ends now.

        Returns the marker that tells the client of another epoch, to be written before anything else, or None.
        """
        asked = self._resume.epoch or told or here.epoch
        sequence = min(self._resume.last_sequence, here.sequence)
        if asked != here.epoch:
            self.verdict, sequence = Verdict.EPOCH_CHANGED, 0
        elif self._resume.last_sequence > here.sequence:
            self.verdict = Verdict.AHEAD
        self.target = here
        self.first = Position(here.epoch, sequence)
        self._move(self.first)
        return Frame.new_epoch(here.epoch) if told != here.epoch else None

    def read(self, frames: list[Frame]) -> list[Frame]:
        """Take the frames that follow `place` in the log, one at least, and return those that are to be written."""
        current = [frame for frame in frames if frame.place.epoch == self.target.epoch]
        if not current:
            self.verdict = Verdict.EPOCH_CHANGED
            self.state = ReplayState.OVER
            return []
        gaps = [frame for frame in current if frame.entry is None]
        if gaps:
            self._lose(gaps[-1].place.sequence + 1)
        self._has_read = True
        self._move(current[-1].place)
        return current

    @property
    def must_learn(self) -> bool:
        """True until `learned` was called."""
        return not self._learned

    def learned(self, oldest: int) -> None:
        """Start where the history starts now; `oldest` is the first event that it has."""
        self._learned = True
        if oldest > self.place.sequence + 1:
            self.gone(oldest)

    def gone(self, oldest: int) -> Frame | None:
        """Skip events that are no longer kept; `oldest` is the first one that is.

        Returns the marker to be written in place of the events, or None if the replay only starts later.
        """
        place = self.place
        self._lose(oldest)
        self._move(Position(self.target.epoch, oldest - 1))
        return Frame.gap(place.epoch, place.sequence + 1, oldest - 1) if self._has_read else None

    def wrote(self, events: int) -> None:
        """Count events that were written to the client."""
        self.count += events

    @property
    def ack(self) -> ResyncAck:
        """The message that ends the replay and tells the client its verdict."""
        too_old = self._oldest is not None
        return ResyncAck(
            self._resume.channel,
            self.target.epoch,
            self._resume.last_sequence,
            self.count,
            recovered=self.verdict is Verdict.RECOVERED,
            gap_too_old=too_old,
            oldest_available=self._oldest,
            epoch_changed=self.verdict is Verdict.EPOCH_CHANGED,
        )

    def _lose(self, oldest: int) -> None:
        self._oldest = oldest
        if self.verdict is Verdict.RECOVERED:
            self.verdict = Verdict.GAP_TOO_OLD

    def _move(self, place: Position) -> None:
        self.place = place
        self.state = ReplayState.READING if place.sequence < self.target.sequence else ReplayState.OVER
