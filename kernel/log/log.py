"""The log: the newest events in the ring, and older ones in the Redis history, read in pages that readers share.

Replay, refill and catch-up of a slow client are one thing: `after(place)`. `offer` decides which announcements follow
the log, and `append` makes their frames part of it. Nothing here writes to a client.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from kernel.log.envelope import Announcement
from kernel.log.frames import Frame, NumberField
from kernel.log.ring import Ring
from kernel.log.transport import Transport
from kernel.position import Position
from kernel.resilience.tasks import end

__all__ = ["Gone", "Log", "Moved", "Offered"]

# Pages begin at fixed numbers, so that clients at different places read the same ones.
PAGE = 100
_KEPT_PAGES = 32
_KEPT_BYTES = 8 * 1024 * 1024


class Gone(Exception):
    """Events after the place are no longer kept; `oldest` is the number of the oldest that is."""

    def __init__(self, oldest: int) -> None:
        super().__init__(oldest)
        self.oldest = oldest


class Moved(Exception):
    """Redis is in another epoch than this replica, or behind it: a position check is due."""


class Offered(NamedTuple):
    """The outcome of `Log.offer`.

    `frames` follow the newest event. `misfits` are the positions of announcements that do not fit the numbering.
    `contradictions` counts announcements that name another event where this replica has delivered one.
    """

    frames: list[Frame]
    misfits: list[Position]
    contradictions: int


class _Read(NamedTuple):
    """A page's events; `oldest` and `beyond` are those of `Page` when it was read."""

    frames: list[Frame]
    oldest: int
    beyond: int


class Log:
    """Events and markers in their order; `size` frames of them in memory.

    `number_field` is what an event's number is called in its frame.
    """

    def __init__(self, transport: Transport, size: int, *, number_field: NumberField = "sequence") -> None:
        self.ring = Ring(size)
        self._number_field = number_field.encode()
        self._transport = transport
        self._pages: OrderedDict[tuple[str, int], _Read] = OrderedDict()
        self._kept_bytes = 0
        self._reading: dict[tuple[str, int, int], asyncio.Task[_Read]] = {}

    @property
    def place(self) -> Position:
        """The position of the newest frame."""
        return self.ring.place

    async def close(self) -> None:
        """Cancel the reads in progress."""
        await end(self._reading.values())

    def offer(self, announcements: Iterable[Announcement]) -> Offered:
        """Return the frames that follow the newest event; events that are known already are skipped.

        Anything else (a hole, another epoch) is a misfit: either events were missed, or the announcement is not
        from a replica. Only Redis's own position can tell. The same is true of everything new after a contradiction,
        until a position check has succeeded.
        """
        frames: list[Frame] = []
        misfits: list[Position] = []
        contradictions = 0
        for announcement in announcements:
            farthest = max((entry.sequence for entry in announcement.events), default=0)
            if announcement.epoch == self.ring.place.epoch:
                if not self._take(announcement, frames):
                    contradictions += 1
                    continue
                if farthest <= self.ring.place.sequence + len(frames):
                    continue
            misfits.append(Position(announcement.epoch, farthest))
        return Offered(frames, misfits, contradictions)

    def _take(self, announcement: Announcement, frames: list[Frame]) -> bool:
        """Append what follows to `frames`; return False if the announcement contradicts what is known."""
        ring, continuity = self.ring, self.ring.continuity
        epoch, sequence = ring.place
        id = continuity.id
        if frames:
            sequence += len(frames)
            id = _id_of(frames[-1])
        # The id of the event before the next one, as the announcement has it; None if it does not say.
        before = announcement.after
        for entry in announcement.events:
            number = entry.sequence
            if number <= sequence:
                newer = number - ring.place.sequence
                known = _id_of(frames[newer - 1]) if newer > 0 else ring.id_of(number)
                if known and known != entry.id:
                    continuity.contradict()
                    return False
                before = entry.id
            elif number == sequence + 1:
                if id and before is not None and before != id:
                    continuity.contradict()
                    return False
                if continuity.doubting:
                    break
                if sequence and (not id or before is None):
                    continuity.unchained(number)
                frames.append(Frame.of(epoch, entry, self._number_field))
                sequence, id = number, entry.id
                before = entry.id
            else:
                before = None
        return True

    def append(self, frames: Iterable[Frame]) -> None:
        """Make frames part of the log."""
        self.ring.append(frames)

    def holds(self, place: Position) -> bool:
        """Return True if memory has all the frames after `place`."""
        return self.ring.since(place) is not None

    async def after(self, place: Position) -> list[Frame]:
        """Return the next frames after `place`, at least one; none if `place` is the end of the log.

        Raises `Gone` if the next events are no longer kept, `Moved` if Redis is in another epoch or behind this
        replica, and `TransportError`.
        """
        held = self.ring.since(place)
        if held is not None:
            if held and held[0].entry is None and held[0].place.epoch == place.epoch:
                # a client that was connected elsewhere may miss less than this replica does
                held[0] = Frame.gap(place.epoch, place.sequence + 1, held[0].place.sequence)
            return held
        now = self.ring.place
        if not place.epoch:
            return [Frame.first_epoch(now)]
        if place.epoch != now.epoch:
            return [Frame.new_epoch(now.epoch)]
        # the ring has only the end of the current epoch; the rest is in the history
        return await self.stored(place, self.ring.base.sequence)

    async def stored(self, place: Position, last: int, known: tuple[int, str] | None = None) -> list[Frame]:
        """Return the next frames after `place` from the Redis history, at least one, and none after number `last`.

        `known` is the number and the id of an event that the history must have, unless it was trimmed; by default the
        event at this replica's position. If the history has another event there, it is not the past that this replica
        has delivered, and `Moved` is raised.
        """
        epoch, sequence = place
        number = sequence // PAGE
        known = known or (self.ring.place.sequence, self.ring.continuity.id)
        frames, oldest, beyond = await self._page(epoch, number, last, known)
        if oldest > sequence + 1 and not (frames and frames[0].place.sequence <= sequence + 1):
            raise Gone(min(oldest, last + 1))
        # a hole is one gap, even if the position was set far ahead
        return list(_with_gaps(frames, epoch, sequence, min(beyond - 1, last)))

    async def _page(self, epoch: str, number: int, last: int, known: tuple[int, str]) -> _Read:
        """Return a page's events up to `last`."""
        kept = self._pages.get((epoch, number))
        if kept is not None:
            self._pages.move_to_end((epoch, number))
            return kept
        # one read of Redis per range, shared by all callers that ask for it meanwhile
        key = (epoch, number, min((number + 1) * PAGE, last))
        task = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(self._read(*key, known))
            task.add_done_callback(lambda _: self._reading.pop(key, None))
        # a reader that is cancelled must not cancel the read of the others
        return await asyncio.shield(task)

    async def _read(self, epoch: str, number: int, end: int, known: tuple[int, str]) -> _Read:
        witness, id = known
        page = await self._transport.read(number * PAGE + 1, end, witness)
        if page.position.epoch != epoch or page.position.sequence < end:
            raise Moved
        if id and page.witness not in ("", id):
            # the kept pages are of one past, this one is of another
            self._pages.clear()
            self._kept_bytes = 0
            raise Moved
        read = _Read([Frame.of(epoch, entry, self._number_field) for entry in page.entries], page.oldest, page.beyond)
        if end == (number + 1) * PAGE:
            self._keep((epoch, number), read)
        return read

    def _keep(self, key: tuple[str, int], read: _Read) -> None:
        self._pages[key] = read
        self._kept_bytes += sum(frame.size for frame in read.frames)
        while len(self._pages) > _KEPT_PAGES or (self._kept_bytes > _KEPT_BYTES and len(self._pages) > 1):
            _, dropped = self._pages.popitem(last=False)
            self._kept_bytes -= sum(frame.size for frame in dropped.frames)


def _id_of(frame: Frame) -> str:
    return "" if frame.entry is None else frame.entry.id


def _with_gaps(frames: Iterable[Frame], epoch: str, after: int, last: int) -> Iterable[Frame]:
    """Yield the events numbered `after` + 1 to `last`, with a marker wherever some are missing."""
    expected = after + 1
    for frame in frames:
        sequence = frame.place.sequence
        if expected <= sequence <= last:
            if sequence > expected:
                yield Frame.gap(epoch, expected, sequence - 1)
            yield frame
            expected = sequence + 1
    if expected <= last:
        yield Frame.gap(epoch, expected, last)
