"""Publishes that wait to go to Redis together: while one call is under way, those who come form the next.

Pure but for the futures on which publishers wait. Not here: the call itself (redis.py).
"""

import asyncio
from collections.abc import Iterable
from contextvars import Context
from typing import Any, NamedTuple

from kernel.errors import TransportError
from kernel.position import Fence

__all__ = ["Queue", "Waiting", "fail"]

# What is published in one call: Redis turns to nobody else meanwhile, and replicas decode it in one go.
_MOST_EVENTS = 1000
_MOST_BYTES = 1024 * 1024


class Waiting(NamedTuple):
    """One publish: its record, what the script needs of it, how much that is, and who waits for the reply."""

    record: str
    arguments: tuple[str, int, str, bytes]
    fence: Fence
    events: int
    size: int
    arrived: asyncio.Future[Any]
    context: Context


class Queue:
    """Those who wait, in the order in which they came; falsy if nobody does."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, one: Waiting) -> None:
        """Wait behind all others."""
        self._waiting.append(one)

    def next_group(self) -> list[Waiting]:
        """Take those who go together: the first, and as many of those behind it as the bounds allow."""
        events = size = count = 0
        for one in self._waiting:
            events += one.events
            size += one.size
            if count and (events > _MOST_EVENTS or size > _MOST_BYTES):
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group


def fail(group: Iterable[Waiting], error: TransportError) -> None:
    """Tell those who still wait that it came to nothing."""
    for one in group:
        if not one.arrived.done():
            one.arrived.set_exception(error)
