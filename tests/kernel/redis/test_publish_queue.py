"""Publishes that wait: who goes together, in which order, and what happens to those whom nobody will answer."""

import asyncio
from contextvars import copy_context

import pytest

from kernel.errors import TransportUnavailable
from kernel.redis import publish_queue
from kernel.redis.publish_queue import PendingPublish, PublishQueue, fail
from tests.transport_helpers import FRESH


def waiting(events: int, size: int = 1) -> PendingPublish:
    """A publish of so many events and bytes."""
    arrived = asyncio.get_running_loop().create_future()
    return PendingPublish("record", ("id", 1000, "", b""), FRESH, events, size, arrived, copy_context())


def sizes(queue: PublishQueue) -> list[list[int]]:
    """Which publishes go together, by their numbers of events, until nobody waits."""
    taken = []
    while queue:
        taken.append([one.events for one in queue.next_group()])
    return taken


async def test_all_that_wait_go_together() -> None:
    """One event, end to end: whoever has come goes with the next call, in the order in which they came."""
    queue = PublishQueue()
    assert not queue
    assert queue.next_group() == []
    for events in (3, 1, 2):
        queue.put(waiting(events))
    assert sizes(queue) == [[3, 1, 2]]
    assert not queue


@pytest.mark.parametrize("bound", ["_MOST_EVENTS", "_MOST_BYTES"])
async def test_bounds(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Bounded everything: what does not fit waits for the next call, and nobody overtakes it; too much goes alone."""
    monkeypatch.setattr(publish_queue, bound, 5)
    queue = PublishQueue()
    for number in (2, 3, 1, 9, 1, 1, 4):
        queue.put(waiting(number, number if bound == "_MOST_BYTES" else 1))
    assert sizes(queue) == [[2, 3], [1], [9], [1, 1], [4]]


async def test_failure() -> None:
    """Section 12, close: who still waits gets the error; who was answered, or gave up, is left alone."""
    group = [waiting(1) for _ in range(3)]
    group[0].arrived.set_result("reply")
    group[1].arrived.cancel()
    error = TransportUnavailable("gone")
    fail(group, error)
    assert group[0].arrived.result() == "reply"
    assert group[1].arrived.cancelled()
    assert group[2].arrived.exception() is error
