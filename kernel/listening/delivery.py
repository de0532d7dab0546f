"""Delivery: the only way by which frames enter this replica's log and reach its live clients.

What the subscription receives and what the position check fetches both pass through here, in runs of about `chunk`
bytes. Each run is appended to the log and then handed to the live clients, before the next run is appended. The log
therefore never contains events that live clients will not receive, and a client that joins between two runs continues
from the log's position.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from kernel.listening.batch_report import BatchReport, RunResult
from kernel.log.envelope import Announcement
from kernel.log.frames import Frame, chunks
from kernel.log.log import Log, Offered
from kernel.observer import Observer
from kernel.position import Position

__all__ = ["Delivery", "FanOut", "FlowControl"]


class FanOut(Protocol):
    """Writes frames to the live clients of this replica."""

    async def deliver(self, frames: list[Frame], begin: float) -> RunResult:
        """Write frames with which the log ends to each client that is live when this is called.

        The frames have just been appended to the log. The implementation must note which clients are live before its
        first await: a client that goes live later has the frames already. `begin` is when the delivery of the whole
        batch started, in seconds since 1970. If this is cancelled, every client still receives the frames.
        """
        ...


class FlowControl(Protocol):
    """Holds publishes back while too many events are published but not delivered."""

    def wake(self) -> None:
        """Look again, because something was delivered."""


class Delivery:
    """The only writer of the log.

    `lock` admits one delivery at a time. Hold it while calling any of the methods, and from the moment that the log's
    position is read until the frames that follow it are delivered; otherwise events could be delivered twice.
    `clock()` is in seconds since 1970.
    """

    def __init__(
        self,
        log: Log,
        fan_out: FanOut,
        flow_control: FlowControl,
        *,
        observer: Observer,
        chunk: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._fan_out = fan_out
        self._flow_control = flow_control
        self._observer = observer
        self._chunk = chunk
        self._clock = clock
        self.lock = asyncio.Lock()

    async def offer(self, announcements: Iterable[Announcement]) -> Offered:
        """Deliver the announced events that follow the log; return the outcome of `Log.offer` for all of them."""
        offered = self._log.offer(announcements)
        if offered.frames:
            await self.deliver(offered.frames)
        return offered

    async def deliver(self, frames: list[Frame]) -> None:
        """Append frames to the log and hand them to the live clients; observers are given the sums of all runs."""
        report = BatchReport(self._observer, self._log.place, self._clock())
        for run in chunks(frames, self._chunk):
            self._log.append(run)
            result = await self._fan_out.deliver(run, report.begin)
            report.add(run, result, self._clock())
            await asyncio.sleep(0)
        self._observer.delivered(report.delivered(self._log.place, self._clock()))
        self._flow_control.wake()

    async def start(self, after: Position, frames: list[Frame]) -> None:
        """Fill the empty log with frames that follow `after`, at the first contact with Redis.

        These frames are not written to clients: those that connected before the first contact learn the epoch and
        continue from the end of the log.
        """
        self._log.ring.start(after)
        self._log.append(frames)
        await self._fan_out.deliver([Frame.first_epoch(self._log.place)], self._clock())
        await asyncio.sleep(0)
        self._flow_control.wake()
