"""Drain: clients are notified and closed over time, publishes are still accepted, new clients are refused."""

import asyncio
import json
import os
import pty
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.system.client import Client, connected
from tests.system.raw_websocket import CLOSE, TEXT, RawWebSocket, raw_websocket
from tests.system.redis_server import RedisServer
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

DRAIN = 1.0


@pytest.fixture
def draining(start: ReplicaFactory, valkey: str, channel: str) -> Callable[..., Replica]:
    """Start a replica whose drain takes a second."""

    def make(**settings: Any) -> Replica:
        return start(**{"redis_url": valkey, "redis_event_channel": channel, "drain_seconds": DRAIN} | settings)

    return make


async def wait_until_draining(replica: Replica) -> None:
    """Wait until the drain has begun."""
    await eventually(lambda: "draining" in replica.log)


async def connect_clients(replica: Replica, count: int) -> list[Client]:
    """Connect `count` clients and wait for their first frames."""
    clients = [await Client.open(replica.websocket()) for _ in range(count)]
    for client in clients:
        await client.next()
    return clients


async def timed_close(client: Client) -> tuple[float, int]:
    """Wait for the notice and the close; return the seconds between them, and the milliseconds that were announced."""
    notice = await client.take(type="system.shutdown")
    told = time.monotonic()
    assert notice["data"].keys() == {"reason", "reconnect", "delay_ms"}
    assert (notice["data"]["reason"], notice["data"]["reconnect"]) == ("Server shutting down", True)
    assert (await client.closed())[0] == 1012
    return time.monotonic() - told, notice["data"]["delay_ms"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_clients_are_spread(draining: Callable[..., Replica], number: signal.Signals) -> None:
    """On SIGTERM each client is told when it will be closed, and is closed then with 1012 (protocol: drain)."""
    replica = draining()
    clients = await connect_clients(replica, 8)
    replica.signal(number)
    closes = await asyncio.gather(*map(timed_close, clients))
    assert await asyncio.to_thread(replica.ended) == 0
    delays = sorted(delay for _, delay in closes)
    assert delays[0] >= 0
    assert delays[-1] <= DRAIN * 1000
    gaps = [later - earlier for earlier, later in pairwise(delays)]
    assert all(50 <= gap <= 250 for gap in gaps), delays
    for after, delay in closes:
        assert delay / 1000 - 0.1 <= after <= delay / 1000 + 1.5, closes


async def test_service_during_drain(draining: Callable[..., Replica]) -> None:
    """During a drain health answers, readiness fails, publishes are delivered and upgrades are refused."""
    replica = draining(drain_seconds=2)
    [early, late] = await connect_clients(replica, 2)
    replica.signal()
    await wait_until_draining(replica)
    answer = await replica.post("/broadcast/alert/deleted", {"id": "meanwhile"})
    assert (answer.status_code, answer.headers["connection"]) == (202, "close")
    assert (await replica.request("GET", "/health/live")).status_code == 200
    ready = await replica.request("GET", "/health/ready")
    assert ready.status_code == 503
    health = await replica.request("GET", "/health")
    assert (health.status_code, health.json()["status"]) == (200, "draining")
    with pytest.raises(InvalidStatus) as refused:
        await Client.open(replica.websocket())
    assert refused.value.response.status_code == 503
    for client in (early, late):
        assert (await client.take(type="alert_deleted"))["data"]["id"] == "meanwhile"
    await early.closed()
    answer = await replica.post("/broadcast/alert/deleted", {"id": "later"})
    assert answer.status_code == 202
    assert (await late.take(type="alert_deleted"))["data"]["id"] == "later"
    await late.closed()
    assert await asyncio.to_thread(replica.ended) == 0


async def test_publishes_in_flight(draining: Callable[..., Replica]) -> None:
    """A publish that is being received when the drain starts is completed."""
    replica = draining()
    [client] = await connect_clients(replica, 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    body = json.dumps({"id": "in flight"}).encode()
    writer.write(
        b"POST /broadcast/alert/deleted HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body[:5])
    )
    await writer.drain()
    replica.signal()
    await client.closed()
    writer.write(body[5:])
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert await asyncio.to_thread(replica.ended) == 0


async def test_publishes_that_redis_does_not_answer(draining: Callable[..., Replica]) -> None:
    """A publish that Redis does not answer in time gets a 503 with Retry-After, and the log no traceback."""
    with RedisServer() as server:
        replica = draining(module="tests.system.short_shutdown serve", redis_url=server.url, position_check_seconds=60)
        async with replica.http() as http:
            server.freeze()
            posts = [
                asyncio.create_task(http.post("/broadcast/alert/deleted", json={"id": str(number)}))
                for number in range(20)
            ]
            await asyncio.sleep(0.5)
            replica.signal()
            answers = await asyncio.gather(*posts)
        try:
            assert await asyncio.to_thread(replica.ended) == 0
        finally:
            server.thaw()
    assert {answer.status_code for answer in answers} == {503}
    for answer in answers:
        assert (answer.headers["content-type"], answer.json()["status"]) == ("application/problem+json", 503)
        assert int(answer.headers["retry-after"]) >= 1
    assert "Traceback" not in replica.log


@pytest.mark.parametrize("terminal", [False, True])
async def test_hangup(draining: Callable[..., Replica], terminal: bool) -> None:
    """SIGHUP ends nothing; where standard input is a terminal, it drains and stops as SIGTERM does."""
    controller, stdin = pty.openpty() if terminal else (-1, os.open(os.devnull, os.O_RDONLY))
    try:
        replica = draining(stdin=stdin)
        [client] = await connect_clients(replica, 1)
        replica.signal(signal.SIGHUP)
        if terminal:
            await client.take(type="system.shutdown")
            assert (await client.closed())[0] == 1012
            assert await asyncio.to_thread(replica.ended) == 0
        else:
            await eventually(lambda: "SIGHUP" in replica.log, 15)
            answer = await replica.post("/broadcast/alert/deleted", {"id": "after"})
            assert answer.status_code == 202
            assert (await client.take(type="alert_deleted"))["data"]["id"] == "after"
            await client.vanish()
    finally:
        for descriptor in (controller, stdin):
            if descriptor >= 0:
                os.close(descriptor)


async def test_idle_http_connection_does_not_delay_exit(draining: Callable[..., Replica]) -> None:
    """An idle keep-alive connection does not delay the exit."""
    replica = draining(drain_seconds=0)
    async with replica.http() as http:
        await http.get("/health")
        started = time.monotonic()
        replica.signal()
        assert await asyncio.to_thread(replica.ended) == 0
        assert time.monotonic() - started < 5


async def close_of(raw: RawWebSocket, behaviour: str, go: asyncio.Event) -> int:
    """Return the close code that a client of this behaviour gets, and check that the connection ends cleanly."""
    talking = asyncio.create_task(talk(raw)) if behaviour == "talks all the time" else None
    if behaviour == "reads late":
        await go.wait()
        await asyncio.sleep(2)
    close = await raw.receive_close()
    if talking is not None:
        talking.cancel()
    if behaviour == "answers late":
        await asyncio.sleep(2)
    if behaviour != "never answers":
        raw.send(CLOSE, close.payload)
    if behaviour == "shuts its side":
        raw.send_eof()
    assert await raw.ended() == b"", "nothing arrives after the close frame"
    assert not raw.was_reset
    return close.code


async def talk(raw: RawWebSocket) -> None:
    """Send messages without a pause."""
    while True:
        raw.send(TEXT, b'{"type":"pong"}')
        await asyncio.sleep(0.002)


async def test_every_client_reads_the_close_code(draining: Callable[..., Replica]) -> None:
    """Every client reads 1012, none is reset, and a client that never answers does not prevent the exit."""
    behaviours = ("answers", "answers late", "never answers", "shuts its side", "talks all the time", "reads late")
    # a drain so short that the process could exit before some clients have answered
    replica, go = draining(drain_seconds=0.05), asyncio.Event()
    async with AsyncExitStack() as stack:
        closes = []
        for behaviour in 8 * behaviours:
            raw = await stack.enter_async_context(raw_websocket(replica))
            assert (await raw.receive()).json["type"] == "connected"
            closes.append(asyncio.create_task(close_of(raw, behaviour, go)))
        started = time.monotonic()
        replica.signal()
        go.set()
        assert set(await asyncio.gather(*closes)) == {1012}
        assert await asyncio.to_thread(replica.ended) == 0
        assert time.monotonic() - started < 15


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal(draining: Callable[..., Replica], second: signal.Signals) -> None:
    """A second signal ends the process at once, whatever is in progress, with status 0."""
    replica = draining(drain_seconds=60)
    clients = await connect_clients(replica, 2)
    async with raw_websocket(replica) as mute:
        _, half = await asyncio.open_connection("127.0.0.1", replica.port)
        half.write(b"POST /broadcast/event HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await half.drain()
        replica.signal()
        await clients[1].take(type="system.shutdown")
        started = time.monotonic()
        replica.signal(second)
        assert await asyncio.to_thread(replica.ended) == 0
        assert time.monotonic() - started < 5
        for client in clients:
            assert (await client.closed())[0] in (1012, 1006)
        await mute.ended()
        half.close()
    assert "Traceback" not in replica.log


async def test_reconnecting_elsewhere(
    draining: Callable[..., Replica], start: ReplicaFactory, valkey: str, channel: str
) -> None:
    """A client that reconnects to another replica and resumes there loses nothing."""
    replica, other = draining(), start(redis_url=valkey, redis_event_channel=channel)
    [client] = await connect_clients(replica, 1)
    async with other.http() as http:
        await http.post("/broadcast/alert/deleted", json={"id": "1"})
        await client.reached(1)
        replica.signal()
        await client.take(type="system.shutdown")
        await http.post("/broadcast/alert/deleted", json={"id": "2"})
        await client.closed()
        await http.post("/broadcast/alert/deleted", json={"id": "3"})
    async with connected(other.websocket(since=client.place, epoch=client.frames[0]["epoch"])) as again:
        await again.take(type="resync_ack", recovered=True)
        await again.reached(3)
        assert client.numbers + again.numbers == [1, 2, 3]
    assert await asyncio.to_thread(replica.ended) == 0


async def test_greatest_age(draining: Callable[..., Replica]) -> None:
    """A connection is closed with 1012 at WEBSOCKET_MAX_AGE_SECONDS, varied by 20 % either way."""
    replica = draining(websocket_max_age_seconds=3)

    async def age() -> float:
        client = await Client.open(replica.websocket())
        await client.next()
        started = time.monotonic()
        assert (await client.closed())[0] == 1012
        return time.monotonic() - started

    ages = await asyncio.gather(*(age() for _ in range(30)))
    # 2.4 to 3.6 s on the server; the client may see its first frame and its close a little later
    assert 2.2 <= min(ages) <= max(ages) <= 5
    assert max(ages) - min(ages) > 0.4, "the closes are spread"
