"""Drain: every client is notified and then closed, and gets its events until then."""

import asyncio

import pytest

from kernel.clients import pace
from kernel.clients.close_reasons import GOING_AWAY
from tests.fakes import FakeRedis
from tests.kernel.replicas import fill, join, replica
from tests.virtual_time import eventually


@pytest.fixture
def redis() -> FakeRedis:
    """Return an empty Redis."""
    return FakeRedis()


async def test_told_and_closed(redis: FakeRedis) -> None:
    """Each client is told its delay, spread over the given time, and is closed with 1012 after it."""
    async with replica(redis) as broadcaster:
        sinks = [join(broadcaster)[1] for _ in range(4)]
        begun = asyncio.get_running_loop().time()
        drain = asyncio.create_task(broadcaster.drain(0.2))
        for sink in sinks:  # a slow machine tells them in several steps
            await sink.until(lambda sink=sink: sink.of("system.shutdown"))
        assert broadcaster.draining
        assert [sink.messages[-1] for sink in sinks] == [
            {
                "type": "system.shutdown",
                "data": {"reason": "Server shutting down", "reconnect": True, "delay_ms": delay},
            }
            for delay in (50, 100, 150, 200)
        ]
        for number, sink in enumerate(sinks, 1):
            await sink.until(lambda sink=sink: sink.closed)
            assert asyncio.get_running_loop().time() - begun >= number * 0.05
        await drain
        assert [sink.closed for sink in sinks] == [GOING_AWAY] * 4
        assert GOING_AWAY.code == 1012


async def test_events_go_on(redis: FakeRedis) -> None:
    """Each client gets events until its own close, and publishing continues."""
    async with replica(redis) as broadcaster:
        first, second = (join(broadcaster)[1] for _ in range(2))
        drain = asyncio.create_task(broadcaster.drain(0.2))
        await first.until(lambda: first.closed)
        fill(redis, 1)
        await second.until(lambda: second.numbers == [1])
        assert second.closed is None
        assert first.numbers == []
        await drain


@pytest.mark.parametrize("clients", [0, 3])
async def test_at_once(redis: FakeRedis, clients: int) -> None:
    """With a drain of 0 seconds every client is notified and closed at once."""
    async with replica(redis) as broadcaster:
        sinks = [join(broadcaster)[1] for _ in range(clients)]
        async with asyncio.timeout(5):
            await broadcaster.drain(0.0)
        assert [sink.outline for sink in sinks] == [["connected", "system.shutdown"]] * clients
        assert all(sink.closed == GOING_AWAY for sink in sinks)


async def test_a_large_fleet(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop runs by the clock while thousands of clients are notified and closed."""
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    async with replica(redis) as broadcaster:
        for _ in range(900):
            join(broadcaster)
        turns = 0
        drain = asyncio.create_task(broadcaster.drain(0.0))
        while not drain.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 1800


async def test_a_full_client(redis: FakeRedis) -> None:
    """A client whose socket is full is notified as soon as it has drained, together with other notices."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, room=10)
        drain = asyncio.create_task(broadcaster.drain(0.5))
        await asyncio.sleep(0)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        assert sink.outline == ["connected"]
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.closed)
        assert sink.outline == ["connected", "system.shutdown", "degraded"]
        await drain


async def test_a_client_that_stays_full(redis: FakeRedis) -> None:
    """A client whose socket stays full is notified right before its close."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, room=10)
        await broadcaster.drain(0.0)
        assert sink.outline == ["connected", "system.shutdown"]
        assert sink.messages[-1]["data"]["delay_ms"] == 0
        assert sink.closed == GOING_AWAY
