"""Scale-out and scale-in with real processes: connections spread evenly, and no event is lost."""

import asyncio
import random

import pytest

from tests.history import History, violations
from tests.system.producers import RetryingProducer
from tests.system.recording_client import PATTERNS, ReconnectingClient, wait_until_delivered
from tests.system.replica import PATIENCE, Replica, ReplicaFactory
from tests.waiting import eventually

CLIENTS = 500
MAX_AGE_SECONDS = 6.0
DRAIN_SECONDS = 4.0


async def counts(replicas: list[Replica]) -> list[int]:
    """Return the number of connections of each replica."""
    return [(await asyncio.to_thread(replica.health))["connections"] for replica in replicas]


@pytest.mark.system
async def test_scale_out_and_in(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Under load, 500 clients spread by WEBSOCKET_MAX_AGE_SECONDS and by a drain, and lose no event."""
    rng = random.Random(6)
    shared = {
        "redis_url": valkey,
        "redis_event_channel": channel,
        "drain_seconds": DRAIN_SECONDS,
        "websocket_max_age_seconds": MAX_AGE_SECONDS,
        "websocket_ping_interval_seconds": 1,
    }
    # Like a Service of Kubernetes: each new connection goes to a random replica that is ready.
    service = [start(**shared)]
    history, stop, gone = History(), asyncio.Event(), asyncio.Event()
    producers = [RetryingProducer(history, f"producer-{number}", service, rng) for number in range(2)]
    clients = [
        ReconnectingClient(f"client-{number}", PATTERNS[number % len(PATTERNS)], rng) for number in range(CLIENTS)
    ]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.stay(service, gone))
        for producer in producers:
            group.create_task(producer.publish(0.2, stop))
        await eventually(lambda: all(client.reconnections for client in clients), PATIENCE)

        async def spread() -> bool:
            return min(await counts(service)) >= CLIENTS / len(service) * 0.7

        async def nearly_all() -> bool:
            return sum(await counts(service)) >= CLIENTS * 0.95

        service += await asyncio.gather(*(asyncio.to_thread(start, **shared) for _ in range(2)))
        await eventually(spread, 4 * MAX_AGE_SECONDS)

        leaving = service.pop(0)  # its readiness fails at once, so the Service drops it
        await asyncio.to_thread(leaving.stop)
        await eventually(nearly_all, PATIENCE)
        assert await spread(), await counts(service)

        stop.set()
        await eventually(lambda: all(producer.idle for producer in producers), PATIENCE)
        epoch = service[0].health()["epoch"]
        await wait_until_delivered(history, epoch, clients)
        gone.set()
    assert len(history.accepted) > 50
    assert violations(history, [client.record for client in clients]) == []
    codes = {moved.code for client in clients for moved in client.reconnections}
    assert codes == {None, 1012}, "clients were closed only with 1012: reconnect"
