"""Who may connect, and how connections end: credentials, origins, the cap, sizes, silence."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import InvalidStatus

from tests.system.client import Client, connected
from tests.system.raw_websocket import BINARY, CONTINUATION, PING, PONG, TEXT, raw_websocket
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

KEY = {"X-API-Key": "first"}
BEARER = {"Authorization": "Bearer first"}
TOKEN = {"token": "secret"}


@pytest.fixture(scope="module")
def guarded(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica that lets three at a time in, with key, token and from one origin."""
    return start_for_module(
        redis_url=valkey,
        redis_event_channel="guarded",
        api_keys="first,second",
        websocket_token="secret",
        allowed_origins="https://good.example, http://localhost:3000",
        websocket_max_connections=3,
    )


@pytest.fixture(scope="module")
def keyed(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica that asks for a key only."""
    return start_for_module(redis_url=valkey, redis_event_channel="keyed", api_keys="first,second")


@pytest.fixture(scope="module")
def strict(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica with small limits."""
    return start_for_module(
        redis_url=valkey,
        redis_event_channel="strict",
        websocket_max_message_size=1024,
        websocket_idle_timeout_seconds=1,
        websocket_ping_interval_seconds=0.1,
    )


# -- credentials ----------------------------------------------------------------------------------------------------


async def accepted(url: str, **options: object) -> bool:
    """Whether a client gets in; one that does not is accepted first, and closed with 1008."""
    async with connected(url, **options) as client:
        await client.until(lambda: client.frames or client.close[0])
        if client.frames:
            return True
        code, reason = await client.closed()
        assert (code, bool(reason)) == (1008, True)
        return False


async def test_key(keyed: Replica) -> None:
    """Section 4, credentials: a key as query parameter, header, bearer or subprotocol."""
    assert await accepted(keyed.websocket(api_key="first"))
    assert await accepted(keyed.websocket(api_key="second"))
    assert await accepted(keyed.websocket(), headers=KEY)
    assert await accepted(keyed.websocket(), headers=BEARER)
    assert await accepted(keyed.websocket(), subprotocols=["api-key.second"])


async def test_wrong_key(keyed: Replica) -> None:
    """Section 4, credentials: without a key, or with a wrong one, a client is accepted and closed with 1008."""
    assert not await accepted(keyed.websocket())
    assert not await accepted(keyed.websocket(api_key=""))
    assert not await accepted(keyed.websocket(api_key="third"))
    assert not await accepted(keyed.websocket(token="first"))
    assert not await accepted(keyed.websocket(), subprotocols=["api-key.third"])
    assert not await accepted(keyed.websocket(), headers={"Authorization": "Basic first"})


async def test_subprotocol(keyed: Replica) -> None:
    """Section 4, credentials: the subprotocol that carries the key is echoed, to refused clients too."""
    for offered, key in ((["chat", "api-key.first"], "api-key.first"), (["api-key.wrong", "chat"], "api-key.wrong")):
        async with connected(keyed.websocket(), subprotocols=offered) as client:
            assert client.socket.subprotocol == key


async def test_other_subprotocols(replica: Replica) -> None:
    """Section 4, credentials: other subprotocols are not spoken here, and do no harm."""
    async with raw_websocket(replica, Sec_WebSocket_Protocol="chat, graphql-ws") as raw:
        assert raw.status == 101
        assert "sec-websocket-protocol" not in raw.headers


async def test_key_and_token(guarded: Replica) -> None:
    """Section 4, credentials: with a key and a token set a client needs both."""
    assert await accepted(guarded.websocket(api_key="first", token="secret"))
    assert await accepted(guarded.websocket(**TOKEN), headers=KEY)
    assert await accepted(guarded.websocket(**TOKEN), headers=BEARER)
    assert await accepted(guarded.websocket(**TOKEN), subprotocols=["api-key.first"])
    assert await accepted(guarded.websocket(), headers={"Authorization": "Bearer secret"} | KEY)
    for url, headers in (
        (guarded.websocket(**TOKEN), {}),
        (guarded.websocket(), KEY),
        (guarded.websocket(token="wrong"), KEY),
        (guarded.websocket(token="secret", api_key="wrong"), {}),
    ):
        assert not await accepted(url, headers=headers)


async def test_secrets_stay_secret(guarded: Replica) -> None:
    """Section 10, logs: no credential gets into the log."""
    await accepted(guarded.websocket(api_key="second-wrong-key", token="wrong-token"), subprotocols=["api-key.sub"])
    await accepted(guarded.websocket(api_key="first", token="secret"))
    for secret in ("second-wrong-key", "wrong-token", "api-key.sub", "first", "secret"):
        assert secret not in guarded.log


# -- origins, cap -----------------------------------------------------------------------------------------------


async def test_origins(guarded: Replica) -> None:
    """Section 11, ALLOWED_ORIGINS: an upgrade from elsewhere is a 403; one that names no origin is let in."""
    url = guarded.websocket(api_key="first", token="secret")
    for origin in ("https://good.example", "http://localhost:3000", None):
        assert await accepted(url, origin=origin)
    for origin in ("https://evil.example", "http://good.example", "https://good.example.evil", "null"):
        with pytest.raises(InvalidStatus) as refused:
            await Client.open(url, origin=origin)
        assert refused.value.response.status_code == 403


async def test_any_origin(replica: Replica) -> None:
    """Section 11, ALLOWED_ORIGINS: unset, every origin is welcome."""
    assert await accepted(replica.websocket(), origin="https://anywhere.example")


async def test_cap(guarded: Replica) -> None:
    """Section 4, close codes: over the cap a client is closed with 1013, and who leaves makes room."""
    url = guarded.websocket(api_key="first", token="secret")
    await eventually(lambda: guarded.health()["connections"] == 0, 15)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(url)) for _ in range(3)]
        for client in clients:
            await client.next()
        async with connected(url) as fourth:
            assert (await fourth.closed())[0] == 1013
        assert fourth.frames == []
        assert guarded.health()["connections"] == 3
        await clients[0].leave()
        await eventually(lambda: guarded.health()["connections"] == 2, 15)
        async with connected(url) as again:
            assert (await again.next())["type"] == "connected"


# -- sizes --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def client(strict: Replica) -> AsyncIterator[Client]:
    """A client under small limits."""
    async with connected(strict.websocket(), deflate=True) as client:
        await client.next()
        yield client


def _padded(size: int) -> str:
    return '{"type":"ping"' + " " * (size - 15) + "}"


async def test_largest_message(client: Client) -> None:
    """Section 4, message size: one of the limit is answered, also when it came compressed."""
    await client.send(_padded(1024))
    assert await client.next() == {"type": "pong"}


async def test_too_big(client: Client) -> None:
    """Section 4, message size: one byte more, counted after inflating, closes with 1009."""
    await client.send(_padded(1025))
    assert (await client.closed())[0] == 1009


async def test_too_big_when_inflated(strict: Replica) -> None:
    """Section 4, message size: a small frame that inflates to a large message closes with 1009."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (compressor.compress(b" " * 1_000_000) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(bomb) < 1024
    async with raw_websocket(strict, Sec_WebSocket_Extensions="permessage-deflate") as raw:
        raw.send(TEXT, bomb, compressed=True)
        assert (await raw.receive_close()).code == 1009


async def test_too_big_in_fragments(strict: Replica) -> None:
    """Section 4, message size: fragments count together; a message of fragments within the limit is one message."""
    async with raw_websocket(strict) as raw:
        for opcode, part in ((TEXT, b'{"type":'), (PING, b"between"), (CONTINUATION, b'"ping"')):
            raw.send(opcode, part, fin=opcode == PING)
        raw.send(CONTINUATION, b"}")
        answers: list[int] = []
        while len(answers) < 2:
            frame = await raw.receive()
            if frame.opcode == PONG or (frame.opcode == TEXT and frame.json["type"] == "pong"):
                answers.append(frame.opcode)
        assert answers == [PONG, TEXT]
        raw.send(TEXT, b" " * 600, fin=False)
        raw.send(CONTINUATION, b" " * 600)
        assert (await raw.receive_close()).code == 1009


async def test_announced_too_big(strict: Replica) -> None:
    """Section 4, message size: the head of a frame is enough."""
    async with raw_websocket(strict) as raw:
        raw.send_bytes(bytes([0x81, 0xFF]) + (1 << 40).to_bytes(8) + bytes(4))
        assert (await raw.receive_close()).code == 1009


async def test_too_big_for_the_default(replica: Replica) -> None:
    """Section 11, WEBSOCKET_MAX_MESSAGE_SIZE: 65,536 bytes by default, also of one that goes on sending."""
    async with connected(replica.websocket()) as client:
        await client.next()
        await client.send(_padded(65536))
        assert await client.next() == {"type": "pong"}
        await client.send(_padded(3_000_000))
        assert (await client.closed())[0] == 1009


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes([0x81, 0x02]) + b"{}", 1002),  # not masked
        (bytes([0x83, 0x80]) + bytes(4), 1002),  # an opcode that there is not
        (bytes([0xC1, 0x80]) + bytes(4), 1002),  # RSV1 without an extension
        (bytes([0x80, 0x80]) + bytes(4), 1002),  # a continuation of nothing
        (bytes([0x81, 0x81]) + bytes(4) + b"\xff", 1007),  # no UTF-8
    ],
)
async def test_broken_protocol(replica: Replica, data: bytes, code: int) -> None:
    """RFC 6455: what is no WebSocket frame, or no text, closes with the code that says so."""
    async with raw_websocket(replica) as raw:
        raw.send_bytes(data)
        assert (await raw.receive_close()).code == code
        await raw.ended()


async def test_no_websocket(replica: Replica) -> None:
    """The WebSocket's path is of no use to plain HTTP, and other paths are of none to a WebSocket."""
    answer = await replica.request("GET", "/ws/events")
    assert answer.status_code == 426
    assert [answer.headers[name] for name in ("upgrade", "connection")] == ["websocket", "upgrade"]
    assert (answer.headers["content-type"], answer.json()["status"]) == ("application/problem+json", 426)
    answer = await replica.request("POST", "/ws/events")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    for path in ("/elsewhere", "/", "/health", "/broadcast/event", "/ws/events/more"):
        async with raw_websocket(replica, path) as raw:
            assert raw.status == 404


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/ws/events?events=" + "x" * 300_000, {}, 414),
        ("/ws/events", {"X_Long": "x" * 300_000}, 431),
        ("/ws/events", {f"X_{number}": "x" for number in range(200)}, 431),
        ("/ws/events", {"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits=99"}, 101),
    ],
)
async def test_unreadable_upgrade(replica: Replica, path: str, headers: dict[str, str], status: int) -> None:
    """An upgrade that cannot be read is answered, and does not hang; an offer that cannot be used is passed over."""
    async with raw_websocket(replica, path, receive_buffer=None, **headers) as raw:
        assert raw.status == status


# -- silence ------------------------------------------------------------------------------------------------------


async def test_idle_timeout(strict: Replica) -> None:
    """Section 4, idle timeout: who says nothing is closed with 1000 `Idle timeout`, however much it is told."""
    started = time.monotonic()
    async with connected(strict.websocket()) as client:
        assert await client.closed() == (1000, "Idle timeout")
    assert time.monotonic() - started >= 1
    assert len(client.heartbeats) > 3


async def test_protocol_pongs_are_silence(strict: Replica) -> None:
    """Section 4, idle timeout: WebSocket-level pings and pongs do not count as messages."""
    async with raw_websocket(strict) as raw:

        async def be_polite() -> None:
            while True:
                raw.send(PONG)
                raw.send(PING)
                await asyncio.sleep(0.1)

        polite = asyncio.create_task(be_polite())
        close = await raw.receive_close()
        polite.cancel()
        assert (close.code, close.payload[2:]) == (1000, b"Idle timeout")


@pytest.mark.parametrize(("opcode", "message"), [(TEXT, b'{"type":"pong"}'), (TEXT, b"nonsense"), (BINARY, b"\x00")])
async def test_any_message_counts(strict: Replica, opcode: int, message: bytes) -> None:
    """Section 4, idle timeout: any message, text or binary, keeps the connection."""
    async with raw_websocket(strict) as raw:
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            frame = await raw.receive()
            if frame.json.get("type") == "ping":
                raw.send(opcode, message)
        assert (await raw.receive()).opcode == TEXT


async def test_leaving(strict: Replica) -> None:
    """Section 4, close codes: a client's own close is answered; it is gone from the count, as is one that vanished."""
    polite, rude = await Client.open(strict.websocket()), await Client.open(strict.websocket())
    for client in (polite, rude):
        await client.next()
    assert strict.health()["connections"] >= 2
    await polite.leave()
    assert polite.close[0] == 1000
    await rude.vanish()
    await eventually(lambda: strict.health()["connections"] == 0, 15)
