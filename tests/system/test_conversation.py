"""Messages on the WebSocket: first frame, live frames, heartbeats, replies to commands, bad input."""

import json
import re
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from handlers.openapi.examples import EXAMPLES
from tests.system.client import Client, connected
from tests.system.producers import KINDS, marked, route_of
from tests.system.replica import Replica, ReplicaFactory

SUPPORTED = ["ping", "pong", "subscribe", "unsubscribe", "resync", "ack"]


@pytest.fixture
async def client(replica: Replica) -> AsyncIterator[Client]:
    """A client that has received its first frame."""
    async with connected(replica.websocket()) as client:
        await client.next()
        yield client


async def publish(replica: Replica, kind: str = "alert_deleted", mark: str = "x") -> dict[str, Any]:
    """Publish a message and return the receipt."""
    answer = await replica.post(route_of(kind), marked(kind, mark))
    assert answer.status_code == 202
    receipt: dict[str, Any] = answer.json()
    return receipt


# -- first frame --------------------------------------------------------------------------------------------------


async def test_first_frame(replica: Replica) -> None:
    """The first frame has the connection's id and the position of the replica; the events after it follow live."""
    receipt = await publish(replica)
    await replica.delivers(receipt["sequence"])
    async with connected(replica.websocket()) as client, connected(replica.websocket()) as second:
        hello = await client.next()
        assert hello.keys() == {"type", "message", "connection_id", "epoch", "lastSeq"}
        assert (hello["type"], hello["message"]) == ("connected", "Connected to events channel")
        assert re.fullmatch(r"ws-events-[0-9a-f]{8}", hello["connection_id"])
        assert hello["connection_id"] != (await second.next())["connection_id"]
        assert hello["epoch"] == receipt["epoch"]
        assert hello["lastSeq"] >= receipt["sequence"]
        following = [await publish(replica) for _ in range(3)]
        await client.reached(following[-1]["sequence"])
        assert client.numbers == [receipt["sequence"] for receipt in following]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"events": ",".join(f"p{number}" for number in range(101))}, "events"),
        ({"events": "x" * 257}, "events"),
        ({"since": "-1"}, "since"),
        ({"since": "one"}, "since"),
        ({"since": "1.5"}, "since"),
        ({"since": ""}, "since"),
        ({"since": "١"}, "since"),
        ({"epoch": "0123456789abcdef"}, "epoch"),
    ],
)
async def test_unusable_parameter(replica: Replica, query: dict[str, str], parameter: str) -> None:
    """An unusable query parameter counts as absent, and is reported after the first frame (protocol: websocket)."""
    async with connected(replica.websocket(**query)) as client:
        assert (await client.next())["type"] == "connected"
        error = await client.next()
        assert (error["type"], error["error"]) == ("error", "validation_error")
        assert parameter in error["message"]
        receipt = await publish(replica)
        frame = await client.next()
        assert (frame["sequence"], frame.get("replay")) == (receipt["sequence"], None)


async def test_several_unusable_parameters(replica: Replica) -> None:
    """Each unusable query parameter is reported on its own, and the usable ones apply."""
    query = {"events": "x" * 300, "since": "never", "epoch": "e", "format": "zlib"}
    async with connected(replica.websocket(**query)) as client:
        await client.next()
        errors = [await client.next() for _ in range(2)]
        assert {error["error"] for error in errors} == {"validation_error"}
        receipt = await publish(replica, mark="z" * 2000)
        await client.reached(receipt["sequence"])
        assert client.kind_of(client.events[0]) is bytes


async def test_most_patterns(replica: Replica) -> None:
    """The query accepts 100 patterns of 256 characters each."""
    patterns = [f"{number:0>254}-{'*' if number else 'x'}" for number in range(99)]
    async with connected(replica.websocket(events=",".join([*patterns, "alert*"]))) as client:
        await client.next()
        receipt = await publish(replica)
        assert (await client.next())["sequence"] == receipt["sequence"]


async def test_unknown_parameter(replica: Replica) -> None:
    """Unknown query parameters are ignored."""
    async with connected(replica.websocket(utm_source="mail", format="json")) as client:
        await client.next()
        receipt = await publish(replica)
        assert (await client.next())["sequence"] == receipt["sequence"]


# -- live frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_live_frame(replica: Replica, client: Client, kind: str) -> None:
    """A live frame has type, data, sequence number and `requires_ack`, and a timestamp if its type has one."""
    answer = await replica.post(route_of(kind), EXAMPLES[kind])
    frame = await client.next()
    timestamp = {"timestamp": EXAMPLES[kind]["timestamp"]} if "timestamp" in EXAMPLES[kind] else {}
    assert frame == {
        "type": kind,
        "data": EXAMPLES[kind]["data"],
        "sequence": answer.json()["sequence"],
        "requires_ack": kind == "event",
        **timestamp,
    }
    assert client.kind_of(frame) is str


@pytest.mark.parametrize(
    ("score", "level", "wanted"),
    [(79, "high", False), (80, "low", True), (0, "CRITICAL", True), (100, "critical", True)],
)
async def test_requires_ack(replica: Replica, client: Client, score: int, level: str, wanted: bool) -> None:
    """`requires_ack` is true for an event with a risk score of 80 or more, or of level critical."""
    await replica.post("/broadcast/event", marked("event", "x") | {"risk_score": score, "risk_level": level})
    frame = await client.next()
    assert (frame["requires_ack"], frame["data"]["risk_level"]) == (wanted, level.lower())


async def test_normalized_fields(replica: Replica, client: Client) -> None:
    """Defaults are filled in, enums are emitted in lower case, unknown fields are dropped (protocol: messages)."""
    await replica.post("/broadcast/service-status", {"name": "s", "status": "HEALTHY", "unknown": 1})
    frame = await client.next()
    assert frame["data"] == {"service": "s", "status": "healthy", "message": None}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", frame["timestamp"])
    await replica.post("/broadcast/infrastructure-alert", {"alertname": "A", "status": "Firing", "fingerprint": "f"})
    assert (await client.next())["data"] == {
        "alertname": "A",
        "status": "firing",
        "severity": "info",
        "component": "unknown",
        "summary": "",
        "description": "",
        "started_at": None,
        "fingerprint": "f",
        "receiver": "default",
    }
    body = marked("worker_status", "w")
    await replica.post("/broadcast/worker-status", {"type": "worker_status", "data": body})
    frame = await client.next()
    assert (frame["data"], frame["timestamp"]) == (body, None)


async def test_exact_data(replica: Replica, client: Client) -> None:
    """Data is delivered exactly as published: empty lists, large integers, fractions, any script."""
    details = {"empty": [], "none": {}, "large": 2**53 + 1, "small": 0.1, "text": 'Tür "öffnen" \u2028 \\ 🚪'}
    await replica.post("/broadcast/camera-status", marked("camera_status", "🚪") | {"details": details})
    assert (await client.next())["data"]["details"] == details
    await replica.post("/broadcast/detection/batch", marked("detection.batch", "b") | {"detection_ids": []})
    assert (await client.next())["data"]["detection_ids"] == []


# -- heartbeats ---------------------------------------------------------------------------------------------------


async def test_heartbeats(replica: Replica) -> None:
    """Heartbeats carry the client's own position, which also covers events that its patterns exclude."""
    async with connected(replica.websocket(events="nothing.of.this")) as client:
        hello = await client.next()
        receipt = await publish(replica)
        await client.reached(receipt["sequence"])
        await client.until(lambda: client.heartbeats if len(client.heartbeats) > 3 else None)
        for heartbeat in client.heartbeats:
            assert heartbeat.keys() == {"type", "lastSeq", "epoch"}
            assert heartbeat["epoch"] == hello["epoch"]
        places = [heartbeat["lastSeq"] for heartbeat in client.heartbeats]
        assert all(earlier <= later for earlier, later in pairwise(places))
        assert places[-1] == receipt["sequence"]
        assert client.events == []


# -- commands and replies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ping", ["ping", '{"type":"ping"}', '{"type":"PING"}', '{"type":"Ping","data":null,"x":1}'])
async def test_ping(client: Client, ping: str) -> None:
    """A ping, as text or as an object with its type in any letter case, gets a pong."""
    await client.send(ping)
    assert await client.next() == {"type": "pong"}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "pong"},
        {"type": "ack", "data": {"sequence": 1}},
        {"type": "ack", "sequence": 1},
        {"type": "ACK", "data": {"sequence": 10**9}},
    ],
)
async def test_no_answer(client: Client, message: dict[str, Any]) -> None:
    """`pong` and `ack` get no reply."""
    await client.send(message)
    await client.send("ping")
    assert await client.next() == {"type": "pong"}


async def test_replies_go_to_the_sender(replica: Replica, client: Client) -> None:
    """Replies go only to the client that sent the command."""
    async with connected(replica.websocket()) as asker:
        await asker.send({"type": "subscribe", "data": {"events": ["*"]}})
        await asker.send("nonsense")
        await asker.take(type="error")
        receipt = await publish(replica)
        await client.reached(receipt["sequence"])
        assert client.messages[1:] == client.events


ERRORS: dict[str, tuple[Any, str, str]] = {
    "no JSON": ("nonsense", "invalid_json", "raw_data_preview"),
    "half an object": ('{"type":', "invalid_json", "raw_data_preview"),
    "upper-case ping": ("PING", "invalid_json", "raw_data_preview"),
    "deep": ("[" * 50_000, "invalid_json", "raw_data_preview"),
    "a list": ("[]", "invalid_message_format", "validation_errors"),
    "a number": ("42", "invalid_message_format", "validation_errors"),
    "null": ("null", "invalid_message_format", "validation_errors"),
    "no type": ("{}", "invalid_message_format", "validation_errors"),
    "empty type": ({"type": ""}, "invalid_message_format", "validation_errors"),
    "long type": ({"type": "x" * 51}, "invalid_message_format", "validation_errors"),
    "type no string": ({"type": 7}, "invalid_message_format", "validation_errors"),
    "data no object": ({"type": "ping", "data": []}, "invalid_message_format", "validation_errors"),
    "binary": (b'{"type":"ping"}', "invalid_message_format", "validation_errors"),
    "empty binary": (b"", "invalid_message_format", "validation_errors"),
    "unknown": ({"type": "x" * 50}, "unknown_message_type", "supported_types"),
    "subscribe without data": ({"type": "subscribe"}, "validation_error", "example"),
    "no patterns": ({"type": "subscribe", "data": {"events": []}}, "validation_error", "example"),
    "patterns no list": ({"type": "subscribe", "data": {"events": "event"}}, "validation_error", "example"),
    "pattern no string": ({"type": "subscribe", "data": {"events": [1]}}, "validation_error", "example"),
    "empty pattern": ({"type": "subscribe", "data": {"events": [""]}}, "validation_error", "example"),
    "long pattern": ({"type": "subscribe", "data": {"events": ["x" * 257]}}, "validation_error", "example"),
    "many patterns": (
        {"type": "subscribe", "data": {"events": [str(number) for number in range(101)]}},
        "validation_error",
        "example",
    ),
    "ack without number": ({"type": "ack"}, "validation_error", "reason"),
    "ack of 0": ({"type": "ack", "data": {"sequence": 0}}, "validation_error", "reason"),
    "ack of a string": ({"type": "ack", "data": {"sequence": "1"}}, "validation_error", "reason"),
    "ack of a bool": ({"type": "ack", "data": {"sequence": True}}, "validation_error", "reason"),
    "ack of a fraction": ({"type": "ack", "sequence": 1.5}, "validation_error", "reason"),
    "resync before 0": ({"type": "resync", "data": {"last_sequence": -1}}, "validation_error", "reason"),
    "resync of a string": ({"type": "resync", "data": {"last_sequence": "1"}}, "validation_error", "reason"),
    "resync of null": ({"type": "resync", "last_sequence": None}, "validation_error", "reason"),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_bad_input(client: Client, case: str) -> None:
    """Each bad frame gets one error frame, and the connection stays open."""
    message, code, detail = ERRORS[case]
    await client.send(message)
    await client.send("ping")
    error = await client.next()
    assert error.keys() == {"type", "error", "message", "details"}
    assert (error["type"], error["error"]) == ("error", code)
    assert isinstance(error["message"], str)
    assert detail in error["details"]
    assert await client.next() == {"type": "pong"}


async def test_details_of_errors(client: Client) -> None:
    """Error details are useful: a preview of 100 characters, the unknown type, an example that works."""
    await client.send("x" * 101)
    assert (await client.next())["details"]["raw_data_preview"] == "x" * 100
    await client.send("")
    assert (await client.next())["details"]["raw_data_preview"] is None
    await client.send({"type": "shout"})
    error = await client.next()
    assert "shout" in error["message"]
    assert sorted(error["details"]["supported_types"]) == sorted(SUPPORTED)
    await client.send({"type": "subscribe"})
    await client.send((await client.next())["details"]["example"])
    assert (await client.next())["action"] == "subscribed"


async def test_patterns_of_a_connection(client: Client) -> None:
    """A connection may have 100 patterns in all; repeating one does not count again."""
    patterns = [f"pattern-{number}" for number in range(100)]
    for events, answer in (
        (patterns[:60], {"action": "subscribed", "events": patterns[:60]}),
        (patterns, {"action": "subscribed", "events": patterns}),
    ):
        await client.send({"type": "subscribe", "data": {"events": events}})
        assert await client.next() == answer
    await client.send({"type": "subscribe", "data": {"events": ["one-more"]}})
    assert (await client.next())["error"] == "validation_error"


async def test_flood_of_bad_input(client: Client) -> None:
    """Every bad frame of a flood gets its error, in order."""
    for number in range(150):
        await client.send(json.dumps({"type": f"unknown-{number}"}))
    for number in range(150):
        assert f"unknown-{number}" in (await client.next())["message"]


# -- unexpected errors ------------------------------------------------------------------------------------------------


async def test_unexpected_error(start: ReplicaFactory, valkey: str) -> None:
    """An unexpected error closes only the connection that caused it, with 1011, and its log line quotes no message."""
    replica = start(module="tests.system.broken_hub serve", redis_url=valkey)
    async with connected(replica.websocket()) as recorder, connected(replica.websocket()) as client:
        await client.next()
        await client.send("something private")
        assert await client.closed() == (1011, "Internal error")
        await recorder.send("ping")
        await recorder.take(type="pong")
    assert replica.metric("closes_total", code="1011") == 1
    assert "private" not in replica.log
    replica.stop(tolerate=" ERROR handlers.problems: ValueError at .* on /ws/events")
