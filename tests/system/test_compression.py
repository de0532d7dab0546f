"""Encodings of frames: plain, `format=zlib`, permessage-deflate, and both at once."""

import json
import zlib
from typing import Any

import pytest

from tests.system.client import Client, connected
from tests.system.producers import marked
from tests.system.raw_websocket import BINARY, TEXT, RawFrame, RawWebSocket, raw_websocket
from tests.system.replica import Replica

CHROME = "permessage-deflate; client_max_window_bits"
FIREFOX = "permessage-deflate"
LIBRARY = "permessage-deflate; client_max_window_bits; server_max_window_bits=12"
SAFARI = "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits"


async def publish(replica: Replica, size: int, mark: str = "x") -> dict[str, Any]:
    """Publish an alert_deleted whose whole frame is about `size` bytes of text that compresses well."""
    answer = await replica.post("/broadcast/alert/deleted", {"id": mark, "reason": "abc " * (size // 4)})
    receipt: dict[str, Any] = answer.json()
    return receipt


async def next_event(raw: RawWebSocket) -> RawFrame:
    """Return the next frame that is an event."""
    while b'"sequence"' not in _decompressed(frame := await raw.receive()):
        pass
    return frame


def _decompressed(frame: RawFrame) -> bytes:
    """Return the message of a frame, decompressed."""
    if frame.opcode == TEXT:
        return frame.text.encode()
    data = frame.inflated()
    assert data[:1] == b"\x00"
    return zlib.decompress(data[1:])


# -- format=zlib --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deflate", [False, True])
async def test_zlib(replica: Replica, deflate: bool) -> None:
    """With `format=zlib` a message of the threshold's size is 0x00 and a zlib stream; a smaller one is text."""
    async with connected(replica.websocket(format="zlib"), deflate=deflate) as client:
        await client.next()
        base = len(json.dumps((await _publish_with_reason(replica, client, "")), separators=(",", ":")))
        for missing, kind in ((1, str), (0, bytes)):
            frame = await _publish_with_reason(replica, client, "r" * (1024 - missing - base))
            assert len(json.dumps(frame, separators=(",", ":"))) == 1024 - missing
            assert client.kind_of(frame) is kind


async def _publish_with_reason(replica: Replica, client: Client, reason: str) -> dict[str, Any]:
    """Publish an event and return its frame; its size is constant unless the sequence number gains a digit."""
    await replica.post("/broadcast/alert/deleted", {"id": "x", "reason": reason})
    return await client.next()


async def test_zlib_counts_bytes(replica: Replica) -> None:
    """The threshold of `format=zlib` counts UTF-8 bytes, not characters."""
    async with connected(replica.websocket(format="zlib")) as client:
        await client.next()
        await replica.post("/broadcast/alert/deleted", {"id": "x", "reason": "🚪" * 256})
        frame = await client.next()
        assert (frame["data"]["reason"], client.kind_of(frame)) == ("🚪" * 256, bytes)


async def test_zlib_of_answers_and_replay(replica: Replica) -> None:
    """`format=zlib` applies to all long messages, replies and replayed events included."""
    receipt = await publish(replica, 3000)
    await replica.delivers(receipt["sequence"])
    async with connected(replica.websocket(format="zlib", since=receipt["sequence"] - 1)) as client:
        frame = await client.take(replay=True)
        assert client.kind_of(frame) is bytes
        await client.take(type="resync_ack")
        patterns = ["x" * 200 + str(number) for number in range(10)]
        await client.send({"type": "subscribe", "data": {"events": patterns}})
        frame = await client.next()
        assert frame == {"action": "subscribed", "events": patterns}
        assert client.kind_of(frame) is bytes


@pytest.mark.parametrize("query", [{}, {"format": "json"}, {"format": "xml"}, {"format": "ZLIB"}])
async def test_text_only(replica: Replica, query: dict[str, str]) -> None:
    """The default format is json: every message is a text frame."""
    async with connected(replica.websocket(**query)) as client:
        receipt = await publish(replica, 5000)
        await client.reached(receipt["sequence"])
        assert set(client.kinds) == {str}


# -- permessage-deflate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offer", [CHROME, FIREFOX, LIBRARY, SAFARI])
async def test_negotiated(replica: Replica, offer: str) -> None:
    """The offers of browsers and libraries are accepted, without context takeover."""
    async with raw_websocket(replica, Sec_WebSocket_Extensions=offer) as raw:
        agreed = [part.strip() for part in raw.headers["sec-websocket-extensions"].split(";")]
        assert agreed[0] == "permessage-deflate"
        assert "server_no_context_takeover" in agreed
        assert (await raw.receive()).json["type"] == "connected"
        for mark in ("one", "two"):
            await publish(replica, 2000, mark)
            # inflated on its own: without context takeover no frame needs the one before
            frame = await next_event(raw)
            assert (frame.opcode, frame.compressed, frame.json["data"]["id"]) == (TEXT, True, mark)
            assert len(frame.payload) < 500


@pytest.mark.parametrize("bits", [8, 9, 10, 11])
async def test_window_too_small(replica: Replica, bits: int) -> None:
    """An offer that requires a smaller window than the shared one is declined, and frames are uncompressed."""
    async with raw_websocket(
        replica, Sec_WebSocket_Extensions=f"permessage-deflate; server_max_window_bits={bits}"
    ) as raw:
        assert "sec-websocket-extensions" not in raw.headers
        await publish(replica, 2000)
        frame = await next_event(raw)
        assert (frame.opcode, frame.compressed) == (TEXT, False)


@pytest.mark.parametrize(
    ("offer", "status"),
    [
        ("permessage-deflate; server_max_window_bits=abc", 101),
        ("permessage-deflate; server_max_window_bits=\xb2", 400),
        ("permessage-deflate; server_max_window_bits=-12", 101),
        ("permessage-deflate; server_max_window_bits=" + "9" * 5000, 101),
        ("permessage-deflate; server_max_window_bits", 101),
        ("permessage-deflate; server_max_window_bits=12; server_max_window_bits=12", 101),
        ("permessage-deflate; client_max_window_bits=abc", 101),
        ("permessage-deflate; server_no_context_takeover=1", 101),
        ("permessage-deflate; unknown", 101),
        ("permessage-deflate; =12", 400),
        ("permessage-deflate;;", 400),
        ('permessage-deflate; server_max_window_bits="', 400),
        (",", 400),
    ],
)
async def test_malformed_offer(replica: Replica, offer: str, status: int) -> None:
    """An offer with an invalid parameter is declined, a malformed header gets 400, and neither is logged (RFC 7692)."""
    before = replica.log
    async with raw_websocket(replica, Sec_WebSocket_Extensions=offer) as raw:
        assert raw.status == status
        assert "sec-websocket-extensions" not in raw.headers
    assert "Traceback" not in replica.log.removeprefix(before)


async def test_window_is_kept(replica: Replica) -> None:
    """Every frame can be inflated with the window that was agreed."""
    offer = "permessage-deflate; server_max_window_bits=12"
    async with raw_websocket(replica, Sec_WebSocket_Extensions=offer) as raw:
        assert "server_max_window_bits=12" in raw.headers["sec-websocket-extensions"]
        block = "".join(chr(33 + number * 7919 % 90) for number in range(8000))
        await replica.post("/broadcast/alert/deleted", {"id": "x", "reason": block + block})
        text = (await next_event(raw)).inflated(12)
        assert json.loads(text)["data"]["reason"] == block + block


@pytest.mark.parametrize(
    "offer",
    [
        f"permessage-deflate; server_max_window_bits=9, {CHROME}",
        f"permessage-deflate; server_max_window_bits=9; client_max_window_bits, {FIREFOX}",
    ],
)
async def test_second_choice(replica: Replica, offer: str) -> None:
    """The first acceptable offer of several is accepted."""
    async with raw_websocket(replica, Sec_WebSocket_Extensions=offer) as raw:
        assert raw.headers["sec-websocket-extensions"].startswith("permessage-deflate")
        await publish(replica, 2000)
        assert (await next_event(raw)).compressed


async def test_no_offer(replica: Replica) -> None:
    """A client that does not offer permessage-deflate gets uncompressed frames."""
    async with raw_websocket(replica) as raw:
        assert "sec-websocket-extensions" not in raw.headers
        await publish(replica, 2000)
        frame = await next_event(raw)
        assert (frame.opcode, frame.compressed) == (TEXT, False)


async def test_messages_to_the_server(replica: Replica) -> None:
    """A client may compress its own messages too, each independently."""
    async with connected(replica.websocket(), deflate=True) as client:
        for number in range(3):
            await client.send({"type": "subscribe", "data": {"events": [f"pattern-{number}" * 20]}})
            assert (await client.take(action="subscribed"))["events"] == [f"pattern-{number}" * 20]


async def test_zlib_and_deflate(replica: Replica) -> None:
    """With permessage-deflate and `format=zlib` together, zlib messages are still binary frames."""
    async with raw_websocket(replica, "/ws/events?format=zlib", Sec_WebSocket_Extensions=CHROME) as raw:
        assert "sec-websocket-extensions" in raw.headers
        for size, opcode in ((500, TEXT), (3000, BINARY)):
            await publish(replica, size)
            frame = await next_event(raw)
            assert frame.opcode == opcode
            assert json.loads(_decompressed(frame))["data"]["reason"] == "abc " * (size // 4)


async def test_all_kinds_of_clients(replica: Replica, other: Replica) -> None:
    """Clients of every encoding, on both replicas, get the same messages in the same order."""
    first: list[Client] = []
    for each in (replica, other):
        for query in ({}, {"format": "zlib"}):
            first += [await Client.open(each.websocket(**query), deflate=deflate) for deflate in (False, True)]
    for client in first:
        await client.next()
    items = [{"type": "event", "data": marked("event", f"m{n}") | {"reasoning": "why " * n * 20}} for n in range(60)]
    receipts = (await replica.post("/broadcast/batch", items)).json()["receipts"]
    for client in first:
        await client.reached(receipts[-1]["sequence"])
        assert [frame["data"] for frame in client.events] == [item["data"] for item in items]
        assert client.numbers == [receipt["sequence"] for receipt in receipts]
        await client.leave()
