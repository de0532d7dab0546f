"""The keys and announcements in Redis, and how a replica finds events that it did not receive."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from handlers.openapi.examples import EXAMPLES
from tests.history import History, violations
from tests.system.client import connected
from tests.system.producers import KINDS, Producer
from tests.system.recording_client import RecordingClient
from tests.system.replica import ROOT, Replica, ReplicaFactory
from tests.waiting import eventually

TRACED = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b"}


@pytest.fixture
def link(private_redis: str) -> Iterator[Any]:
    """A connection to a Redis of the test's own."""
    with redis.Redis.from_url(private_redis) as link:
        yield link


async def publish(replica: Replica, count: int = 1) -> list[int]:
    """Publish `count` messages and return their sequence numbers."""
    items = [{"type": "alert_deleted", "data": {"id": f"m{number}"}} for number in range(count)]
    answer = await replica.post("/broadcast/batch", items)
    return [receipt["sequence"] for receipt in answer.json()["receipts"]]


def publish_silently(link: Any, count: int) -> None:
    """Number and store events on another channel: a replica whose subscription receives nothing sees the same."""
    script = (ROOT / "kernel" / "redis" / "publish.lua").read_text()
    for number in range(count):
        id = f"silent-{number}"
        tail = f',"id":"{id}","type":"alert_deleted","data":{{"id":"silent","reason":null}}}}'
        keys = ["{security_events}:position", "{security_events}:history", id]
        delivered_nothing = ("", 0, "", 0, "", "", 0)
        request = (id, 1000, f"{id} {len(tail)}", tail)
        link.eval(script, 3, *keys, "elsewhere", 1000, "fresh", *delivered_nothing, *request)


# -- documented -----------------------------------------------------------------------------------------------------


async def test_payload(link: Any, private_redis: str, start: ReplicaFactory) -> None:
    """An announcement is JSON with the epoch and, for each event, number, id, type, trace context and data."""
    replica = start(redis_url=private_redis)
    with link.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe("security_events")
        subscription.get_message(timeout=5)
        receipt = (await replica.post("/broadcast/event", EXAMPLES["event"], **TRACED)).json()
        await replica.post("/broadcast/batch", list(EXAMPLES.values()))
        one, batch = (json.loads(_heard(subscription)) for _ in range(2))
        assert one.keys() == batch.keys() == {"epoch", "after", "events"}
        assert (one["after"], batch["after"]) == ("", one["events"][-1]["id"])
        assert one["epoch"] == batch["epoch"] == receipt["epoch"]
        [event] = one["events"]
        assert (event["sequence"], event["type"]) == (receipt["sequence"], "event")
        assert event["data"] == EXAMPLES["event"]["data"]
        assert event["traceparent"].split("-")[1] == TRACED["traceparent"].split("-")[1]
        assert event["tracestate"] == "a=b"
        assert [each["type"] for each in batch["events"]] == list(EXAMPLES)
        assert [each["data"] for each in batch["events"]] == [each["data"] for each in EXAMPLES.values()]
        numbers = [each["sequence"] for each in batch["events"]]
        assert numbers == list(range(numbers[0], numbers[0] + len(EXAMPLES)))
        ids = [each["id"] for each in (event, *batch["events"])]
        assert len(set(ids)) == len(ids)
        assert not subscription.get_message(timeout=0.01)  # the events of one call are announced together
    kept = link.xrange("{security_events}:history")
    assert [fields[b"id"].decode() for _, fields in kept] == ids


def _heard(subscription: Any) -> bytes:
    while (message := subscription.get_message(timeout=5)) is None:
        pass
    payload: bytes = message["data"]
    return payload


async def test_keys(link: Any, private_redis: str, start: ReplicaFactory) -> None:
    """The keys hold position, history and idempotency records, under a hash tag of the channel; the records expire."""
    replica = start(redis_url=private_redis, redis_event_channel="my {odd} channel")
    await replica.post("/broadcast/alert/deleted", {"id": "x"}, Idempotency_Key="key")
    await publish(replica, 4)
    prefix = b"{my {odd} channel}:"
    keys = {key: link.type(key) for key in link.scan_iter()}
    assert keys.pop(prefix + b"position") == b"hash"
    assert keys.pop(prefix + b"history") == b"stream"
    assert keys
    for key, kind in keys.items():
        assert (key.startswith(prefix + b"idempotency:"), kind) == (True, b"string")
        assert 0 < link.pttl(key) <= 300_000
    position = link.hgetall(prefix + b"position")
    assert position == {b"epoch": replica.health()["epoch"].encode(), b"sequence": b"5"}
    assert [name for name, _ in link.xrange(prefix + b"history")] == [b"%d-0" % number for number in range(1, 6)]


# -- one numbering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["valkey", "redis_server"])
async def test_one_numbering(start: ReplicaFactory, request: pytest.FixtureRequest, channel: str, server: str) -> None:
    """Several producers on two replicas produce one unbroken sequence for all clients."""
    settings = {"redis_url": request.getfixturevalue(server), "redis_event_channel": channel}
    pair = start.pair(**settings)
    history = History()
    recorders = [RecordingClient("here"), RecordingClient("there")]
    for recorder, replica in zip(recorders, pair, strict=True):
        await recorder.connect(replica)

    async def produce(replica: Replica, name: str) -> None:
        producer = Producer(history, name)
        async with replica.http() as http:
            for number in range(50):
                await producer.publish(http, KINDS[number % len(KINDS)])

    await asyncio.gather(*(produce(replica, f"{replica.url}-{twin}") for replica in pair for twin in range(2)))
    epoch = pair[0].health()["epoch"]
    assert sorted(history.accepted) == [(epoch, number) for number in range(1, 201)]
    for recorder in recorders:
        await recorder.reaches(epoch, 200)
        assert recorder.connection is not None
        assert recorder.connection.numbers == list(range(1, 201))
        await recorder.leave(politely=True)
    assert violations(history, [recorder.record for recorder in recorders]) == []


# -- subscriptions that end or are deaf -----------------------------------------------------------------------------


async def test_cut_subscription(link: Any, private_redis: str, start: ReplicaFactory) -> None:
    """Replicas whose subscriptions are closed again and again miss no event."""
    pair = start.pair(redis_url=private_redis)
    history = History()
    recorders = [RecordingClient("here"), RecordingClient("there"), RecordingClient("some", ["alert.*", "worker.*"])]
    for recorder, replica in zip(recorders, (*pair, pair[1]), strict=True):
        await recorder.connect(replica)
    producer = Producer(history, "m")
    async with pair[0].http() as http:
        for number in range(200):
            if number % 50 == 20:
                assert link.client_kill_filter(_type="pubsub") == 2
            await producer.publish(http, KINDS[number % len(KINDS)])
            if number % 50 == 49:
                await eventually(lambda: link.pubsub_numsub("security_events")[0][1] == 2, 15)
    epoch = pair[0].health()["epoch"]
    for recorder in recorders:
        await recorder.reaches(epoch, 200)
        await recorder.leave(politely=True)
    assert violations(history, [recorder.record for recorder in recorders]) == []


async def test_deaf_subscription(link: Any, private_redis: str, start: ReplicaFactory) -> None:
    """A position check finds an event that was never announced, even if no event follows it."""
    replica = start(redis_url=private_redis, position_check_seconds=0.5)
    async with connected(replica.websocket()) as client:
        await client.next()
        publish_silently(link, 30)
        await client.reached(30)
        assert client.numbers == list(range(1, 31))
        assert all("replay" not in frame for frame in client.events)
        await publish(replica)
        await client.reached(31)
        assert client.numbers == list(range(1, 32))


async def test_gap(link: Any, private_redis: str, start: ReplicaFactory) -> None:
    """Events that are no longer in the history are announced by a `gap` exactly in their place."""
    replica = start(redis_url=private_redis, position_check_seconds=0.5)
    async with connected(replica.websocket()) as client, connected(replica.websocket(events="nothing")) as filtered:
        await publish(replica, 2)
        with link.pipeline(transaction=True) as at_once:
            publish_silently(at_once, 8)
            at_once.xdel("{security_events}:history", "3-0", "4-0", "7-0")
            at_once.execute()
        await client.reached(10)
        said = [
            (each["from"], each["to"]) if each.get("type") == "gap" else each["sequence"]
            for each in client.messages[1:]
        ]
        assert said == [1, 2, (3, 4), 5, 6, (7, 7), 8, 9, 10]
        await filtered.reached(10)
        assert [(each["from"], each["to"]) for each in filtered.messages[1:]] == [(3, 4), (7, 7)]
    async with connected(replica.websocket(since=0)) as later:
        ack = await later.take(type="resync_ack")
        assert later.numbers == [1, 2, 5, 6, 8, 9, 10]
        assert (ack["replayed_count"], ack["recovered"], ack["gap_too_old"]) == (7, False, True)
    assert replica.metric("gaps_total") == 2
    replica.stop(tolerate="are lost: no longer in the history")


# -- new epochs -----------------------------------------------------------------------------------------------------


async def test_flush(link: Any, private_redis: str, start: ReplicaFactory) -> None:
    """If Redis loses everything, `epoch_changed` comes between the last old and the first new event."""
    pair = start.pair(redis_url=private_redis)
    history = History()
    recorders = [RecordingClient("here"), RecordingClient("there"), RecordingClient("some", ["alert.*"])]
    for recorder, replica in zip(recorders, (*pair, pair[0]), strict=True):
        await recorder.connect(replica)
    producer = Producer(history, "m")
    async with pair[0].http() as here, pair[1].http() as there:
        for _ in range(2):
            for http in (here, there):
                await producer.publish_batch(http, KINDS)
        epoch = pair[0].health()["epoch"]
        for recorder in recorders:
            await recorder.reaches(epoch, history.last(epoch))
        link.flushall()
        await eventually(lambda: all(replica.health()["epoch"] != epoch for replica in pair), 15)
        renewed = pair[0].health()["epoch"]
        assert pair[1].health()["epoch"] == renewed
        for http in (here, there):
            await producer.publish_batch(http, KINDS)
    for recorder in recorders:
        await recorder.reaches(renewed, history.last(renewed))
        await recorder.leave(politely=True)
    assert history.last(renewed) == 2 * len(KINDS)
    assert violations(history, [recorder.record for recorder in recorders]) == []
    for recorder in recorders:
        changes = [each for each in recorder.record.connections[0].frames if each.get("type") == "epoch_changed"]
        assert changes == [{"type": "epoch_changed", "epoch": renewed}]
        assert not any("replay" in each for each in recorder.record.connections[0].frames)


async def test_resume_over_epochs(link: Any, private_redis: str, start: ReplicaFactory) -> None:
    """A resume with an unknown epoch gets the new one from its start, and the `resync_ack` says so."""
    replica = start(redis_url=private_redis)
    await publish(replica, 3)
    before = replica.health()["epoch"]
    link.flushall()
    await publish(replica, 5)
    await eventually(lambda: replica.health()["sequence"] == 5 and replica.health()["epoch"] != before)
    async with connected(replica.websocket(since=3, epoch=before)) as client:
        hello = await client.next()
        ack = await client.take(type="resync_ack")
        assert client.numbers == [1, 2, 3, 4, 5]
        assert (ack["epoch"], ack["recovered"], ack["epoch_changed"]) == (hello["epoch"], False, True)
        assert await publish(replica) == [6]
        assert (await client.next())["sequence"] == 6
