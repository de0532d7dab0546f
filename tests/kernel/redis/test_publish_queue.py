"""The queue of publishes: which share a call to Redis, in which order, and what happens to them if it fails."""

import asyncio
from contextvars import copy_context

import pytest

from kernel.errors import TransportUnavailable
from kernel.redis.publish_queue import PendingPublish, PublishQueue, fail
from tests.transport_helpers import FRESH


def waiting(events: int, size: int = 1) -> PendingPublish:
    """Return a publish of this many events with this size in bytes."""
    arrived = asyncio.get_running_loop().create_future()
    return PendingPublish("record", ("id", 1000, "", b""), FRESH, events, size, arrived, copy_context())


def sizes(queue: PublishQueue) -> list[list[int]]:
    """Return the numbers of events of the publishes that go together, call by call, until the queue is empty."""
    taken = []
    while queue:
        taken.append([one.events for one in queue.next_group()])
    return taken


async def test_all_that_wait_go_together() -> None:
    """All publishes that wait go with the next call, in the order of their arrival."""
    queue = PublishQueue()
    assert not queue
    assert queue.next_group() == []
    for events in (3, 1, 2):
        queue.put(waiting(events))
    assert sizes(queue) == [[3, 1, 2]]
    assert not queue


@pytest.mark.parametrize("bound", ["most_events", "most_bytes"])
async def test_bounds(bound: str) -> None:
    """A publish that does not fit waits for the next call, and none overtakes it; one that is too large goes alone."""
    queue = PublishQueue(**{bound: 5})
    for number in (2, 3, 1, 9, 1, 1, 4):
        queue.put(waiting(number, number if bound == "most_bytes" else 1))
    assert sizes(queue) == [[2, 3], [1], [9], [1, 1], [4]]


async def test_failure() -> None:
    """A publish that still waits gets the error; one that was answered or cancelled is left alone."""
    group = [waiting(1) for _ in range(3)]
    group[0].arrived.set_result("reply")
    group[1].arrived.cancel()
    error = TransportUnavailable("gone")
    fail(group, error)
    assert group[0].arrived.result() == "reply"
    assert group[1].arrived.cancelled()
    assert group[2].arrived.exception() is error
