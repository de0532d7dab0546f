"""Letting clients go before the end."""

import asyncio
from itertools import pairwise

from kernel.client import Client
from kernel.control import Shutdown
from kernel.drain import drain
from kernel.errors import GOING_AWAY
from kernel.frames import AsgiEncoding
from kernel.transport import NOWHERE
from tests.fakes import FakeSink

_ENCODING = AsgiEncoding(None, level=6)


def _clients(count: int) -> tuple[list[Client], list[FakeSink]]:
    sinks = [FakeSink() for _ in range(count)]
    return [Client(f"client-{i}", sink, _ENCODING, NOWHERE) for i, sink in enumerate(sinks)], sinks


async def test_told_and_closed() -> None:
    """Section 9, drain: every client is told to reconnect, and is closed with 1012."""
    clients, sinks = _clients(3)
    await drain(clients, 0.0)
    for sink in sinks:
        [notice] = sink.of("system.shutdown")
        assert notice["data"] == {"reason": "Server shutting down", "reconnect": True, "delay_ms": 0}
        assert sink.closed == GOING_AWAY


async def test_delays_are_spread() -> None:
    """Section 9, drain: the announced delays are spread evenly over the time, and each close keeps to its own."""
    clients, sinks = _clients(5)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    closed: list[float] = []
    task = asyncio.create_task(drain(clients, 0.5))
    for sink in sinks:
        while sink.closed is None:
            await asyncio.sleep(0.001)
        closed.append(loop.time() - begin)
    await task
    delays = [sink.of("system.shutdown")[0]["data"]["delay_ms"] for sink in sinks]
    assert delays == [100, 200, 300, 400, 500]
    assert all(at >= delay / 1000 - 0.01 for at, delay in zip(closed, delays, strict=True))
    assert all(later > earlier for earlier, later in pairwise(closed))


async def test_a_blocked_client_is_owed_the_notice() -> None:
    """Section 9, slow clients: nothing is sent on top of a full socket, so the notice waits until it has drained."""
    [client], [sink] = _clients(1)
    sink.room = 0
    sink.write(['{"type":"pong"}'])
    assert sink.blocked
    await drain([client], 0.0)
    assert not sink.of("system.shutdown")
    assert [type(notice) for notice in client.owed.values()] == [Shutdown]
    assert sink.closed == GOING_AWAY


async def test_nobody() -> None:
    """A replica without clients has nothing to wait for."""
    await asyncio.wait_for(drain([], 60.0), 1.0)


async def test_the_loop_turns() -> None:
    """Many clients are told and closed in pieces, between which the loop turns."""
    clients, sinks = _clients(1000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await drain(clients, 0.0)
    counter.cancel()
    assert turns > 2
    assert all(sink.closed for sink in sinks)
