"""Rolling restart under load: replicas are drained, killed and restarted, and no event is lost."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from tests.history import History, violations
from tests.system.producers import RetryingProducer
from tests.system.recording_client import PATTERNS, ReconnectingClient, wait_until_delivered
from tests.system.replica import PATIENCE, ReplicaFactory
from tests.waiting import eventually

CLIENTS = 100
DRAIN_SECONDS = 4.0
OPTIONS: tuple[dict[str, bool], ...] = ({}, {"deflate": True}, {}, {})


async def test_rolling_restart(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A rolling restart, by SIGTERM and by SIGKILL, loses nothing, and reconnects are spread (protocol: drain)."""
    rng = random.Random(1)
    shared = {"redis_url": valkey, "redis_event_channel": channel, "drain_seconds": DRAIN_SECONDS}
    replicas = [start(**shared) for _ in range(3)]
    history, stop, gone = History(), asyncio.Event(), asyncio.Event()
    producers = [RetryingProducer(history, f"producer-{number}", replicas, rng) for number in range(3)]
    clients = [
        ReconnectingClient(f"client-{number}", PATTERNS[number % len(PATTERNS)], rng, **OPTIONS[number % len(OPTIONS)])
        for number in range(CLIENTS)
    ]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.stay(replicas, gone))
        for producer in producers:
            group.create_task(producer.publish(0.06, stop))
        await eventually(lambda: all(client.reconnections for client in clients), PATIENCE)
        drains = []
        for replica in replicas:
            had = (await asyncio.to_thread(replica.health))["connections"]
            url, begun = replica.url, asyncio.get_running_loop().time()
            await asyncio.to_thread(replica.stop)
            drains.append((begun, asyncio.get_running_loop().time(), had, url))
            await asyncio.to_thread(replica.start)
        for replica in replicas:
            replica.kill()
            await asyncio.to_thread(replica.start)
        stop.set()
        epoch = replicas[0].health()["epoch"]
        await eventually(lambda: all(producer.idle for producer in producers), PATIENCE)
        await wait_until_delivered(history, epoch, clients)
        gone.set()
    assert violations(history, [client.record for client in clients]) == []
    assert {place.epoch for place in history.accepted} == {epoch}
    frames = [frame for client in clients for each in client.record.connections for frame in each.frames]
    assert not [frame for frame in frames if frame.get("type") in ("gap", "epoch_changed")]
    assert all(frame["recovered"] for frame in frames if frame.get("type") == "resync_ack")
    assert sum(producer.retries for producer in producers)
    for begun, ended, had, url in drains:
        times = sorted(r.at for w in clients for r in w.reconnections if r.code == 1012 and begun <= r.at <= ended + 1)
        assert len(times) >= had
        # a busy machine delays reconnects until they come in bunches; the announced delays stay spread
        assert peak(times) <= 2.5 * had / DRAIN_SECONDS + 3, (had, [time - begun for time in times])
        delays = sorted(frame["data"]["delay_ms"] / 1000 for frame in notices_of(url, clients))
        assert len(delays) >= had
        assert delays[-1] <= DRAIN_SECONDS
        assert peak(delays) <= len(delays) / DRAIN_SECONDS + 1


def notices_of(url: str, clients: Sequence[ReconnectingClient]) -> list[dict[str, Any]]:
    """Return the shutdown notices that this replica sent."""
    connections = [each for client in clients for each in client.record.connections if each.where == url]
    return [frame for each in connections for frame in each.frames if frame.get("type") == "system.shutdown"]


def peak(times: Sequence[float]) -> int:
    """Return the largest number of times within one second."""
    return max(sum(first <= time < first + 1 for time in times) for first in times)
