"""The position check: asks Redis where the numbering stands, and fetches the events that did not arrive.

Theory of operation
-------------------

One task (`run`) makes one check after another. States: *waiting* (circuit closed), *waiting for the trial* (circuit
open), *asking*, *comparing*, *pausing* after a failure.

Events:

    request, or time   waiting -> asking. Checks are requested after each subscribe, when an announcement does not fit,
                       when a caller waits for one, and by the supervisor. They are due by themselves every
                       `check_seconds`, and sooner while events are due that were not announced.
    recovery is over   waiting for the trial -> asking. This check is the trial call of the circuit, and it also writes.
    Redis answers      asking -> comparing. The answer of a trial closes the circuit.
    compared           comparing -> waiting.
    failure            asking or comparing -> pausing. Callers that wait for the check wait for the next one.
    failure, trial     asking -> waiting for the trial, without a pause: the circuit says when it may be tried again.

Comparing decides between three cases. Before the first contact, the newest events are read into memory. If the events
up to the position are in flight and no caller waits for them, nothing is done. Otherwise they are fetched from the
history, and delivered; what the history no longer has is delivered as a gap, and a new epoch as its marker.

Invariants: one check is under way at a time. What is held against Redis is `Ring.fence`, the last events that were
delivered and verified here with their ids, as of the moment when the question leaves; `_ask` is the only place here
that chooses it. Redis itself begins a new epoch if the fence proves that its history is another one. If it does not,
what the fence named is verified; a check that fails leaves everything as it was. Events that arrive while Redis answers
make the answer old, never wrong: a position that the log has passed needs no refill.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum, auto

from kernel.errors import TransportError
from kernel.listening.deafness import DeafnessDetector
from kernel.listening.delivery import Delivery
from kernel.listening.foreign_epochs import ForeignEpochs
from kernel.log.check_requests import CheckRequests
from kernel.log.frames import Frame
from kernel.log.log import Gone, Log, Moved
from kernel.log.transport import Transport
from kernel.observer import Lost, Observer, Refilled
from kernel.position import Fence, Position
from kernel.resilience.link import Link
from kernel.resilience.retry import backoff

__all__ = ["PositionCheck"]

_logger = logging.getLogger(__name__)

_MOST_MISFITS = 1000


class _Outcome(Enum):
    """The end of one check."""

    SUCCEEDED = auto()
    FAILED = auto()
    TRIAL_FAILED = auto()


class PositionCheck:
    """Keeps the log at the position of Redis.

    `check_seconds` is the time between two checks that were not requested, `delays` the back-off's base and maximum;
    all in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        log: Log,
        link: Link,
        delivery: Delivery,
        deafness: DeafnessDetector,
        *,
        checks: CheckRequests,
        observer: Observer,
        check_seconds: float,
        delays: tuple[float, float],
    ) -> None:
        self._transport = transport
        self._log = log
        self._link = link
        self._delivery = delivery
        self._deafness = deafness
        self._checks = checks
        self._observer = observer
        self._check_seconds = check_seconds
        self._delays = delays
        # longer than a check that was delayed, so that an epoch that has just begun is found meanwhile
        self._foreign_epochs = ForeignEpochs(3 * check_seconds)
        self._compared_at = float("-inf")
        # Positions of announcements that do not fit: new ones, and those that the check under way will explain or not.
        self._misfits: deque[Position] = deque(maxlen=_MOST_MISFITS)
        self._examined: deque[Position] = deque(maxlen=_MOST_MISFITS)

    @property
    def recent(self) -> bool:
        """True if the position was compared with the one in Redis not long ago."""
        return asyncio.get_running_loop().time() - self._compared_at < 3 * self._check_seconds

    def explain(self, misfits: Iterable[Position]) -> None:
        """Request a check, because announcements at these positions do not fit, or others contradict the log.

        One is explained if the position in Redis has reached it; then events before it were missed. Otherwise it is
        foreign.
        """
        self._misfits += misfits
        self._checks.request()

    async def reach(self) -> None:
        """Make first contact: find where the numbering stands, and read into memory what fits there.

        Raises `TransportError`.
        """
        while True:
            with suppress(Moved):
                return await self._compare(*await self._ask())

    async def run(self) -> None:
        """Make one check after another, until cancelled."""
        attempt = 0
        while True:
            if self._link.closed.is_set():
                pause = self._deafness.grace if self._deafness.doubtful else self._check_seconds
                await self._checks.wait(pause)
            else:
                await asyncio.sleep(self._link.retry_after)
            # the circuit may have opened or closed meanwhile
            trial = not self._link.closed.is_set()
            if trial and not self._link.trial():
                continue
            outcome = await self._check(trial=trial)
            if outcome is _Outcome.SUCCEEDED:
                attempt = 0
            elif outcome is _Outcome.FAILED:
                await self._link.pause(backoff(attempt, *self._delays, random.random()))  # noqa: S311  jitter
                attempt += 1

    async def _check(self, *, trial: bool) -> _Outcome:
        """Make one check and report to the link; `trial` if it is the trial call of the circuit."""
        urgent = self._checks.start()
        try:
            fence, position = await self._ask(probe=trial)
            if trial:
                self._link.trial_succeeded()
                trial = False  # what fails from here on is an ordinary read
            else:
                self._link.read_succeeded()
            await self._compare(fence, position, urgent=urgent)
        except TransportError as error:
            self._checks.fail()
            if trial:
                self._link.trial_failed(error)
                return _Outcome.TRIAL_FAILED
            self._link.failed(error)
            return _Outcome.FAILED
        except Moved:
            self._checks.fail()
            return _Outcome.FAILED
        except BaseException:
            self._checks.fail()
            self._link.trial_abandoned()
            raise
        self._checks.succeed()
        return _Outcome.SUCCEEDED

    async def _ask(self, *, probe: bool = False) -> tuple[Fence, Position]:
        """Return what was held against Redis, and its position; the script itself begins a new epoch if one is due."""
        self._examined += self._misfits
        self._misfits.clear()
        self._deafness.check_started()
        fence = self._log.ring.fence
        return fence, await self._transport.position(fence, probe=probe)

    async def _compare(self, fence: Fence, position: Position, *, urgent: bool = True) -> None:
        """Fetch what is missing up to Redis's position, and judge the announcements that did not fit."""
        async with self._delivery.lock:
            begin = asyncio.get_running_loop().time()
            before = self._log.place
            refuted = self._log.ring.continuity.confirmed(fence) if position.epoch == fence.position.epoch else 0
            in_flight = self._deafness.found(position, begin)
            if not self._log.place.epoch:
                await self._start(position)
            elif self._examined or urgent or not in_flight:
                await self._refill(position)
            here = self._log.place
            explained = sum(each.epoch == here.epoch and each.sequence <= here.sequence for each in self._examined)
            if explained:
                self._deafness.announced(here)
            if here.epoch != before.epoch:
                # the past that is left behind was announced, too
                explained += sum(each.epoch == before.epoch for each in self._examined)
            self._compared_at = asyncio.get_running_loop().time()
            # as of the begin: what arrives during a refill has to wait for the lock
            self._deafness.check_finished(here, begin)
            known = (here.epoch, *self._log.ring.fence.left)
            self._foreign_epochs.unexplained(self._examined, known, begin)
        foreign = len(self._examined) - explained + refuted
        if foreign:
            self._observer.foreign(foreign)
        self._examined.clear()

    async def _start(self, position: Position) -> None:
        """Fill the ring with the newest events, for clients that resume; no client has missed any yet."""
        await self._delivery.start(*await self._log.newest(position))

    async def _refill(self, position: Position) -> None:
        """Deliver what the log lacks up to `position`."""
        before = self._log.place
        epoch, last = position
        if epoch != before.epoch:
            _logger.warning("epoch changed from %s to %s: Redis lost or forked its history", before.epoch, epoch)
            self._observer.renumbered(epoch)
            await self._delivery.deliver([Frame.new_epoch(epoch)])
        while self._log.place.sequence < last:
            try:
                frames = await self._log.stored(self._log.place, last)
            except Gone as gone:
                frames = [Frame.gap(epoch, self._log.place.sequence + 1, gone.oldest - 1)]
            self._report_gaps(frames)
            await self._delivery.deliver(frames)
        here = self._log.place
        if here != before:
            self._observer.refilled(Refilled(before, here))
            first = before.sequence + 1 if epoch == before.epoch else 1
            if first <= here.sequence:
                _logger.info("refilled from the history: events %d to %d", first, here.sequence)

    def _report_gaps(self, frames: Iterable[Frame]) -> None:
        expected = self._log.place.sequence + 1
        for frame in frames:
            if frame.entry is None:
                lost = Lost(frame.place.epoch, expected, frame.place.sequence)
                _logger.error("events %d to %d are lost: no longer in the history", lost.first, lost.last)
                self._observer.lost(lost)
            expected = frame.place.sequence + 1
