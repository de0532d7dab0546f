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
    """An event as a publisher hands it over."""
    return id, b',"id":"%s","type":"event","data":%s}' % (id.encode(), data)


def outgoing(*ids: str, id: str | None = None, key: str | None = None) -> Outgoing:
    """A publish of events with these ids, itself called after the first."""
    return Outgoing(id or f"publish of {ids[0]}".replace(" ", "-"), key, [event(id) for id in ids])


@contextlib.asynccontextmanager
async def listening(replica: Transport, idle: float = 0.05) -> AsyncIterator[AsyncGenerator[Batch, None]]:
    """Subscribe; what follows is heard."""
    async with contextlib.aclosing(replica.listen(idle)) as batches:
        assert await anext(batches) == NOTHING
        yield batches


async def hear(batches: AsyncGenerator[Batch, None]) -> Batch:
    """The next batch with something in it."""
    async with asyncio.timeout(5):
        while (batch := await anext(batches)) == NOTHING:
            pass
    return batch


async def heard(batches: AsyncGenerator[Batch, None]) -> tuple[str, list[tuple[int, str]]]:
    """Epoch and (number, id) of the events of the next announcement."""
    (announcement,) = (await hear(batches)).announcements
    return announcement.epoch, [(entry.sequence, entry.id) for entry in announcement.events]


async def kept(replica: Transport, first: int = 1, last: int = 10_000) -> list[tuple[int, str]]:
    """Number and id of the events in the history."""
    return [(entry.sequence, entry.id) for entry in (await replica.read(first, last)).entries]


async def publish(replica: Transport, *ids: str, fence: Fence = FRESH) -> Fence:
    """Publish events; returns the fence of a replica that has delivered them."""
    made = await replica.publish(outgoing(*ids), fence)
    return Fence(Position(made.epoch, made.first + made.size - 1), ids[-1])


async def ends(ear: AsyncGenerator[Batch, None], within: float = 5.0) -> None:
    """Check that a subscription ends with the error that says so, within so many seconds."""

    async def hear_all() -> None:
        async for _ in ear:
            pass

    with pytest.raises(TransportUnavailable):
        await asyncio.wait_for(hear_all(), within)


async def fails(call: Awaitable[object]) -> None:
    """Check that the link is reported as broken."""
    with pytest.raises(TransportUnavailable):
        await call
