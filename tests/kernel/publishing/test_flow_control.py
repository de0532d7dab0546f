"""Flow control: who waits until the replica has delivered what was published, and what ends the waiting."""

import asyncio

import pytest

from kernel.errors import CircuitOpen
from kernel.log.check_requests import CheckRequests
from kernel.log.ring import Ring
from kernel.log.transport import Publication
from kernel.position import Position
from kernel.publishing.flow_control import FlowControl
from kernel.resilience.circuit import CircuitState


class CountedRequests(CheckRequests):
    """Counts what is requested."""

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
        """Somebody comes."""
        return asyncio.create_task(self.flow.enter(events, self.require))

    def published(self, events: int, last: int, *, epoch: str = "e", replayed: bool = False) -> None:
        """A publish of so many events was answered."""
        self.flow.leave(events, Publication(epoch, last + 1 - events, events, 1, replayed))

    def delivered(self, last: int, epoch: str = "e") -> None:
        """The replica has moved on."""
        self.ring.start(Position(epoch, last))
        self.flow.wake()


async def entered(*tasks: "asyncio.Task[None]") -> list[bool]:
    """Who is through, when everybody has had time to look."""
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
    """Flow control: what fits goes at once, also when it comes in parts, and a failed publish takes no room."""
    for events in (4, 3, 3):
        await replica.flow.enter(events, replica.require)
    assert replica.flow.ahead == 10
    replica.flow.leave(4, None)
    assert replica.flow.ahead == 6
    await replica.flow.enter(4, replica.require)


async def test_waits_for_delivery(replica: Replica) -> None:
    """Flow control: what was published takes room until it was delivered here, with all that others published."""
    await replica.flow.enter(5, replica.require)
    replica.published(5, 108)  # three of another replica came before them
    assert replica.flow.ahead == 8
    third = replica.enter(3)
    assert await entered(third) == [False]
    replica.delivered(100)
    assert await entered(third) == [False]
    replica.delivered(101)
    assert await entered(third) == [True]


async def test_order(replica: Replica) -> None:
    """Flow control: first come, first served, even where a later one would fit."""
    await replica.flow.enter(10, replica.require)
    waiting = [replica.enter(events) for events in (8, 1, 1)]
    assert await entered(*waiting) == [False, False, False]
    replica.flow.leave(5, None)
    assert await entered(*waiting) == [False, False, False]
    replica.flow.leave(5, None)
    assert await entered(*waiting) == [True, True, True]


async def test_larger_than_the_window(replica: Replica) -> None:
    """Flow control: a publish of more than the window goes alone."""
    await replica.flow.enter(1, replica.require)
    large = replica.enter(30)
    assert await entered(large) == [False]
    replica.published(1, 101)
    assert await entered(large) == [False]
    replica.delivered(101)
    assert await entered(large) == [True]
    assert await entered(replica.enter(1)) == [False]


async def test_heard_before_the_answer(replica: Replica) -> None:
    """Flow control: events that are delivered before their publish is answered take no room twice."""
    await replica.flow.enter(10, replica.require)
    replica.delivered(110)
    replica.published(10, 110)
    assert replica.flow.ahead == 0


async def test_no_old_answers(replica: Replica) -> None:
    """Flow control: an answer that an earlier publish got under the same key says nothing of where Redis is."""
    await replica.flow.enter(5, replica.require)
    replica.published(5, 105)
    await replica.flow.enter(1, replica.require)
    replica.published(1, 3, epoch="old", replayed=True)
    assert replica.flow.ahead == 5


async def test_new_epoch(replica: Replica) -> None:
    """Flow control: of an epoch of which the replica has yet to hear, all that was published is still to come."""
    await replica.flow.enter(10, replica.require)
    replica.published(10, 10, epoch="new")
    assert replica.flow.ahead == 10
    replica.delivered(0, "new")
    assert replica.flow.ahead == 10


async def test_circuit(replica: Replica) -> None:
    """Section 8, degraded: when the circuit opens, all who wait are refused, and who comes later does not wait."""
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
    """Flow control: who gives up waiting leaves the place to the next, and takes no room."""
    await replica.flow.enter(10, replica.require)
    first, second = replica.enter(1), replica.enter(2)
    assert await entered(first, second) == [False, False]
    first.cancel()
    replica.flow.leave(10, None)
    assert await entered(first, second) == [True, True]
    assert replica.flow.ahead == 2


async def test_stalled() -> None:
    """Flow control: while nothing moves although somebody waits, somebody is told to look why, again and again."""
    replica = Replica(patience=0.001)
    replica.delivered(100)
    await replica.flow.enter(10, replica.require)
    waiting = replica.enter(1)
    async with asyncio.timeout(5):
        while replica.checks.count < 3:
            await asyncio.sleep(0.001)
    assert not waiting.done()  # those ahead are still on their way out
    replica.flow.leave(10, None)
    await waiting


async def test_what_redis_has_lost() -> None:
    """Flow control: what was published, was not delivered, and is lost with Redis holds nobody up for long."""
    replica = Replica(patience=0.001)
    replica.delivered(100)
    await replica.flow.enter(10, replica.require)
    replica.published(10, 110)  # and Redis is back at 100, in the same epoch
    first, second = replica.enter(1), replica.enter(10)
    async with asyncio.timeout(5):
        await first
    replica.published(1, 101)
    replica.delivered(101)
    assert await entered(second) == [True]


async def test_circuit_that_opens_as_room_becomes_free(replica: Replica) -> None:
    """Section 8, degraded: a publish that fails opens the circuit and frees its room; nobody who waits goes through."""
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
    """Section 2, errors: the id of a retry is remembered for a limited time, so that it is not for it to wait."""
    await replica.flow.enter(10, replica.require)
    replica.flow.enter_again(5)
    assert replica.flow.ahead == 15


async def test_newer_epoch_here(replica: Replica) -> None:
    """Flow control: when the replica has moved on to an epoch in which it has published nothing, nothing is behind."""
    await replica.flow.enter(10, replica.require)
    replica.published(10, 110)
    replica.delivered(3, "newer")
    assert replica.flow.ahead == 0
