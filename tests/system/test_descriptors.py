"""A service that has few file descriptors, and more clients than that."""

import asyncio
import resource
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.proxy import Proxy, ProxyMode
from tests.system.client import Client, connected
from tests.system.raw_http import publish, raw_http
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

# Of the 64 descriptors the service must raise its soft limit itself.
CRAMPED = ["bash", "-c", 'ulimit -S -n 32; ulimit -H -n 64; exec "$@"', "-"]


@pytest.fixture
def cramped(start: ReplicaFactory, valkey: str, channel: str) -> Callable[..., Replica]:
    """Start a replica that may have 64 file descriptors."""

    def make(**settings: Any) -> Replica:
        return start(**{"prefix": CRAMPED, "redis_url": valkey, "redis_event_channel": channel} | settings)

    return make


async def open_client(replica: Replica) -> Client | None:
    """Open a WebSocket; None if the service has refused it."""
    try:
        return await Client.open(replica.websocket())
    except Exception:
        return None


async def test_more_clients_than_descriptors(cramped: Callable[..., Replica], valkey: str, channel: str) -> None:
    """150 clients leave Redis reachable, health answering and publishes served, and the log says what to do."""
    async with Proxy(valkey) as way:
        replica = await asyncio.to_thread(cramped, redis_url=way.url)
        opened = [client for client in await asyncio.gather(*(open_client(replica) for _ in range(150))) if client]
        try:
            await eventually(lambda: all(client.frames or client.close[0] for client in opened), 15)
            inside = [client for client in opened if client.frames]
            assert len(inside) >= 16
            assert {client.close[0] for client in opened if not client.frames} <= {1013, 1006}
            answer = await replica.request("GET", "/health")
            assert answer.json()["connections"] == len(inside)
            assert (await replica.post("/broadcast/alert/deleted", {"id": "before"})).status_code == 202
            await way.set_mode(ProxyMode.REFUSE)
            await way.set_mode(ProxyMode.PASS)
            async with asyncio.timeout(20):
                while (await replica.post("/broadcast/alert/deleted", {"id": "after"})).status_code != 202:
                    await asyncio.sleep(0.1)
            for client in inside:
                assert (await client.take(type="alert_deleted"))["data"]["id"] == "before"
            assert [client.close[0] for client in inside] == [None] * len(inside)
        finally:
            for client in opened:
                await client.vanish()
        lines = [line for line in replica.log.splitlines() if "file descriptors" in line]
        assert lines
        assert all("ulimit -n" in line for line in lines)
        assert len(lines) <= 2
        await asyncio.to_thread(replica.stop, tolerate=" CRITICAL kernel")


async def test_connections_that_wait(cramped: Callable[..., Replica]) -> None:
    """Connections that are idle, or have sent half a request, make way for a client that asks something.

    WebSockets do not make way.
    """
    replica = cramped()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(replica.websocket()))
        for number in range(100):
            raw = await stack.enter_async_context(raw_http(replica))
            await raw.send(publish("half")[0] if number % 2 else b"")
        for _ in range(5):
            assert (await replica.request("GET", "/health/live")).status_code == 200
            assert (await replica.post("/broadcast/alert/deleted", {"id": "x"})).status_code == 202
        await client.take(type="alert_deleted")


async def test_a_configured_cap(cramped: Callable[..., Replica]) -> None:
    """The smaller one of the two caps counts."""
    replica = cramped(websocket_max_connections=2)
    clients = [await Client.open(replica.websocket()) for _ in range(3)]
    await eventually(lambda: all(client.frames or client.close[0] for client in clients), 15)
    assert [client.close[0] for client in clients if not client.frames] == [1013]
    for client in clients:
        await client.vanish()


async def test_the_soft_limit_is_raised(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """At the start the soft limit is raised to the hard one."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    soft, hard = resource.prlimit(replica.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
