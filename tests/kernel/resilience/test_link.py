"""The link: which outcomes change the circuit, and what is notified of it."""

import asyncio
import logging

import pytest

from kernel.errors import CircuitOpen, NotStarted, TransportUnavailable, WriteRefused
from kernel.observer import Observer
from kernel.resilience.circuit import CircuitBreaker, CircuitState, Transition
from kernel.resilience.link import Link

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def away() -> TransportUnavailable:
    """Return the error for an unreachable Redis."""
    return TransportUnavailable("no connection")


def refused() -> WriteRefused:
    """Return the error for a Redis that refuses writes."""
    return WriteRefused("Redis refuses writes: ReadOnlyError")


class Ears(Observer):
    """Records every transition."""

    def __init__(self) -> None:
        self.heard: list[tuple[CircuitState, CircuitState]] = []

    def circuit_moved(self, transition: Transition) -> None:
        """Record it."""
        self.heard.append((transition.before, transition.after))


class World:
    """A link with its clock and observer; the circuit opens at the third failure and recovers in 30 s."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ears = Ears()
        self.moves: list[CircuitState] = []
        self.link = Link(CircuitBreaker(3, 30.0), observer=self.ears, clock=lambda: self.now, watchers=[self])
        self.link.in_use = True

    def circuit_changed(self, state: CircuitState) -> None:
        """Record it."""
        self.moves.append(state)

    def open(self) -> Link:
        """Open the circuit."""
        self.link.tripped(away())
        return self.link


@pytest.fixture
def world() -> World:
    """Return a link that works."""
    return World()


def test_a_closed_circuit_lets_calls_through(world: World) -> None:
    """While the circuit is closed, no call is refused and there is nothing to wait for."""
    world.link.require()
    assert world.link.closed.is_set()
    assert world.link.retry_after == 0.0
    assert world.link.status.state is CLOSED


def test_failures_in_a_row_open_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The circuit opens after failures in a row, with one critical log line."""
    for _ in range(3):
        assert world.moves == []
        world.link.failed(away())
    assert world.moves == [OPEN]
    assert world.ears.heard == [(CLOSED, OPEN)]
    assert not world.link.closed.is_set()
    world.link.failed(away())
    (line,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "no connection (failure 3 in a row)" in line.message


def test_an_open_circuit_refuses(world: World) -> None:
    """Publishes are refused at once, and told when it makes sense to come again."""
    link = world.open()
    world.now += 10
    with pytest.raises(CircuitOpen) as refused:
        link.require()
    assert refused.value.retry_after == 20.0
    assert not link.trial()


def test_a_successful_call_ends_the_row(world: World) -> None:
    """Only failures in a row count, and reads are calls as well as writes."""
    for succeeded in (world.link.read_succeeded, world.link.write_succeeded):
        world.link.failed(away())
        world.link.failed(away())
        succeeded()
    world.link.failed(away())
    assert world.link.status.failure_count == 1


def test_a_read_says_nothing_about_refused_writes(world: World) -> None:
    """A refused write is a failure, and a successful read does not reset it."""
    for _ in range(2):
        world.link.failed(refused())
        world.link.read_succeeded()
    world.link.failed(away())
    assert world.moves == [OPEN]


def test_a_write_says_all(world: World) -> None:
    """After a successful write reads count again."""
    world.link.failed(refused())
    world.link.write_succeeded()
    world.link.failed(away())
    world.link.read_succeeded()
    assert world.link.status.failure_count == 0


def test_a_trial_closes_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The circuit closes through half-open, when the one trial call succeeds."""
    caplog.set_level(logging.INFO)
    world.link.failed(refused())
    link = world.open()
    world.now += 30
    assert link.trial()
    assert not link.trial()
    assert not link.closed.is_set()
    with pytest.raises(CircuitOpen):
        link.require()
    link.trial_succeeded()
    assert link.closed.is_set()
    assert world.moves == [OPEN, CLOSED]
    assert world.ears.heard == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]
    assert "circuit closed" in caplog.text
    # the trial wrote, so that reads count again
    link.failed(away())
    link.read_succeeded()
    assert link.status.failure_count == 0


def test_a_failed_trial_opens_it_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A failed trial opens the circuit for another 30 s; clients are not told again."""
    link = world.open()
    world.now += 30
    assert link.trial()
    link.trial_failed(away())
    assert link.retry_after == 30.0
    assert world.moves == [OPEN]
    assert world.ears.heard[-1] == (HALF_OPEN, OPEN)
    assert len([record for record in caplog.records if record.levelno == logging.CRITICAL]) == 1


def test_an_abandoned_trial_is_made_again(world: World) -> None:
    """A trial without outcome does not use up the recovery time."""
    link = world.open()
    world.now += 30
    assert link.trial()
    link.trial_abandoned()
    assert world.ears.heard[-1] == (HALF_OPEN, OPEN)
    assert link.trial()


def test_outcomes_without_a_trial(world: World) -> None:
    """The outcome of a trial that was not granted moves nothing."""
    world.link.trial_abandoned()
    world.link.trial_succeeded()
    world.link.trial_failed(away())
    assert world.ears.heard == []


async def test_waiting_for_it_to_close(world: World) -> None:
    """A task that waits for the circuit continues as soon as it closes."""
    link = world.open()
    waiting = asyncio.create_task(link.closed.wait())
    world.now += 30
    link.trial()
    link.trial_succeeded()
    async with asyncio.timeout(5):
        await waiting


def test_a_call_that_many_share_fails_once(world: World) -> None:
    """Forty publishes that went to Redis together and failed together are one failure."""
    for error in (away(), away()):
        for _ in range(40):
            world.link.failed(error)
    assert world.link.status.failure_count == 2
    assert world.link.status.state is CLOSED


def test_nobody_calls_before_the_start(world: World) -> None:
    """Before the start and after the stop nothing is sent."""
    world.link.in_use = False
    with pytest.raises(NotStarted):
        world.link.require()


def test_a_start_that_connects_closes_it(world: World) -> None:
    """A start that reaches Redis closes the circuit, whatever was before the stop."""
    world.link.connected()
    assert world.moves == []
    world.open().connected()
    assert (world.link.status.state, world.link.status.opened_at) == (CLOSED, None)
    assert world.moves == [OPEN, CLOSED]
    world.link.require()
