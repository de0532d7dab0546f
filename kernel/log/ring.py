"""The ring: the newest frames of the log in memory, and the replica's position."""

from collections import deque
from collections.abc import Iterable

from kernel.log.continuity import Continuity
from kernel.log.frames import Frame
from kernel.position import NOWHERE, Fence, Position

__all__ = ["Ring"]


# How many bytes of plain messages the ring holds. A frame takes a few times its size once it was sent in several forms.
MOST_BYTES = 32 * 1024 * 1024


class Ring:
    """The newest `size` frames, events and markers, in their order.

    They are fewer if they exceed `most_bytes`, but the newest one is always there. `place` is the position of the
    newest frame. `base` is the position after which everything is in memory. `continuity` decides whether what arrives
    follows it.
    """

    __slots__ = ("_bytes", "_frames", "_ids", "base", "continuity", "most_bytes", "place", "size")

    def __init__(self, size: int, most_bytes: int = MOST_BYTES) -> None:
        self.size = size
        self.most_bytes = most_bytes
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self.base = NOWHERE
        self._ids: dict[int, str] = {}
        self.continuity = Continuity()
        self.place = NOWHERE

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def fence(self) -> Fence:
        """The last events delivered here, as Redis is told them."""
        return self.continuity.fence

    def id_of(self, sequence: int) -> str:
        """Return the id of the event with this number in the present epoch, "" if it is not in memory."""
        return self._ids.get(sequence, "")

    def start(self, place: Position) -> None:
        """Move to `place`, and drop all frames."""
        self._frames.clear()
        self._ids.clear()
        self._bytes = 0
        self.base = self.place = place
        self.continuity.start(place)

    def append(self, frames: Iterable[Frame]) -> None:
        """Add frames after the newest one; the oldest are dropped."""
        for frame in frames:
            if frame.place.epoch != self.place.epoch:
                self._ids.clear()
            self._frames.append(frame)
            self._bytes += frame.size
            while len(self._frames) > self.size or (self._bytes > self.most_bytes and len(self._frames) > 1):
                oldest = self._frames.popleft()
                self._bytes -= oldest.size
                self.base = oldest.place
                if oldest.place.epoch == frame.place.epoch:
                    self._ids.pop(oldest.place.sequence, None)
            self.place = frame.place
            id = "" if frame.entry is None else frame.entry.id
            if id:
                self._ids[frame.place.sequence] = id
            self.continuity.advance(frame.place, id)

    def since(self, position: Position) -> list[Frame] | None:
        """Return all frames after `position`, oldest first, or None if some of them are no longer in memory."""
        epoch, sequence = position
        after: list[Frame] = []
        for frame in reversed(self._frames):
            if frame.place.epoch == epoch and frame.place.sequence <= sequence:
                break
            after.append(frame)
        else:
            if self.base.epoch != epoch or self.base.sequence > sequence:
                return None
        after.reverse()
        return after

    def of_epoch(self) -> list[Frame]:
        """Return the events of the current epoch that are in memory, oldest first."""
        return [frame for frame in self._frames if frame.entry is not None and frame.place.epoch == self.place.epoch]
