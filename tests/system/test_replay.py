"""Replays: a client asks for the events after a number, and gets them again or for the first time.

A client asks by the query parameter `since` when it connects (a resume), or by a `resync` message afterwards. Both
start a replay: the events that were missed, each marked by `"replay": true`, and then a `resync_ack` that says whether
the replay was complete. The events come from the replica's memory, or from the history in Redis if they are older.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from tests.history import History, violations
from tests.proxy import Proxy, ProxyMode
from tests.system.client import Client, connected
from tests.system.producers import KINDS, Producer
from tests.system.recording_client import RecordingClient
from tests.system.replica import FAST, Replica, ReplicaFactory
from tests.waiting import eventually, wait_until

# More than the replicas keep in memory.
MANY = 3 * int(FAST["message_buffer_size"])


async def publish(replica: Replica, count: int) -> list[int]:
    """Publish `count` messages and return their sequence numbers."""
    items = [{"type": "alert_deleted", "data": {"id": f"m{number}"}} for number in range(count)]
    answer = await replica.post("/broadcast/batch", items)
    return [receipt["sequence"] for receipt in answer.json()["receipts"]]


def expected_ack(hello: dict[str, Any], since: int, count: int, **more: object) -> dict[str, Any]:
    """Return the `resync_ack` of a complete replay of `count` events after `since`, changed by `more`."""
    expected = {"type": "resync_ack", "channel": "events", "epoch": hello["epoch"], "last_sequence": since}
    return {**expected, "replayed_count": count, "recovered": True, **more}


@pytest.fixture
async def client(replica: Replica) -> AsyncIterator[Client]:
    """A client that has received `connected`, its first frame."""
    async with connected(replica.websocket()) as client:
        await client.next()
        yield client


# -- by query -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed", [0, 1, 5, MANY])
@pytest.mark.parametrize("with_epoch", [False, True])
async def test_resume(replica: Replica, other: Replica, missed: int, with_epoch: bool) -> None:
    """A resume, at any replica, gets the missed events, the `resync_ack`, then live events (protocol: replay)."""
    numbers = await publish(replica, MANY)
    since = numbers[-1] - missed
    epoch = {"epoch": replica.health()["epoch"]} if with_epoch else {}
    for each in (replica, other):
        await each.delivers(numbers[-1])
        async with connected(each.websocket(since=since, **epoch)) as client:
            hello = await client.next()
            frames = [await client.next() for _ in range(missed)]
            assert [frame["sequence"] for frame in frames] == list(range(since + 1, numbers[-1] + 1))
            assert all(frame["replay"] is True for frame in frames)
            assert await client.next() == expected_ack(hello, since, missed)
            [number] = await publish(replica, 1)
            frame = await client.next()
            assert (frame["sequence"], "replay" in frame) == (number, False)
        numbers.append(number)
        since = number - missed


async def test_resume_while_publishing_goes_on(pair: tuple[Replica, Replica]) -> None:
    """No event is missing or repeated between replayed and live events, while two replicas publish."""
    history = History()
    everything = RecordingClient("everything")
    some = RecordingClient("some", ["alert.*", "camera.offline"], deflate=True)
    recorders = [everything, some, *(RecordingClient(f"latecomer {number}") for number in range(4))]
    for recorder in recorders:
        await recorder.connect(pair[0])
    done = asyncio.Event()

    async def produce(replica: Replica, name: str) -> None:
        producer, choice = Producer(history, name), random.Random(name)
        async with replica.http() as http:
            for _ in range(60):
                await producer.publish_batch(http, choice.choices(KINDS, k=5))
        done.set()

    async def come_and_go(recorder: RecordingClient) -> None:
        choice = random.Random(recorder.record.name)
        while not done.is_set():
            client = recorder.connection
            assert client is not None
            await client.receives(choice.randrange(40))
            await recorder.leave()
            await recorder.connect(choice.choice(pair))

    await asyncio.gather(*(produce(each, each.url) for each in pair), *map(come_and_go, recorders[1:]))
    epoch = pair[0].health()["epoch"]
    for recorder in recorders:
        await recorder.reaches(epoch, history.last(epoch))
        await recorder.leave(politely=True)
    assert len(history.accepted) == 600
    assert violations(history, [recorder.record for recorder in recorders]) == []


async def test_beyond_the_newest(replica: Replica) -> None:
    """A resume after a number that no event has yet gets no replay, `recovered` is false, and live events follow."""
    [last] = await publish(replica, 1)
    async with connected(replica.websocket(since=last + 100)) as client:
        hello = await client.next()
        assert await client.next() == expected_ack(hello, last + 100, 0, recovered=False)
        [number] = await publish(replica, 1)
        assert (await client.next())["sequence"] == number


async def test_largest_number(replica: Replica) -> None:
    """A resume gets a `resync_ack` however large its number is."""
    async with connected(replica.websocket(since=10**30)) as client:
        assert (await client.take(type="resync_ack"))["last_sequence"] == 10**30


# -- by resync ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed", [3, MANY])
async def test_resync(replica: Replica, client: Client, missed: int) -> None:
    """A `resync` gets the events again, marked as replayed, then the `resync_ack`, then live events."""
    numbers = await publish(replica, MANY)
    await client.reached(numbers[-1])
    client.skip()
    since = numbers[-1] - missed
    data = {"channel": "my cameras", "last_sequence": since, "epoch": client.frames[0]["epoch"]}
    await client.send({"type": "resync", "data": data})
    frames = [await client.next() for _ in range(missed)]
    assert [(frame["sequence"], frame["replay"]) for frame in frames] == [(n, True) for n in numbers[-missed:]]
    assert await client.next() == expected_ack(client.frames[0], since, missed, channel="my cameras")
    [number] = await publish(replica, 1)
    frame = await client.next()
    assert (frame["sequence"], "replay" in frame) == (number, False)


async def test_resync_at_top_level(replica: Replica, client: Client) -> None:
    """The fields of a `resync` may be at top level instead of in `data`; `channel` and `epoch` are optional."""
    [number] = await publish(replica, 1)
    await client.reached(number)
    client.skip()
    await client.send({"type": "Resync", "last_sequence": number - 1})
    assert (await client.next())["sequence"] == number
    assert await client.next() == expected_ack(client.frames[0], number - 1, 1, channel="unknown")


async def test_several_resyncs(replica: Replica, client: Client) -> None:
    """Each of several `resync` messages in a row gets its complete replay, in the order of the messages."""
    numbers = await publish(replica, 10)
    await client.reached(numbers[-1])
    client.skip()
    for since in numbers[:4]:
        await client.send({"type": "resync", "data": {"last_sequence": since, "channel": str(since)}})
    for since in numbers[:4]:
        frames = [await client.next() for _ in range(numbers[-1] - since)]
        assert [frame["sequence"] for frame in frames] == list(range(since + 1, numbers[-1] + 1))
        assert (await client.next())["channel"] == str(since)


async def test_resync_of_everything(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A `resync` without `last_sequence` replays the whole history."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    await publish(replica, MANY)
    await replica.delivers(MANY)
    async with connected(replica.websocket()) as client:
        hello = await client.next()
        await client.send({"type": "resync"})
        await client.take(type="resync_ack")
        assert client.numbers == list(range(1, MANY + 1))
        assert client.messages[-1] == expected_ack(hello, 0, MANY, channel="unknown")


async def test_another_epoch(replica: Replica) -> None:
    """A resume that names another epoch replays the whole history, and its `resync_ack` has `epoch_changed`."""
    numbers = await publish(replica, 5)
    await replica.delivers(numbers[-1])
    async with connected(replica.websocket(since=numbers[-2], epoch="elsewhere", events="alert_deleted")) as client:
        hello = await client.next()
        ack = await client.take(type="resync_ack")
        assert client.numbers[-5:] == numbers
        count = len(client.events)
        assert ack == expected_ack(hello, numbers[-2], count, recovered=False, epoch_changed=True)
        [number] = await publish(replica, 1)
        assert (await client.next())["sequence"] == number


# -- what is no longer kept -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_history(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica whose Redis keeps about 100 events, of 1,000 that were published."""
    replica = start_for_module(
        redis_url=valkey, redis_event_channel="short_history", history_size=100, message_buffer_size=5
    )
    asyncio.run(publish(replica, 1000))
    wait_until(lambda: replica.health()["sequence"] == 1000)
    return replica


def oldest_kept(url: str) -> int:
    """Return the oldest sequence number in the history."""
    with redis.Redis.from_url(url) as link:
        [(name, _)] = link.xrange("{short_history}:history", count=1)
    return int(name.split(b"-")[0])


async def test_history_size(short_history: Replica, valkey: str) -> None:
    """The history keeps at least the newest HISTORY_SIZE events, and is trimmed."""
    assert 1 < oldest_kept(valkey) <= 901


@pytest.mark.parametrize("since", [0, 1, 100])
async def test_gap_too_old(short_history: Replica, valkey: str, since: int) -> None:
    """If the history starts after `since`, all of it is replayed, and the `resync_ack` names its oldest number."""
    oldest = oldest_kept(valkey)
    async with connected(short_history.websocket(since=since)) as client:
        hello = await client.next()
        ack = await client.take(type="resync_ack")
        assert client.numbers == list(range(oldest, 1001))
        expected = expected_ack(hello, since, 1001 - oldest, recovered=False, gap_too_old=True, oldest_available=oldest)
        assert ack == expected


async def test_just_before_the_oldest(short_history: Replica, valkey: str) -> None:
    """A replay that starts with the oldest event of the history is complete; one that should start earlier is not."""
    oldest = oldest_kept(valkey)
    for since, recovered in ((oldest - 1, True), (oldest - 2, False)):
        async with connected(short_history.websocket(since=since)) as client:
            assert (await client.take(type="resync_ack"))["recovered"] is recovered
            assert client.numbers == list(range(oldest, 1001))


# -- while Redis is away --------------------------------------------------------------------------------------------


async def test_ahead_of_this_replica(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A resume after a number that this replica has not delivered yet waits until it has."""
    async with Proxy(valkey) as proxy:
        first = start(redis_url=valkey, redis_event_channel=channel)
        settings = {"redis_event_channel": channel, "position_check_seconds": 15}
        late = await asyncio.to_thread(start, redis_url=proxy.url, **settings)
        await proxy.set_mode(ProxyMode.DEAF)
        numbers = await publish(first, 3)
        async with connected(late.websocket(since=numbers[1])) as client:
            hello = await client.next()
            assert hello["lastSeq"] == 0
            await client.send("ping")
            await client.take(type="pong")
            await client.heartbeat()
            assert client.numbers == []
            await proxy.set_mode(ProxyMode.PASS)
            assert (await client.take(replay=True))["sequence"] == numbers[2]
            assert await client.next() == expected_ack(hello, numbers[1], 1)
        await asyncio.to_thread(late.stop)


async def test_resume_without_redis(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Without Redis, a resume from memory is answered, and an older one waits; it still gets heartbeats and replies."""
    async with Proxy(valkey) as proxy:
        settings = {"redis_event_channel": channel, "circuit_recovery_seconds": 0.2}
        replica = await asyncio.to_thread(start, redis_url=proxy.url, **settings)
        numbers = await publish(replica, MANY)
        await replica.delivers(numbers[-1])
        await proxy.set_mode(ProxyMode.REFUSE)
        await eventually(lambda: replica.health()["is_degraded"], 15)
        async with (
            connected(replica.websocket(since=numbers[0])) as old,
            connected(replica.websocket(since=numbers[-2])) as recent,
        ):
            assert (await recent.take(type="resync_ack"))["recovered"] is True
            assert recent.numbers == numbers[-1:]
            await old.send("ping")
            await old.take(type="pong")
            await old.heartbeat()
            assert old.events == []
            await proxy.set_mode(ProxyMode.PASS)
            assert (await old.take(type="resync_ack"))["recovered"] is True
            assert old.numbers == numbers[1:]
        await eventually(lambda: not replica.health()["is_degraded"], 15)
        await asyncio.to_thread(replica.stop, tolerate="CRITICAL kernel")


async def test_before_redis_was_there(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Clients that connect before the first contact with Redis get `epoch_changed`, their replay, then live events."""
    first = start(redis_url=valkey, redis_event_channel=channel)
    numbers = await publish(first, 3)
    async with Proxy(valkey) as proxy:
        await proxy.set_mode(ProxyMode.SHUT)
        settings = {"redis_event_channel": channel, "circuit_recovery_seconds": 0.2, "ready": False}
        replica = await asyncio.to_thread(start, redis_url=proxy.url, **settings)
        async with (
            connected(replica.websocket()) as client,
            connected(replica.websocket(since=numbers[0])) as resumed,
        ):
            for each in (client, resumed):
                hello = await each.next()
                assert (hello["epoch"], hello["lastSeq"]) == ("", 0)
                notice = await each.next()
                assert (notice["type"], notice["data"]["status"]) == ("service_status", "degraded")
            await proxy.set_mode(ProxyMode.PASS)
            changed = {"type": "epoch_changed", "epoch": first.health()["epoch"]}
            assert await client.take(type="epoch_changed") == changed
            assert await resumed.take(type="epoch_changed") == changed
            assert (await resumed.take(type="resync_ack"))["recovered"] is True
            assert resumed.numbers == numbers[1:]
            await eventually(lambda: replica.health()["listener_healthy"], 15)
            numbers += await publish(first, 2)
            for each, missed in ((client, 3), (resumed, 1)):
                await each.reached(numbers[-1])
                assert each.numbers == numbers[missed:]
        await asyncio.to_thread(replica.stop, tolerate="CRITICAL kernel")
