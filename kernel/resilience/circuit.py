"""The circuit breaker for Redis: a state machine that decides whether a call may be attempted.

States. While the circuit is *closed*, every call is allowed. While it is *open*, no call is allowed. While it is
*half-open*, one trial call is in progress, and no other call is allowed.

Events. Each is a method that takes `now` (seconds since 1970) and returns the transition that it caused, if any:

    closed    -> open        failed(), the `threshold`th in a row; or trip()
    open      -> half-open   trial(), once `recovery` seconds have passed
    half-open -> closed      trial_succeeded()
    half-open -> open        trial_failed(): the next trial is due in `recovery` seconds
    half-open -> open        trial_abandoned(): the next trial is due at once
    any       -> closed      connected(), at a start

Invariants. Ordinary calls report to `succeeded` and `failed`, and only the trial call reports to the `trial_*` methods,
to exactly one of them. An ordinary call that was in flight when the circuit opened may report late: it counts in the
totals and changes nothing else. The module has no clock, does not wait and makes no calls.

Link (link.py) adds a clock and notifications. What counts as a failure is decided by the callers.
"""

from enum import StrEnum

import msgspec
from msgspec.structs import replace

__all__ = ["CircuitBreaker", "CircuitState", "CircuitStatus", "Transition"]


class CircuitState(StrEnum):
    """The state of the circuit: all calls are allowed (closed), none (open), or one trial call (half-open)."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the circuit.

    `failure_count` and `success_count` count outcomes in a row, so one of them is always 0. The totals count every
    outcome, late ones included. Times are in seconds since 1970; they are None before the first event of their kind,
    and `opened_at` is None while the circuit is closed.
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
    """One transition of the circuit; `failure_count` is the number of failures in a row that led to it."""

    before: CircuitState
    after: CircuitState
    reason: str
    failure_count: int


class CircuitBreaker:
    """The circuit breaker: opens at the `threshold`th failure in a row, and allows a trial after `recovery` seconds.

    Methods that can change the state return the `Transition`, or None if the state did not change.
    """

    def __init__(self, threshold: int, recovery: float) -> None:
        self._threshold = threshold
        self._recovery = recovery
        self._status = CircuitStatus()

    def status(self) -> CircuitStatus:
        """Return a snapshot of the circuit."""
        return self._status

    def allows(self, now: float) -> bool:
        """Return True if an ordinary call may be made: only while the circuit is closed, whatever `now` is."""
        return self._status.state is CircuitState.CLOSED

    def retry_after(self, now: float) -> float:
        """Return the seconds until the next trial is due; 0.0 if it is due or in progress, or the circuit is closed."""
        if self._status.opened_at is None:
            return 0.0
        elapsed = now - self._status.opened_at
        # If the clock was set back, the trial is due at once. An early trial does no harm; waiting for hours would.
        return self._recovery - elapsed if 0 <= elapsed < self._recovery else 0.0

    def succeeded(self, now: float) -> None:
        """Count the success of an ordinary call: it ends a row of failures, and never changes the state."""
        status = self._status
        counts = status.state is CircuitState.CLOSED
        self._status = replace(
            status,
            failure_count=0 if counts else status.failure_count,
            success_count=status.success_count + counts,
            total_successes=status.total_successes + 1,
        )

    def failed(self, now: float, reason: str) -> Transition | None:
        """Count the failure of an ordinary call; the `threshold`th in a row opens the circuit."""
        return self._failed(now, reason, CircuitState.CLOSED, self._threshold)

    def trip(self, now: float, reason: str) -> Transition | None:
        """Count a failure that opens a closed circuit at once, such as a failed first connection."""
        return self._failed(now, reason, CircuitState.CLOSED, 1)

    def connected(self, now: float) -> Transition | None:
        """Close the circuit at a start that reached Redis, whatever its state was at an earlier stop."""
        if self._status.state is CircuitState.CLOSED:
            return None
        return self._close(now, "connected")

    def trial(self, now: float) -> Transition | None:
        """Allow the trial call, if it is due, by moving to half-open; None means that it is not allowed.

        The caller then makes the trial call and reports its outcome to exactly one of the `trial_*` methods. These do
        nothing while no trial is in progress.
        """
        if self._status.state is not CircuitState.OPEN or self.retry_after(now):
            return None
        return self._move(now, CircuitState.HALF_OPEN, "recovery time is over", self._status.opened_at)

    def trial_succeeded(self, now: float) -> Transition | None:
        """Close the circuit after a trial that succeeded."""
        if self._status.state is not CircuitState.HALF_OPEN:
            return None
        return self._close(now, "trial succeeded")

    def trial_failed(self, now: float, reason: str) -> Transition | None:
        """Open the circuit again after a trial that failed; the next is due in `recovery` seconds."""
        if self._status.state is not CircuitState.HALF_OPEN:
            return None
        return self._failed(now, reason, CircuitState.HALF_OPEN, 1)

    def trial_abandoned(self, now: float) -> Transition | None:
        """Open the circuit again after a trial without an outcome (it was cancelled); the next is due at once."""
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
