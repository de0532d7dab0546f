"""Upgrades: those that are ignored, those that are refused, and those that wait for their turn."""

import asyncio

import pytest

from tests.system.raw_http import HANDSHAKE, publish, raw_http
from tests.system.raw_websocket import TEXT, raw_websocket
from tests.system.replica import Replica

H2C = ("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__", "Upgrade: h2c")


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.0, IRC/6.9", "foo", "websocketx"])
@pytest.mark.parametrize("segments", [1, 2])
async def test_other_protocols_are_ignored(replica: Replica, protocol: str, segments: int) -> None:
    """An upgrade to any other protocol is ignored: the request is served, with its body and in its turn."""
    head, body = publish("ignored", "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}")
    async with raw_http(replica) as raw:
        numbers = []
        for _ in range(2):
            await raw.send(*([head + body] if segments == 1 else [head, body]))
            answer = await raw.answer()
            assert answer.status == 202, answer
            assert "upgrade" not in answer.headers
            numbers.append(answer.json["sequence"])
    assert numbers[1] == numbers[0] + 1


async def test_a_body_is_never_a_request(replica: Replica) -> None:
    """The body of a request with an upgrade is not parsed as the next request, whatever it looks like."""
    inner = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /broadcast/event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    async with raw_http(replica) as raw:
        await raw.send(head + upgrade + b"Content-Length: %d\r\n\r\n" % len(inner), inner)
        assert (await raw.answer()).status == 400
        await raw.send(
            head + upgrade + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
        )
        assert (await raw.answer()).status == 400
        await raw.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await raw.answer()).json == {"status": "live"}
        assert await raw.ended() == b""


async def test_pipelined_with_an_ignored_upgrade(replica: Replica) -> None:
    """Requests before and after one whose upgrade is ignored are answered too, in order."""
    plain, upgrade = b"".join(publish("plain")), b"".join(publish("upgrade", *H2C))
    async with raw_http(replica) as raw:
        await raw.send(plain + upgrade + plain + upgrade)
        numbers = [(await raw.answer()).json["sequence"] for _ in range(4)]
    assert numbers == list(range(numbers[0], numbers[0] + 4))


async def test_an_ignored_upgrade_and_the_end(replica: Replica) -> None:
    """A request that asks for another protocol and for the end of the connection is served, and then that is it."""
    head, body = publish("ignored", "Connection: close, Upgrade", "Upgrade: h2c")
    async with raw_http(replica) as raw:
        await raw.send(head, body)
        answer = await raw.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert await raw.ended() == b""


async def test_http_1_0_cannot_upgrade(replica: Replica) -> None:
    """An upgrade in an HTTP/1.0 request is ignored; the path tells what it needs."""
    async with raw_http(replica) as raw:
        await raw.send(b"GET /ws/events HTTP/1.0\r\nHost: localhost\r\n" + HANDSHAKE + b"\r\n")
        assert (await raw.answer()).status == 426


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + b"\r\n",
        b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + b"Content-Length: 2\r\n\r\n{}",
        b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HEAD /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + b"\r\n",
        b"GET /ws/events HTTP/1.1\r\n" + HANDSHAKE + b"\r\n",
        b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n"
        + HANDSHAKE.replace(b"LkZ", b"").replace(b"Key", b"Kex")
        + b"\r\n",
    ],
)
async def test_refused_upgrades(replica: Replica, request_: bytes) -> None:
    """An upgrade to a WebSocket by anything but a complete GET without a body is answered 400, and closed."""
    async with raw_http(replica) as raw:
        await raw.send(request_)
        answer = await raw.answer()
        assert (answer.status, answer.is_problem) == (400, True), answer
        assert answer.headers["connection"] == "close"
        assert await raw.ended() == b""


@pytest.mark.parametrize("version", [b"8", b"14", b"13, 8", b""])
async def test_other_versions(replica: Replica, version: bytes) -> None:
    """Another version of the WebSocket protocol is answered 400 with the version that is spoken."""
    async with raw_http(replica) as raw:
        handshake = HANDSHAKE.replace(b"Version: 13", b"Version: " + version)
        await raw.send(b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n" + handshake + b"\r\n")
        answer = await raw.answer()
        assert (answer.status, answer.is_problem, answer.headers["sec-websocket-version"]) == (400, True, "13")
        assert await raw.ended() == b""


async def test_too_many_fields_for_an_upgrade(replica: Replica) -> None:
    """An upgrade that the WebSocket library refuses gets a problem document too."""
    fields = b"".join(b"X-%d: x\r\n" % number for number in range(200))
    async with raw_http(replica) as raw:
        await raw.send(b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + fields + b"\r\n")
        answer = await raw.answer()
        assert (answer.status, answer.is_problem) == (431, True)
        assert await raw.ended() == b""


@pytest.mark.parametrize("segments", [1, 2])
async def test_an_upgrade_waits_for_its_turn(replica: Replica, segments: int) -> None:
    """An upgrade pipelined behind a publish is made when the publish is answered."""
    before = b"".join(publish("before"))
    upgrade = b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + b"\r\n"
    async with raw_http(replica) as raw:
        await raw.send(*([before + upgrade] if segments == 1 else [before, upgrade]), pause=0)
        assert [(await raw.answer()).status for _ in range(2)] == [202, 101]
        first = await raw.reader.readexactly(2)
        assert first[0] == 0x81, "a text frame"
        length = int.from_bytes(await raw.reader.readexactly(2))
        frame = await raw.reader.readexactly(length)
        assert b'"connected"' in frame


async def test_a_refused_upgrade_waits_for_its_turn(replica: Replica) -> None:
    """A request that is refused is answered after those before it, and nothing after it is served."""
    good, bad = b"".join(publish("good")), b"GET /ws/events HTTP/1.1\r\n" + HANDSHAKE + b"\r\n"
    async with raw_http(replica) as raw:
        await raw.send(good + good + bad + good)
        assert [(await raw.answer()).status for _ in range(3)] == [202, 202, 400]
        assert await raw.ended() == b""


async def test_frames_in_the_segment_of_the_upgrade(replica: Replica) -> None:
    """A client that does not wait for the answer to its upgrade loses nothing."""
    ping = b'{"type":"ping"}'
    frame = bytes([0x80 | TEXT, 0x80 | len(ping)]) + bytes(4) + ping
    async with raw_http(replica) as raw:
        await raw.send(b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKE + b"\r\n" + frame)
        assert (await raw.answer()).status == 101
        async with asyncio.timeout(20):
            await raw.reader.readuntil(b'{"type":"pong"}')


@pytest.mark.parametrize("token", ["WebSocket", "h2c, websocket"])
async def test_websocket_among_others(replica: Replica, token: str) -> None:
    """The WebSocket is chosen in any letter case, and out of several protocols."""
    handshake = HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: " + token.encode())
    async with raw_http(replica) as raw:
        await raw.send(b"GET http://localhost/ws/events?events=x HTTP/1.1\r\nHost: localhost\r\n" + handshake + b"\r\n")
        assert (await raw.answer()).status == 101


async def test_an_upgraded_connection_outlives_the_timers_of_http(replica: Replica) -> None:
    """After the upgrade the connection is a WebSocket alone."""
    async with raw_websocket(replica) as raw:
        assert raw.status == 101
        assert (await raw.receive()).json["type"] == "connected"
