"""The same protocol over plain ASGI, for servers that do not write prebuilt frames."""

import asyncio
import random

import pytest
from websockets.exceptions import InvalidStatus

from tests.history import History, violations
from tests.system.client import Client, connected
from tests.system.event_stream import event_stream
from tests.system.producers import KINDS, Producer
from tests.system.raw_websocket import TEXT, raw_websocket
from tests.system.recording_client import RecordingClient
from tests.system.replica import Replica, ReplicaFactory
from tests.system.test_event_stream import next_number, slow_reader
from tests.waiting import eventually


@pytest.fixture(scope="module", params=["websockets-sansio"])
def plain(start_for_module: ReplicaFactory, valkey: str, request: pytest.FixtureRequest) -> Replica:
    """A replica under stock uvicorn."""
    return start_for_module(
        module="tests.system.plain_asgi",
        ws=request.param,
        redis_url=valkey,
        redis_event_channel=f"plain-{request.param}",
        websocket_token="secret",
        allowed_origins="https://good.example",
        websocket_send_buffer_bytes=65536,
        websocket_idle_timeout_seconds=2,
    )


async def publish(replica: Replica, count: int, size: int = 10) -> list[int]:
    """Publish `count` messages with `size` characters each, and return their sequence numbers."""
    items = [{"type": "alert_deleted", "data": {"id": f"m{n}", "reason": "x" * size}} for n in range(count)]
    answer = await replica.post("/broadcast/batch", items)
    return [receipt["sequence"] for receipt in answer.json()["receipts"]]


@pytest.mark.parametrize("deflate", [False, True])
async def test_conversation(plain: Replica, deflate: bool) -> None:
    """Over plain ASGI the first frame, events, subscriptions, replies, errors and heartbeats are the same."""
    async with connected(plain.websocket(token="secret"), deflate=deflate) as client:
        hello = await client.next()
        assert (hello["type"], hello["message"]) == ("connected", "Connected to events channel")
        await client.send("ping")
        assert await client.next() == {"type": "pong"}
        await client.send("nonsense")
        assert (await client.next())["error"] == "invalid_json"
        await client.send(b"binary")
        assert (await client.next())["error"] == "invalid_message_format"
        numbers = await publish(plain, 3, size=5000)
        assert [(await client.next())["sequence"] for _ in numbers] == numbers
        await client.send({"type": "subscribe", "data": {"events": ["event"]}})
        assert await client.next() == {"action": "subscribed", "events": ["event"]}
        [number] = await publish(plain, 1)
        await client.reached(number)
        assert client.numbers == numbers
        heartbeat = client.heartbeats[-1]
        assert heartbeat == {"type": "ping", "lastSeq": number, "epoch": hello["epoch"]}
        assert set(client.kinds) == {str}


async def test_zlib(plain: Replica) -> None:
    """Over plain ASGI `format=zlib` compresses long messages."""
    async with connected(plain.websocket(token="secret", format="zlib")) as client:
        await client.next()
        for size, kind in ((10, str), (3000, bytes)):
            [number] = await publish(plain, 1, size)
            frame = await client.next()
            assert (frame["sequence"], client.kind_of(frame)) == (number, kind)


@pytest.mark.parametrize("missed", [5, 60])
async def test_replay(plain: Replica, missed: int) -> None:
    """Over plain ASGI a resume replays from memory and Redis, ends with a `resync_ack`, and live events follow."""
    numbers = await publish(plain, 60)
    await plain.delivers(numbers[-1])
    async with connected(plain.websocket(token="secret", since=numbers[-1] - missed)) as client:
        await client.next()
        frames = [await client.next() for _ in range(missed)]
        assert [(frame["sequence"], frame["replay"]) for frame in frames] == [(n, True) for n in numbers[-missed:]]
        ack = await client.next()
        assert (ack["type"], ack["replayed_count"], ack["recovered"]) == ("resync_ack", missed, True)
        [number] = await publish(plain, 1)
        assert (await client.next())["sequence"] == number


async def test_admission(plain: Replica) -> None:
    """Over plain ASGI wrong credentials, wrong origins and idle clients get the same codes."""
    async with connected(plain.websocket()) as client:
        assert (await client.closed())[0] == 1008
    with pytest.raises(InvalidStatus) as refused:
        await Client.open(plain.websocket(token="secret"), origin="https://evil.example")
    assert refused.value.response.status_code == 403
    async with connected(plain.websocket(token="secret")) as client:
        assert await client.closed() == (1000, "Idle timeout")


async def test_event_stream(plain: Replica) -> None:
    """Over plain ASGI a stream has the same messages, ids and heartbeats, resumes, and is gone once its client is."""
    async with event_stream(plain, token="secret", events="alert.*") as stream:
        hello = await stream.named("connected")
        numbers = await publish(plain, 3, size=5000)
        await stream.named("message", 3)
        assert stream.numbers == numbers
        await plain.post("/broadcast/service-status", {"service": "x", "status": "healthy", "message": "x"})
        await stream.until(lambda: stream.last_id == f"{hello.data['epoch']}:{numbers[-1] + 1}")
    headers = {"Last-Event-ID": f"{hello.data['epoch']}:{numbers[0]}"}
    async with event_stream(plain, headers=headers, token="secret", events="alert.*") as stream:
        acked = await stream.named("resync_ack")
        assert (stream.numbers, acked.data["recovered"]) == (numbers[1:], True)
        numbers = await publish(plain, 1)
        assert (await stream.named("message", 3)).data["sequence"] == numbers[0]
    await eventually(lambda: plain.metric("connections") == 0)


async def test_poll(plain: Replica) -> None:
    """Over plain ASGI a poll has the same answers."""
    query = {"token": "secret", "wait": "10"}
    place = (await plain.request("GET", "/events/poll", params=query)).json()
    query |= {"since": place["lastSeq"], "epoch": place["epoch"]}
    waiting = asyncio.create_task(plain.request("GET", "/events/poll", params=query))
    await eventually(lambda: plain.metric("connections") == 1)
    numbers = await publish(plain, 2)
    answer = (await waiting).json()
    assert [frame["sequence"] for frame in answer["events"]] == numbers[: len(answer["events"])]
    assert answer["lastSeq"] == answer["events"][-1]["sequence"]
    async with plain.http() as http:
        waiting = asyncio.create_task(
            http.get("/events/poll", params=query | {"since": answer["lastSeq"], "wait": "60"})
        )
        await eventually(lambda: plain.metric("connections") == 1)
        waiting.cancel()
    await eventually(lambda: plain.metric("connections") == 0)
    refused = await plain.request("GET", "/events/poll")
    assert (refused.status_code, refused.json()["status"]) == (401, 401)


async def test_slow_stream(plain: Replica) -> None:
    """Over plain ASGI a stream that is read slowly catches up in order."""
    with slow_reader(plain, "/events?token=secret") as lines:
        await eventually(lambda: plain.metric("connections") == 1)
        numbers: list[int] = []
        for _ in range(20):
            numbers += await publish(plain, 100, size=4000)
        assert [await asyncio.to_thread(next_number, lines) for _ in numbers] == numbers
    await eventually(lambda: plain.metric("connections") == 0)


async def test_slow_client(plain: Replica) -> None:
    """Over plain ASGI a client that does not read delays no other, and later gets everything in order."""
    path = "/ws/events?token=secret"
    async with (
        connected(plain.websocket(token="secret")) as fast,
        raw_websocket(plain, path, receive_buffer=4096) as slow,
    ):
        numbers: list[int] = []
        for _ in range(20):
            await fast.send({"type": "pong"})
            numbers += await publish(plain, 100, size=4000)
        await fast.reached(numbers[-1])
        assert fast.numbers == numbers
        received: list[int] = []
        while not received or received[-1] < numbers[-1]:
            message = (await slow.receive()).json
            if "sequence" in message:
                assert "replay" not in message
                received.append(message["sequence"])
                if len(received) % 100 == 0:
                    slow.send(TEXT, b'{"type":"pong"}')
        assert received == numbers
        numbers = await publish(plain, 1)
        while (message := (await slow.receive()).json).get("sequence") != numbers[0]:
            assert message["type"] == "ping"


async def test_history(plain: Replica) -> None:
    """Over plain ASGI clients that connect and disconnect get exactly their own events."""
    history, choice = History(), random.Random(1)
    recorders = [
        RecordingClient("all"),
        RecordingClient("alerts", ["alert.*"]),
        RecordingClient("zlib", query={"format": "zlib"}),
    ]
    for recorder in recorders:
        recorder.query["token"] = "secret"
        await recorder.connect(plain)
    producer = Producer(history, "m")
    async with plain.http() as http:
        for _ in range(40):
            await producer.publish_batch(http, choice.choices(KINDS, k=5))
            recorder = choice.choice(recorders)
            await recorder.leave(politely=choice.random() < 0.5)
            await recorder.connect(plain)
    [epoch] = {place.epoch for place in history.accepted}
    for recorder in recorders:
        await recorder.reaches(epoch, history.last(epoch))
        await recorder.leave(politely=True)
    assert violations(history, [recorder.record for recorder in recorders]) == []
