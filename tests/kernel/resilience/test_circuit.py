"""The circuit breaker: when calls are let through, and what changes its state."""

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from kernel.resilience.circuit import CircuitBreaker, CircuitState, CircuitStatus, Transition

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def opened(at: float = 100.0) -> CircuitBreaker:
    """Return a circuit that was opened at this time."""
    circuit = CircuitBreaker(5, 30.0)
    assert circuit.trip(at, "down")
    return circuit


def half_open(at: float = 130.0) -> CircuitBreaker:
    """Return a circuit whose trial was granted at this time."""
    circuit = opened(at - 30.0)
    assert circuit.trial(at)
    return circuit


def test_names() -> None:
    """The states are called closed, open and half_open, and a new circuit is closed and blank."""
    assert [str(state) for state in CircuitState] == ["closed", "open", "half_open"]
    assert CircuitBreaker(5, 30.0).status() == CircuitStatus(
        state=CLOSED,
        failure_count=0,
        success_count=0,
        total_failures=0,
        total_successes=0,
        last_failure_time=None,
        last_state_change=None,
        opened_at=None,
    )


def test_opens_at_the_fifth_failure_in_a_row() -> None:
    """The circuit opens at the 5th consecutive failure."""
    circuit = CircuitBreaker(5, 30.0)
    assert [circuit.failed(float(now), "refused") for now in range(4)] == [None] * 4
    assert circuit.allows(4.0)
    assert circuit.failed(4.0, "refused") == Transition(CLOSED, OPEN, "refused", 5)
    assert not circuit.allows(4.0)
    assert circuit.status() == CircuitStatus(
        state=OPEN, failure_count=5, total_failures=5, last_failure_time=4.0, last_state_change=4.0, opened_at=4.0
    )


def test_a_success_ends_the_row() -> None:
    """Only consecutive failures count."""
    circuit = CircuitBreaker(2, 30.0)
    circuit.failed(1.0, "refused")
    circuit.succeeded(2.0)
    assert (circuit.status().failure_count, circuit.status().success_count) == (0, 1)
    assert circuit.failed(3.0, "refused") is None
    assert (circuit.status().failure_count, circuit.status().success_count) == (1, 0)
    assert circuit.failed(4.0, "refused") is not None


def test_trip() -> None:
    """A failed first connection opens the circuit directly, and counts as one failure."""
    circuit = CircuitBreaker(5, 30.0)
    assert circuit.trip(1.0, "no connection") == Transition(CLOSED, OPEN, "no connection", 1)
    assert circuit.status().total_failures == 1
    assert circuit.trip(2.0, "again") is None
    assert circuit.status().opened_at == 1.0


def test_one_trial_after_the_recovery_time() -> None:
    """After 30 s exactly one trial call is granted, and ordinary calls still are not."""
    circuit = opened(at=100.0)
    assert circuit.trial(129.9) is None
    assert circuit.trial(130.0) == Transition(OPEN, HALF_OPEN, "recovery time is over", 1)
    assert circuit.trial(1000.0) is None
    assert not circuit.allows(1000.0)
    assert circuit.status().last_state_change == 130.0


def test_no_trial_while_closed() -> None:
    """A closed circuit has nothing to try."""
    assert CircuitBreaker(5, 30.0).trial(1000.0) is None


def test_trial_succeeds() -> None:
    """A trial's success closes the circuit and starts a new row."""
    circuit = half_open(at=130.0)
    assert circuit.trial_succeeded(131.0) == Transition(HALF_OPEN, CLOSED, "trial succeeded", 1)
    assert circuit.allows(131.0)
    assert circuit.status() == CircuitStatus(
        success_count=1, total_failures=1, total_successes=1, last_failure_time=100.0, last_state_change=131.0
    )


def test_trial_fails() -> None:
    """A trial's failure opens the circuit for another 30 s."""
    circuit = half_open(at=130.0)
    assert circuit.trial_failed(132.0, "still down") == Transition(HALF_OPEN, OPEN, "still down", 2)
    assert (circuit.status().opened_at, circuit.status().last_failure_time) == (132.0, 132.0)
    assert circuit.trial(161.9) is None
    assert circuit.trial(162.0) is not None


def test_trial_abandoned() -> None:
    """A trial that was cancelled says nothing, so the next is due at once."""
    circuit = half_open(at=130.0)
    assert circuit.trial_abandoned(131.0) == Transition(HALF_OPEN, OPEN, "trial abandoned", 1)
    assert circuit.status().opened_at == 100.0
    assert circuit.trial(131.0) is not None


@pytest.mark.parametrize("make", [opened, half_open])
def test_late_outcomes(make: Callable[[], CircuitBreaker]) -> None:
    """Calls in flight when the circuit opened neither close it nor keep it open for longer."""
    circuit = make()
    before = circuit.status()
    circuit.succeeded(135.0)
    for _ in range(5):
        assert circuit.failed(135.0, "late") is None
    assert circuit.trip(135.0, "late") is None
    assert circuit.status() == replace(before, total_successes=1, total_failures=7, last_failure_time=135.0)


@pytest.mark.parametrize("make", [opened, lambda: CircuitBreaker(5, 30.0)])
def test_no_trial_under_way(make: Callable[[], CircuitBreaker]) -> None:
    """Only the outcome of a trial that was granted decides."""
    circuit = make()
    before = circuit.status()
    assert circuit.trial_succeeded(136.0) is None
    assert circuit.trial_failed(136.0, "late") is None
    assert circuit.trial_abandoned(136.0) is None
    assert circuit.status() == before


def test_retry_after() -> None:
    """Retry-After is what is left of the recovery time."""
    assert CircuitBreaker(5, 30.0).retry_after(1.0) == 0.0
    circuit = opened(at=100.0)
    assert [circuit.retry_after(now) for now in (100.0, 110.0, 130.0, 500.0)] == [30.0, 20.0, 0.0, 0.0]


def test_clock_set_back() -> None:
    """A clock set back does not keep the circuit open."""
    circuit = opened(at=100.0)
    assert circuit.retry_after(50.0) == 0.0
    assert circuit.trial(50.0) is not None


class CircuitMachine(RuleBasedStateMachine):
    """Calls of all kinds, concurrent and ending in any order, compared with a plain model of the circuit."""

    threshold, recovery = 3, 30.0

    def __init__(self) -> None:
        super().__init__()
        self.circuit = CircuitBreaker(self.threshold, self.recovery)
        self.now = 0.0
        self.in_flight = 0
        self.trial_under_way = False
        self.row = 0
        self.opened_at: float | None = None
        self.may_try_at_once = False
        self.outcomes = [0, 0]
        self.moves: list[Transition] = []

    def moved(self, transition: Transition | None, before: CircuitState) -> None:
        """Check that a transition is returned exactly when the state changed."""
        after = self.circuit.status().state
        assert (transition is None) is (before is after)
        if transition is not None:
            assert (transition.before, transition.after) == (before, after)
            assert self.circuit.status().last_state_change == self.now
            self.moves.append(transition)

    def state(self) -> CircuitState:
        """The expected state."""
        if self.trial_under_way:
            return HALF_OPEN
        return CLOSED if self.opened_at is None else OPEN

    def opens(self) -> None:
        """Note that the circuit should have opened now."""
        self.opened_at, self.trial_under_way, self.may_try_at_once = self.now, False, False

    @rule(seconds=st.sampled_from([0.5, 5.0, 29.5, 30.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule()
    def begin(self) -> None:
        """Make an ordinary call, if that is allowed."""
        self.in_flight += self.circuit.allows(self.now)

    @precondition(lambda self: self.in_flight)
    @rule()
    def succeed(self) -> None:
        """End an ordinary call with success, in time or late."""
        self.in_flight -= 1
        self.outcomes[0] += 1
        before = self.circuit.status().state
        self.circuit.succeeded(self.now)
        self.moved(None, before)
        if self.state() is CLOSED:
            self.row = 0

    @precondition(lambda self: self.in_flight)
    @rule(trip=st.booleans())
    def fail(self, trip: bool) -> None:
        """End an ordinary call with failure, in time or late."""
        self.in_flight -= 1
        self.outcomes[1] += 1
        before = self.circuit.status().state
        self.moved((self.circuit.trip if trip else self.circuit.failed)(self.now, "why"), before)
        if self.state() is CLOSED:
            self.row += 1
            if trip or self.row >= self.threshold:
                self.opens()

    @rule()
    def ask_for_a_trial(self) -> None:
        """Ask for a trial, at any time."""
        before = self.circuit.status().state
        granted = self.circuit.trial(self.now)
        self.moved(granted, before)
        due = self.opened_at is not None and (self.may_try_at_once or self.now - self.opened_at >= self.recovery)
        assert (granted is not None) is (due and not self.trial_under_way)
        self.trial_under_way = self.trial_under_way or granted is not None

    @precondition(lambda self: self.trial_under_way)
    @rule(outcome=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end_the_trial(self, outcome: str) -> None:
        """End the trial in one of three ways."""
        before = self.circuit.status().state
        self.trial_under_way = False
        if outcome == "succeeded":
            self.moved(self.circuit.trial_succeeded(self.now), before)
            self.outcomes[0] += 1
            self.row, self.opened_at = 0, None
        elif outcome == "failed":
            self.moved(self.circuit.trial_failed(self.now, "why"), before)
            self.outcomes[1] += 1
            self.row += 1
            self.opens()
        else:
            self.moved(self.circuit.trial_abandoned(self.now), before)
            self.may_try_at_once = True

    @invariant()
    def agrees(self) -> None:
        """Compare the status with the calls so far."""
        status = self.circuit.status()
        assert status.state is self.state()
        assert self.circuit.allows(self.now) is (status.state is CLOSED)
        assert status.opened_at == self.opened_at
        assert status.failure_count == self.row
        assert status.success_count == 0 or status.failure_count == 0
        assert [status.total_successes, status.total_failures] == self.outcomes
        assert 0.0 <= self.circuit.retry_after(self.now) <= self.recovery
        assert all(one.after is other.before for one, other in zip(self.moves, self.moves[1:], strict=False))


TestCircuit = CircuitMachine.TestCase
