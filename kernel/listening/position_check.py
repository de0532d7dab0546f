"""The replica's ear: the subscription, the position check that finds what it did not hear, and their supervision.

Two tasks and one lock. The subscription hands over what arrives; the check asks Redis where the numbering stands (now
and then, after each subscribe, when something does not fit, when somebody asks) and fetches what is missing and not on
its way. Whoever delivers holds the lock, so the log grows in one order. A third task restarts either if it ends.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

from kernel.errors import TransportError
from kernel.listening.deafness import Hearing
from kernel.listening.delivery import Delivery
from kernel.log.check_requests import CheckRequests
from kernel.log.frames import Frame
from kernel.log.log import Gone, Log, Moved
from kernel.log.transport import Batch, Transport
from kernel.observer import Lost, Observer, Refilled
from kernel.position import Position
from kernel.resilience.link import Link
from kernel.resilience.retry import backoff
from kernel.resilience.tasks import end

__all__ = ["Listener"]

_logger = logging.getLogger(__name__)

# How often the subscription looks up although nothing arrives, in seconds.
_IDLE = 1.0
_FOREIGN_LOG_SECONDS = 60.0
_MOST_MISFITS = 1000


class _Deaf(Exception):
    """The subscription is alive, but nothing comes through it."""


class Listener:
    """Keeps the log where Redis is.

    Intervals are in seconds; `delays` are the back-off's base and maximum.
    """

    def __init__(
        self,
        transport: Transport,
        log: Log,
        link: Link,
        *,
        delivery: Delivery,
        observer: Observer,
        check_seconds: float,
        supervision_seconds: float,
        delays: tuple[float, float],
        checks: CheckRequests,
    ) -> None:
        self._checks = checks
        self._transport = transport
        self._log = log
        self._link = link
        self._delivery = delivery
        self._observer = observer
        self._check_seconds = check_seconds
        self._supervision_seconds = supervision_seconds
        self._delays = delays
        self._tasks: dict[Callable[[], Coroutine[Any, Any, None]], asyncio.Task[None]] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self.subscribed = asyncio.Event()
        self._idle = min(_IDLE, check_seconds)
        self._hearing = Hearing(self._idle)
        self._listening = self._deaf = False
        self._checked_at = float("-inf")
        self._warned_at = float("-inf")
        # Places of documents that did not follow: new ones, and those that the check under way will explain or not.
        self._misfits: deque[Position] = deque(maxlen=_MOST_MISFITS)
        self._held: deque[Position] = deque(maxlen=_MOST_MISFITS)

    @property
    def healthy(self) -> bool:
        """Whether events arrive: subscribed, and the position was compared with Redis's not long ago."""
        now = asyncio.get_running_loop().time()
        return self.subscribed.is_set() and now - self._checked_at < 3 * self._check_seconds

    async def reach(self) -> None:
        """Make first contact: find where the numbering stands, and what of it can be kept in memory."""
        while True:
            with suppress(Moved):
                return await self._catch_up(await self._ask())

    def start(self) -> None:
        """Listen from now on, whether or not Redis can be reached."""
        self._checks.request()
        self._supervisor = asyncio.create_task(self._supervise(), name="event-broadcaster supervision")

    async def stop(self) -> None:
        """End every task."""
        await end(filter(None, [self._supervisor]))  # first, or it would start the others again
        await end(self._tasks.values())
        self._tasks.clear()
        self._supervisor = None

    async def _supervise(self) -> None:
        while True:
            for room in (self._subscribe, self._keep_checking):
                task = self._tasks.get(room)
                if task is None or task.done():
                    if task is not None:
                        _logger.error("a listener task ended, starting it again")
                        self._observer.listener_restarted("the task ended")
                        await asyncio.sleep(self._delays[0])
                    self._tasks[room] = asyncio.create_task(room(), name=f"event-broadcaster {room.__name__}")
            await asyncio.wait(
                self._tasks.values(), timeout=self._supervision_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            self._checks.request()

    async def _subscribe(self) -> None:
        attempt = 0
        while True:
            await self._link.closed.wait()
            reason = "the subscription ended"
            try:
                async with aclosing(self._transport.listen(self._idle)) as batches:
                    async for batch in batches:
                        # a link that comes back may bring what it held up; clients are told first that it is back
                        await self._link.present()
                        if not self.subscribed.is_set():
                            self.subscribed.set()
                            self._checks.request()
                        if batch.announcements or batch.foreign:
                            attempt = 0
                            await self._take(batch)
                        if self._deaf:
                            raise _Deaf
            except _Deaf:
                reason = "the subscription heard nothing while events passed"
            except TransportError as error:
                self._link.failed(error)
                reason = str(error)
            except Exception:
                _logger.exception("the listener failed")
                reason = "unexpected error"
            finally:
                self.subscribed.clear()
                self._listening = self._deaf = False
                self._hearing.begin()
            delay = backoff(attempt, *self._delays, random.random())  # noqa: S311  jitter
            _logger.warning("listener restarts in %.1f s: %s", delay, reason)
            self._observer.listener_restarted(reason)
            await asyncio.sleep(delay)
            attempt += 1

    async def _take(self, batch: Batch) -> None:
        async with self._delivery.lock:
            misfits = await self._delivery.offer(batch.announcements)
            self._hearing.hear(self._log.place)
        if batch.foreign:
            self._observer.foreign(batch.foreign)
        if misfits:
            self._misfits += misfits
            self._checks.request()
        strange = batch.foreign + len(misfits)
        if strange:
            now = asyncio.get_running_loop().time()
            if now - self._warned_at >= _FOREIGN_LOG_SECONDS:
                self._warned_at = now
                _logger.warning("%d documents on the channel are not ours or do not follow, checking", strange)

    async def _keep_checking(self) -> None:
        attempt = 0
        while True:
            if self._link.closed.is_set():
                pause = self._hearing.grace if self._hearing.doubtful else self._check_seconds
                await self._checks.wait(pause)
            else:
                await asyncio.sleep(self._link.retry_after)
            trial = not self._link.closed.is_set()
            if trial and not self._link.trial():
                continue
            urgent = self._checks.start()
            try:
                position = await self._ask(probe=trial)
                if trial:
                    self._link.trial_succeeded()
                    trial = False
                else:
                    self._link.read()
                await self._catch_up(position, urgent=urgent)
            except BaseException as error:
                self._checks.fail()
                if isinstance(error, TransportError):
                    (self._link.trial_failed if trial else self._link.failed)(error)
                elif not isinstance(error, Moved):
                    self._link.trial_abandoned()
                    raise
            else:
                attempt = 0
                self._checks.succeed()
                continue
            if not trial:
                await self._link.pause(backoff(attempt, *self._delays, random.random()))  # noqa: S311  jitter
                attempt += 1

    async def _ask(self, *, probe: bool = False) -> Position:
        """Where the numbering stands in Redis; the script itself begins a new epoch where that is due."""
        self._held += self._misfits
        self._misfits.clear()
        self._listening = self.subscribed.is_set()
        return await self._transport.position(self._log.ring.fence, probe=probe)

    async def _catch_up(self, position: Position, *, urgent: bool = True) -> None:
        """See to what is missing up to Redis's position, and judge what did not fit."""
        async with self._delivery.lock:
            begun = asyncio.get_running_loop().time()
            coming = self._listening and self._hearing.brings(position, begun)
            if not self._log.place.epoch:
                await self._begin(position)
            elif self._held or urgent or not coming:
                await self._refill(position)
            place = self._log.place
            explained = sum(m.epoch == place.epoch and m.sequence <= place.sequence for m in self._held)
            if explained:
                self._hearing.hear(place)
            self._checked_at = asyncio.get_running_loop().time()
            # as of the begin: during a refill nobody can hear
            self._deaf = self._listening and self._hearing.deaf(place, begun)
        if len(self._held) > explained:
            self._observer.foreign(len(self._held) - explained)
        self._held.clear()

    async def _begin(self, position: Position) -> None:
        """First contact: fill the ring with what is newest, for those who resume; nobody has missed anything yet."""
        epoch, last = position
        start = place = Position(epoch, max(0, last - self._log.ring.size))
        frames: list[Frame] = []
        while place.sequence < last:
            try:
                frames += await self._log.stored(place, last)
                place = frames[-1].place
            except Gone as gone:
                start = place = Position(epoch, gone.oldest - 1)
                frames.clear()
        await self._delivery.start(start, frames)

    async def _refill(self, position: Position) -> None:
        """Deliver what the log lacks up to `position`."""
        before = self._log.place
        epoch, last = position
        if epoch != before.epoch:
            _logger.warning("the numbering began anew: epoch %s after %s", epoch, before.epoch)
            self._observer.renumbered(epoch)
            await self._delivery.deliver([Frame.new_epoch(epoch)])
        while self._log.place.sequence < last:
            try:
                frames = await self._log.stored(self._log.place, last)
            except Gone as gone:
                frames = [Frame.gap(epoch, self._log.place.sequence + 1, gone.oldest - 1)]
            expected = self._log.place.sequence + 1
            for frame in frames:
                if frame.entry is None:
                    lost = Lost(epoch, expected, frame.place.sequence)
                    _logger.error("events %d to %d are lost: no longer in the history", lost.first, lost.last)
                    self._observer.lost(lost)
                expected = frame.place.sequence + 1
            await self._delivery.deliver(frames)
        here = self._log.place
        if here != before:
            self._observer.refilled(Refilled(before, here))
            first = before.sequence + 1 if epoch == before.epoch else 1
            if first <= here.sequence:
                _logger.info("refilled from the history: events %d to %d", first, here.sequence)
