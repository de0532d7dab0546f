"""Pages: the events of one poll, collected by a client that lives no longer than the poll.

A poll is a client that resumes, with a `Page` as its sink. The replay and the fan-out write to it as to any other
client. The page is complete, and the poll answered, when one of these is the case:

- it is full: one more event would exceed its limits. The next poll continues after its last event (`more`).
- the replay is over, and there are events, or a verdict other than "recovered".
- the epoch has changed. The next poll finds that out by itself.
- the connection was closed: by a drain, or because it was cut off.

Otherwise the caller waits for as long as its client wants to, and answers with an empty page then. The position of the
answer passes what the client's patterns left out, also in a replay that was cut off: a poll whose patterns match little
would otherwise never get through a long history. There is no answer if the replay has read nothing by then, because
Redis is away.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from kernel.clients.client import Client
from kernel.clients.close_reasons import CloseReason
from kernel.log.encodings import Joined, Ready, encode_json
from kernel.messages.control import Control, EpochChanged, Gap, ResyncAck
from kernel.position import Position

__all__ = ["MOST_BYTES", "MOST_EVENTS", "PAGE_ENCODING", "Page", "PageResult"]

MOST_EVENTS = 1000
"""The most events of a page."""

MOST_BYTES = 1024 * 1024
"""The most bytes of JSON of a page's events; a larger event is alone on its page."""


class _Item(NamedTuple):
    """One message that a page collects; an event has no `control`."""

    json: bytes
    place: Position | None
    control: Control | None = None

    @property
    def before(self) -> Position:
        """The position before an event or a gap: every matching event up to it has come."""
        assert self.place is not None
        first = self.control.first if isinstance(self.control, Gap) else self.place.sequence
        return Position(self.place.epoch, first - 1)


class _PageEncoding:
    """Messages as `Page` takes them. Events are not marked as replayed: a page has no live events to tell them from."""

    kind = "poll"
    compresses = two_way = marks_replay = False

    def encode(self, json: bytes, place: Position) -> _Item:
        """Return an event."""
        return _Item(json, place)

    def steps(self, json: bytes, place: Position) -> Iterator[_Item]:
        """Do the work of `encode`, in one step."""
        yield self.encode(json, place)

    def encode_control(self, control: Control, place: Position | None = None) -> _Item:
        """Return a control message."""
        return _Item(encode_json(control), place, control)

    def join(self, messages: Iterable[Ready]) -> list[Ready]:
        """Return messages in their order."""
        return list(messages)


PAGE_ENCODING = _PageEncoding()
"""The encoding of every client whose sink is a `Page`."""


class PageResult(NamedTuple):
    """The answer to a poll.

    `position` is the one to continue from, `events` are JSON frames, `gap` frames among them, `verdict` is that on the
    replay, and `more` is True if further events are known to follow.
    """

    position: Position
    events: list[bytes]
    verdict: ResyncAck
    more: bool


class Page:
    """Collects the events after a position until there are enough; the sink of a poll's client.

    The module's docstring says when it is complete.
    """

    def __init__(self, *, most_events: int = MOST_EVENTS, most_bytes: int = MOST_BYTES) -> None:
        self._events: list[bytes] = []
        self._most_events = most_events
        self._bytes_left = most_bytes
        self._closed = False  # nothing more is taken
        self._full = False
        self._expired = False
        self._place: Position | None = None  # of the last message that was taken
        self._cut: Position | None = None  # the position before the first message that was not taken
        self._ack: ResyncAck | None = None
        self._lost_until: int | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def blocked(self) -> bool:
        """True once the page takes no more, so that no further events are read for it."""
        return self._closed

    @property
    def complete(self) -> bool:
        """True once the poll can be answered."""
        ack = self._ack
        return self._closed or (ack is not None and (bool(self._events) or not ack.recovered or self._expired))

    def write(self, data: Joined) -> None:
        """Collect messages."""
        for item in data:
            assert isinstance(item, _Item)
            if item.control is None:
                self._add(item)
            else:
                self._take(item, item.control)
        self._wake()

    async def drained(self) -> None:
        """Wait for ever if the page takes no more: its client is about to be disconnected."""
        if self._closed:
            await asyncio.get_running_loop().create_future()

    def close(self, reason: CloseReason) -> None:
        """Complete the page with what it has."""
        self._closed = True
        self._wake()

    def expire(self) -> None:
        """Wait for events no longer: complete the page now, or as soon as the replay is over."""
        self._expired = True
        self._wake()

    async def completed(self) -> None:
        """Return when the page is complete; for one caller."""
        if not self.complete:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def result(self, client: Client) -> PageResult | None:
        """Return the answer to the poll of this client, None if its replay has read nothing."""
        verdict, replay = self._ack, client.replay
        position = self._cut or client.place
        more = self._full
        if verdict is None:
            if replay is None or not replay.started or (position == replay.first and not self._events):
                return None
            verdict = replay.ack
            more = more or position != replay.target
        if self._lost_until is not None:
            verdict = msgspec.structs.replace(
                verdict, recovered=False, gap_too_old=True, oldest_available=self._lost_until + 1
            )
        return PageResult(position, self._events, verdict, more)

    def _take(self, item: _Item, control: Control) -> None:
        match control:
            case Gap():
                self._add(item)
            case ResyncAck() if not self._closed:
                self._ack = control
                self._place = item.place
            case EpochChanged() if self._place is not None:
                self._closed = True
                self._cut = self._cut or self._place

    def _add(self, item: _Item) -> None:
        if self._events and (len(self._events) == self._most_events or len(item.json) > self._bytes_left):
            self._full = self._full or not self._closed
            self._closed = True
        if self._closed:
            self._cut = self._cut or item.before
        else:
            self._events.append(item.json)
            self._bytes_left -= len(item.json)
            self._place = item.place
            if isinstance(item.control, Gap):
                self._lost_until = item.control.last

    def _wake(self) -> None:
        if self.complete and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
