"""The broadcaster as a whole, from start to stop."""

import asyncio
from types import SimpleNamespace
from typing import Literal

import pytest
from msgspec.structs import replace

from kernel import (
    BroadcasterConfig,
    BroadcastFailed,
    CircuitState,
    EventBroadcaster,
    NotStarted,
    Observer,
    RedisTransport,
    SceneChangeData,
    TransportUnavailable,
    get_broadcaster,
)
from kernel.clients import Resume
from kernel.resilience.retry import backoff
from tests.fakes import FakeRedis
from tests.history import violations
from tests.kernel.replicas import (
    FAST,
    RARE_CHECKS,
    PausableTransport,
    fill,
    history_of,
    join,
    record_of,
    replica,
    transport_of,
)
from tests.virtual_time import eventually

E1, E2 = "epoch-1", "epoch-2"
SCENE = SceneChangeData(id=1, camera_id="door", detected_at="now", change_type="unknown", similarity_score=0.5)


@pytest.fixture
def redis() -> FakeRedis:
    """Return a Redis with 30 events."""
    redis = FakeRedis()
    fill(redis, 30)
    return redis


def test_defaults() -> None:
    """The kernel's numbers are those of the service."""
    assert BroadcasterConfig() == BroadcasterConfig(
        message_buffer_size=100,
        max_retries=3,
        base_delay=1.0,
        max_delay=30.0,
        circuit_failure_threshold=5,
        circuit_recovery_seconds=30.0,
        position_check_seconds=5.0,
        supervision_interval_seconds=30.0,
        chunk_bytes=262144,
        most_ahead=3000,
    )


@pytest.mark.parametrize("retries", [0, 3, 10, 1024, 10**12])
def test_retry_lifetime(retries: int) -> None:
    """A publish's id lives longer than its retries can take, deadlines and jitter included."""
    config = BroadcasterConfig(max_retries=retries)
    few = min(retries, 10)
    longest = sum(backoff(n, 1.0, 30.0, 1.0) for n in range(few)) + (retries - few) * 39.0 + (retries + 1) * 5.0
    assert longest < config.retry_lifetime < longest + 30


# -- start and stop


async def test_twice(redis: FakeRedis) -> None:
    """`start` and `stop` are safe to call twice, also at the same time."""
    broadcaster = EventBroadcaster(PausableTransport(redis), FAST)
    await broadcaster.stop()
    await asyncio.gather(broadcaster.start(), broadcaster.start())
    await broadcaster.start()
    assert len(redis.ears) == 1
    assert len(asyncio.all_tasks()) == 4
    await asyncio.gather(broadcaster.stop(), broadcaster.stop())
    await broadcaster.stop()
    assert (len(redis.ears), len(asyncio.all_tasks())) == (0, 1)


async def test_start_waits_until_it_listens(redis: FakeRedis) -> None:
    """When `start` has returned, this replica receives every publish."""
    async with EventBroadcaster(PausableTransport(redis), FAST) as broadcaster:
        assert len(redis.ears) == 1
        _, sink = join(broadcaster)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [31])


async def test_start_does_not_wait_for_ever(redis: FakeRedis) -> None:
    """`start` does not wait for ever for a slow subscription."""

    class Silent(PausableTransport):
        async def listen(self, idle: float):  # type: ignore[no-untyped-def, override]
            await asyncio.Event().wait()
            yield

    broadcaster = EventBroadcaster(Silent(redis), FAST)
    async with asyncio.timeout(5):
        await broadcaster.start()
    assert broadcaster.ready
    assert not broadcaster.is_listener_healthy()
    await broadcaster.stop()


async def test_start_without_redis(redis: FakeRedis) -> None:
    """`start` raises if Redis cannot be reached, leaves nothing behind, and may be tried again."""

    class Counting(PausableTransport):
        closed = 0

        async def close(self) -> None:
            self.closed += 1
            await super().close()

    redis.down = True
    transport = Counting(redis)
    broadcaster = EventBroadcaster(transport, FAST)
    with pytest.raises(TransportUnavailable):
        await broadcaster.start()
    assert (broadcaster.ready, broadcaster.is_degraded(), len(asyncio.all_tasks())) == (False, False, 1)
    assert transport.closed == 1
    redis.down = False
    await broadcaster.start()
    assert broadcaster.ready
    await broadcaster.stop()
    assert transport.closed == 2


async def test_start_degraded(redis: FakeRedis) -> None:
    """A replica that starts without Redis is degraded and not ready, and recovers by itself."""
    redis.down = True
    async with replica(redis, without_redis=True) as broadcaster:
        status = broadcaster.get_circuit_state()
        assert (status.state, status.total_failures) == (CircuitState.OPEN, 1)
        assert broadcaster.is_degraded()
        assert not broadcaster.ready
        assert not broadcaster.is_listener_healthy()
        assert (broadcaster.epoch, broadcaster.sequence) == ("", 0)
        redis.down = False
        await eventually(lambda: broadcaster.ready and broadcaster.is_listener_healthy())
        assert (broadcaster.epoch, broadcaster.sequence) == (E1, 30)
        assert not broadcaster.is_degraded()


async def test_start_without_redis_although_it_is_there(redis: FakeRedis) -> None:
    """A service that may start without Redis starts normally with it."""
    async with replica(redis, without_redis=True) as broadcaster:
        assert broadcaster.ready
        assert not broadcaster.is_degraded()


async def test_stop_lets_go_of_everything(redis: FakeRedis) -> None:
    """`stop` disconnects every client, whatever it was doing, and ends every task."""
    async with replica(redis) as broadcaster:
        transport_of(broadcaster).before["read"].clear()
        join(broadcaster)
        join(broadcaster, room=10)
        join(broadcaster, resume=Resume("events", 0, E1))
        join(broadcaster, resume=Resume("events", 99, E1))
        await eventually(lambda: transport_of(broadcaster).in_progress["read"])
        fill(redis, 5)
        assert broadcaster.connections == 4


async def test_a_second_life(redis: FakeRedis) -> None:
    """A broadcaster can be started again, and what passed meanwhile is caught up with."""
    broadcaster = EventBroadcaster(PausableTransport(redis), FAST)
    await broadcaster.start()
    await broadcaster.stop()
    assert not broadcaster.is_listener_healthy()
    fill(redis, 5)
    await broadcaster.start()
    assert broadcaster.sequence == 35
    _, sink = join(broadcaster)
    fill(redis, 1)
    await sink.until(lambda: sink.numbers == [36])
    await broadcaster.stop()


# -- what it tells about itself


@pytest.mark.real_time
async def test_a_stop_right_behind_the_start(redis_url: str) -> None:
    """`stop` is safe to call twice and at any moment after `start`, on a real Redis too."""
    for turns in range(6):
        broadcaster = EventBroadcaster(RedisTransport(redis_url))
        await broadcaster.start()
        await broadcaster.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await broadcaster.stop()
            await broadcaster.stop()


async def test_a_second_life_after_an_outage(redis: FakeRedis) -> None:
    """A start that reaches Redis is not degraded, whatever was before the stop."""
    broadcaster = EventBroadcaster(PausableTransport(redis), replace(FAST, circuit_recovery_seconds=600.0))
    await broadcaster.start()
    redis.down = True
    await eventually(broadcaster.is_degraded)
    await broadcaster.stop()
    redis.down = False
    await broadcaster.start()
    assert not broadcaster.is_degraded()
    assert (await broadcaster.broadcast_scene_change(SCENE)).sequence == 31
    await broadcaster.stop()


async def test_a_publish_under_way_at_the_stop(redis: FakeRedis) -> None:
    """A publish that waits for its retry is not tried again after `stop`, and its caller is told so."""
    broadcaster = EventBroadcaster(PausableTransport(redis), replace(RARE_CHECKS, base_delay=0.3, max_delay=0.3))
    await broadcaster.start()
    await eventually(lambda: redis.calls.count("position") == 2)
    redis.fail()
    publishing = asyncio.create_task(broadcaster.broadcast_scene_change(SCENE))
    await eventually(lambda: broadcaster.counters.retries)
    await broadcaster.stop()
    calls = redis.calls.count("publish")
    with pytest.raises(BroadcastFailed):
        await publishing
    assert redis.calls.count("publish") == calls == 1
    with pytest.raises(NotStarted):
        await broadcaster.broadcast_scene_change(SCENE)


async def test_position(redis: FakeRedis) -> None:
    """Epoch and sequence are those of the last event delivered here."""
    async with replica(redis) as broadcaster:
        assert (broadcaster.epoch, broadcaster.sequence, broadcaster.connections) == (E1, 30, 0)
        client, _ = join(broadcaster)
        fill(redis, 2)
        await eventually(lambda: broadcaster.sequence == 32)
        assert broadcaster.connections == 1
        broadcaster.disconnect(client)
        assert broadcaster.connections == 0


async def test_get_messages_since(redis: FakeRedis) -> None:
    """`get_messages_since` returns what the replica has in memory, marked as replayed if asked for."""
    async with replica(redis) as broadcaster:
        messages = broadcaster.get_messages_since(28)
        assert messages == [
            {"type": "event", "data": {"batch_id": f"{E1}-{number}"}, "sequence": number, "requires_ack": False}
            for number in (29, 30)
        ]
        marked = broadcaster.get_messages_since(28, mark_as_replay=True)
        assert marked == [{**message, "replay": True} for message in messages]
        assert len(broadcaster.get_messages_since(0)) == FAST.message_buffer_size
        assert broadcaster.get_messages_since(30) == []
        redis.flush()
        fill(redis, 1)
        await eventually(lambda: broadcaster.epoch == E2 and broadcaster.sequence == 1)
        assert [message["sequence"] for message in broadcaster.get_messages_since(0)] == [1]


@pytest.mark.parametrize("name", ["sequence", "seq"])
async def test_number_field(name: Literal["sequence", "seq"]) -> None:
    """The number has the same name in every event frame, whether it comes live, replayed or by catch-up."""
    redis = FakeRedis()
    fill(redis, 150)
    async with replica(redis, replace(FAST, number_field=name)) as broadcaster:
        # the sinks know numbers by one name only, and are not asked here whether any is missing
        _, sink = join(broadcaster, resume=Resume("events", 100, None), skips=lambda _: True)
        _, slow = join(broadcaster, room=1, skips=lambda _: True)
        assert sink.messages[0] == {**sink.messages[0], "lastSeq": 150, **({"seq": 150} if name == "seq" else {})}
        assert ("seq" in sink.messages[0]) == (name == "seq")
        await sink.until(lambda: sink.of("resync_ack"))
        fill(redis, 50)
        await sink.until(lambda: len(sink.of("event")) == 100)
        slow.room = None
        slow.drain()
        await slow.until(lambda: len(slow.of("event")) == 50)
        assert [message[name] for message in sink.of("event")] == list(range(101, 201))
        assert [message[name] for message in slow.of("event")] == list(range(151, 201))
        other = "sequence" if name == "seq" else "seq"
        assert not [message for message in sink.of("event") + slow.of("event") if other in message]
        assert broadcaster.get_messages_since(199)[0][name] == 200


def test_get_broadcaster(redis: FakeRedis) -> None:
    """`get_broadcaster` returns one instance per application, however many ask."""
    state = SimpleNamespace(broadcaster=EventBroadcaster(PausableTransport(redis)))
    assert get_broadcaster(state) is get_broadcaster(state) is state.broadcaster


async def test_an_observer_that_fails(redis: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """An observer that fails is logged and switched off, and delivery goes on."""

    class Broken(Observer):
        def delivered(self, delivered: object) -> None:
            raise ZeroDivisionError

    async with replica(redis, observer=Broken()) as broadcaster:
        _, sink = join(broadcaster)
        for number in (31, 32):
            fill(redis, 1)
            await sink.until(lambda number=number: sink.numbers[-1:] == [number])
    assert len([record for record in caplog.records if "observer Broken failed" in record.message]) == 1


# -- several replicas


async def test_any_replica_will_do(redis: FakeRedis) -> None:
    """A client may reconnect to any replica, and misses nothing on the way."""
    async with replica(redis) as one, replica(redis) as two:
        client, first = join(one)
        fill(redis, 10)
        await first.until(lambda: first.numbers[-1:] == [40])
        one.disconnect(client)
        fill(redis, 30)
        _, second = join(two, resume=Resume("events", 40, E1))
        fill(redis, 1)
        await second.until(lambda: second.numbers[-1:] == [71] and second.of("resync_ack"))
        assert violations(history_of(redis), [record_of(second)]) == []
        assert first.numbers + second.numbers == list(range(31, 72))


async def test_replicas_agree(redis: FakeRedis) -> None:
    """Whatever happens to Redis, every client of every replica sees the same numbers and epochs."""
    async with replica(redis) as one, replica(redis, RARE_CHECKS) as two:
        sinks = [join(broadcaster)[1] for broadcaster in (one, two)]
        fill(redis, 5)
        await eventually(lambda: one.sequence == two.sequence == 35)
        redis.rewind(33)
        await eventually(lambda: one.epoch == E2)
        fill(redis, 5)
        await eventually(lambda: one.sequence == two.sequence == 5)
        assert sinks[0].outline == sinks[1].outline
        assert sinks[0].outline[1:] == ["31", "32", "33", "34", "35", f"epoch {E2}", "1", "2", "3", "4", "5"]


async def test_a_long_outage(redis: FakeRedis) -> None:
    """During an outage connections are accepted; when Redis is back, old and new clients get every event."""
    config = replace(FAST, message_buffer_size=5)
    async with replica(redis, config) as broadcaster:
        _, old = join(broadcaster)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        fill(redis, 100)
        _, new = join(broadcaster)
        _, resuming = join(broadcaster, resume=Resume("events", 3, E1))
        redis.down = False
        for sink, first in ((old, 31), (new, 31), (resuming, 4)):
            await sink.until(lambda sink=sink: sink.numbers[-1:] == [130])
            assert sink.numbers == list(range(first, 131))
