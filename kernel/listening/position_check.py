"""The position check: asks Redis where the numbering stands, and fetches the events that did not arrive.

Theory of operation
-------------------

One task (`run`) makes one check after another. Its states are *waiting* (circuit closed), *waiting for the trial*
(circuit open), *asking*, *comparing*, and *pausing* after a failure. They are places in the code, not variables.

Events:

    request, or time   waiting -> asking. Checks are requested after each subscribe, when an announcement does not fit,
                       when a caller waits for one, and by the supervisor. Without a request, one is made every
                       `check_seconds`, and every `grace` seconds while a check has found events that were not
                       announced yet (deafness.py).
    trial is due       waiting for the trial -> asking, when the recovery time of the circuit has passed. This check is
                       the trial call of the circuit, and it also writes.
    Redis answers      asking -> comparing. The answer of a trial closes the circuit.
    compared           comparing -> waiting.
    failure            asking or comparing -> pausing. Callers that wait for this check go on waiting, for the next.
    failure, trial     asking -> waiting for the trial. No pause is needed, because the circuit has its recovery time.

A comparison has three cases. At the first contact with Redis the newest events are read into memory. If the missing
events are probably in flight, no announcement is unexplained and no caller waits, nothing is done. Otherwise the
missing events are fetched from the history and delivered. For events that the history no longer has, a gap marker is
delivered; for a new epoch, an epoch marker.

Invariants. At most one check is in progress. Each check sends Redis the `Ring.fence` of that moment: the last events
that were delivered and verified here, with their ids. If they prove that Redis's history is another one, the script
starts a new epoch. If not, the log notes the fence as verified. A check that fails changes nothing. Events that are
delivered while Redis answers do no harm: if the log has passed the position in the answer, nothing is missing.
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
    """The outcome of one check."""

    SUCCEEDED = auto()
    FAILED = auto()
    TRIAL_FAILED = auto()


class PositionCheck:
    """Compares the log with the position in Redis, and delivers the events that are missing.

    `check_seconds` is the time between two checks that were not requested. `delays` are the base and the maximum of the
    back-off. All are in seconds.
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
        # An epoch that has just started is found by a check within this time, even if one check is late.
        self._foreign_epochs = ForeignEpochs(3 * check_seconds)
        self._compared_at = float("-inf")
        # Positions of announcements that do not fit: those reported since the last check started, and those that the
        # check in progress examines.
        self._misfits: deque[Position] = deque(maxlen=_MOST_MISFITS)
        self._examined: deque[Position] = deque(maxlen=_MOST_MISFITS)

    @property
    def recent(self) -> bool:
        """True if the last comparison with Redis is less than three check intervals ago."""
        return asyncio.get_running_loop().time() - self._compared_at < 3 * self._check_seconds

    def report_misfits(self, misfits: Iterable[Position]) -> None:
        """Request a check, because announcements at these positions do not fit, or others contradict the log.

        After the check has refilled the log, a misfit is explained if the log has reached its position: events before
        it were missed. Otherwise the announcement is not from this deployment, and is counted as foreign.
        """
        self._misfits += misfits
        self._checks.request()

    async def reach(self) -> None:
        """Make the first contact: ask Redis for its position, and read the newest events into memory.

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
        """Make one check, and report its outcome to the link; `trial` is True for the trial call of the circuit."""
        urgent = self._checks.start()
        try:
            fence, position = await self._ask(probe=trial)
            if trial:
                self._link.trial_succeeded()
                trial = False  # a failure from here on is that of an ordinary read
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
            self._link.trial_abandoned()  # does nothing unless a trial is in progress
            raise
        self._checks.succeed()
        return _Outcome.SUCCEEDED

    async def _ask(self, *, probe: bool = False) -> tuple[Fence, Position]:
        """Send Redis the log's fence; return the fence and Redis's position.

        The transport's script starts a new epoch if there is none, or if the fence proves a fork.
        """
        self._examined += self._misfits
        self._misfits.clear()
        self._deafness.check_started()
        fence = self._log.ring.fence
        return fence, await self._transport.position(fence, probe=probe)

    async def _compare(self, fence: Fence, position: Position, *, urgent: bool = True) -> None:
        """Deliver the events that are missing up to Redis's position, then decide which misfits it explains."""
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
                # Misfits of the epoch that has ended are not foreign: they announced events that Redis has lost.
                explained += sum(each.epoch == before.epoch for each in self._examined)
            self._compared_at = asyncio.get_running_loop().time()
            # `begin`, not now: announcements that arrived during the refill wait for the lock and are not counted yet.
            self._deafness.check_finished(here, begin)
            known = (here.epoch, *self._log.ring.fence.left)
            self._foreign_epochs.unexplained(self._examined, known, begin)
        foreign = len(self._examined) - explained + refuted
        if foreign:
            self._observer.foreign(foreign)
        self._examined.clear()

    async def _start(self, position: Position) -> None:
        """Fill the ring with the newest events, from which clients can resume.

        They are not sent to the clients that are connected: to those, the log starts at this position.
        """
        await self._delivery.start(*await self._log.newest(position))

    async def _refill(self, position: Position) -> None:
        """Deliver the events that the log lacks up to `position`, and markers for lost ones and for a new epoch."""
        before = self._log.place
        epoch, last = position
        if epoch != before.epoch:
            _logger.warning(
                "epoch changed from %s to %s: Redis lost or forked its history; clients are told by epoch_changed that "
                "events may be lost. Check whether Redis was restarted, restored or failed over",
                before.epoch,
                epoch,
            )
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
                _logger.info("fetched events %d to %d from the history and delivered them", first, here.sequence)

    def _report_gaps(self, frames: Iterable[Frame]) -> None:
        expected = self._log.place.sequence + 1
        for frame in frames:
            if frame.entry is None:
                lost = Lost(frame.place.epoch, expected, frame.place.sequence)
                _logger.error(
                    "events %d to %d are lost: no longer in the history; clients are told by a gap. If this replica "
                    "was too slow or cut off for too long, raise HISTORY_SIZE",
                    lost.first,
                    lost.last,
                )
                self._observer.lost(lost)
            expected = frame.place.sequence + 1
