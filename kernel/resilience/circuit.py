"""The circuit breaker of the link to Redis: counts what went wrong and decides whether to try at all.

Pure transitions on a given `now` (seconds since the epoch): no clock, no waiting, no calls.
Not here: what counts as a failure, who makes the trial call, what clients and operators are told (broadcaster.py).

    closed    -> open        `threshold` failures in a row, or trip()
    open      -> half-open   trial(), once `recovery` seconds are over
    half-open -> closed      trial_succeeded()
    any       -> closed      connected(), at a start
    half-open -> open        trial_failed(): another `recovery` seconds; trial_abandoned(): may be tried again at once

Ordinary calls report to `succeeded` and `failed`, the one trial call to the `trial_*` methods. An ordinary call that
was in flight when the circuit opened and reports late counts in the totals and changes nothing else.
"""

from enum import StrEnum

import msgspec
from msgspec.structs import replace

__all__ = ["CircuitBreaker", "CircuitState", "CircuitStatus", "Transition"]


class CircuitState(StrEnum):
    """Which calls are let through: all (closed), none (open), one trial (half-open)."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything there is to know about the circuit at one moment.

    `failure_count` and `success_count` are outcomes in a row, so that one of them is 0; the totals count every outcome,
    late ones included. Times are seconds since the epoch; None before the first of their kind, and `opened_at` also
    while the circuit is closed.
    """

    state: CircuitState = CircuitState.CLOSED
    failure_count: int = 0
    success_count: int = 0
    total_failures: int = 0
    total_successes: int = 0
    last_failure_time: float | None = None
    last_state_change: float | None = None
    opened_at: float | None = None


class Transition(msgspec.Struct, frozen=True):
    """One move of the circuit; `failure_count` is the number of failures in a row that led to it."""

    before: CircuitState
    after: CircuitState
    reason: str
    failure_count: int


class CircuitBreaker:
    """Opens at the `threshold`th failure in a row; after `recovery` seconds one trial call decides how it goes on.

    Methods that can move the circuit return the `Transition`, or None if it stayed.
    """

    def __init__(self, threshold: int, recovery: float) -> None:
        self._threshold = threshold
        self._recovery = recovery
        self._status = CircuitStatus()

    def status(self) -> CircuitStatus:
        """Return the circuit as it is, in one frozen piece."""
        return self._status

    def allows(self, now: float) -> bool:
        """Tell whether an ordinary call may be made: while closed, and at no other time whatever `now` is."""
        return self._status.state is CircuitState.CLOSED

    def retry_after(self, now: float) -> float:
        """Return the seconds until the next trial is due; 0.0 if it is due or under way, or the circuit is closed."""
        if self._status.opened_at is None:
            return 0.0
        elapsed = now - self._status.opened_at
        # A clock that was set back must not keep the circuit open for hours; a trial that comes too early does no harm.
        return self._recovery - elapsed if 0 <= elapsed < self._recovery else 0.0

    def succeeded(self, now: float) -> None:
        """Count the success of an ordinary call: it ends a row of failures and never moves the circuit."""
        status = self._status
        counts = status.state is CircuitState.CLOSED
        self._status = replace(
            status,
            failure_count=0 if counts else status.failure_count,
            success_count=status.success_count + counts,
            total_successes=status.total_successes + 1,
        )

    def failed(self, now: float, reason: str) -> Transition | None:
        """Count the failure of an ordinary call: the `threshold`th in a row opens the circuit."""
        return self._failed(now, reason, CircuitState.CLOSED, self._threshold)

    def trip(self, now: float, reason: str) -> Transition | None:
        """Count a failure that opens a closed circuit at once, as the failed first connection does."""
        return self._failed(now, reason, CircuitState.CLOSED, 1)

    def connected(self, now: float) -> Transition | None:
        """Close the circuit at a start that reached Redis, whatever it was at an earlier stop."""
        if self._status.state is CircuitState.CLOSED:
            return None
        return self._close(now, "connected")

    def trial(self, now: float) -> Transition | None:
        """Grant the one trial call, if it is due, by moving to half-open; None means "not granted".

        Who is granted it makes the call and then reports to exactly one of the `trial_*` methods, which do nothing
        while no trial is under way.
        """
        if self._status.state is not CircuitState.OPEN or self.retry_after(now):
            return None
        return self._move(now, CircuitState.HALF_OPEN, "recovery time is over", self._status.opened_at)

    def trial_succeeded(self, now: float) -> Transition | None:
        """Close the circuit."""
        if self._status.state is not CircuitState.HALF_OPEN:
            return None
        return self._close(now, "trial succeeded")

    def trial_failed(self, now: float, reason: str) -> Transition | None:
        """Open the circuit for another recovery time."""
        if self._status.state is not CircuitState.HALF_OPEN:
            return None
        return self._failed(now, reason, CircuitState.HALF_OPEN, 1)

    def trial_abandoned(self, now: float) -> Transition | None:
        """Open the circuit after a trial without outcome (a cancelled one): the next is due at once."""
        if self._status.state is not CircuitState.HALF_OPEN:
            return None
        return self._move(now, CircuitState.OPEN, "trial abandoned", self._status.opened_at)

    def _close(self, now: float, reason: str) -> Transition:
        transition = self._move(now, CircuitState.CLOSED, reason, None)
        self.succeeded(now)
        return transition

    def _failed(self, now: float, reason: str, during: CircuitState, limit: int) -> Transition | None:
        status = self._status
        counts = status.state is during
        self._status = replace(
            status,
            failure_count=status.failure_count + counts,
            success_count=0 if counts else status.success_count,
            total_failures=status.total_failures + 1,
            last_failure_time=now,
        )
        if not counts or self._status.failure_count < limit:
            return None
        return self._move(now, CircuitState.OPEN, reason, now)

    def _move(self, now: float, after: CircuitState, reason: str, opened_at: float | None) -> Transition:
        before = self._status
        self._status = replace(before, state=after, last_state_change=now, opened_at=opened_at)
        return Transition(before.state, after, reason, before.failure_count)
