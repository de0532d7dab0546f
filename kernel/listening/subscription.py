"""The subscription: receives the announcements of all replicas, this one included, and subscribes again when it fails.

Theory of operation
-------------------

One task (`run`) goes through these states in a circle: *waiting* for a closed circuit, *subscribing*, *subscribed*, and
*backing off*.

Events:

    circuit closed     waiting -> subscribing.
    first batch        subscribing -> subscribed. Redis confirmed the subscription, so a position check is requested;
                       it finds what was published before.
    batch              Announcements that follow the log are delivered. Those that do not fit are handed to the position
                       check. The attempts of the back-off start again at 0.
    deaf               A position check found that the subscription receives nothing: subscribed -> backing off.
    error              A transport error also counts as a failure of the link: any -> backing off.
    deaf or error      The attempts also start again at 0 if the subscription was confirmed and lived longer than the
                       back-off before it, so that a proxy which cuts idle connections does not make the back-off grow.
    time is up         backing off -> waiting.

Invariants: at most one subscription is open, because the one that is left is closed before the back-off starts. While
the circuit is open, events that an older subscription still receives are not delivered, unless only writes are refused,
because clients must first be told that Redis is back. An announcement that does not follow the log, or contradicts it,
is not trusted: either the position in Redis explains it, or it is counted as foreign.
"""

import asyncio
import logging
import random
from contextlib import aclosing

from kernel.errors import TransportError
from kernel.listening.deafness import DeafnessDetector
from kernel.listening.delivery import Delivery
from kernel.listening.position_check import PositionCheck
from kernel.log.check_requests import CheckRequests
from kernel.log.log import Log
from kernel.log.transport import Batch, Transport
from kernel.observer import Observer
from kernel.resilience.link import Link
from kernel.resilience.retry import backoff

__all__ = ["Subscription"]

_logger = logging.getLogger(__name__)

_FOREIGN_LOG_SECONDS = 60.0


class _Deaf(Exception):
    """The subscription is connected but receives nothing."""


class Subscription:
    """Receives announcements and delivers those that follow the log.

    `subscribed` is set while a subscription is confirmed. `idle` is how long, in seconds, the subscription waits for
    something to arrive before it looks whether it is deaf; `delays` are the back-off's base and maximum.
    """

    def __init__(
        self,
        transport: Transport,
        log: Log,
        link: Link,
        delivery: Delivery,
        position_check: PositionCheck,
        deafness: DeafnessDetector,
        *,
        checks: CheckRequests,
        observer: Observer,
        idle: float,
        delays: tuple[float, float],
    ) -> None:
        self._transport = transport
        self._log = log
        self._link = link
        self._delivery = delivery
        self._position_check = position_check
        self._deafness = deafness
        self._checks = checks
        self._observer = observer
        self._idle = idle
        self._delays = delays
        self._attempt = 0
        self._subscribed_at: float | None = None
        self._warned_at = float("-inf")
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        """Subscribe, again and again, until cancelled."""
        self._attempt = 0
        delay = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await self._link.closed.wait()
            self._subscribed_at = None
            reason = "the subscription ended"
            try:
                await self._receive()
            except _Deaf:
                reason = "the subscription received nothing while events were published"
            except TransportError as error:
                self._link.failed(error)
                reason = str(error)
            except Exception:
                _logger.exception("the subscription failed unexpectedly")
                reason = "unexpected error"
            finally:
                self.subscribed.clear()
                self._deafness.ended()
            if self._subscribed_at is not None and loop.time() - self._subscribed_at > delay:
                self._attempt = 0
            delay = backoff(self._attempt, *self._delays, random.random())  # noqa: S311  jitter
            _logger.warning("subscribing again in %.1f s: %s", delay, reason)
            self._observer.listener_restarted(reason)
            await asyncio.sleep(delay)
            self._attempt += 1

    async def _receive(self) -> None:
        """Subscribe once, and take what arrives until the subscription ends."""
        async with aclosing(self._transport.listen(self._idle)) as batches:
            async for batch in batches:
                # A link that comes back may bring what it held up; clients are told first that it is back.
                await self._link.present()
                if not self.subscribed.is_set():
                    self.subscribed.set()
                    self._subscribed_at = asyncio.get_running_loop().time()
                    self._deafness.subscribed()
                    self._checks.request()
                if batch.announcements or batch.foreign:
                    self._attempt = 0
                    await self._take(batch)
                if self._deafness.deaf:
                    raise _Deaf

    async def _take(self, batch: Batch) -> None:
        async with self._delivery.lock:
            offered = await self._delivery.offer(batch.announcements)
            self._deafness.announced(self._log.place)
        if batch.foreign:
            self._observer.foreign(batch.foreign)
        if offered.misfits or offered.contradictions:
            self._position_check.report_misfits(offered.misfits)
        skipped = batch.foreign + len(offered.misfits) + offered.contradictions
        if skipped:
            now = asyncio.get_running_loop().time()
            if now - self._warned_at >= _FOREIGN_LOG_SECONDS:
                self._warned_at = now
                _logger.warning(
                    "skipped %d invalid or out-of-sequence messages on the Redis channel; checking the position",
                    skipped,
                )
