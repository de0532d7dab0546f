"""Catch-up: one client's way back to the live clients.

A client that is not live reads the log after its own place. That happens when its socket was full (a slow client), and
when it asks for what it missed (a replay). `CatchUp` reads the log, waits while more is unsent than the high-water mark
allows, and writes what the client's patterns let through. What else is to be done it returns as a `Step`, for the hub
to do: it calls nobody back.

Order of work, whenever the socket takes more: first the replay that is under way; then notices that came while the
socket was full; then the next replay that was asked for; then the log, as ordinary live frames. When nothing of that is
left the client can go live.
"""

import asyncio
from collections.abc import Callable
from enum import Enum

from kernel.clients.client import Client
from kernel.clients.pace import Pace
from kernel.clients.replay import Replay, ReplayState
from kernel.clients.selection import Selection
from kernel.errors import TransportError
from kernel.log.frames import Frame, chunks
from kernel.log.log import Gone, Log, Moved
from kernel.messages.control import ResyncAck
from kernel.observer import Observer, Replayed
from kernel.position import Position

__all__ = ["CatchUp", "Step"]


class Step(Enum):
    """The next action for a client."""

    CHECK_POSITION = "check position"  # then call `proceed` again, after a position check has succeeded
    GO_LIVE = "go live"  # before anything else happens on the loop: the log has nothing after the client's place
    CLOSE_SLOW = "close slow"  # the history no longer has what follows the client's place


class CatchUp:
    """Serves one client until it can be live.

    `chunk` is how many bytes are joined into one write, `clock()` is in seconds since 1970, and `timer()` in seconds on
    any clock.
    """

    def __init__(
        self,
        client: Client,
        log: Log,
        *,
        observer: Observer,
        chunk: int,
        clock: Callable[[], float],
        timer: Callable[[], float],
    ) -> None:
        self._client = client
        self._log = log
        self._observer = observer
        self._chunk = chunk
        self._clock = clock
        self._timer = timer
        self._begin = 0.0
        self._source = "memory"

    async def proceed(self) -> Step:
        """Read and write until something else is to be done, and return that.

        Between the read that finds nothing left and the return there is no await, so a caller that acts at once makes
        the client live without missing an event.
        """
        client = self._client
        while True:
            if client.replay is not None:
                step = await self._proceed_with(client.replay)
                if step is not None:
                    return step
                client.replay = None
            await client.sink.drained()
            if client.notices:
                client.tell(client.notices.pop(next(iter(client.notices))))
            elif client.resumes:
                client.replay = Replay(client.resumes.pop(0))
                self._begin, self._source = self._clock(), "memory"
            else:
                try:
                    frames = await self._log.after(client.place)
                except Gone as gone:
                    if not client.encoding.two_way:
                        client.tell(_too_slow(client.place, gone.oldest))
                    return Step.CLOSE_SLOW
                except (Moved, TransportError):
                    return Step.CHECK_POSITION
                if frames:
                    await self._write(frames)
                elif not client.sink.blocked:
                    return Step.GO_LIVE

    async def _proceed_with(self, replay: Replay) -> Step | None:
        """Start or continue a replay; return what is to be done before it can continue, None if it is over."""
        client = self._client
        if replay.must_ask(self._log.place):
            return Step.CHECK_POSITION
        if not replay.started:
            marker = replay.start(client.place.epoch, self._log.place)
            if marker is not None:
                client.write([marker])
            client.move_to(replay.place)
        while replay.state is ReplayState.READING:
            await client.sink.drained()
            try:
                if not self._log.holds(replay.place):
                    self._source = "redis"
                    if replay.must_learn:
                        replay.learned(await self._log.oldest())
                        client.place = replay.place
                        continue
                frames = await self._log.after(replay.place)
            except Gone as gone:
                gap = replay.gone(gone.oldest)
                if gap is not None:
                    client.write([gap])
                client.place = replay.place
            except (Moved, TransportError):
                return Step.CHECK_POSITION
            else:
                replay.wrote(await self._write(replay.read(frames), replay=True))
        client.tell(replay.ack, client.place)
        self._observer.replayed(
            Replayed(
                replay.requested,
                replay.first,
                replay.target,
                replay.count,
                replay.verdict.value,
                self._source,
                self._begin,
                self._clock(),
            )
        )
        return None

    async def _write(self, frames: list[Frame], *, replay: bool = False) -> int:
        """Write frames as the socket takes them, and return how many events that were."""
        client, pace = self._client, Pace(self._timer)
        events = 0
        for run in chunks(frames, self._chunk):
            await client.sink.drained()
            selection = await self._select(run, pace, replay=replay)
            self._observer.caught_up(client.take(selection))
            events += sum(frame.entry is not None for frame in selection.wanted)
            await asyncio.sleep(0)
            pace.restart()
        return events

    async def _select(self, frames: list[Frame], pace: Pace, *, replay: bool) -> Selection:
        """Select what the client gets of these frames, under the patterns that it has when this returns."""
        client = self._client
        while True:
            selection = Selection(frames, client.patterns, client.encoding, replay=replay)
            for _ in selection:
                if pace.over:
                    await asyncio.sleep(0)
                    pace.restart()
            if selection.patterns is client.patterns:
                return selection


def _too_slow(place: Position, oldest: int) -> ResyncAck:
    """Return what a client without close codes is told instead of the code for a slow client."""
    return ResyncAck(
        "events", place.epoch, place.sequence, 0, recovered=False, gap_too_old=True, oldest_available=oldest
    )
