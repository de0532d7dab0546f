"""Flow control: publishes wait until the replica has delivered what was published."""

import asyncio

import pytest

from kernel.errors import CircuitOpen
from kernel.log.check_requests import CheckRequests
from kernel.log.ring import Ring
from kernel.log.transport import Publication
from kernel.position import Position
from kernel.publishing.flow_control import FlowControl
from kernel.resilience.circuit import CircuitState
from tests.virtual_time import eventually


class CountedRequests(CheckRequests):
    """Counts requests for a position check."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def request(self) -> None:
        """Count it."""
        self.count += 1


class Replica:
    """A replica's position, its flow control of ten events, and the checks that this has requested."""

    def __init__(self, patience: float = 60.0) -> None:
        self.ring = Ring(1)
        self.checks = CountedRequests()
        self.open = False
        self.flow = FlowControl(10, self.ring, self.checks, patience=patience)

    def require(self) -> None:
        """Raise while the circuit is open."""
        if self.open:
            raise CircuitOpen(1.0)

    def enter(self, events: int) -> "asyncio.Task[None]":
        """Let a publish ask for room."""
        return asyncio.create_task(self.flow.enter(events, self.require))

    def published(self, events: int, last: int, *, epoch: str = "e", replayed: bool = False) -> None:
        """Let a publish of this many events be answered."""
        self.flow.leave(events, Publication(epoch, last + 1 - events, events, 1, replayed))

    def delivered(self, last: int, epoch: str = "e") -> None:
        """Let the replica deliver up to here."""
        self.ring.start(Position(epoch, last))
        self.flow.wake()


async def entered(*tasks: "asyncio.Task[None]") -> list[bool]:
    """Return for each publish whether it was let through."""
    for _ in range(10):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


@pytest.fixture
async def replica() -> Replica:
    """Return a replica that has delivered up to number 100."""
    replica = Replica()
    replica.delivered(100)
    return replica


async def test_room(replica: Replica) -> None:
    """Publishes that fit are let through at once, and a failed publish takes no room."""
    for events in (4, 3, 3):
        await replica.flow.enter(events, replica.require)
    assert replica.flow.ahead == 10
    replica.flow.leave(4, None)
    assert replica.flow.ahead == 6
    await replica.flow.enter(4, replica.require)


async def test_waits_for_delivery(replica: Replica) -> None:
    """A published event takes room until it is delivered here, with all that other replicas published before it."""
    await replica.flow.enter(5, replica.require)
    replica.published(5, 108)  # three events of another replica were published before these
    assert replica.flow.ahead == 8
    third = replica.enter(3)
    assert await entered(third) == [False]
    replica.delivered(100)
    assert await entered(third) == [False]
    replica.delivered(101)
    assert await entered(third) == [True]


async def test_order(replica: Replica) -> None:
    """Publishes are let through in the order of their arrival, even where a later one would fit."""
    await replica.flow.enter(10, replica.require)
    waiting = [replica.enter(events) for events in (8, 1, 1)]
    assert await entered(*waiting) == [False, False, False]
    replica.flow.leave(5, None)
    assert await entered(*waiting) == [False, False, False]
    replica.flow.leave(5, None)
    assert await entered(*waiting) == [True, True, True]


async def test_larger_than_the_window(replica: Replica) -> None:
    """A publish of more than the window goes alone."""
    await replica.flow.enter(1, replica.require)
    large = replica.enter(30)
    assert await entered(large) == [False]
    replica.published(1, 101)
    assert await entered(large) == [False]
    replica.delivered(101)
    assert await entered(large) == [True]
    assert await entered(replica.enter(1)) == [False]


async def test_heard_before_the_answer(replica: Replica) -> None:
    """Events that are delivered before their publish is answered take no room twice."""
    await replica.flow.enter(10, replica.require)
    replica.delivered(110)
    replica.published(10, 110)
    assert replica.flow.ahead == 0


async def test_no_old_answers(replica: Replica) -> None:
    """The answer of an earlier publish under the same key does not change what takes room."""
    await replica.flow.enter(5, replica.require)
    replica.published(5, 105)
    await replica.flow.enter(1, replica.require)
    replica.published(1, 3, epoch="old", replayed=True)
    assert replica.flow.ahead == 5


async def test_new_epoch(replica: Replica) -> None:
    """All that was published in an epoch that the replica has not reached yet takes room."""
    await replica.flow.enter(10, replica.require)
    replica.published(10, 10, epoch="new")
    assert replica.flow.ahead == 10
    replica.delivered(0, "new")
    assert replica.flow.ahead == 10


async def test_circuit(replica: Replica) -> None:
    """When the circuit opens, all publishes that wait are refused, and later ones do not wait."""
    await replica.flow.enter(10, replica.require)
    waiting = [replica.enter(1) for _ in range(3)]
    assert await entered(*waiting) == [False, False, False]
    replica.open = True
    replica.flow.circuit_changed(CircuitState.OPEN)
    for task in (*waiting, replica.enter(1)):
        with pytest.raises(CircuitOpen):
            await task
    assert replica.flow.ahead == 10


async def test_cancelled(replica: Replica) -> None:
    """A publish that is cancelled while it waits takes no room, and the next one is let through."""
    await replica.flow.enter(10, replica.require)
    first, second = replica.enter(1), replica.enter(2)
    assert await entered(first, second) == [False, False]
    first.cancel()
    replica.flow.leave(10, None)
    assert await entered(first, second) == [True, True]
    assert replica.flow.ahead == 2


async def test_stalled() -> None:
    """While a publish waits and nothing is delivered, position checks are requested again and again."""
    replica = Replica(patience=1.0)
    replica.delivered(100)
    await replica.flow.enter(10, replica.require)
    waiting = replica.enter(1)
    await eventually(lambda: replica.checks.count == 3)
    assert not waiting.done()  # the publishes before this one have not been answered yet
    replica.flow.leave(10, None)
    await waiting


async def test_what_redis_has_lost() -> None:
    """Events that were published and that Redis lost before they were delivered do not hold up publishes for long."""
    replica = Replica(patience=1.0)
    replica.delivered(100)
    await replica.flow.enter(10, replica.require)
    replica.published(10, 110)  # Redis is back at 100 in the same epoch
    first, second = replica.enter(1), replica.enter(10)
    await first
    replica.published(1, 101)
    replica.delivered(101)
    assert await entered(second) == [True]


async def test_circuit_that_opens_as_room_becomes_free(replica: Replica) -> None:
    """A publish that fails may open the circuit and free its room; no waiting publish goes through then."""
    await replica.flow.enter(10, replica.require)
    waiting = [replica.enter(1) for _ in range(3)]
    assert await entered(*waiting) == [False, False, False]
    replica.open = True
    replica.flow.leave(10, None)
    for task in waiting:
        with pytest.raises(CircuitOpen):
            await task
    assert replica.flow.ahead == 0


async def test_retries_do_not_wait(replica: Replica) -> None:
    """A retry does not wait for room, because its id is remembered for a limited time."""
    await replica.flow.enter(10, replica.require)
    replica.flow.enter_without_waiting(5)
    assert replica.flow.ahead == 15


async def test_newer_epoch_here(replica: Replica) -> None:
    """In a new epoch in which the replica has published nothing, nothing takes room."""
    await replica.flow.enter(10, replica.require)
    replica.published(10, 110)
    replica.delivered(3, "newer")
    assert replica.flow.ahead == 0
