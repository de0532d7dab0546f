"""The tail: from where it resumes, what it prints, and how it reconnects."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from handlers.cli import tail
from handlers.cli.tail import Position, line_of
from handlers.openapi.examples import EXAMPLES
from kernel.messages import MESSAGE_TYPES

CLOCK = "12:00:00.000"


def after(*frames: dict[str, Any], since: int | None = None) -> dict[str, str]:
    """Return the query with which a client resumes after these frames."""
    position = Position(since)
    for frame in frames:
        position.advance(frame)
    return position.query()


def connected(epoch: str, last: int) -> dict[str, Any]:
    """Return the first frame of a connection."""
    return {"type": "connected", "message": "hello", "connection_id": "ws-events-1", "epoch": epoch, "lastSeq": last}


def ping(epoch: str, last: int) -> dict[str, Any]:
    """Return a heartbeat."""
    return {"type": "ping", "lastSeq": last, "epoch": epoch}


def event(sequence: int) -> dict[str, Any]:
    """Return the frame of a live event."""
    return {"type": "scene_change", "data": {"camera_id": "door"}, "sequence": sequence, "requires_ack": False}


def ack(**fields: Any) -> dict[str, Any]:
    """Return the frame that ends a replay."""
    return {"type": "resync_ack", "channel": "events", "last_sequence": 5, "replayed_count": 2, **fields}


def at(sequence: int, epoch: str) -> dict[str, str]:
    """Return the query for a position."""
    return {"since": str(sequence), "epoch": epoch}


@pytest.mark.parametrize(
    ("frames", "query"),
    [
        ([], {}),
        ([connected("a", 41)], at(41, "a")),
        ([connected("a", 41), event(42), event(45)], at(45, "a")),
        ([connected("a", 41), event(42), ping("a", 60)], at(60, "a")),
        ([{**connected("a", 41), "seq": 41}, {"type": "event", "data": {}, "seq": 42}], at(42, "a")),
        ([connected("a", 41), {"type": "gap", "from": 42, "to": 50}], at(50, "a")),
        ([connected("a", 41), {"type": "pong"}, {"type": "error", "error": "x"}], at(41, "a")),
        ([connected("a", 41), event(42), {"type": "epoch_changed", "epoch": "b"}], at(0, "b")),
        ([connected("a", 41), {"type": "epoch_changed", "epoch": "b"}, event(1), ping("b", 3)], at(3, "b")),
    ],
)
def test_resumes_from_the_highest_seen(frames: list[dict[str, Any]], query: dict[str, str]) -> None:
    """A client resumes from the highest number it has seen, in heartbeats too."""
    assert after(*frames) == query


def test_resumes_after_reconnect() -> None:
    """The first frame of a resumed connection gives the replica's position, not the client's."""
    first = [connected("a", 41), event(42)]
    assert after(*first, connected("a", 99)) == at(42, "a")
    assert after(*first, connected("a", 99), {**event(43), "replay": True}) == at(43, "a")


def test_resumes_into_a_new_epoch() -> None:
    """After a change of epoch the client asks for the whole new epoch."""
    first = [connected("a", 41), event(42)]
    assert after(*first, connected("b", 7)) == at(0, "b")
    assert after(*first, connected("b", 7), event(1)) == at(1, "b")
    assert after(*first, connected("a", 42), ack(recovered=False, epoch_changed=True, epoch="b")) == at(0, "b")


def test_since() -> None:
    """`--since N` resumes from N, without an epoch, until a frame has a newer number."""
    assert after(since=5) == {"since": "5"}
    assert after(connected("a", 41), since=5) == at(5, "a")
    assert after(connected("a", 41), ping("a", 5), event(6), since=5) == at(6, "a")
    assert after(connected("a", 41), ack(recovered=False, gap_too_old=True, epoch="a"), since=5) == at(5, "a")


def test_since_beyond_the_newest() -> None:
    """After a number that is higher than the newest, the client continues from the newest."""
    start = [connected("a", 41), ack(recovered=False, epoch="a")]
    assert after(*start, since=900) == at(41, "a")
    assert after(*start, event(42), since=900) == at(42, "a")


def test_redis_never_reached() -> None:
    """While there is no epoch there is no position, but the number that the user gave is kept."""
    start = [connected("", 0)]
    assert after(*start, ping("", 0)) == {}
    assert after(*start, {"type": "epoch_changed", "epoch": "a"}, event(42)) == at(42, "a")
    assert after(*start, {"type": "epoch_changed", "epoch": "a"}, since=5) == at(5, "a")


DATA = {
    "event": {"camera_id": "door", "summary": "A person", "risk_score": 90, "risk_level": "critical"},
    "service_status": {"service": "detector", "status": "healthy", "message": None},
    "scene_change": {"camera_id": "door", "change_type": "view_blocked", "similarity_score": 0.2},
    "camera_status": {"camera_name": "Front door", "status": "offline", "reason": "no picture"},
    "alert_created": {"id": "a1", "severity": "high", "event_id": 7, "status": "pending"},
    "alert_deleted": {"id": "a1", "reason": None},
    "worker_status": {"worker_name": "w", "worker_type": "metrics", "event_type": "worker.error", "error": "bad"},
    "detection.new": {"camera_id": "door", "label": "person", "confidence": 0.9, "bbox": {"x": 0}},
    "detection.batch": {"camera_id": "door", "detection_count": 3, "batch_id": "b1"},
    "infrastructure_alert": {"alertname": "Down", "status": "firing", "severity": "warning", "summary": "It is down"},
    "summary_update": {"hourly": {"content": "quiet"}, "daily": None},
}
SHORT = {
    "event": "door: A person (risk 90, critical)",
    "service_status": "detector is healthy",
    "scene_change": "door: view_blocked, similarity 0.2",
    "camera_status": "Front door is offline: no picture",
    "alert_created": "high alert a1 for event 7, pending",
    "alert_deleted": "alert a1",
    "worker_status": "w (metrics), worker.error: bad",
    "detection.new": "door: person, confidence 0.9",
    "detection.batch": "door: 3 detections in b1",
    "infrastructure_alert": "Down firing (warning): It is down",
    "summary_update": "quiet",
}


@pytest.mark.parametrize("kind", DATA)
def test_event_line(kind: str) -> None:
    """The line of an event has the time, the sequence number, the type and a short text of the data."""
    frame = {"type": kind, "data": DATA[kind], "sequence": 42, "requires_ack": False}
    assert line_of(frame, CLOCK) == f"{CLOCK}       42 {kind:<20} {SHORT[kind]}"
    assert line_of({**frame, "replay": True}, CLOCK).endswith(f"{SHORT[kind]} (replay)")


def test_every_type_has_its_text() -> None:
    """Every message type has a short text; for an unknown type the data is shown."""
    for wire_type in MESSAGE_TYPES:
        assert "{" not in line_of({**EXAMPLES[wire_type], "sequence": 1}, CLOCK)
    assert line_of({"type": "new", "data": {"a": 1}, "sequence": 1}, CLOCK).endswith(' new                  {"a": 1}')
    assert line_of({"type": "new", "data": [1]}, CLOCK).endswith("        - new                  [1]")


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (connected("a", 41), "epoch a, at 41"),
        ({"type": "gap", "from": 3, "to": 9}, "3 to 9 are lost"),
        ({"type": "epoch_changed", "epoch": "b"}, "the numbering has restarted, epoch b"),
        (
            {
                "type": "service_status",
                "data": {"service": "event_broadcaster", "status": "degraded", "message": "why"},
            },
            "event_broadcaster is degraded: why",
        ),
        (
            {"type": "system.shutdown", "data": {"reason": "Server shutting down", "reconnect": True, "delay_ms": 12}},
            "Server shutting down: reconnecting in 12 ms",
        ),
        ({"type": "error", "error": "validation_error", "message": "no", "details": {}}, "validation_error: no"),
        (ack(recovered=True), "2 replayed after 5: complete"),
        (
            ack(recovered=False, gap_too_old=True, oldest_available=30),
            "2 replayed after 5: older events are no longer stored, the oldest is 30",
        ),
        (ack(recovered=False, epoch_changed=True), "2 replayed after 5: the numbering had restarted"),
        (ack(recovered=False), "2 replayed after 5: that number is higher than the newest"),
    ],
)
def test_notice_line(frame: dict[str, Any], text: str) -> None:
    """A notice has a line of its own, without a sequence number."""
    assert line_of(frame, CLOCK) == f"{CLOCK}        - {frame['type']:<20} {text}"


def test_line_of_a_server_with_the_old_name() -> None:
    """The number is shown whatever the server calls it."""
    assert line_of({"type": "scene_change", "data": {}, "seq": 42}, "12:00:00.000").split()[1] == "42"
    assert line_of({**connected("a", 41), "seq": 41}, "12:00:00.000").split()[1] == "-"


def test_line_is_one_harmless_line() -> None:
    """Whatever an event contains, its line is one line of limited length without control characters."""
    nasty = {"camera_id": "a\nb\x1b[31m{id}\u202e", "change_type": "x" * 500, "similarity_score": None}
    line = line_of({"type": "scene_change", "data": nasty, "sequence": 1}, CLOCK)
    assert "a b [31m{id} : xxx" in line
    assert line.endswith("x…")
    assert line.isprintable()
    assert len(line) < 220


def test_address() -> None:
    """Patterns and position are added to the URL, which may have query parameters of its own."""
    position = Position(5)
    assert tail.address("ws://h:1", [], Position()) == "ws://h:1/ws/events"
    assert (
        tail.address("ws://h/ws/events", ["alert.*", "a,b"], position)
        == "ws://h/ws/events?events=alert.%2A%2Ca%2Cb&since=5"
    )
    assert tail.address("wss://h/x/?a=1", [], position) == "wss://h/x/?a=1&since=5"


Answer = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def service(*connections: Answer, refuse: int = 0, body: bytes = b"") -> AsyncIterator[tuple[str, list[Request]]]:
    """A server that runs one function per connection, after refusing the first; yields its URL and the requests."""
    requests: list[Request] = []
    waiting = list(connections)

    def admit(_: ServerConnection, request: Request) -> Response | None:
        requests.append(request)
        return Response(refuse, "No", Headers(), body) if refuse and len(requests) == 1 else None

    async def answer(connection: ServerConnection) -> None:
        await waiting.pop(0)(connection)

    server: Server
    async with serve(answer, "127.0.0.1", 0, process_request=admit) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}", requests


async def send(connection: ServerConnection, *frames: dict[str, Any]) -> None:
    """Send frames."""
    for frame in frames:
        await connection.send(json.dumps(frame))


async def refused(connection: ServerConnection) -> None:
    """Refuse the credentials, so that the tail ends."""
    await connection.close(1008, "Credentials missing or wrong")


follow = partial(tail.follow, first_delay=0.01)


async def test_follow(capsys: pytest.CaptureFixture[str]) -> None:
    """After a lost connection the tail resumes with its position and its patterns."""
    pongs: list[str | bytes] = []

    async def first(connection: ServerConnection) -> None:
        await send(connection, connected("a", 41), event(42), ping("a", 50))
        pongs.append(await connection.recv())
        await send(connection, {"type": "system.shutdown", "data": {"reason": "bye", "delay_ms": 1}})
        await connection.close(1012, "Server restart")

    async def second(connection: ServerConnection) -> None:
        await send(connection, connected("a", 52), event(51), ack(recovered=True))
        connection.transport.abort()

    lines: list[str] = []
    async with service(first, second, refused) as (url, requests), asyncio.timeout(10):
        headers = [("X-API-Key", "k")]
        assert await follow(url, patterns=["alert.*", "*"], headers=headers, emit=lines.append) == 1
    assert [line.split()[2] for line in lines] == [
        *("connected", "scene_change", "system.shutdown"),
        *("connected", "scene_change", "resync_ack"),
    ]
    assert pongs == ['{"type":"pong"}']
    paths = [request.path for request in requests]
    base = "/ws/events?events=alert.%2A%2C%2A"
    assert paths == [base, f"{base}&since=50&epoch=a", f"{base}&since=51&epoch=a"]
    assert [request.headers["X-API-Key"] for request in requests] == ["k"] * 3
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("closed: 1012 Server restart; trying again in 0.0 s")
    assert told[1].startswith("closed: 1006 connection lost; trying again")
    assert told[2].startswith("Credentials missing or wrong (see --api-key")


async def test_follow_raw() -> None:
    """With --json every frame is printed unchanged, heartbeats too, and heartbeats are answered."""
    pongs: list[str | bytes] = []

    async def first(connection: ServerConnection) -> None:
        await send(connection, connected("a", 1), ping("a", 1))
        pongs.append(await connection.recv())
        await connection.send('{"type": "x",  "sequence": 2}')
        await connection.send("nonsense")
        await refused(connection)

    lines: list[str] = []
    async with service(first) as (url, _), asyncio.timeout(10):
        await follow(url, since=0, raw=True, emit=lines.append)
    heartbeat = json.dumps(ping("a", 1))
    assert pongs == ['{"type":"pong"}']
    assert lines == [json.dumps(connected("a", 1)), heartbeat, '{"type": "x",  "sequence": 2}', "nonsense"]


async def test_follow_unreadable() -> None:
    """A frame that is not a JSON object has a line that says so."""

    async def first(connection: ServerConnection) -> None:
        await connection.send("nonsense")
        await connection.send("[1]")
        await refused(connection)

    lines: list[str] = []
    async with service(first) as (url, _), asyncio.timeout(10):
        await follow(url, emit=lines.append)
    assert [line.split()[1:3] for line in lines] == [["-", "unreadable"]] * 2


async def test_draining_server(capsys: pytest.CaptureFixture[str]) -> None:
    """An upgrade that is refused with 503 is tried again."""
    async with service(refused, refuse=503) as (url, requests), asyncio.timeout(10):
        assert await follow(url, emit=print) == 1
    assert len(requests) == 2
    assert "HTTP 503; trying again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "--api-key"), (403, "problem"), (404, "nothing at this path"), (418, "problem")]
)
async def test_wrong_address(status: int, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An upgrade that is refused with a 4xx ends the tail with status 1, and a hint or the server's own problem."""
    async with (
        service(refuse=status, body=b'{"detail":"a problem\\u001b with\\nthe host"}') as (url, requests),
        asyncio.timeout(10),
    ):
        assert await follow(url, emit=print) == 1
    assert len(requests) == 1
    told = capsys.readouterr().err
    assert f"HTTP {status}" in told
    assert ("--api-key" in told, "path" in told) == (hint == "--api-key", "path" in hint)
    assert hint in told
    assert ("(a problem  with the host)" in told) == (hint == "problem")


async def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """If nothing listens at the URL, the tail says so and keeps trying, after growing delays."""
    async with service() as (url, _):
        pass
    task = asyncio.create_task(follow(url + "?token=secret", emit=print))
    told = ""
    async with asyncio.timeout(10):
        while told.count("\n") < 3:
            await asyncio.sleep(0.01)
            told += capsys.readouterr().err
    task.cancel()
    assert "Connect call failed" in told
    assert "secret" not in told


async def test_line_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of a stream that grows beyond 64 MiB ends the connection, and the tail says why."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: ")
        with suppress(ConnectionError):
            while True:
                writer.write(b"x" * 1_000_000)
                await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, asyncio.timeout(30):
        port = server.sockets[0].getsockname()[1]
        task = asyncio.create_task(follow(f"ws://127.0.0.1:{port}", stream=True, emit=print))
        told = ""
        while not told:
            await asyncio.sleep(0.01)
            told = capsys.readouterr().err
        task.cancel()
    assert "a line of the stream is too long; trying again" in told
