"""Slow clients delay no other client, cost bounded memory, and lose nothing that the history keeps."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.history import ClientRecord, Connection, History, violations
from tests.system.client import connected
from tests.system.producers import BulkProducer
from tests.system.raw_websocket import PING, TEXT, raw_websocket
from tests.system.replica import Replica, ReplicaFactory
from tests.system.slow_client import OVERFLOW_BYTES, slow_client
from tests.waiting import eventually

MARK = 65536
MIB = 1 << 20

Serve = Callable[..., Replica]


@pytest.fixture
def serve(start: ReplicaFactory, valkey: str, channel: str) -> Serve:
    """Start a replica with a low high-water mark on a channel of the test's own."""

    def serve(**settings: object) -> Replica:
        defaults = {"redis_url": valkey, "redis_event_channel": channel, "websocket_send_buffer_bytes": MARK}
        return start(**(defaults | settings))

    return serve


async def wait_for_connections(connections: int, replica: Replica) -> None:
    """Wait until at most `connections` connections to the replica are left, aborted ones included."""
    await eventually(lambda: replica.sockets <= connections, 60.0)


@pytest.mark.parametrize(
    ("how", "patterns"),
    [({}, None), ({}, ["alert.*"]), ({"format": "zlib"}, ["alert.*"]), ({"deflate": True}, None)],
    ids=["text", "filtered text", "filtered zlib", "deflate"],
)
async def test_falls_behind_and_catches_up(serve: Serve, how: dict[str, object], patterns: list[str] | None) -> None:
    """A client that does not read delays no other, gets everything later, and is live again."""
    replica, history = serve(), History()
    bulk = BulkProducer(history, replica)
    query = how | ({} if patterns is None else {"events": ",".join(patterns)})
    async with slow_client(replica, **query) as slow, connected(replica.websocket()) as fast:  # type: ignore[arg-type]
        await fast.next()
        await bulk.publish(50_000)
        await slow.reached(bulk.last)
        slow.stall()
        # compression halves random digits
        await bulk.publish(2 * OVERFLOW_BYTES if how else OVERFLOW_BYTES)
        await fast.reached(bulk.last)
        assert slow.place < bulk.last
        slow.read()
        await slow.reached(bulk.last)
        await bulk.publish(50_000)
        await slow.reached(bulk.last)
        await fast.reached(bulk.last)
        assert not any("replay" in frame for frame in slow.frames)
        everything = ClientRecord("fast", None, [Connection("", None, "", fast.frames)])
        assert violations(history, [slow.record("slow", patterns), everything]) == []


async def test_again_and_again(serve: Serve) -> None:
    """A client that falls behind again during its catch-up still gets each event once."""
    replica, history = serve(), History()
    bulk = BulkProducer(history, replica)
    async with slow_client(replica) as slow, asyncio.TaskGroup() as group:
        publishing = group.create_task(bulk.publish(3 * OVERFLOW_BYTES))

        def published(number: int) -> bool:
            return publishing.done() or bulk.last >= number

        while not publishing.done():
            slow.stall()
            await eventually(partial(published, bulk.last + 450), 20.0)
            slow.read()
            await slow.reached(bulk.last)
        await slow.reached(bulk.last)
        assert violations(history, [slow.record("slow")]) == []


async def test_subscribe_while_behind(serve: Serve) -> None:
    """From its `subscribed` reply on, the catch-up of a slow client uses the new patterns."""
    replica, history = serve(), History()
    bulk = BulkProducer(history, replica)
    async with slow_client(replica) as slow:
        slow.stall()
        await bulk.publish(OVERFLOW_BYTES)
        await slow.send({"type": "subscribe", "data": {"events": ["alert.deleted"]}})
        slow.read()
        await slow.take(action="subscribed")
        await slow.reached(bulk.last)
        at = slow.frames.index({"action": "subscribed", "events": ["alert.deleted"]})
        before = [frame["sequence"] for frame in slow.frames[:at] if "sequence" in frame]
        after = [(frame["sequence"], frame["type"]) for frame in slow.frames[at:] if "sequence" in frame]
        assert before == list(range(1, len(before) + 1))
        wanted = [place.sequence for place, each in history.accepted.items() if each.kind == "alert_deleted"]
        assert after, "no event came after the reply: the client was not behind"
        assert after == [(number, "alert_deleted") for number in sorted(wanted) if number > len(before)]


async def test_out_of_the_history(serve: Serve) -> None:
    """A client whose position left the history is closed with 4008; when it resumes it is told what it lost."""
    replica, history = serve(history_size=50), History()
    bulk = BulkProducer(history, replica)
    async with slow_client(replica) as slow:
        slow.stall()
        await bulk.publish(OVERFLOW_BYTES)
        slow.read()
        code, _ = await slow.closed()
        assert code == 4008
        epoch, since = slow.stands_at()
        assert since < bulk.last
    async with slow_client(replica, since=since, epoch=epoch) as again:
        verdict = await again.take(type="resync_ack")
        assert verdict["gap_too_old"]
        assert not verdict["recovered"]
        assert verdict["oldest_available"] > since + 1
        await bulk.publish(50_000)
        await again.reached(bulk.last)
    record = ClientRecord("slow", None, slow.record("").connections + again.record("").connections)
    assert violations(history, [record]) == []


async def test_memory(serve: Serve) -> None:
    """Ten clients that read nothing cost no memory under load, and other clients continue."""
    replica, history = serve(), History()
    bulk = BulkProducer(history, replica)
    async with connected(replica.websocket()) as fast:
        await bulk.publish(OVERFLOW_BYTES)
        await fast.reached(bulk.last)
        before = replica.memory
        stuck = [slow_client(replica) for _ in range(10)]
        clients = [await each.__aenter__() for each in stuck]
        for client in clients:
            client.stall()
        await bulk.publish(4 * OVERFLOW_BYTES)
        await fast.reached(bulk.last)
        grown = replica.memory - before
        clients[0].read()
        await clients[0].reached(bulk.last)
        fast_one = ClientRecord("fast", None, [Connection("", None, "", fast.frames)])
        for each in stuck:
            await each.__aexit__(None, None, None)
        assert violations(history, [clients[0].record("slow"), fast_one]) == []
    # 320 MiB were sent to them
    assert grown < 20 * MIB


@pytest.mark.parametrize("opcode", [TEXT, PING], ids=["text", "websocket"])
async def test_client_that_sends_and_never_reads(serve: Serve, opcode: int) -> None:
    """A client that sends without reading is no longer read once it is over the mark, and is aborted later."""
    replica = serve(websocket_idle_timeout_seconds=2, websocket_max_messages_per_second=0)
    async with raw_websocket(replica, receive_buffer=4096) as deaf:
        before = replica.memory
        payload = b"ping" if opcode == TEXT else b"x" * 125
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                for _ in range(500):
                    deaf.send(opcode, payload)
                await deaf.sent()
                sent += 500 * len(payload)

        with pytest.raises(ConnectionError):
            async with asyncio.timeout(60):
                await send()
        assert sent < 20 * MIB
        assert replica.memory - before < 20 * MIB
        await wait_for_connections(0, replica)


async def test_client_that_accepts_nothing(serve: Serve) -> None:
    """A client that accepts no data for the idle timeout is aborted; one that accepts a little is not."""
    replica, history = serve(websocket_idle_timeout_seconds=2), History()
    bulk = BulkProducer(history, replica)
    async with slow_client(replica) as stuck, slow_client(replica) as slow:
        stuck.stall()
        slow.stall()
        await bulk.publish(OVERFLOW_BYTES)
        begun = time.monotonic()

        async def sip() -> None:
            while True:
                slow.read()
                await slow.take(type="event")
                slow.stall()
                await slow.send("ping")
                await asyncio.sleep(0.5)

        sipping = asyncio.create_task(sip())
        await wait_for_connections(1, replica)
        assert time.monotonic() - begun > 1.0
        # twice as long as the first client had
        await asyncio.sleep(max(0.0, begun + 4.0 - time.monotonic()))
        assert replica.sockets == 1
        sipping.cancel()
        stuck.read()
        assert (await stuck.closed())[0] == 1006
        slow.read()
        await slow.reached(bulk.last)
        # an abort may leave half a frame
        assert violations(history, [slow.record("slow")]) == []


async def test_close_not_taken(serve: Serve) -> None:
    """A socket that does not accept its close frame within 5 s is aborted."""
    replica, history = serve(websocket_max_age_seconds=1.5), History()
    bulk = BulkProducer(history, replica)
    async with slow_client(replica) as stuck:
        stuck.stall()
        await bulk.publish(OVERFLOW_BYTES)
        begun = time.monotonic()
        # much sooner than the idle timeout of 300 s
        await wait_for_connections(0, replica)
        assert time.monotonic() - begun < 15
        stuck.read()
        assert (await stuck.closed())[0] == 1006


async def test_larger_than_the_mark(serve: Serve) -> None:
    """A message larger than the high-water mark reaches clients that read at once and clients that read late."""
    replica, history = serve(websocket_send_buffer_bytes=1024, event_max_bytes=MIB), History()
    bulk = BulkProducer(history, replica)
    async with slow_client(replica) as slow, connected(replica.websocket()) as fast:
        await fast.next()
        slow.stall()
        for _ in range(4):
            await bulk.publish(500_000, 500_000)
            await fast.reached(bulk.last)
        slow.read()
        await slow.reached(bulk.last)
        await bulk.publish(500_000, 500_000)
        await slow.reached(bulk.last)
        await fast.reached(bulk.last)
        everything = ClientRecord("fast", None, [Connection("", None, "", fast.frames)])
        assert violations(history, [slow.record("slow"), everything]) == []


async def test_drain_is_bounded(serve: Serve) -> None:
    """A drain ends in bounded time despite clients that read nothing, answer nothing or send half a request."""
    replica, history = serve(drain_seconds=1), History()
    async with slow_client(replica) as stuck, raw_websocket(replica) as mute, connected(replica.websocket()) as good:
        await good.next()
        stuck.stall()
        await BulkProducer(history, replica).publish(OVERFLOW_BYTES)
        silent, half = [(await asyncio.open_connection("127.0.0.1", replica.port))[1] for _ in range(2)]
        half.write(b"POST /broadcast/event HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await half.drain()
        begun = time.monotonic()
        replica.signal()
        assert (await good.closed())[0] == 1012
        assert await asyncio.to_thread(replica.ended, 60) == 0
        # 1 s for clients, 5 s for their closes, 10 s for requests, and a margin for a slow machine
        assert time.monotonic() - begun < 25
        await mute.ended()
        for writer in (silent, half):
            writer.close()
        everything = ClientRecord("good", None, [Connection("", None, "", good.frames)])
        assert violations(history, [everything]) == []
    assert "Traceback" not in replica.log


async def test_drain_of_a_slow_client(serve: Serve) -> None:
    """A slow client gets its shutdown notice once its socket has drained, and events until its close."""
    replica, history = serve(drain_seconds=6), History()
    bulk = BulkProducer(history, replica)
    async with slow_client(replica) as slow:
        slow.stall()
        await bulk.publish(OVERFLOW_BYTES)
        replica.signal()
        await eventually(lambda: replica.health()["status"] == "draining")
        slow.read()
        await slow.take(type="system.shutdown")
        await slow.reached(bulk.last)
        assert (await slow.closed())[0] == 1012
        assert await asyncio.to_thread(replica.ended) == 0
        assert violations(history, [slow.record("slow")]) == []
