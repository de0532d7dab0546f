"""Groups publishes that arrive while a Redis call is in flight into the next call.

The module makes no calls and does not wait; it only resolves the futures of publishes that failed. Not here: the call
itself (transport.py).
"""

import asyncio
from collections.abc import Iterable
from contextvars import Context
from typing import Any, NamedTuple

from kernel.errors import TransportError
from kernel.position import Fence

__all__ = ["PendingPublish", "PublishQueue", "fail"]


class PendingPublish(NamedTuple):
    """A publish that waits for its call.

    `record` is the key of its idempotency record, and `arguments` are its arguments for the script. `events` and `size`
    (in bytes) count towards the bounds of a call. `arrived` gets the reply, and `context` is the publisher's context.
    """

    record: str
    arguments: tuple[str, int, str, bytes]
    fence: Fence
    events: int
    size: int
    arrived: asyncio.Future[Any]
    context: Context


class PublishQueue:
    """The pending publishes, in order of arrival; false if there is none.

    `most_events` and `most_bytes` bound one call. Redis serves no other client during the call, and replicas decode its
    payload in one go.
    """

    def __init__(self, *, most_events: int = 1000, most_bytes: int = 1024 * 1024) -> None:
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._pending: list[PendingPublish] = []

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, publish: PendingPublish) -> None:
        """Add a publish after all others."""
        self._pending.append(publish)

    def next_group(self) -> list[PendingPublish]:
        """Remove and return the publishes of the next call: the first, and as many after it as the bounds allow."""
        events = size = count = 0
        for publish in self._pending:
            events += publish.events
            size += publish.size
            if count and (events > self._most_events or size > self._most_bytes):
                break
            count += 1
        group, self._pending = self._pending[:count], self._pending[count:]
        return group


def fail(group: Iterable[PendingPublish], error: TransportError) -> None:
    """Raise the error in every publish of the group that still waits for its reply."""
    for publish in group:
        if not publish.arrived.done():
            publish.arrived.set_exception(error)
