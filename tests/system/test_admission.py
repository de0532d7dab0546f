"""Access to the WebSocket and the end of connections: credentials, origins, limits, message sizes, idle timeout."""

import asyncio
import json
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
    """A replica that requires key, token and a known origin, and accepts three connections at a time."""
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
    """A replica that requires only a key."""
    return start_for_module(redis_url=valkey, redis_event_channel="keyed", api_keys="first,second")


@pytest.fixture(scope="module")
def strict(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica with a small message size and a short idle timeout."""
    return start_for_module(
        redis_url=valkey,
        redis_event_channel="strict",
        websocket_max_message_size=1024,
        websocket_idle_timeout_seconds=1,
        websocket_ping_interval_seconds=0.1,
    )


# -- credentials ----------------------------------------------------------------------------------------------------


async def accepted(url: str, **options: object) -> bool:
    """Return True if a client is admitted; otherwise check that it is accepted first and then closed with 1008."""
    async with connected(url, **options) as client:
        await client.until(lambda: client.frames or client.close[0])
        if client.frames:
            return True
        code, reason = await client.closed()
        assert (code, bool(reason)) == (1008, True)
        return False


async def test_key(keyed: Replica) -> None:
    """A key is accepted as query parameter, header, bearer token or subprotocol (protocol: websocket)."""
    assert await accepted(keyed.websocket(api_key="first"))
    assert await accepted(keyed.websocket(api_key="second"))
    assert await accepted(keyed.websocket(), headers=KEY)
    assert await accepted(keyed.websocket(), headers=BEARER)
    assert await accepted(keyed.websocket(), subprotocols=["api-key.second"])


async def test_wrong_key(keyed: Replica) -> None:
    """A client without a key, or with a wrong one, is accepted and then closed with 1008 (protocol: close codes)."""
    assert not await accepted(keyed.websocket())
    assert not await accepted(keyed.websocket(api_key=""))
    assert not await accepted(keyed.websocket(api_key="third"))
    assert not await accepted(keyed.websocket(token="first"))
    assert not await accepted(keyed.websocket(), subprotocols=["api-key.third"])
    assert not await accepted(keyed.websocket(), headers={"Authorization": "Basic first"})


async def test_subprotocol(keyed: Replica) -> None:
    """The subprotocol that carries the key is echoed, to refused clients too (protocol: websocket)."""
    for offered, key in ((["chat", "api-key.first"], "api-key.first"), (["api-key.wrong", "chat"], "api-key.wrong")):
        async with connected(keyed.websocket(), subprotocols=offered) as client:
            assert client.socket.subprotocol == key


async def test_other_subprotocols(replica: Replica) -> None:
    """Subprotocols without a key are ignored, and none is selected."""
    async with raw_websocket(replica, Sec_WebSocket_Protocol="chat, graphql-ws") as raw:
        assert raw.status == 101
        assert "sec-websocket-protocol" not in raw.headers


async def test_key_and_token(guarded: Replica) -> None:
    """If both a key and a token are set, a client needs both."""
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
    """No credential appears in the log."""
    await accepted(guarded.websocket(api_key="second-wrong-key", token="wrong-token"), subprotocols=["api-key.sub"])
    await accepted(guarded.websocket(api_key="first", token="secret"))
    for secret in ("second-wrong-key", "wrong-token", "api-key.sub", "first", "secret"):
        assert secret not in guarded.log


# -- origins, connection limit ----------------------------------------------------------------------------------------


async def test_origins(guarded: Replica) -> None:
    """An upgrade from an origin that is not in ALLOWED_ORIGINS gets 403; one without an origin is accepted."""
    url = guarded.websocket(api_key="first", token="secret")
    for origin in ("https://good.example", "http://localhost:3000", None):
        assert await accepted(url, origin=origin)
    for origin in ("https://evil.example", "http://good.example", "https://good.example.evil", "null"):
        with pytest.raises(InvalidStatus) as refused:
            await Client.open(url, origin=origin)
        assert refused.value.response.status_code == 403


async def test_any_origin(keyed: Replica) -> None:
    """With a key but without ALLOWED_ORIGINS every origin is accepted."""
    assert await accepted(keyed.websocket(api_key="first"), origin="https://anywhere.example")


async def test_cap(guarded: Replica) -> None:
    """A client over the connection limit is closed with 1013; once another client leaves, a new one is accepted."""
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
    """A client of the replica with small limits."""
    async with connected(strict.websocket(), deflate=True) as client:
        await client.next()
        yield client


def _padded(size: int) -> str:
    return '{"type":"ping"' + " " * (size - 15) + "}"


async def test_largest_message(client: Client) -> None:
    """A message of exactly the largest size is answered, also if it was sent compressed."""
    await client.send(_padded(1024))
    assert await client.next() == {"type": "pong"}


async def test_too_big(client: Client) -> None:
    """A message one byte over the limit, counted after decompression, closes the connection with 1009."""
    await client.send(_padded(1025))
    assert (await client.closed())[0] == 1009


async def test_too_big_when_inflated(strict: Replica) -> None:
    """A small frame that inflates to a large message closes the connection with 1009."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (compressor.compress(b" " * 1_000_000) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(bomb) < 1024
    async with raw_websocket(strict, Sec_WebSocket_Extensions="permessage-deflate") as raw:
        raw.send(TEXT, bomb, compressed=True)
        assert (await raw.receive_close()).code == 1009


async def test_too_big_in_fragments(strict: Replica) -> None:
    """The fragments of a message count together, and a fragmented message within the limit is read as one."""
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


async def test_too_big_by_its_header(strict: Replica) -> None:
    """A frame whose header announces too much is refused without waiting for its payload."""
    async with raw_websocket(strict) as raw:
        raw.send_bytes(bytes([0x81, 0xFF]) + (1 << 40).to_bytes(8) + bytes(4))
        assert (await raw.receive_close()).code == 1009


async def test_default_message_size(replica: Replica) -> None:
    """By default a message may have 65,536 bytes; a larger one is refused even if the client keeps sending."""
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
        (bytes([0x83, 0x80]) + bytes(4), 1002),  # an unknown opcode
        (bytes([0xC1, 0x80]) + bytes(4), 1002),  # RSV1 without an extension
        (bytes([0x80, 0x80]) + bytes(4), 1002),  # a continuation without a first frame
        (bytes([0x81, 0x81]) + bytes(4) + b"\xff", 1007),  # invalid UTF-8
    ],
)
async def test_broken_protocol(replica: Replica, data: bytes, code: int) -> None:
    """Invalid frames and invalid text close the connection with the code that RFC 6455 assigns."""
    async with raw_websocket(replica) as raw:
        raw.send_bytes(data)
        assert (await raw.receive_close()).code == code
        await raw.ended()


async def test_wrong_path_or_protocol(replica: Replica) -> None:
    """A plain HTTP request to the WebSocket path gets 426, and an upgrade on any other path gets 404."""
    answer = await replica.request("GET", "/ws/events")
    assert answer.status_code == 426
    assert [answer.headers[name] for name in ("upgrade", "connection")] == ["websocket", "upgrade"]
    assert (answer.headers["content-type"], answer.json()["status"]) == ("application/problem+json", 426)
    answer = await replica.request("POST", "/ws/events")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    for path in ("/elsewhere", "/", "/health", "/broadcast/event", "/ws/events/more"):
        async with raw_websocket(replica, path) as raw:
            assert raw.status == 404
            assert raw.headers["content-type"] == "application/problem+json"
            assert raw.headers["connection"] == "close"
            problem = json.loads(await raw.ended())
            assert (problem["title"], problem["status"]) == ("Not Found", 404)
            assert problem["detail"] == "There is nothing at this path."


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/ws/events?events=" + "x" * 300_000, {}, 414),
        ("/ws/events", {"X_Long": "x" * 300_000}, 431),
        ("/ws/events", {f"X_{number}": "x" for number in range(200)}, 431),
        ("/ws/events", {"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits=99"}, 101),
    ],
)
async def test_unusable_upgrade(replica: Replica, path: str, headers: dict[str, str], status: int) -> None:
    """An upgrade that cannot be parsed gets an error response; an extension offer that cannot be used is ignored."""
    async with raw_websocket(replica, path, receive_buffer=None, **headers) as raw:
        assert raw.status == status


# -- idle timeout -----------------------------------------------------------------------------------------------------


async def test_idle_timeout(strict: Replica) -> None:
    """A client that sends nothing is closed with 1000 `Idle timeout`, although the server keeps sending to it."""
    started = time.monotonic()
    async with connected(strict.websocket()) as client:
        assert await client.closed() == (1000, "Idle timeout")
    assert time.monotonic() - started >= 1
    assert len(client.heartbeats) > 3


async def test_protocol_pongs_are_silence(strict: Replica) -> None:
    """WebSocket-level pings and pongs do not count as messages for the idle timeout."""
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
    """Any message, text or binary, valid or not, restarts the idle timeout."""
    async with raw_websocket(strict) as raw:
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            frame = await raw.receive()
            if frame.json.get("type") == "ping":
                raw.send(opcode, message)
        assert (await raw.receive()).opcode == TEXT


async def test_close_by_client(strict: Replica) -> None:
    """A client's close is answered; closed and aborted connections both leave the connection count."""
    polite, rude = await Client.open(strict.websocket()), await Client.open(strict.websocket())
    for client in (polite, rude):
        await client.next()
    assert strict.health()["connections"] >= 2
    await polite.leave()
    assert polite.close[0] == 1000
    await rude.vanish()
    await eventually(lambda: strict.health()["connections"] == 0, 15)
