"""The subscription: it delivers what arrives, skips what is invalid, and is made again when it fails or is deaf."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from kernel import TransportUnavailable, WriteRefused
from tests.fakes import FakeRedis
from tests.kernel.listening.listening_side import (
    RecordingObserver,
    document,
    fill_unannounced,
    listening_side,
)
from tests.kernel.replicas import FAST, RARE_CHECKS, PausableTransport, fill, join, replica, transport_of
from tests.virtual_time import eventually


async def test_a_check_follows_each_subscription(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Events that were published while the subscription was away are fetched once it is back."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        redis.hang_up()
        await eventually(lambda: not broadcaster.is_listener_healthy())
        fill_unannounced(redis, 3)
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        await eventually(broadcaster.is_listener_healthy)
        assert observer.restarts == ["fake: subscription lost"]
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1] == 254)


async def test_deaf(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A subscription that receives nothing while events are published is detected and made again."""
    async with replica(redis, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])
        redis.deaf = True
        fill(redis, 1)
        await eventually(lambda: observer.restarts)
        redis.deaf = False
        assert observer.restarts[0] == "the subscription received nothing while events were published"
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        await eventually(broadcaster.is_listener_healthy)


async def test_slow_but_not_deaf(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Announcements that arrive a little late do not make the subscription deaf."""
    async with replica(redis, observer=observer) as broadcaster:
        for number in range(251, 256):
            redis.hold()
            fill(redis, 1)
            await eventually(lambda number=number: broadcaster.sequence == number)
            redis.release()
            checks = redis.calls.count("position")
            await eventually(lambda checks=checks: redis.calls.count("position") >= checks + 2)
        assert observer.restarts == []


async def test_a_refill_is_not_deafness(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Announcements that have to wait for a refill do not make the subscription deaf."""
    async with replica(redis, observer=observer) as broadcaster:
        transport = transport_of(broadcaster)
        transport.before["read"].clear()
        redis.hold()
        fill(redis, 30)
        await eventually(lambda: transport.in_progress["read"])
        redis.release()
        await asyncio.sleep(4 * FAST.position_check_seconds)
        transport.before["read"].set()
        await eventually(lambda: broadcaster.sequence == 280)
        await asyncio.sleep(4 * FAST.position_check_seconds)
        assert observer.restarts == []


async def test_deaf_while_checks_are_requested(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Requested checks detect a deaf subscription too."""
    async with replica(redis, observer=observer) as broadcaster:
        redis.deaf = True
        fill(redis, 3)
        async with asyncio.timeout(5):
            while not observer.restarts:
                await broadcaster.checks.completed()
                await asyncio.sleep(0)
        assert broadcaster.sequence == 253
        assert "received nothing" in observer.restarts[0]


async def test_an_outage_is_not_deafness(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Events that were published before the subscription do not make it deaf."""
    async with replica(redis, observer=observer) as broadcaster:
        redis.hang_up()
        await eventually(lambda: not broadcaster.is_listener_healthy())
        fill_unannounced(redis, 3)
        await eventually(lambda: broadcaster.sequence == 253 and broadcaster.is_listener_healthy())
        await asyncio.sleep(4 * FAST.position_check_seconds)
        assert observer.restarts == ["fake: subscription lost"]


async def test_a_hole_is_not_deafness(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A subscription that missed some events but received later ones is not deaf."""
    async with replica(redis, observer=observer) as broadcaster:
        fill_unannounced(redis, 3)
        fill(redis, 1)
        await eventually(lambda: broadcaster.sequence == 254)
        await asyncio.sleep(4 * FAST.position_check_seconds)
        assert observer.restarts == []


async def test_many_checks_are_not_deafness(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Events in flight have time to arrive, however often checks are requested."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        redis.hold()
        fill(redis, 3)
        for _ in range(5):
            await broadcaster.checks.completed()
        redis.release()
        fill(redis, 1)
        await eventually(lambda: broadcaster.sequence == 254)
        assert observer.restarts == []


async def test_silence_is_not_deafness(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A subscription is not deaf while nothing is published."""
    async with replica(redis, observer=observer) as broadcaster:
        checks = redis.calls.count("position")
        await eventually(lambda: redis.calls.count("position") >= checks + 4)
        assert observer.restarts == []
        assert broadcaster.is_listener_healthy()


@pytest.mark.parametrize(
    "payload", [b"", b"hello", b"{}", b"\xff", b'{"epoch":"epoch-1","events":[{"sequence":251}]}', b"[" * 100_000]
)
async def test_a_message_that_is_no_announcement(redis: FakeRedis, observer: RecordingObserver, payload: bytes) -> None:
    """A message that is not a valid announcement is counted and skipped; nothing restarts or asks Redis for it."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        checks = redis.calls.count("position")
        for _ in range(3):
            redis.announce(payload)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])
        await eventually(lambda: observer.foreign_count == 3)
        assert observer.restarts == []
        assert redis.calls.count("position") == checks


async def test_skipped_messages_are_logged_once_a_minute(
    redis: FakeRedis, observer: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """Skipped messages cause at most one log line a minute."""
    async with replica(redis, RARE_CHECKS, observer=observer):
        for count in range(1, 6):
            redis.announce(b"hello")
            redis.announce(document(999))
            await eventually(lambda count=count: observer.foreign_count == 2 * count)
    assert len([record for record in caplog.records if "messages on the Redis channel" in record.message]) == 1


async def test_an_unexpected_error(
    redis: FakeRedis, observer: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error is logged, and the subscription is made again."""

    class BrokenTransport(PausableTransport):
        broken = False

        def listen(self, idle: float) -> AsyncIterator[Any]:  # type: ignore[override]
            if self.broken:
                self.broken = False
                raise ZeroDivisionError
            return super().listen(idle)

    transport = BrokenTransport(redis)
    async with replica(redis, observer=observer, transport=transport) as broadcaster:
        _, sink = join(broadcaster)
        transport.broken = True
        redis.hang_up()
        await eventually(lambda: len(observer.restarts) == 2)
        assert observer.restarts == ["fake: subscription lost", "unexpected error"]
        assert "ZeroDivisionError" in caplog.text
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])


async def test_failures_back_off(redis: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """Failed subscriptions back off like publishes; a message that arrives resets the attempts."""
    config = replace(RARE_CHECKS, base_delay=0.04, max_delay=0.1, circuit_failure_threshold=100)
    async with replica(redis, config) as broadcaster:
        _, sink = join(broadcaster)
        for number in (251, 252):
            for _ in range(3):
                redis.hang_up()
                await eventually(lambda: not broadcaster.is_listener_healthy())
                await eventually(broadcaster.is_listener_healthy)
            fill(redis, 1)
            await sink.until(lambda number=number: sink.numbers[-1:] == [number])
    delays = [record.args[0] for record in caplog.records if record.message.startswith("subscribing again")]
    for delay, base in zip(delays, [0.04, 0.08, 0.1] * 2, strict=True):
        assert base * 1.1 <= delay <= base * 1.3


async def test_a_subscription_that_worked_resets_the_back_off(
    redis: FakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """A subscription that lived longer than the back-off before it resets the attempts, without any message.

    So a proxy that cuts idle connections does not make the back-off grow. One that ends earlier does not reset them.
    """
    config = replace(RARE_CHECKS, base_delay=1.0, max_delay=30.0, circuit_failure_threshold=100)
    async with replica(redis, config) as broadcaster:
        for life in (4.0, 4.0, 4.0, 0.5, 0.5, 4.0, 11.0, 0.5):
            await eventually(broadcaster.is_listener_healthy)
            await asyncio.sleep(life)
            redis.hang_up()
            await eventually(lambda: not broadcaster.is_listener_healthy())
        await eventually(broadcaster.is_listener_healthy)
    delays = [record.args[0] for record in caplog.records if record.message.startswith("subscribing again")]
    for delay, base in zip(delays, [1, 1, 1, 2, 4, 8, 1, 2], strict=True):
        assert base * 1.1 <= delay <= base * 1.3


async def test_a_subscription_that_outlives_an_outage(redis: FakeRedis) -> None:
    """Events that a subscription from before an outage brings are delivered after clients are told of the end."""
    async with listening_side(redis, recovery=0.3) as side:
        for _ in range(5):
            side.link.failed(TransportUnavailable("timed out"))
        fill(redis, 3)
        await eventually(lambda: "253" in side.outline)
        assert side.outline == ["open", "closed", "251", "252", "253"]


async def test_only_writes_are_refused(redis: FakeRedis) -> None:
    """Events of other replicas are delivered while only this replica's writes are refused."""
    async with listening_side(redis, recovery=60.0) as side:
        for _ in range(5):
            side.link.failed(WriteRefused("NOPERM"))
        fill(redis, 1)
        await eventually(lambda: side.outline == ["open", "251"])
        assert side.degraded
