"""Limits of what a client may send over HTTP, in bytes and in time, and the answers to it."""

import asyncio
import contextlib
import json
import time

import httpx
import pytest
import redis

from tests.system.client import connected
from tests.system.raw_http import HANDSHAKE, RawHttp, publish, raw_http
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = (
    b"POST /broadcast/alert/deleted HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def hasty(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica that waits one second for a request, and two for the next one."""
    return start_for_module(
        redis_url=valkey, redis_event_channel="hasty", http_request_seconds=1, http_keep_alive_seconds=2
    )


async def refusal(raw: RawHttp, status: int) -> None:
    """Check that the next answer refuses the request with a problem document and is the last one."""
    answer = await raw.answer()
    assert (answer.status, answer.is_problem) == (status, True), answer
    assert answer.headers["connection"] == "close"
    assert await raw.ended() == b""


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/health/live", b"/ws/events"])
async def test_longest_target(replica: Replica, path: bytes) -> None:
    """A target of 64,000 bytes is served, one byte more is a 414; upgrades are no exception."""
    upgrade = HANDSHAKE if path == b"/ws/events" else b""
    for length, status in ((64_000, 101 if upgrade else 200), (64_001, 414)):
        async with raw_http(replica) as raw:
            target = path + b"?token=" + b"x" * (length - len(path) - 7)
            await raw.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (target, upgrade))
            if status == 414:
                await refusal(raw, status)
            else:
                assert (await raw.answer()).status == status


@pytest.mark.parametrize("count", [1, 60])
async def test_largest_head(replica: Replica, count: int) -> None:
    """Header fields of 64 KiB in all are served, one byte more is a 431, in one field or in many."""
    for total, status in ((65_536, 200), (65_537, 431)):
        size = total - len("Host") - len("localhost") - 4  # what is left: names, values, and 4 bytes a field
        fields = [b"X-%05d: " % number + b"x" * (size // count - 11) for number in range(count)]
        fields[-1] += b"x" * (size - sum(len(field) + 2 for field in fields))
        async with raw_http(replica) as raw:
            await raw.send(GET + b"\r\n".join([*fields, b"", b""]))
            if status == 431:
                await refusal(raw, status)
            else:
                assert (await raw.answer()).status == status


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET /", 414),
        (GET + b"X: ", 431),
        (GET + b"X", 431),
        (CHUNKED + b"5;", 431),
        (CHUNKED + b"0\r\nX: ", 431),
        (CHUNKED + b"0\r\nX: x\r\nY", 431),
    ],
)
async def test_heads_without_end(replica: Replica, start: bytes, status: int) -> None:
    """A target, a field, a trailer or a chunk extension without end is refused, and costs next to no memory."""
    before = replica.memory
    async with raw_http(replica) as raw:
        await raw.send(start)

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    await raw.send(b"x" * 65536)

        flooding = asyncio.create_task(flood())
        answer = await raw.answer()
        assert (answer.status, answer.is_problem) == (status, True)
        assert replica.memory - before < 20_000_000
        flooding.cancel()


async def test_many_trailers(replica: Replica) -> None:
    """Trailers count as header fields; those within the limit are dropped."""
    body = b"b\r\n" + b'{"id": "x"}' + b"\r\n0\r\n"
    async with raw_http(replica) as raw:
        await raw.send(CHUNKED + body + b"Idempotency-Key: not a key\r\n\r\n")
        assert (await raw.answer()).status == 202
        await raw.send(CHUNKED + body + b"X: x\r\n" * 20_000 + b"\r\n")
        await refusal(raw, 431)


async def test_small_chunks(replica: Replica) -> None:
    """Chunks of one byte are served."""
    body = json.dumps({"id": "x", "unknown": "x" * 30_000}).encode()
    async with raw_http(replica) as raw:
        await raw.send(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert (await raw.answer()).status == 202


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nBad header\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /broadcast/event HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /broadcast/event HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED + b"nonsense\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http: HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_what_is_not_http(replica: Replica, request_: bytes) -> None:
    """Input that the parser refuses, and HTTP/1.1 without exactly one Host, get a problem document with status 400."""
    async with raw_http(replica) as raw:
        await raw.send(request_)
        await refusal(raw, 400)
    async with raw_http(replica) as raw:
        await raw.send(GET + b"\r\n" + request_)
        assert (await raw.answer()).status == 200
        await refusal(raw, 400)


async def test_http_1_0_without_host(replica: Replica) -> None:
    """HTTP/1.0 needs no Host."""
    async with raw_http(replica) as raw:
        await raw.send(b"GET /health/live HTTP/1.0\r\n\r\n")
        assert (await raw.answer()).status == 200


async def test_no_proxy(replica: Replica) -> None:
    """CONNECT is a wrong method."""
    async with raw_http(replica) as raw:
        await raw.send(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n")
        answer = await raw.answer()
        assert (answer.status, answer.is_problem, bool(answer.headers["allow"])) == (405, True, True)


async def test_logged_once_a_minute(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """However many bad requests come, the log gets one line a minute."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    for _ in range(50):
        async with raw_http(replica) as raw:
            await raw.send(b"nonsense\r\n\r\n")
            await refusal(raw, 400)
    assert len([line for line in replica.log.splitlines() if "refused" in line]) == 1
    assert "nonsense" not in replica.log


@pytest.mark.parametrize("body", [b"", b"not JSON"])
async def test_pipelines_without_end(replica: Replica, body: bytes) -> None:
    """A client that pipelines requests and reads no answers is read no further, and costs next to no memory."""
    head = b"POST /broadcast/event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request_ = head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    before = replica.memory
    async with raw_http(replica) as raw:
        raw.writer.transport.pause_reading()
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1.5):
                for _ in range(400):
                    await raw.send(request_ * 1000)
        assert replica.memory - before < 60_000_000


async def test_a_client_that_takes_no_answers(hasty: Replica) -> None:
    """A client that takes no data for as long as a request may take is cut off."""
    async with raw_http(hasty) as raw:
        raw.writer.transport.pause_reading()
        before = hasty.sockets
        raw.writer.write(b"GET /schema/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        await eventually(lambda: hasty.sockets < before, 20)


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [b"G", GET, b"".join(publish("x"))[:-1], CHUNKED + b"b\r\n{", CHUNKED + b'b\r\n{"id": "x"}\r\n0\r\nX: y\r\n'],
)
async def test_too_slow(hasty: Replica, start: bytes) -> None:
    """A request that is not complete in time is a 408, however its bytes are spread, and the connection is closed."""
    async with raw_http(hasty) as raw:

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                await raw.send(start)
                for _ in range(1000) if start == GET else ():
                    await asyncio.sleep(0.05)
                    await raw.send(b"X")

        started = time.monotonic()
        trickling = asyncio.create_task(trickle())
        await refusal(raw, 408)
        assert 0.9 <= time.monotonic() - started < 10
        trickling.cancel()


async def test_a_page_may_read_why_its_body_is_refused(hasty: Replica) -> None:
    """The CORS headers are also on an answer that the server gives in place of the application."""
    head = CHUNKED.replace(b"Host", b"Origin: http://localhost:3000\r\nHost")
    for rest, status in ((b"b\r\n{", 408), (b"nonsense\r\n", 400)):
        async with raw_http(hasty) as raw:
            await raw.send(head, rest)
            answer = await raw.answer()
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


async def test_too_slow_after_the_answer(hasty: Replica) -> None:
    """A body that is refused early is skipped for no longer than a request may take."""
    async with raw_http(hasty) as raw:
        await raw.send(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        assert (await raw.answer()).status == 404
        assert await raw.ended() == b""


async def test_idle(hasty: Replica) -> None:
    """An idle connection is closed without notice after HTTP_KEEP_ALIVE_SECONDS, also before its first request."""

    async def idle(request: bytes) -> None:
        async with raw_http(hasty) as raw:
            started = time.monotonic()
            await raw.send(request)
            if request.strip():
                assert (await raw.answer()).status == 200
            assert await raw.ended() == b""
            assert 1.9 <= time.monotonic() - started < 20

    await asyncio.gather(*map(idle, (b"", GET + b"\r\n", b"\r\n")))


async def test_idle_after_a_skipped_body(hasty: Replica) -> None:
    """A connection is idle also when its last body was skipped after the answer."""
    async with raw_http(hasty) as raw:
        await raw.send(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nx")
        assert (await raw.answer()).status == 404
        await raw.send(b"x")
        started = time.monotonic()
        assert await raw.ended() == b""
        assert 1.9 <= time.monotonic() - started < 20


async def test_kept_alive(hasty: Replica) -> None:
    """Between requests a connection may be idle for longer than a request may take; each request extends its life."""
    async with raw_http(hasty) as raw:
        for _ in range(2):
            started = time.monotonic()
            await raw.send(GET + b"\r\n")
            assert (await raw.answer()).status == 200
            await asyncio.sleep(1.3)
        assert await raw.ended() == b""
        assert 1.9 <= time.monotonic() - started < 20


async def test_a_slow_request_behind_another(private_redis: str, start: ReplicaFactory, channel: str) -> None:
    """The time that earlier publishes take is not charged to a request that waits behind them."""
    replica = start(
        redis_url=private_redis, redis_event_channel=channel, http_request_seconds=1, position_check_seconds=6
    )
    with redis.Redis.from_url(private_redis) as link:
        link.client_pause(2500, all=False)
        async with raw_http(replica) as raw:
            first = b"".join(publish("first"))
            large = json.dumps({"id": "second", "unknown": "x" * 900_000}).encode()
            await raw.send(first, CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large))
            assert [(await raw.answer()).status for _ in range(2)] == [202, 202]


# -- bodies in flight -------------------------------------------------------------------------------------------------


async def test_bodies_in_flight(private_redis: str, start: ReplicaFactory, channel: str) -> None:
    """Publishes in flight hold at most 64 MiB of bodies; more are a 503 until some of them are answered."""
    replica = start(redis_url=private_redis, redis_event_channel=channel, position_check_seconds=8)
    body = json.dumps({"id": "x", "unknown": "x" * 1_000_000}).encode()
    with redis.Redis.from_url(private_redis) as link:
        link.client_pause(2500, all=False)
        before = replica.memory
        headers = {"Content-Type": "application/json"}
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(trust_env=False, base_url=replica.url, timeout=30, limits=limits) as http:
            answers = await asyncio.gather(
                *(http.post("/broadcast/alert/deleted", content=body, headers=headers) for _ in range(90))
            )
            statuses = [answer.status_code for answer in answers]
            assert statuses.count(503) >= 20, statuses
            assert statuses.count(202) + statuses.count(503) == 90, statuses
            assert statuses.count(202) >= 40, statuses
            refused = next(answer for answer in answers if answer.status_code == 503)
            assert (refused.headers["content-type"], refused.headers["retry-after"]) == (
                "application/problem+json",
                "1",
            )
            assert replica.memory - before < 300_000_000
            again = await http.post("/broadcast/alert/deleted", content=body, headers=headers)
            assert again.status_code == 202


# -- JSON as others write it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'\xef\xbb\xbf{"id": "bom"}', "bom"),
        (rb'{"id": "a\ud800b"}', "a\ufffdb"),
        (rb'{"id": "a\\ud800b"}', r"a\ud800b"),
        (rb'{"id": "\ud83d\ude00", "unknown": "\udc00"}', "\U0001f600"),
    ],
)
async def test_marks_and_halves(replica: Replica, body: bytes, name: str) -> None:
    """A byte order mark is ignored; an escape of half a character stands for U+FFFD."""
    async with connected(replica.websocket()) as client:
        await client.next()
        answer = await replica.request(
            "POST", "/broadcast/alert/deleted", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 202, answer.text
        assert (await client.take(type="alert_deleted"))["data"]["id"] == name
