"""The state of the link to Redis: the circuit breaker with a clock and change notifications.

Events. Publishers report each write (`write_succeeded`, `failed`), and position checks report each read
(`read_succeeded`, `failed`). The start of the broadcaster reports its first connection (`connected`, `tripped`). While
the circuit is open, position checks are the trial calls (`trial`, `trial_*`); a trial also writes.

States. Those of the circuit (circuit.py), and `_refused`: Redis answers but refuses writes (WriteRefused). It is set by
a failed call and cleared by the next write that succeeds.

Invariants. While writes are refused, a successful read does not count as a success, since the circuit could never open
otherwise. A call that many publishes share counts as one failure. The observer is called for every transition; the
other parts of the broadcaster are notified only when a closed circuit opens and when the circuit closes.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from kernel.errors import CircuitOpen, NotStarted, TransportError, WriteRefused
from kernel.observer import CircuitMoved, Observer
from kernel.resilience.circuit import CircuitBreaker, CircuitState, CircuitStatus, Transition

__all__ = ["CircuitWatcher", "Link"]

_logger = logging.getLogger(__name__)


class CircuitWatcher(Protocol):
    """A part of the broadcaster that acts when the circuit opens or closes."""

    def circuit_changed(self, state: CircuitState) -> None:
        """Act on a closed circuit that has opened, or an open or half-open one that has closed."""


class Link:
    """Adds a clock (`clock()` in seconds since 1970) and change notifications to the circuit breaker.

    `closed` is set while the circuit is closed. `watchers` are notified in their order, once it has opened or closed.
    `in_use` is true between start and stop.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        *,
        observer: Observer,
        clock: Callable[[], float],
        watchers: Iterable[CircuitWatcher],
    ) -> None:
        self._breaker = breaker
        self._observer = observer
        self._clock = clock
        self._watchers = tuple(watchers)
        self._refused = False
        self._counted: TransportError | None = None
        self.in_use = False
        self.closed = asyncio.Event()
        self.closed.set()
        self._opened = asyncio.Event()

    @property
    def status(self) -> CircuitStatus:
        """A snapshot of the circuit."""
        return self._breaker.status()

    @property
    def retry_after(self) -> float:
        """Seconds until the next trial is due; 0.0 if it is due or in progress, or the circuit is closed."""
        return self._breaker.retry_after(self._clock())

    async def present(self) -> None:
        """Wait until Redis can be read: the circuit is closed, or only writes are refused."""
        if not self._refused:
            await self.closed.wait()

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds` between two attempts, or until the circuit opens, after which only a trial may follow."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._opened.wait()

    def require(self) -> None:
        """Raise `CircuitOpen` unless ordinary calls are allowed, or `NotStarted` outside start and stop."""
        if not self.in_use:
            raise NotStarted("start the broadcaster first: `async with EventBroadcaster(transport) as broadcaster`")
        if not self._breaker.allows(self._clock()):
            raise CircuitOpen(self.retry_after)

    def write_succeeded(self) -> None:
        """Report that a write succeeded."""
        self._refused = False
        self._breaker.succeeded(self._clock())

    def read_succeeded(self) -> None:
        """Report that a read succeeded; it does not count while writes are refused."""
        if not self._refused:
            self._breaker.succeeded(self._clock())

    def failed(self, error: TransportError) -> None:
        """Report that an ordinary call failed; a failure that many publishes share counts once."""
        if error is self._counted:
            return
        self._counted = error
        self._refused = self._refused or isinstance(error, WriteRefused)
        self._note(self._breaker.failed(self._clock(), str(error)))

    def connected(self) -> None:
        """Report that the first connection after a start succeeded."""
        self._refused = False
        self._note(self._breaker.connected(self._clock()))

    def tripped(self, error: TransportError) -> None:
        """Report that the first connection after a start failed; the circuit opens at once."""
        self._note(self._breaker.trip(self._clock(), str(error)))

    def trial(self) -> bool:
        """Return True if the trial call may be made now; report its outcome to exactly one `trial_*` method."""
        transition = self._breaker.trial(self._clock())
        self._note(transition)
        return transition is not None

    def trial_succeeded(self) -> None:
        """Report that the trial call, which writes, succeeded."""
        self._refused = False
        self._note(self._breaker.trial_succeeded(self._clock()))

    def trial_failed(self, error: TransportError) -> None:
        """Report that the trial call failed."""
        self._note(self._breaker.trial_failed(self._clock(), str(error)))

    def trial_abandoned(self) -> None:
        """Report that the trial call was cancelled."""
        self._note(self._breaker.trial_abandoned(self._clock()))

    def _note(self, transition: Transition | None) -> None:
        if transition is None:
            return
        before, after = transition.before.value, transition.after.value
        self._observer.circuit_moved(CircuitMoved(before, after, transition.reason, transition.failure_count))
        if transition.after is CircuitState.CLOSED:
            _logger.warning("circuit closed: Redis is back, leaving degraded mode")
            self.closed.set()
            self._opened.clear()
            self._notify(transition.after)
        elif transition.before is CircuitState.CLOSED:
            _logger.critical(
                "circuit open, degraded mode: %s (failure %d in a row); publishes are refused until Redis recovers",
                transition.reason,
                transition.failure_count,
            )
            self.closed.clear()
            self._opened.set()
            self._notify(transition.after)
        else:
            _logger.info("circuit %s: %s", transition.after, transition.reason)

    def _notify(self, state: CircuitState) -> None:
        for watcher in self._watchers:
            watcher.circuit_changed(state)
