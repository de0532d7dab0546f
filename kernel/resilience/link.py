"""Whether the link to Redis works: one circuit, fed by publishers and by the listener's side, and who is told."""

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
    """Adds a clock (`clock()` in seconds since the epoch) and change notifications to the circuit breaker.

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
        """The circuit as it is."""
        return self._breaker.status()

    @property
    def retry_after(self) -> float:
        """Seconds until the next trial, 0.0 if there is none to wait for."""
        return self._breaker.retry_after(self._clock())

    async def present(self) -> None:
        """Return while Redis is there: the circuit is closed, or it is only writes that are refused."""
        if not self._refused:
            await self.closed.wait()

    async def pause(self, seconds: float) -> None:
        """Wait between two tries, but no longer than the circuit is closed: behind that it is the trial's turn."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._opened.wait()

    def require(self) -> None:
        """Raise `CircuitOpen` unless ordinary calls may be made, and `NotStarted` where nobody may call at all."""
        if not self.in_use:
            raise NotStarted("start the broadcaster first: `async with EventBroadcaster(transport) as broadcaster`")
        if not self._breaker.allows(self._clock()):
            raise CircuitOpen(self.retry_after)

    def wrote(self) -> None:
        """A write succeeded."""
        self._refused = False
        self._breaker.succeeded(self._clock())

    def read(self) -> None:
        """A read succeeded, which says nothing if writes are being refused."""
        if not self._refused:
            self._breaker.succeeded(self._clock())

    def failed(self, error: TransportError) -> None:
        """An ordinary call failed; a call that many publishes shared fails once."""
        if error is self._counted:
            return
        self._counted = error
        self._refused = self._refused or isinstance(error, WriteRefused)
        self._note(self._breaker.failed(self._clock(), str(error)))

    def connected(self) -> None:
        """The first connection of a start succeeded."""
        self._refused = False
        self._note(self._breaker.connected(self._clock()))

    def tripped(self, error: TransportError) -> None:
        """The first connection failed: degraded at once."""
        self._note(self._breaker.trip(self._clock(), str(error)))

    def trial(self) -> bool:
        """Whether the one trial call may be made now; its outcome is owed to one of the `trial_*` methods."""
        transition = self._breaker.trial(self._clock())
        self._note(transition)
        return transition is not None

    def trial_succeeded(self) -> None:
        """The trial call succeeded, and it wrote."""
        self._refused = False
        self._note(self._breaker.trial_succeeded(self._clock()))

    def trial_failed(self, error: TransportError) -> None:
        """The trial call failed."""
        self._note(self._breaker.trial_failed(self._clock(), str(error)))

    def trial_abandoned(self) -> None:
        """The trial call was cancelled."""
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
                "circuit open, degraded mode: %s (failure %d in a row)", transition.reason, transition.failure_count
            )
            self.closed.clear()
            self._opened.set()
            self._notify(transition.after)
        else:
            _logger.info("circuit %s: %s", transition.after, transition.reason)

    def _notify(self, state: CircuitState) -> None:
        for watcher in self._watchers:
            watcher.circuit_changed(state)
