"""The ring: the newest frames of the log in memory, and the replica's position."""

from collections import deque
from collections.abc import Iterable

from kernel.log.frames import Frame
from kernel.position import NOWHERE, Fence, Position

__all__ = ["Ring"]


class Ring:
    """The newest `size` frames, events and markers, in their order.

    `place` is the position of the newest frame. `base` is the position after which everything is in memory.
    """

    __slots__ = ("_frames", "_id", "base", "place", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._frames: deque[Frame] = deque(maxlen=size)
        self.base = NOWHERE
        self._id = ""
        self.place = NOWHERE

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def fence(self) -> Fence:
        """The last event delivered here."""
        return Fence(self.place, self._id)

    def start(self, place: Position) -> None:
        """Move to `place`, and drop all frames."""
        self._frames.clear()
        self.base = self.place = place
        self._id = ""

    def append(self, frames: Iterable[Frame]) -> None:
        """Add frames after the newest one; the oldest are dropped."""
        for frame in frames:
            if len(self._frames) == self.size:
                self.base = self._frames[0].place
            self._frames.append(frame)
            self.place = frame.place
            self._id = "" if frame.entry is None else frame.entry.id

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
