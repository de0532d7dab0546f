"""Reading the log for one client that is not live: replay after a reconnect, and catch-up of a slow client.

A client leaves the live ones when its socket is full, or when it asks for what it missed. From then on a task of its
own reads the log after the client's place, writes what the patterns of that moment let through, waits whenever the
socket is full, and puts the client back among the live ones at the moment when nothing is left to read.
"""

import asyncio
import time
from collections.abc import Callable

from kernel.clients.client import Client, Resume
from kernel.clients.close_reasons import SLOW_CLIENT
from kernel.errors import TransportError
from kernel.log.check_requests import CheckRequests
from kernel.log.frames import Frame, chunks
from kernel.log.log import Gone, Log, Moved
from kernel.messages.control import ResyncAck
from kernel.observer import Observer, Replayed
from kernel.position import Position

__all__ = ["CatchUp"]


class CatchUp:
    """Serves clients that are not live.

    `checks` takes requests for a position check;
    `go_live` puts a client among the live ones; `chunk` is how many bytes are written at once.
    """

    def __init__(
        self,
        log: Log,
        *,
        checks: CheckRequests,
        go_live: Callable[[Client], None],
        observer: Observer,
        chunk: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._checks = checks
        self._go_live = go_live
        self._observer = observer
        self._chunk = chunk
        self._clock = clock

    async def serve(self, client: Client) -> None:
        """Bring the client to where this replica stands and make it live, or close it if the history has passed it."""
        while True:
            await client.sink.drained()
            if client.owed:
                client.tell(client.owed.pop(next(iter(client.owed))))
            elif client.resumes:
                await self._replay(client, client.resumes.pop(0))
            else:
                try:
                    frames = await self._log.after(client.place)
                except Gone:
                    client.sink.close(SLOW_CLIENT)
                    return
                except (Moved, TransportError):
                    await self._checks.completed()
                    continue
                if frames:
                    await self._write(client, frames)
                elif not client.sink.blocked:
                    self._go_live(client)
                    return

    async def _write(self, client: Client, frames: list[Frame], *, replay: bool = False) -> int:
        """Write frames as the socket takes them, and return how many messages that were."""
        count = 0
        for run in chunks(frames, self._chunk):
            await client.sink.drained()
            written = client.take(run, replay=replay)
            self._observer.caught_up(written)
            count += written.messages
            await asyncio.sleep(0)
        return count

    async def _replay(self, client: Client, resume: Resume) -> None:
        """Send what was missed since a position, each event marked as replayed, and then the verdict."""
        log, begin = self._log, self._clock()
        source = "memory"
        if self._must_ask(resume):
            await self._checks.completed()
        target = log.place
        told = client.place.epoch
        if told != target.epoch:
            client.take([Frame.new_epoch(target.epoch)])
        changed = (resume.epoch or told or target.epoch) != target.epoch
        beyond = not changed and resume.last_sequence > target.sequence
        first = 0 if changed else min(resume.last_sequence, target.sequence)
        oldest: int | None = None
        count = 0
        client.step_back(Position(target.epoch, first))
        while client.place.sequence < target.sequence:
            await client.sink.drained()
            if not log.holds(client.place):
                source = "redis"
            try:
                frames = await log.after(client.place)
            except Gone as gone:
                oldest = gone.oldest
                client.place = Position(target.epoch, gone.oldest - 1)
                continue
            except (Moved, TransportError):
                await self._checks.completed()
                continue
            if frames[0].place.epoch != target.epoch:
                # the numbering began anew meanwhile, and what was left of the old one went with it
                changed = True
                break
            frames = [frame for frame in frames if frame.place.epoch == target.epoch]
            gaps = [frame for frame in frames if frame.entry is None]
            if gaps:
                oldest = gaps[-1].place.sequence + 1
            count += await self._write(client, frames, replay=True) - len(gaps)
        recovered = not changed and not beyond and oldest is None
        reason = "epoch_changed" if changed else "ahead" if beyond else "gap_too_old"
        client.tell(
            ResyncAck(
                resume.channel,
                target.epoch,
                resume.last_sequence,
                count,
                recovered,
                gap_too_old=oldest is not None and not changed,
                oldest_available=None if changed else oldest,
                epoch_changed=changed,
            )
        )
        verdict = "recovered" if recovered else reason
        span = (begin, self._clock())
        self._observer.replayed(Replayed(Position(target.epoch, first), target, count, verdict, source, *span))

    def _must_ask(self, resume: Resume) -> bool:
        """Whether the answer depends on where Redis is now: another epoch, or a number that is not here yet."""
        here = self._log.place
        return (
            not here.epoch
            or (resume.epoch is not None and resume.epoch != here.epoch)
            or resume.last_sequence > here.sequence
        )
