"""The log: the newest events in the ring, and older ones in the Redis history, read in pages that readers share.

Replay, refill and the catch-up of a slow client read the log in the same way, by `after(place)`. `offer` compares the
announcements of all replicas with the log, and `append` makes their events part of it. Nothing here writes to a client.

Pages. Readers at different places of one page share a read of Redis and the frames made of it, and pages that were read
whole are kept for later readers. A page has 100 events, or fewer if they are large: Redis answers with 1 MiB or
one event at most, and with less on a slow link. When an answer is cut off, the next pages have as many events as fit
into one answer. The sizes divide each other and pages begin at multiples of them, so readers at different places still
ask for the same pages. If a page is cut off before a reader's place, that reader asks for another one, which begins at
its place.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from kernel.log.envelope import Announcement
from kernel.log.frames import Frame, NumberField, chunks
from kernel.log.ring import Ring
from kernel.log.transport import Transport
from kernel.position import Position
from kernel.resilience.tasks import end

__all__ = ["KEPT_BYTES", "PAGE_BYTES", "Gone", "Log", "Moved", "Offered"]

# How many events a page may have. Each size divides the one before it.
_SIZES = (100, 50, 10, 5, 1)
# How many bytes a reader is given at once. Each slow client holds what it was given last until its socket takes it.
PAGE_BYTES = 1024 * 1024
# How many events are read first when a replica starts and does not know how large they are.
_FIRST_STEP = 5
_KEPT_PAGES = 32
KEPT_BYTES = 8 * 1024 * 1024


class Gone(Exception):
    """The events after a place are no longer kept; `oldest` is the number of the oldest event that is kept."""

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
    """A page's events, with the oldest number and the first after the page that were kept when it was read."""

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
        # Kept pages, by epoch and first number.
        self._pages: OrderedDict[tuple[str, int], _Read] = OrderedDict()
        self._kept_bytes = 0
        # The size of the last answer and the mean size of its events. The size of the next page follows from them.
        self._answer_bytes = PAGE_BYTES
        self._event_bytes = 0
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

        Anything else (a hole, another epoch) is a misfit: either this replica has missed events, or the announcement is
        not from a replica. The position in Redis decides. After a contradiction every new event is a misfit too, until
        a position check has succeeded.
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

    async def oldest(self) -> int:
        """Return the number of the oldest event that the history has now; if it is empty, that of the next event.

        Raises `Moved` and `TransportError`.
        """
        epoch, last = self.ring.place
        read = await self._shared(epoch, last + 1, last, self._known)
        return min(read.oldest, last + 1)

    async def after(self, place: Position) -> list[Frame]:
        """Return the next frames after `place`, at least one; none if `place` is the newest position.

        They are about 1 MiB at most, or one frame. Raises `Gone` if the next events are no longer kept, `Moved` if
        Redis is in another epoch or behind this replica, and `TransportError`.
        """
        held = self.ring.since(place)
        if held is not None:
            held = next(iter(chunks(held, PAGE_BYTES)), [])
            if held and held[0].entry is None and held[0].place.epoch == place.epoch:
                # this replica may miss more than a client that has been elsewhere
                held[0] = Frame.gap(place.epoch, place.sequence + 1, held[0].place.sequence)
            return held
        now = self.ring.place
        if not place.epoch:
            return [Frame.first_epoch(now)]
        if place.epoch != now.epoch:
            return [Frame.new_epoch(now.epoch)]
        # memory has only the end of the current epoch: the rest comes from the history
        return await self.stored(place, self.ring.base.sequence)

    async def stored(self, place: Position, last: int, known: tuple[int, str] | None = None) -> list[Frame]:
        """Return the next frames after `place` from the Redis history, at least one, and none after number `last`.

        `known` is the number and the id of an event that the history must have, unless it was trimmed; by default the
        event at this replica's position. If the history has another event there, it is not the past that this replica
        has delivered, and `Moved` is raised.
        """
        epoch, sequence = place
        return _following(await self._page(epoch, sequence, last, known or self._known), place, last)

    async def newest(self, position: Position) -> tuple[Position, list[Frame]]:
        """Return the newest events up to `position`, as many as memory holds, and the place before the first of them.

        They are read from the newest back, in steps that grow as far as the size of the events allows. Each step must
        be of the same past as the one before it, or `Moved` is raised.
        """
        epoch, last = position
        start, lowest = last, max(0, last - self.ring.size)
        frames: list[Frame] = []
        size, average, step = 0, 0, _FIRST_STEP
        known = (0, "")
        while start > lowest and size + average <= self.ring.most_bytes:
            here = Position(epoch, max(lowest, start - step))
            begin, older = here.sequence, []
            while here.sequence < start:
                try:
                    read = await self._shared(epoch, here.sequence + 1, start, known)
                    older += _following(read, here, start)
                    here = older[-1].place
                    known = (here.sequence, _id_of(older[-1])) if _id_of(older[-1]) else known
                except Gone as gone:
                    here = Position(epoch, gone.oldest - 1)
                    begin = lowest = here.sequence
                    older.clear()
            frames = older + frames
            start = begin
            size += sum(frame.size for frame in older)
            average = size // max(1, len(frames)) + 1
            step = max(1, min(4 * step, (self.ring.most_bytes - size) // average))
        return Position(epoch, start), frames

    @property
    def _known(self) -> tuple[int, str]:
        """The number and the id of the event at this replica's position."""
        return self.ring.place.sequence, self.ring.continuity.id

    async def _page(self, epoch: str, sequence: int, last: int, known: tuple[int, str]) -> _Read:
        """Return a page in which the event after `sequence` is, or is missing; it has nothing after `last`."""
        for (kept_epoch, first), kept in self._pages.items():
            if kept_epoch == epoch and first <= sequence + 1 < kept.beyond:
                self._pages.move_to_end((epoch, first))
                return kept
        size = next((size for size in _SIZES if size * self._event_bytes <= self._answer_bytes), 1)
        begin = sequence // size * size
        end = min(begin + size, last)
        whole = end == begin + size
        read = await self._shared(epoch, begin + 1, end, known, keep=whole)
        if read.beyond <= sequence + 1:
            read = await self._shared(epoch, sequence + 1, end, known, keep=whole)
        return read

    async def _shared(self, epoch: str, first: int, end: int, known: tuple[int, str], *, keep: bool = False) -> _Read:
        """Read Redis once for all callers that ask for the same range at the same time."""
        key = (epoch, first, end)
        task = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(self._read(epoch, first, end, known, keep=keep))
            task.add_done_callback(partial(self._read_over, key))
        # a reader that is cancelled must not cancel the read of the others
        return await asyncio.shield(task)

    def _read_over(self, key: tuple[str, int, int], task: "asyncio.Task[_Read]") -> None:
        self._reading.pop(key, None)
        if not task.cancelled():
            task.exception()  # asyncio logs an error that nobody asks for, and all readers may have given up

    async def _read(self, epoch: str, first: int, end: int, known: tuple[int, str], *, keep: bool) -> _Read:
        witness, id = known
        page = await self._transport.read(first, end, witness)
        if page.position.epoch != epoch or page.position.sequence < end:
            raise Moved
        if id and page.witness not in ("", id):
            # the kept pages are of one past, this one is of another
            self._pages.clear()
            self._kept_bytes = 0
            raise Moved
        read = _Read([Frame.of(epoch, entry, self._number_field) for entry in page.entries], page.oldest, page.beyond)
        cut = read.beyond <= end
        size = sum(frame.size for frame in read.frames)
        if read.frames:
            self._event_bytes = size // len(read.frames)
            self._answer_bytes = size if cut else min(PAGE_BYTES, 2 * self._answer_bytes)
        if keep or cut:
            self._keep((epoch, first), read, size)
        return read

    def _keep(self, key: tuple[str, int], read: _Read, size: int) -> None:
        before = self._pages.pop(key, None)
        if before is not None:
            self._kept_bytes -= sum(frame.size for frame in before.frames)
        self._pages[key] = read
        self._kept_bytes += size
        while len(self._pages) > _KEPT_PAGES or self._kept_bytes > KEPT_BYTES:
            _, dropped = self._pages.popitem(last=False)
            self._kept_bytes -= sum(frame.size for frame in dropped.frames)


def _id_of(frame: Frame) -> str:
    return "" if frame.entry is None else frame.entry.id


def _following(read: _Read, place: Position, last: int) -> list[Frame]:
    """Return the frames of a page after `place` and up to `last`; raises `Gone` if the page begins after that."""
    epoch, sequence = place
    frames, oldest, beyond = read
    if oldest > sequence + 1 and not (frames and frames[0].place.sequence <= sequence + 1):
        raise Gone(min(oldest, last + 1))
    # a hole is one gap, even if the position was set far ahead
    return list(_with_gaps(frames, epoch, sequence, min(beyond - 1, last)))


def _with_gaps(frames: Iterable[Frame], epoch: str, after: int, last: int) -> Iterable[Frame]:
    """Yield the events numbered `after` + 1 to `last`, with a marker wherever one is missing."""
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
