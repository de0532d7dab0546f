"""Server-sent events at `/events` (protocol: server-sent events)."""

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from handlers.cli.tail import follow
from tests.system.event_stream import event_stream
from tests.system.replica import PATIENCE, Replica, ReplicaFactory
from tests.waiting import eventually


async def publish(replica: Replica, *ids: str, reason: str | None = None) -> list[dict[str, Any]]:
    """Publish an `alert_deleted` for each id; return the receipts."""
    items = [{"type": "alert_deleted", "data": {"id": id, "reason": reason}} for id in ids]
    answer = await replica.post("/broadcast/batch", items)
    assert answer.status_code == 202
    receipts: list[dict[str, Any]] = answer.json()["receipts"]
    return receipts


def id_of(receipt: dict[str, Any]) -> str:
    """The id that the event of a receipt has."""
    return f"{receipt['epoch']}:{receipt['sequence']}"


async def test_live(replica: Replica, other: Replica) -> None:
    """A stream has the head that proxies need, `connected` with the place where live begins, and every event."""
    async with event_stream(replica, events="alert.*") as stream:
        for name, value in (("cache-control", "no-store"), ("x-accel-buffering", "no")):
            assert stream.answer.headers[name] == value
        first = await stream.named("connected")
        assert first.id == f"{first.data['epoch']}:{first.data['lastSeq']}"
        assert first.data["connection_id"].startswith("sse-events-")
        assert 1000 <= (stream.retry or 0) <= 5000
        receipts = await publish(other, "a", "b")
        message = await stream.named("message", 2)
        assert [m.id for m in stream.of("message")] == list(map(id_of, receipts))
        assert message.data["data"] == {"id": "b", "reason": None}
        assert "replay" not in message.data


async def test_same_frames_as_the_websocket(replica: Replica) -> None:
    """The data is the JSON of the WebSocket's frame, whatever text the event has."""
    text = "line\nfeed\r\n\u2028 data: x\n\nid: 7\n\x00 é 🎥"
    async with event_stream(replica) as stream:
        await stream.named("connected")
        await publish(replica, "x", reason=text)
        assert (await stream.named("message")).data["data"]["reason"] == text
        body = (
            b'{\r\n"event_type":"camera.online","camera_id":"c","camera_name":"n","status":"online",\n"timestamp":"t",'
        )
        body += b'"details":{\n"a":\r[1,\n2]}}'
        async with replica.http() as client:
            answer = await client.post(
                "/broadcast/camera-status", content=body, headers={"Content-Type": "application/json"}
            )
        assert answer.status_code == 202
        assert (await stream.named("message", 2)).data["data"]["details"] == {"a": [1, 2]}


@pytest.mark.parametrize("form", ["header", "parameter", "since"])
async def test_resume_on_the_other_replica(replica: Replica, other: Replica, form: str) -> None:
    """A stream goes on after the last id on any replica, and `resync_ack` has the id where the replay ended."""
    receipts = await publish(replica, "a", "b", "c")
    await other.delivers(receipts[-1]["sequence"])
    query: dict[str, object] = {"since": 0}
    headers = {}
    if form == "header":
        headers["Last-Event-ID"] = id_of(receipts[0])
        query["last_event_id"] = id_of(receipts[2])
    elif form == "parameter":
        query["last_event_id"] = id_of(receipts[0])
    else:
        query = {"since": receipts[0]["sequence"], "epoch": receipts[0]["epoch"]}
    async with event_stream(other, headers=headers, **query) as stream:
        acked = await stream.named("resync_ack")
        assert [message.data["data"]["id"] for message in stream.of("message")] == ["b", "c"]
        assert all(message.data["replay"] for message in stream.of("message"))
        assert stream.of("connected")[0].id == ""
        assert (acked.id, acked.data["recovered"]) == (id_of(receipts[2]), True)
        await publish(replica, "d")
        live = await stream.named("message", 3)
        assert (live.data["data"]["id"], "replay" in live.data) == ("d", False)


@pytest.mark.parametrize("id", ["x", "x:", ":5", "x:-1", "x:1_0", "x:" + "1" * 2000, "e" * 300 + ":1"])
async def test_id_that_cannot_be_read(replica: Replica, id: str) -> None:
    """An id that is none counts as absent, and the client is told."""
    async with event_stream(replica, headers={"Last-Event-ID": id}) as stream:
        told = await stream.named("validation_error")
        assert (told.data["type"], told.data["error"]) == ("error", "validation_error")
        assert stream.of("connected")[0].id
        assert not stream.of("resync_ack")


async def test_number_field(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """With `WEBSOCKET_NUMBER_FIELD=seq` the number has that name in streams and polls too; positions stay."""
    replica = start(redis_url=valkey, redis_event_channel=channel, websocket_number_field="seq")
    async with event_stream(replica) as stream:
        first = await stream.named("connected")
        assert first.data["seq"] == first.data["lastSeq"]
        [receipt] = await publish(replica, "a")
        message = await stream.named("message")
        assert (message.id, message.data["seq"]) == (id_of(receipt), receipt["sequence"])
        assert "sequence" not in message.data
    answer = (await replica.request("GET", "/events/poll", params={"since": 0})).json()
    assert ([frame["seq"] for frame in answer["events"]], answer["lastSeq"]) == ([1], 1)


async def test_epoch_changed(replica: Replica) -> None:
    """An id of another epoch is told so, and the replay starts at the beginning of the history."""
    [receipt] = await publish(replica, "a")
    async with event_stream(replica, headers={"Last-Event-ID": "other:5"}) as stream:
        acked = await stream.named("resync_ack")
        assert acked.data["epoch_changed"]
        assert acked.id == id_of(receipt)
        assert stream.numbers == list(range(stream.numbers[0], receipt["sequence"] + 1))


async def test_heartbeat(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A heartbeat moves the last id past events that the patterns left out, and fires nothing."""
    replica = start(redis_url=valkey, redis_event_channel=channel, websocket_ping_interval_seconds=0.1)
    async with event_stream(replica, events="event") as stream:
        await stream.named("connected")
        receipts = await publish(replica, "a", "b")
        await stream.until(lambda: stream.last_id == id_of(receipts[-1]))
        assert [message.event for message in stream.messages] == ["connected"]


async def test_drain(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A drain is told with the delay as `retry`; the stream ends after it, events go on until then."""
    replica = start(redis_url=valkey, redis_event_channel=channel, drain_seconds=1.0)
    async with event_stream(replica) as first, event_stream(replica) as second:
        await first.named("connected")
        await second.named("connected")
        replica.signal()
        for stream in (first, second):
            told = await stream.named("system.shutdown")
            assert stream.retry == told.data["data"]["delay_ms"]
        await publish(replica, "late")
        await second.named("message")
        async with replica.http() as client:
            refused = await client.get("/events")
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert int(refused.headers["retry-after"]) >= 1
            again = await client.get("/events", headers={"Accept": "text/event-stream"})
            assert again.status_code == 200
            assert again.text.startswith("retry: ")
            assert again.text.count("\n") == 2
        await second.until(lambda: first.ended and second.ended)
        assert first.messages[-1].event != "closing"
    assert await asyncio.to_thread(replica.ended) == 0


async def test_outlives_requests(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """The time limits of requests and of idle connections end neither a stream nor a waiting poll."""
    limits = {"http_keep_alive_seconds": 0.3, "http_request_seconds": 0.3}
    replica = start(redis_url=valkey, redis_event_channel=channel, **limits)
    async with event_stream(replica) as stream:
        await stream.named("connected")
        answer = await replica.request("GET", "/events/poll?since=0&wait=1")
        assert answer.json()["events"] == []
        await publish(replica, "a")
        await stream.named("message")


async def test_too_old(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A stream that has reached the greatest age says so in its last message."""
    replica = start(redis_url=valkey, redis_event_channel=channel, websocket_max_age_seconds=0.3)
    async with event_stream(replica) as stream:
        closing = await stream.named("closing")
        assert (closing.data["type"], closing.data["code"]) == ("closing", 1012)
        assert stream.retry == 1000
        await stream.until(lambda: stream.ended)
        assert stream.messages[-1] is closing


async def test_credentials(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A stream takes the same credentials as the other routes; without them it is a 401 problem document."""
    replica = start(redis_url=valkey, redis_event_channel=channel, api_keys="k")
    async with replica.http() as client:
        refused = await client.get("/events", headers={"Accept": "text/event-stream"})
        assert (refused.status_code, refused.json()["status"]) == (401, 401)
    for headers in ({"Authorization": "Bearer k"}, {"X-API-Key": "k"}):
        async with event_stream(replica, headers=headers) as stream:
            await stream.named("connected")
    async with event_stream(replica, api_key="k") as stream:
        await stream.named("connected")


async def test_cap(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Streams count as connections; over the cap the answer is 503 with `Retry-After`."""
    replica = start(redis_url=valkey, redis_event_channel=channel, websocket_max_connections=1)
    async with event_stream(replica) as stream:
        await stream.named("connected")
        assert replica.metric("connections") == 1
        async with replica.http() as client:
            refused = await client.get("/events")
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    await eventually(lambda: replica.metric("connections") == 0)


async def test_slow_client(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A stream that reads slowly catches up; one whose position has left the history is told so, and ends."""
    replica = start(
        redis_url=valkey,
        redis_event_channel=channel,
        websocket_send_buffer_bytes=65536,
        history_size=2000,
        event_max_bytes=65536,
    )

    async def flood(count: int) -> None:
        for _ in range(count // 20):
            await publish(replica, *["x"] * 20, reason="r" * 20_000)

    with slow_reader(replica) as lines:
        await eventually(lambda: replica.metric("connections") == 1)
        await flood(400)
        assert replica.metric("slow_clients_total") == 1
        assert [await asyncio.to_thread(next_number, lines) for _ in range(400)] == list(range(1, 401))

    with slow_reader(replica) as lines:
        await eventually(lambda: replica.metric("connections") == 1)
        await flood(3000)
        text = (await asyncio.to_thread(lines.read)).decode()  # to the end of the stream
    last = text.rstrip("\n").split("\n\n")[-1].split("\n")
    assert last[0] == "event: resync_ack"
    told = json.loads(last[1].removeprefix("data: "))
    assert (told["recovered"], told["gap_too_old"]) == (False, True)
    assert told["oldest_available"] > told["last_sequence"] + 1


def next_number(lines: http.client.HTTPResponse) -> int:
    """Read up to the next event, and return its number."""
    deadline = time.monotonic() + PATIENCE
    while line := lines.readline():
        assert time.monotonic() < deadline, "heartbeats come, but no event"
        if line.startswith(b'data: {"type":"alert_deleted"'):
            number: int = json.loads(line.removeprefix(b"data: "))["sequence"]
            return number
    raise AssertionError("the stream has ended")


@contextmanager
def slow_reader(replica: Replica, path: str = "/events") -> Iterator[http.client.HTTPResponse]:
    """Open a stream with a small receive buffer; nothing is read from it but what the test reads."""
    connection = http.client.HTTPConnection("127.0.0.1", replica.port)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    connection.sock.settimeout(30)
    connection.sock.connect(("127.0.0.1", replica.port))
    connection.request("GET", path)
    with closing(connection), connection.getresponse() as answer:
        yield answer


async def test_stream_without_chunks(replica: Replica) -> None:
    """A client of HTTP/1.0 gets the stream without chunks."""
    [receipt] = await publish(replica, "a")
    with socket.create_connection(("127.0.0.1", replica.port)) as client:
        client.settimeout(10)
        request = f"GET /events?since={receipt['sequence'] - 1} HTTP/1.0\r\nHost: localhost\r\n\r\n"
        await asyncio.to_thread(client.sendall, request.encode())
        received = b""
        while b"resync_ack" not in received:
            received += await asyncio.to_thread(client.recv, 65536)
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"retry: ")
    assert f"\nid: {id_of(receipt)}\ndata: ".encode() in body


async def test_tail(start: ReplicaFactory, valkey: str, channel: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`tail --sse` reads the stream, and resumes on another replica after a drain, from a heartbeat's place too."""
    options = {"redis_url": valkey, "redis_event_channel": channel, "websocket_ping_interval_seconds": 0.2}
    first = start(**options, drain_seconds=0.1)
    lines: list[str] = []
    tail = asyncio.create_task(follow(first.websocket(), stream=True, first_delay=0.1, emit=lines.append))
    await eventually(lambda: len(lines) == 1)
    await publish(first, "a")
    await eventually(lambda: len(lines) == 2)
    port = first.port
    await asyncio.to_thread(first.stop)
    second = start(**options, port=port)
    await publish(second, "b")
    await eventually(lambda: any(line.endswith("alert b (replay)") for line in lines) or "alert b" in lines[-1], 20)
    tail.cancel()
    events = [line.split()[1] for line in lines if "alert_deleted" in line]
    assert events == ["1", "2"]
    assert "the stream has ended; trying again" in capsys.readouterr().err


@pytest.mark.parametrize(("path", "told"), [("ws/events", "--api-key"), ("x/ws/events", "nothing at this path")])
async def test_tail_that_is_refused(
    start: ReplicaFactory, valkey: str, channel: str, path: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tail --sse` ends with a hint if it is refused."""
    replica = start(redis_url=valkey, redis_event_channel=channel, api_keys="k")
    assert await follow(f"ws://127.0.0.1:{replica.port}/{path}", stream=True, emit=print) == 1
    assert told in capsys.readouterr().err
