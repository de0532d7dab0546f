"""The supervisor: a task that ends is restarted, stopping ends both, and health is known."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from kernel.clients import fanout, pace
from kernel.position import Fence, Position
from tests.fakes import FakeRedis
from tests.kernel.listening.listening_side import RecordingObserver, fill_unannounced, task_of
from tests.kernel.replicas import FAST, RARE_CHECKS, PausableTransport, fill, join, replica, transport_of
from tests.virtual_time import eventually


@pytest.mark.parametrize("name", ["subscription", "position check"])
async def test_a_task_that_was_cancelled(redis: FakeRedis, observer: RecordingObserver, name: str) -> None:
    """A task that ends for whatever reason is restarted, and nothing is lost."""
    async with replica(redis, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        task_of(name).cancel()
        fill_unannounced(redis, 2)
        await sink.until(lambda: sink.numbers == [251, 252])
        await eventually(lambda: observer.restarts)
        assert observer.restarts == ["the task ended"]
        await eventually(broadcaster.is_listener_healthy)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251, 252, 253])


async def test_a_check_that_was_cancelled(redis: FakeRedis) -> None:
    """A caller that waited for a cancelled check gets the result of the next one."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        transport = transport_of(broadcaster)
        transport.before["position"].clear()
        waiting = asyncio.create_task(broadcaster.checks.completed())
        await eventually(lambda: transport.in_progress["position"])
        task_of("position check").cancel()
        transport.before["position"].set()
        async with asyncio.timeout(5):
            await waiting


class SwallowingTransport(PausableTransport):
    """Swallows the first cancellation of a check, as redis-py may on Python 3.11."""

    swallowed = False

    async def position(self, fence: Fence, *, probe: bool = False) -> Position:
        """Ask, and swallow it."""
        try:
            return await super().position(fence, probe=probe)
        except asyncio.CancelledError:
            if self.swallowed:
                raise
            self.swallowed = True
            return self.redis.place


async def test_a_cancellation_that_is_swallowed(redis: FakeRedis) -> None:
    """Stopping ends a task even if the library in between swallows the first cancellation."""
    transport = SwallowingTransport(redis)
    async with replica(redis, RARE_CHECKS, transport=transport) as broadcaster:
        transport.before["position"].clear()
        waiting = asyncio.create_task(broadcaster.checks.completed())
        await eventually(lambda: transport.in_progress["position"])
        async with asyncio.timeout(10):
            await broadcaster.stop()
        assert transport.swallowed
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_a_trial_that_was_cancelled(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A trial call that is cancelled does not leave the circuit half-open for ever."""
    async with replica(redis, observer=observer) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        transport = transport_of(broadcaster)
        transport.before["probe"].clear()
        await eventually(lambda: transport.in_progress["probe"])
        task_of("position check").cancel()
        transport.before["probe"].set()
        redis.down = False
        await eventually(lambda: not broadcaster.is_degraded())


async def test_a_delivery_that_was_cancelled(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the subscription is cancelled in the middle of a delivery, every client still gets the events."""
    monkeypatch.setattr(fanout, "LOOK", 1)
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    async with replica(redis) as broadcaster:
        sinks = [join(broadcaster)[1] for _ in range(30)]
        fill(redis, 50)
        await eventually(lambda: sinks[5].numbers)
        assert not sinks[-1].numbers
        task_of("subscription").cancel()
        for sink in sinks:
            await sink.until(lambda sink=sink: sink.numbers == list(range(251, 301)))


async def test_an_unexpected_error_in_a_check(
    redis: FakeRedis, observer: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """A position check that fails unexpectedly is restarted after the restart delay, each time."""

    class BrokenTransport(PausableTransport):
        broken = 0

        async def position(self, fence: Any, *, probe: bool = False) -> Position:
            if self.broken:
                self.broken -= 1
                raise ZeroDivisionError
            return await super().position(fence, probe=probe)

    transport = BrokenTransport(redis)
    config = replace(FAST, base_delay=0.1, max_delay=0.1)
    async with replica(redis, config, observer=observer, transport=transport) as broadcaster:
        _, sink = join(broadcaster)
        begun = asyncio.get_running_loop().time()
        transport.broken = 3
        fill_unannounced(redis, 1)
        await sink.until(lambda: sink.numbers == [251])
        assert observer.restarts == ["the task ended"] * 3
        assert asyncio.get_running_loop().time() - begun >= 3 * config.base_delay
        await eventually(lambda: "ZeroDivisionError" in caplog.text)


async def test_supervision_requests_checks(redis: FakeRedis) -> None:
    """The supervisor requests a position check at each interval."""
    config = replace(FAST, position_check_seconds=60.0, supervision_interval_seconds=0.05)
    async with replica(redis, config) as broadcaster:
        _, sink = join(broadcaster)
        fill_unannounced(redis, 2)
        await sink.until(lambda: sink.numbers == [251, 252])


async def test_a_stale_check_is_not_healthy(redis: FakeRedis) -> None:
    """A listening side whose last check is too long ago is not healthy."""
    async with replica(redis) as broadcaster:
        assert broadcaster.is_listener_healthy()
        transport_of(broadcaster).before["position"].clear()
        await eventually(lambda: not broadcaster.is_listener_healthy())
        transport_of(broadcaster).before["position"].set()
        await eventually(broadcaster.is_listener_healthy)
