"""Clients that send what costs the server more than them: others are served meanwhile, and memory is bounded."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.system.client import connected
from tests.system.raw_websocket import CLOSE, CONTINUATION, PING, TEXT, RawWebSocket, raw_websocket
from tests.system.replica import Replica, ReplicaFactory

DEFLATE = {"Sec_WebSocket_Extensions": "permessage-deflate"}
LARGEST = 65536


@pytest.fixture(scope="module")
def replica(start_for_module: ReplicaFactory, valkey: str) -> Iterator[Replica]:
    """A replica with the default limits, whose log must have no complaint at the end."""
    replica = start_for_module(redis_url=valkey, redis_event_channel="hostile")
    yield replica
    replica.stop()


def deflated(text: str) -> bytes:
    """Return a text as the payload of one compressed frame (RFC 7692, 7.2.1)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(text.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


@asynccontextmanager
async def longest_wait(replica: Replica) -> AsyncIterator[list[float]]:
    """Ask for the health again and again during the block; its list gets the seconds of each answer."""
    waits: list[float] = []

    async def ask() -> None:
        async with replica.http() as http:
            while True:
                begin = time.monotonic()
                await http.get("/health/live")
                waits.append(time.monotonic() - begin)
                await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask())
    try:
        yield waits
    finally:
        asking.cancel()


async def answered(raw: RawWebSocket) -> None:
    """Wait until everything that was sent before is acted on."""
    raw.send(TEXT, b'{"type":"unsubscribe","data":{"events":["the end"]}}')
    while (frame := await raw.receive()).opcode != TEXT or frame.json.get("action") != "unsubscribed":
        pass


async def test_numbers_that_decode_slowly(replica: Replica) -> None:
    """128 compressed messages full of large numbers, 19 kB on the wire, do not stop the replica."""
    payload = deflated('{"type":"ping","x":[' + "1e999," * 10_900 + "1]}")
    async with raw_websocket(replica, **DEFLATE) as raw, longest_wait(replica) as waits:
        for _ in range(128):
            raw.send(TEXT, payload, compressed=True)
        await answered(raw)
        assert len(waits) > 3  # at its rate the client is read for half a second
        assert max(waits) < 1.0


async def test_subscriptions_that_compile_slowly(replica: Replica) -> None:
    """20 subscribes with 100 long patterns each do not stop the replica."""
    async with raw_websocket(replica, **DEFLATE) as raw, longest_wait(replica) as waits:
        for number in range(20):
            globs = ",".join(f'"{number:02}{at:02}{"*a" * 126}"' for at in range(100))
            raw.send(TEXT, deflated(f'{{"type":"subscribe","events":[{globs}]}}'), compressed=True)
            raw.send(TEXT, b'{"type":"unsubscribe"}')
        await answered(raw)
        await asyncio.sleep(0.2)
        assert max(waits) < 1.0


async def test_memory(replica: Replica) -> None:
    """12 connections with 250 kB each on the wire, compressed, cost a few MB, not the 2 GB to which they inflate."""
    frames = 2800
    payload = deflated(" " * (LARGEST - 1))
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(raw_websocket(replica, **DEFLATE)) for _ in range(12)]
        before = most = replica.memory
        for raw in raws:
            for _ in range(frames):
                raw.send(TEXT, payload, compressed=True)
        for _ in range(40):
            await asyncio.sleep(0.05)
            most = max(most, replica.memory)
        assert most - before < 100_000_000


async def test_rate(start: ReplicaFactory, valkey: str) -> None:
    """A client is read at its rate after a burst of twice that: every message is answered, in order, only later."""
    replica = start(redis_url=valkey, redis_event_channel="hostile", websocket_max_messages_per_second=100)
    async with connected(replica.websocket()) as client, connected(replica.websocket()) as other:
        await client.next()
        begin = time.monotonic()
        for number in range(350):
            await client.send({"type": f"unknown-{number}"})
        await other.send("ping")
        await other.take(type="pong")
        assert time.monotonic() - begin < 1.0
        for number in range(350):
            assert f"unknown-{number}" in (await client.next())["message"]
        assert 1.3 < time.monotonic() - begin < 10


async def test_acks_are_read_faster(replica: Replica) -> None:
    """Acks and pongs count as a twentieth of a message."""
    async with connected(replica.websocket()) as client:
        begin = time.monotonic()
        for number in range(1500):
            await client.send({"type": "ack", "sequence": 1} if number % 2 else {"type": "pong"})
        await client.send("ping")
        await client.take(type="pong")
        assert time.monotonic() - begin < 3  # as 1,500 whole messages they would take 28 s


async def test_leaving_with_much_unread(replica: Replica) -> None:
    """A throttled client that is closed is gone at once, whatever it has sent before."""
    async with raw_websocket(replica) as raw:
        for _ in range(400):
            raw.send(TEXT, b"nonsense")
        await raw.sent()
        while (await raw.receive()).opcode != TEXT:
            pass
        raw.abort()
        async with asyncio.timeout(5):
            while replica.health()["connections"]:
                await asyncio.sleep(0.05)


async def test_invalid_text_and_a_ping(replica: Replica) -> None:
    """Text that is not UTF-8 and a ping in one segment: the connection is closed with 1007, and nothing is logged."""
    async with raw_websocket(replica) as raw:
        raw.send_bytes(b"\x81\x81\0\0\0\0\xff" + b"\x89\x80\0\0\0\0")
        assert (await raw.receive_close()).code == 1007
        await raw.ended()
    assert "Traceback" not in replica.log


async def test_close_between_fragments(replica: Replica) -> None:
    """A close frame between the fragments of a message is answered with its own code."""
    async with raw_websocket(replica) as raw:
        raw.send(TEXT, b"half", fin=False)
        raw.send(CONTINUATION, b"more", fin=False)
        raw.send(CLOSE, (1001).to_bytes(2))
        assert (await raw.receive_close()).code == 1001
        await raw.ended()


async def test_pings(replica: Replica) -> None:
    """Thousands of pings in a row are answered, and others are served meanwhile."""
    async with raw_websocket(replica) as raw, longest_wait(replica) as waits:
        raw.send_bytes(b"\x89\x80\0\0\0\0" * 10_000)
        raw.send(PING, b"last")
        while (await raw.receive()).payload != b"last":
            pass
        assert max(waits) < 1.0
