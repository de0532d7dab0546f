"""Streams and polls on connections that are old, pipelined, half closed, cut off, or never read."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.system.event_stream import event_stream
from tests.system.raw_http import HANDSHAKE, RawHttp, raw_http
from tests.system.replica import Replica, ReplicaFactory
from tests.system.slow_client import OVERFLOW_BYTES
from tests.system.test_event_stream import publish
from tests.waiting import eventually

STREAM = b"GET /events HTTP/1.1\r\nHost: localhost\r\n"
PATHS = [b"/events", b"/events/poll?since=0&events=x&wait=60"]
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def quiet(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica that sends no heartbeats, by which it would notice that a client has left."""
    return start_for_module(
        redis_url=valkey,
        redis_event_channel="quiet",
        http_request_seconds=1,
        websocket_ping_interval_seconds=60,
        websocket_idle_timeout_seconds=1,
        websocket_send_buffer_bytes=65536,
        event_max_bytes=65536,
    )


@pytest.fixture(autouse=True)
async def none_left(quiet: Replica) -> AsyncIterator[None]:
    """After each test no connection is left, and nothing was logged as an error."""
    yield
    await eventually(lambda: quiet.metric("connections") == 0)
    assert " ERROR " not in quiet.log


@asynccontextmanager
async def streaming(replica: Replica, request: bytes) -> AsyncIterator[RawHttp]:
    """Send a request, and wait until the first message of its stream has come."""
    async with raw_http(replica) as raw:
        await raw.send(request)
        async with asyncio.timeout(10):
            await raw.reader.readuntil(b'{"type":"connected"')
        yield raw


async def delivers(replica: Replica, raw: RawHttp) -> None:
    """Check that the stream gets an event."""
    [receipt] = await publish(replica, "x")
    async with asyncio.timeout(10):
        await raw.reader.readuntil(b"\nid: %b:%d\ndata: {" % (receipt["epoch"].encode(), receipt["sequence"]))


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_request_that_is_refused_after_its_head(quiet: Replica) -> None:
    """A request whose body is not valid is answered 400, once; no stream begins."""
    for path in (b"/events", b"/events/poll?since=0"):
        async with raw_http(quiet) as raw:
            await raw.send(
                b"GET %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n" % path
            )
            assert (await raw.answer()).status == 400
            assert await raw.ended() == b""


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 300_000], ids=len)
async def test_body_that_never_ends(quiet: Replica, body: bytes) -> None:
    """A body is not waited for: the stream goes on after `HTTP_REQUEST_SECONDS`, and its end is noticed at once."""
    async with streaming(quiet, STREAM + b"Content-Length: 1000000\r\n\r\n" + body) as raw:
        await asyncio.sleep(1.3)
        await delivers(quiet, raw)


@pytest.mark.parametrize(
    "behind",
    [HEALTH * 1000, b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + b"\r\n", bytes(99)],
    ids=["requests", "upgrade", "zeros"],
)
async def test_requests_behind_a_stream(quiet: Replica, behind: bytes) -> None:
    """Whatever follows a request for a stream is dropped, and the end of the connection is noticed at once."""
    async with streaming(quiet, STREAM + b"\r\n" + behind) as raw:
        await raw.send(behind)
        await delivers(quiet, raw)


async def test_requests_before_a_stream(quiet: Replica) -> None:
    """Requests before it on one connection are answered first, a waiting poll too."""
    async with raw_http(quiet) as raw:
        poll = b"GET /events/poll?since=999999&wait=0.2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await raw.send(HEALTH + poll + STREAM + b"\r\n")
        for _ in range(2):
            assert (await raw.answer()).status == 200
        await raw.reader.readuntil(b'{"type":"connected"')
        await delivers(quiet, raw)


async def test_upgrade_to_http_2(quiet: Replica) -> None:
    """A stream that asks for h2c, as `curl --http2` does, is answered in HTTP/1.1."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    async with streaming(quiet, STREAM + upgrade) as raw:
        await delivers(quiet, raw)


async def test_polls_on_one_connection(quiet: Replica) -> None:
    """Polls keep their connection, and pipelined ones are answered in their order."""
    async with raw_http(quiet) as raw:
        await raw.send(b"GET /events/poll HTTP/1.1\r\nHost: localhost\r\n\r\n")
        number = (await raw.answer()).json["lastSeq"]
        waiting = b"GET /events/poll?since=%d&wait=%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await raw.send(waiting % (number, b"20") + waiting % (number, b"0") + HEALTH)
        await eventually(lambda: quiet.metric("connections") == 1)
        [receipt] = await publish(quiet, "x")
        for _ in range(2):
            assert (await raw.answer()).json["lastSeq"] == receipt["sequence"]
        assert (await raw.answer()).status == 200


async def test_old_client_that_is_refused(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A client of HTTP/1.0 gets the stream that stands for a 503 without chunks."""
    full = start(
        redis_url=valkey,
        redis_event_channel=channel,
        websocket_max_connections=1,
        allowed_origins="https://good.example",
    )
    async with event_stream(full) as stream, raw_http(full) as raw:
        await stream.named("connected")
        fields = b"Host: localhost\r\nAccept: text/event-stream\r\nOrigin: https://good.example\r\n"
        await raw.send(b"GET /events HTTP/1.0\r\n%b\r\n" % fields)
        head, _, body = (await raw.ended()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert b"access-control-allow-origin: https://good.example\r\n" in head.lower()
    assert body.startswith(b"retry: ")


async def test_cap_is_exact(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Of requests that come at the same time no more are taken than the cap lets in."""
    full = start(redis_url=valkey, redis_event_channel=channel, websocket_max_connections=5)
    sockets = [await asyncio.open_connection("127.0.0.1", full.port) for _ in range(30)]
    for index, (_, writer) in enumerate(sockets):
        path = b"/events" if index % 2 else b"/events/poll?since=0&events=x"
        writer.write(b"GET %b HTTP/1.0\r\n\r\n" % path)
    await eventually(lambda: full.metric("connections") == 5)
    assert full.metric("connections") == 5
    for _, writer in sockets:
        writer.transport.abort()
    await eventually(lambda: full.metric("connections") == 0)


# -- the end of a connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=["stream", "poll"])
async def test_half_closed(quiet: Replica, path: bytes) -> None:
    """A client that closes its sending side has left."""
    async with raw_http(quiet) as raw:
        await raw.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        await eventually(lambda: quiet.metric("connections") == 1)
        raw.writer.write_eof()
        await eventually(lambda: quiet.metric("connections") == 0)
        await raw.ended()


@pytest.mark.parametrize("path", PATHS, ids=["stream", "poll"])
async def test_cut_off_at_once(quiet: Replica, path: bytes) -> None:
    """Connections that are reset right after the request leave nothing behind."""
    for _ in range(100):
        client = socket.create_connection(("127.0.0.1", quiet.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        client.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        client.close()
    await eventually(lambda: quiet.metric("connections") == 0)
    async with streaming(quiet, STREAM + b"\r\n") as raw:
        await delivers(quiet, raw)


async def test_many_polls(quiet: Replica) -> None:
    """A thousand polls that wait are answered at once by one event; as many that are cut off leave nothing behind."""
    async with raw_http(quiet) as raw:
        await raw.send(b"GET /events/poll HTTP/1.1\r\nHost: localhost\r\n\r\n")
        number = (await raw.answer()).json["lastSeq"]
    request = b"GET /events/poll?since=%d&wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    polls = [RawHttp(*await asyncio.open_connection("127.0.0.1", quiet.port)) for _ in range(1000)]
    for each in polls:
        await each.send(request % number)
    await eventually(lambda: quiet.metric("connections") == 1000, 20)
    [receipt] = await publish(quiet, "x")
    for each in polls:
        [event] = (await each.answer()).json["events"]
        assert event["sequence"] == receipt["sequence"]
    for each in polls:
        await each.send(request % receipt["sequence"])
    await eventually(lambda: quiet.metric("connections") == 1000, 20)
    for each in polls:
        each.writer.transport.abort()
    await eventually(lambda: quiet.metric("connections") == 0, 20)


async def overflow(replica: Replica) -> None:
    """Publish more than the buffers of one connection hold."""
    for _ in range(OVERFLOW_BYTES // 1_000_000 + 1):
        await publish(replica, *["x"] * 40, reason="r" * 25_000)


async def test_client_that_never_reads(quiet: Replica) -> None:
    """A client that takes nothing is aborted after `WEBSOCKET_IDLE_TIMEOUT_SECONDS`, and costs bounded memory."""
    await overflow(quiet)  # so that the history and the service's own buffers have their size
    before = quiet.memory
    _, writer = await asyncio.open_connection("127.0.0.1", quiet.port, limit=1024)
    writer.write(STREAM + b"\r\n")
    await eventually(lambda: quiet.metric("connections") == 1)
    await overflow(quiet)
    assert quiet.memory - before < 4_000_000
    await eventually(lambda: quiet.metric("connections") == 0)
    writer.transport.abort()


@pytest.mark.parametrize("drain", [0.5, 0])
async def test_drain_of_a_blocked_stream(start: ReplicaFactory, valkey: str, channel: str, drain: float) -> None:
    """A stream that takes nothing holds up a drain by 5 seconds at most; one that reads is told, and ends."""
    replica = start(
        redis_url=valkey,
        redis_event_channel=channel,
        drain_seconds=drain,
        websocket_send_buffer_bytes=65536,
        event_max_bytes=65536,
    )
    _, writer = await asyncio.open_connection("127.0.0.1", replica.port, limit=1024)
    writer.write(STREAM + b"\r\n")
    await eventually(lambda: replica.metric("connections") == 1)
    await overflow(replica)
    async with event_stream(replica) as stream:
        await stream.named("connected")
        assert replica.metric("slow_clients_total") == 1
        begin = time.monotonic()
        replica.signal()
        await stream.named("system.shutdown")
        await stream.until(lambda: stream.ended)
        assert await asyncio.to_thread(replica.ended) == 0
    assert time.monotonic() - begin < drain + 5 + 3
    writer.transport.abort()
