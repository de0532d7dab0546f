"""Calls on a transport, for the tests of transports: publish, listen, read the history."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

import pytest

from kernel.errors import TransportUnavailable
from kernel.log.transport import Batch, Outgoing, Transport
from kernel.position import NOWHERE, Fence, Position

FRESH = Fence(NOWHERE, "")
NOTHING = Batch([], 0)


def event(id: str, data: bytes = b"{}") -> tuple[str, bytes]:
    """Return an event as a publisher passes it to a transport."""
    return id, b',"id":"%s","type":"event","data":%s}' % (id.encode(), data)


def outgoing(*ids: str, id: str | None = None, key: str | None = None) -> Outgoing:
    """Return a publish of events with these ids; its own id is derived from the first."""
    return Outgoing(id or f"publish of {ids[0]}".replace(" ", "-"), key, [event(id) for id in ids])


@contextlib.asynccontextmanager
async def listening(replica: Transport, idle: float = 0.05) -> AsyncIterator[AsyncGenerator[Batch, None]]:
    """Subscribe, and yield the batches once the subscription is in place."""
    async with contextlib.aclosing(replica.listen(idle)) as batches:
        assert await anext(batches) == NOTHING
        yield batches


async def hear(batches: AsyncGenerator[Batch, None]) -> Batch:
    """Return the next batch that is not empty."""
    async with asyncio.timeout(5):
        while (batch := await anext(batches)) == NOTHING:
            pass
    return batch


async def heard(batches: AsyncGenerator[Batch, None]) -> tuple[str, list[tuple[int, str]]]:
    """Return the epoch, and (number, id) of the events, of the next announcement."""
    (announcement,) = (await hear(batches)).announcements
    return announcement.epoch, [(entry.sequence, entry.id) for entry in announcement.events]


async def kept(replica: Transport, first: int = 1, last: int = 10_000) -> list[tuple[int, str]]:
    """Return number and id of the events in the history."""
    return [(entry.sequence, entry.id) for entry in (await replica.read(first, last)).entries]


async def publish(replica: Transport, *ids: str, fence: Fence = FRESH) -> Fence:
    """Publish events; returns the fence of a replica that has delivered them."""
    made = await replica.publish(outgoing(*ids), fence)
    last = made.first + made.size - 1
    return Fence(Position(made.epoch, last), ids[-1], verified=(last, ids[-1]))


async def ends(batches: AsyncGenerator[Batch, None], within: float = 5.0) -> None:
    """Check that a subscription ends with TransportUnavailable within `within` seconds."""

    async def hear_all() -> None:
        async for _ in batches:
            pass

    with pytest.raises(TransportUnavailable):
        await asyncio.wait_for(hear_all(), within)


async def fails(call: Awaitable[object]) -> None:
    """Check that a call raises TransportUnavailable."""
    with pytest.raises(TransportUnavailable):
        await call
