"""The hub: clients connect, change patterns, fall behind and catch up, and get exactly their events."""

import asyncio
import gc
import json
import logging
import re
import weakref
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kernel.clients import Client, CloseReason, Patterns, Resume, fanout, pace
from kernel.clients.client import ClientState
from kernel.clients.close_reasons import INTERNAL_ERROR, SLOW_CLIENT
from kernel.clients.hub import Hub
from kernel.clients.patterns import EVERYTHING
from kernel.log import AsgiEncoding, Joined, WireEncoding
from kernel.log.check_requests import CheckRequests
from kernel.log.frames import Frame
from kernel.log.log import Log
from kernel.observer import Observer
from kernel.position import Position
from kernel.resilience.circuit import CircuitState
from tests.fakes import FakeRedis, FakeSink, entry
from tests.history import matches, violations
from tests.kernel.replicas import (
    FAST,
    RARE_CHECKS,
    WIRE,
    PausableTransport,
    fill,
    history_of,
    join,
    record_of,
    replica,
    resync,
)
from tests.virtual_time import eventually

E1, E2 = "epoch-1", "epoch-2"


@pytest.fixture
def redis() -> FakeRedis:
    """Return a Redis with 250 events, of which a replica keeps the newest 20 in memory."""
    redis = FakeRedis()
    fill(redis, 250)
    return redis


def subscribe(*globs: str, kind: str = "subscribe") -> str:
    """Return a subscribe command, or another one of its form."""
    return json.dumps({"type": kind, "data": {"events": globs}})


# -- coming and going


async def test_the_first_frame(redis: FakeRedis) -> None:
    """The first frame names the connection, the epoch and where this replica stands."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        (first,) = sink.messages
        assert first.pop("connection_id") == client.id
        assert re.fullmatch(r"ws-events-[0-9a-f]{8}", client.id)
        assert first == {"type": "connected", "message": "Connected to events channel", "epoch": E1, "lastSeq": 250}
        assert join(broadcaster)[0].id != client.id
        assert broadcaster.connections == 2


async def test_every_event_after_it(redis: FakeRedis) -> None:
    """Without `since` a client gets every matching event after `lastSeq`."""
    async with replica(redis) as broadcaster:
        _, everything = join(broadcaster)
        _, alerts = join(broadcaster, patterns=Patterns.of(["alert.*"]), skips=lambda number: number != 252)
        fill(redis, 1)
        fill(redis, 1, type="alert_created")
        fill(redis, 1)
        await everything.until(lambda: everything.outline == ["connected", "251", "252", "253"])
        await alerts.until(lambda: alerts.outline == ["connected", "252"])


@pytest.mark.parametrize(
    "encoding",
    [
        WireEncoding(10, deflate=False, level=1),
        WireEncoding(None, deflate=True, level=9),
        AsgiEncoding(None, level=6),
        AsgiEncoding(10, level=6),
    ],
)
async def test_encodings(redis: FakeRedis, encoding: WireEncoding | AsgiEncoding) -> None:
    """Clients of all encodings get the same messages, live and replayed."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, encoding=encoding, resume=Resume("events", 200, E1))
        await sink.until(lambda: sink.of("resync_ack"))
        for mark in "abc":
            fill(redis, 1, data=json.dumps({"batch_id": mark, "long": "x" * 2000}))
        await sink.until(lambda: sink.numbers[-1] == 253)
        assert violations(history_of(redis), [record_of(sink)]) == []


async def test_leaving(redis: FakeRedis) -> None:
    """A client that left gets nothing and is not counted; leaving twice is no error."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        broadcaster.disconnect(client)
        broadcaster.disconnect(client)
        assert (broadcaster.connections, client.state) == (0, ClientState.GONE)
        _, witness = join(broadcaster)
        fill(redis, 1)
        await witness.until(lambda: witness.numbers == [251])
        assert sink.outline == ["connected"]


async def test_what_a_gone_client_still_says(redis: FakeRedis) -> None:
    """Commands of a client that is gone have no effect."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        broadcaster.disconnect(client)
        sink.close(INTERNAL_ERROR)
        for message in ("ping", subscribe("a"), subscribe(kind="unsubscribe"), '{"type":"resync"}', b""):
            broadcaster.hub.receive(client, message)
        broadcaster.hub.fall_behind(client)
        assert broadcaster.connections == 0
        assert sink.outline == ["connected"]


@pytest.mark.parametrize("resume", [None, Resume("events", 0, E1)])
async def test_nothing_is_left_of_a_client(redis: FakeRedis, resume: Resume | None) -> None:
    """No reference to a client is left when it is gone, whatever it was doing."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=300, resume=resume, skips=lambda number: True)
        broadcaster.hub.receive(client, subscribe("only.this.one"))
        fill(redis, 5)
        await eventually(lambda: broadcaster.sequence == 255)
        broadcaster.disconnect(client)
        sink.on_blocked = lambda: None
        reference = weakref.ref(sink)
        del client, sink
        await eventually(lambda: gc.collect() is not None and reference() is None)


# -- the conversation


async def test_replies_in_order(redis: FakeRedis) -> None:
    """Each command is answered after everything that was sent before."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        for message in ("ping", "{", subscribe("event"), '{"type":"pong"}', b"x", subscribe(), '{"type":"PING"}'):
            broadcaster.hub.receive(client, message)
        assert sink.outline[1:] == [
            "pong",
            "error invalid_json",
            "subscribed",
            "error invalid_message_format",
            "error validation_error",
            "pong",
        ]
        assert sink.closed is None


async def test_changing_patterns(redis: FakeRedis) -> None:
    """Events after the reply obey the new patterns, and none is lost or repeated."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        changes = [EVERYTHING]
        for number, message in enumerate(
            [
                subscribe("alert.*"),
                subscribe("event"),
                subscribe("event"),
                subscribe("alert.*", kind="unsubscribe"),
                subscribe("event", kind="unsubscribe"),
                '{"type":"unsubscribe"}',
            ]
        ):
            sink.skips = lambda number: True
            fill(redis, 1)
            fill(redis, 1, type="alert_created")
            await eventually(lambda number=number: client.place.sequence == 252 + 2 * number)
            broadcaster.hub.receive(client, message)
            changes.append(client.patterns)
        assert sink.outline[1:] == [
            *("251", "252", "subscribed"),
            *("254", "subscribed"),
            *("255", "256", "subscribed"),
            *("257", "258", "unsubscribed"),
            *("259", "unsubscribed"),
            "unsubscribed",
        ]
        assert client.patterns is EVERYTHING


async def test_acks(redis: FakeRedis) -> None:
    """The highest ack is never lowered, one beyond the client's place is ignored, and each is counted."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers[-1:] == [255])
        for number in (253, 252, 999, 254):
            broadcaster.hub.receive(client, json.dumps({"type": "ack", "data": {"sequence": number}}))
        assert (client.acked, client.acks) == (254, 4)
        assert not broadcaster.record_ack(client, 254)
        assert broadcaster.record_ack(client, 255)
        redis.flush()
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "1")
        assert client.acked == 0
        assert not broadcaster.record_ack(client, 255)
        assert broadcaster.record_ack(client, 1)


async def test_acks_during_a_replay(redis: FakeRedis) -> None:
    """During a replay a client can acknowledge what it received before."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers[-1:] == [255])
        sink.room = 1
        resync(broadcaster, client, last_sequence=10)
        await sink.until(lambda: sink.blocked)
        assert broadcaster.record_ack(client, 255)
        assert client.acked == 255


async def test_heartbeat(redis: FakeRedis) -> None:
    """A heartbeat holds the client's own place; events that its patterns skipped count as passed."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, patterns=Patterns.of(["alert.*"]), skips=lambda number: True)
        fill(redis, 5)
        await eventually(lambda: broadcaster.sequence == 255)
        broadcaster.hub.heartbeat(client)
        assert sink.messages[-1] == {"type": "ping", "lastSeq": 255, "epoch": E1}


async def test_heartbeats_of_the_slow(redis: FakeRedis) -> None:
    """The heartbeat of a client that is behind holds its own place, not the replica's."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        client, sink = join(broadcaster, room=10)
        fill(redis, 5)
        await eventually(lambda: broadcaster.sequence == 255)
        broadcaster.hub.heartbeat(client)
        assert sink.messages[-1] == {"type": "ping", "lastSeq": 250, "epoch": E1}


# -- during a walk


async def walking(redis: FakeRedis, broadcaster: Any, client: Client) -> None:
    """Publish one event and return while its walk is under way and has not reached this client."""
    before = client.place
    fill(redis, 1)
    await eventually(lambda: broadcaster.sequence == redis.place.sequence)
    assert client.place == before


@pytest.fixture
def slow_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the event loop run after each write."""
    monkeypatch.setattr(fanout, "LOOK", 1)
    monkeypatch.setattr(pace, "SECONDS", 0.0)


@pytest.mark.usefixtures("slow_walk")
async def test_changing_patterns_during_a_walk(redis: FakeRedis) -> None:
    """Events that are being delivered come before the reply and obey the old patterns."""
    async with replica(redis) as broadcaster:
        for _ in range(50):
            join(broadcaster)
        client, sink = join(broadcaster, skips=lambda number: number > 251)
        heartbeats = [join(broadcaster) for _ in range(3)]
        await walking(redis, broadcaster, client)
        for other, _ in heartbeats:
            broadcaster.hub.heartbeat(other)
        broadcaster.hub.receive(client, subscribe("alert.*"))
        assert sink.outline == ["connected", "251", "subscribed"]
        fill(redis, 1)
        await eventually(lambda: all(c.place.sequence == 252 for c in broadcaster.hub))
        assert sink.outline == ["connected", "251", "subscribed"]
        for _, other in heartbeats:
            assert other.outline == ["connected", "ping", "251", "252"]


async def test_changing_patterns_while_a_large_event_is_compressed(redis: FakeRedis) -> None:
    """The change is not held up: the client falls behind, and its new patterns decide about the event."""
    deflate = WireEncoding(None, deflate=True, level=6)
    now = 0.0

    def timer() -> float:
        nonlocal now
        now += 0.001
        return now

    log = Log(PausableTransport(redis), 20)
    hub = Hub(log, checks=CheckRequests(), observer=Observer(), chunk=100, timer=timer)
    log.ring.start(Position(E1, 1))
    sinks = [FakeSink() for _ in range(3)]
    clients = [hub.connect(sink, deflate) for sink in sinks]
    large = Frame.of(E1, entry(2, '"%s"' % ("large " * 50_000)))
    log.append([large])
    delivery = asyncio.create_task(hub.deliver([large], 0.0))
    await asyncio.sleep(0)
    for client, pattern in zip(clients, ("event", "alert.*"), strict=False):
        before = now
        hub.receive(client, subscribe(pattern))
        assert now - before < 0.01
        assert client.state is ClientState.BEHIND
    assert large.made(deflate) is None
    await delivery
    await eventually(lambda: all(client.state is ClientState.LIVE for client in clients))
    outlines = [sink.outline for sink in sinks]
    assert outlines == [["connected", "subscribed", "2"], ["connected", "subscribed"], ["connected", "2"]]
    assert all(client.place == Position(E1, 2) for client in clients)


@pytest.mark.usefixtures("slow_walk")
async def test_hostile_patterns_during_a_walk(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that changes patterns which were not compared yet reads the log; the reply waits for no comparison."""
    compared: list[object] = []
    matches = Patterns.matches
    monkeypatch.setattr(Patterns, "matches", lambda patterns, names: compared.append(names) or matches(patterns, names))
    async with replica(redis) as broadcaster:
        for _ in range(50):
            join(broadcaster)
        hostile = Patterns.of([f"{'*a' * 126}{number:02}" for number in range(99)])
        client, sink = join(broadcaster, patterns=hostile, skips=lambda number: number in (251, 253))
        await walking(redis, broadcaster, client)
        compared.clear()
        broadcaster.hub.receive(client, subscribe("alert.*"))
        assert compared == []
        assert (sink.outline, client.state) == (["connected", "subscribed"], ClientState.BEHIND)
        fill(redis, 1, type="alert_created")
        fill(redis, 1)
        await eventually(lambda: client.place.sequence == 253)
        await eventually(lambda: client.state is ClientState.LIVE)
        assert sink.outline == ["connected", "subscribed", "252"]


@pytest.mark.usefixtures("slow_walk")
async def test_full_by_the_change_of_patterns(redis: FakeRedis) -> None:
    """A client whose socket the events under way have filled is behind, with its new patterns."""
    async with replica(redis) as broadcaster:
        for _ in range(50):
            join(broadcaster)
        client, sink = join(broadcaster, room=200, skips=lambda number: number == 252)
        await walking(redis, broadcaster, client)
        broadcaster.hub.receive(client, subscribe("alert.*"))
        assert sink.outline == ["connected", "251", "subscribed"]
        assert (sink.blocked, client.state) == (True, ClientState.BEHIND)
        fill(redis, 1)
        fill(redis, 1, type="alert_created")
        await eventually(lambda: broadcaster.sequence == 253)
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.outline == ["connected", "251", "subscribed", "253"])


@pytest.mark.usefixtures("slow_walk")
async def test_leaving_during_a_walk(redis: FakeRedis) -> None:
    """A client that left before the walk reached it is not written to."""
    async with replica(redis) as broadcaster:
        for _ in range(50):
            join(broadcaster)
        client, sink = join(broadcaster)
        _, last = join(broadcaster)
        await walking(redis, broadcaster, client)
        broadcaster.disconnect(client)
        await last.until(lambda: last.numbers == [251])
        assert sink.outline == ["connected"]


@pytest.mark.usefixtures("slow_walk")
async def test_falling_behind_during_a_walk(redis: FakeRedis) -> None:
    """A client that fell behind before the walk reached it gets the walk's events once, later."""
    async with replica(redis) as broadcaster:
        for _ in range(50):
            join(broadcaster)
        client, sink = join(broadcaster, room=200)
        _, last = join(broadcaster)
        await walking(redis, broadcaster, client)
        for _ in range(5):
            broadcaster.hub.receive(client, "ping")
        assert sink.blocked
        await last.until(lambda: last.numbers == [251])
        assert sink.outline == ["connected", *["pong"] * 5]
        sink.drain()
        await sink.until(lambda: sink.numbers == [251])
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251, 252])


@pytest.mark.usefixtures("slow_walk")
async def test_a_delivery_that_is_cancelled(redis: FakeRedis) -> None:
    """A run of frames whose delivery is cancelled half-way still reaches every client."""
    log = Log(PausableTransport(redis), 20)
    hub = Hub(log, checks=CheckRequests(), observer=Observer(), chunk=100)
    log.ring.start(Position(E1, 240))
    sinks = [FakeSink() for _ in range(5)]
    for sink in sinks:
        hub.connect(sink, WIRE)
    frames = await log.stored(Position(E1, 240), 244)
    log.append(frames)
    delivery = asyncio.create_task(hub.deliver(frames, 0.0))
    await eventually(lambda: sinks[1].numbers)
    assert not sinks[-1].numbers
    delivery.cancel()
    await asyncio.wait([delivery])
    assert delivery.cancelled()
    for sink in sinks:
        assert sink.numbers == [241, 242, 243, 244]


@pytest.mark.usefixtures("slow_walk")
async def test_a_delivery_that_fails(redis: FakeRedis) -> None:
    """After a delivery that fails half-way clients that were not reached read the events from the log."""

    class BrokenSink(FakeSink):
        def write(self, data: Joined) -> None:
            if self.messages:
                raise ZeroDivisionError
            super().write(data)

    log = Log(PausableTransport(redis), 20)
    hub = Hub(log, checks=CheckRequests(), observer=Observer(), chunk=100)
    log.ring.start(Position(E1, 240))
    sinks = [FakeSink(), BrokenSink(), FakeSink()]
    clients = [hub.connect(sink, WIRE) for sink in sinks]
    frames = await log.stored(Position(E1, 240), 242)
    log.append(frames[:1])
    with pytest.raises(ZeroDivisionError):
        await hub.deliver(frames[:1], 0.0)
    await eventually(lambda: clients[2].state is ClientState.LIVE)
    assert clients[1].state is ClientState.BEHIND
    assert sinks[1].closed == INTERNAL_ERROR
    log.append(frames[1:])
    await hub.deliver(frames[1:], 0.0)
    assert [sink.numbers for sink in sinks] == [[241, 242], [], [241, 242]]


async def test_large_batches_are_cut(redis: FakeRedis) -> None:
    """A large batch is written in several pieces, so that it does not make clients slow."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        redis.deaf = True
        fill(redis, 100)
        redis.deaf = False
        await sink.until(lambda: sink.numbers == list(range(251, 351)))
        assert sink.writes - 1 >= 100 * 64 // FAST.chunk_bytes


# -- notices


async def test_notices(redis: FakeRedis) -> None:
    """Clients are notified when Redis is lost and when it is back; new clients after their first frame."""
    async with replica(redis) as broadcaster:
        _, early = join(broadcaster, patterns=Patterns.of([]))
        redis.down = True
        await early.until(lambda: early.of("service_status"))
        _, late = join(broadcaster, resume=Resume("events", 250, E1))
        assert late.outline == ["connected", "degraded"]
        redis.down = False
        await early.until(lambda: len(early.of("service_status")) == 2)
        assert early.outline == ["connected", "degraded", "healthy"]
        assert late.outline == ["connected", "degraded", "resync_ack", "healthy"]
        notice = early.messages[1]
        assert notice["data"].pop("message")
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", notice.pop("timestamp"))
        assert notice == {
            "type": "service_status",
            "data": {"service": "event_broadcaster", "status": "degraded", "circuit_state": "open"},
        }


async def test_healthy_then_everything_missed(redis: FakeRedis) -> None:
    """When Redis is back the notice comes first, then everything that was missed."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        redis.down = True
        await sink.until(lambda: sink.of("service_status"))
        fill(redis, 3)
        redis.down = False
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        assert sink.outline == ["connected", "degraded", "healthy", "251", "252", "253"]


async def test_notices_of_the_slow(redis: FakeRedis) -> None:
    """A client whose socket is full gets only the newest notice, when it has drained."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=10)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        assert sink.outline == ["connected"]
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.outline == ["connected", "degraded"])
        await eventually(lambda: client.state is ClientState.LIVE)
        sink.room = 10
        broadcaster.hub.receive(client, "ping")
        redis.down = False
        await eventually(lambda: not broadcaster.is_degraded())
        redis.down = True
        await eventually(broadcaster.is_degraded)
        redis.down = False
        await eventually(lambda: not broadcaster.is_degraded())
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.outline == ["connected", "degraded", "pong", "healthy"])


async def test_a_notice_does_not_overtake_another(redis: FakeRedis) -> None:
    """A notice never overtakes an older one that is waiting: the older one is sent first or replaced."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=10)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        sink.room = None
        # drained, but its task has not run yet when the next notice comes
        sink.drain()
        broadcaster.hub.circuit_changed(CircuitState.CLOSED)
        await eventually(lambda: client.state is ClientState.LIVE)
        assert sink.outline == ["connected", "healthy"]


async def test_a_large_fleet_is_notified_in_steps(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop runs while many clients are notified; clients may join and leave, and the state may change."""
    async with replica(redis) as broadcaster:
        fleet = [join(broadcaster) for _ in range(5)]
        monkeypatch.setattr(pace, "SECONDS", 0.0)
        broadcaster.hub.circuit_changed(CircuitState.OPEN)
        assert [sink.outline[1:] for _, sink in fleet] == [["degraded"], [], [], [], []]
        broadcaster.disconnect(fleet[3][0])
        _, late = join(broadcaster)
        await eventually(lambda: fleet[4][1].outline[1:] == ["degraded"])
        assert [sink.outline[1:] for _, sink in fleet] == [["degraded"]] * 3 + [[], ["degraded"]]
        assert late.outline == ["connected", "degraded"]
        broadcaster.hub.circuit_changed(CircuitState.CLOSED)
        broadcaster.hub.circuit_changed(CircuitState.OPEN)
        await eventually(lambda: late.outline[-2:] == ["degraded", "degraded"])
        assert fleet[0][1].outline[1:] == ["degraded", "healthy", "degraded"]
        assert fleet[4][1].outline[1:] == ["degraded", "degraded"]


async def test_telling_somebody_who_leaves(redis: FakeRedis) -> None:
    """A client that disconnects while it is notified does not keep others from being notified."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=200)
        sink.on_blocked = lambda: broadcaster.disconnect(client)
        _, other = join(broadcaster)
        redis.down = True
        await other.until(lambda: other.outline == ["connected", "degraded"])
        assert broadcaster.connections == 1


# -- what should not happen


async def test_a_task_that_fails(redis: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error in a client's own task closes that client with 1011."""

    class BrokenSink(FakeSink):
        async def drained(self) -> None:
            raise ZeroDivisionError

    async with replica(redis) as broadcaster:
        sink = BrokenSink()
        client = broadcaster.connect(sink, WIRE, resume=Resume("events", 0, E1))
        _, other = join(broadcaster)
        await sink.until(lambda: sink.closed is not None)
        assert sink.closed == INTERNAL_ERROR
        assert sink.closed.code == 1011
        (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert client.id in line.message
        assert line.exc_info
        broadcaster.disconnect(client)
        fill(redis, 1)
        await other.until(lambda: other.numbers == [251])


async def test_leaving_while_it_is_closed(redis: FakeRedis) -> None:
    """A client that disconnects in the moment in which it is closed as too slow is gone."""

    class ImpatientSink(FakeSink):
        def close(self, reason: CloseReason) -> None:
            super().close(reason)
            broadcaster.disconnect(client)

    async with replica(redis, RARE_CHECKS) as broadcaster:
        sink = ImpatientSink(room=10)
        client = broadcaster.connect(sink, WIRE)
        broadcaster.hub.fall_behind(client)
        fill(redis, 100)
        await eventually(lambda: broadcaster.sequence == 350)
        redis.trim(50)
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.closed is not None)
        assert sink.closed == SLOW_CLIENT
        assert (broadcaster.connections, client.state) == (0, ClientState.GONE)


# -- everything at once

TYPES = ["event", "alert_created", "scene_change", "detection.new"]
GLOBS = ["event", "alert.*", "scene*", "*", "detection.?ew", "nothing"]
CLIENT = st.integers(0, 9)
ACTIONS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(TYPES), st.integers(1, 12)),
    st.tuples(st.just("publish"), st.just("event"), st.integers(1, 12)),
    st.tuples(st.just("publish"), st.just("event"), st.integers(1, 12)),
    st.tuples(st.just("unheard"), st.sampled_from(TYPES), st.integers(1, 8)),
    st.tuples(
        st.just("join"), st.none() | st.lists(st.sampled_from(GLOBS), max_size=2), st.none() | st.integers(0, 99)
    ),
    st.tuples(st.just("leave"), CLIENT),
    st.tuples(st.just("narrow"), CLIENT, st.sampled_from([1, 150, 400])),
    st.tuples(st.just("drain"), CLIENT),
    st.tuples(st.just("subscribe"), CLIENT, st.lists(st.sampled_from(GLOBS), min_size=1, max_size=2)),
    st.tuples(st.just("unsubscribe"), CLIENT, st.lists(st.sampled_from(GLOBS), max_size=2)),
    st.tuples(st.just("resync"), CLIENT, st.integers(0, 99)),
    st.tuples(st.just("heartbeat"), CLIENT),
    st.tuples(st.just("wait")),
)
# between two of them the loop turns so often: 0 is the same moment, and a walk writes to one client a turn
TURNS = st.sampled_from([0, 0, 1, 2, 3, 5, 8, 13])


class Peer:
    """A client, and the patterns that it has had so far."""

    def __init__(self, client: Client, sink: FakeSink) -> None:
        self.client = client
        self.sink = sink
        self.patterns = [record_of(sink).patterns]

    def change_patterns(self, broadcaster: Any, verb: str, globs: list[str]) -> None:
        """Subscribe or unsubscribe; to unsubscribe from no globs is to unsubscribe from all."""
        before = self.patterns[-1]
        after = None if before is None else [glob for glob in before if glob not in globs]
        if verb == "subscribe":
            after = [*(before or []), *globs]
        elif not globs:
            after = None
        self.patterns.append(after)
        record_of(self.sink).connections[-1].changes.append(after)
        broadcaster.hub.receive(self.client, json.dumps({"type": verb, "data": {"events": globs} if globs else {}}))


async def act(redis: FakeRedis, broadcaster: Any, peers: list[Peer], types: list[str], action: tuple[Any, ...]) -> None:
    """Perform one action."""
    match action:
        case ("publish", type, count):
            fill(redis, count, type=type)
            types += [type] * count
        case ("unheard", type, count):
            redis.deaf = True
            fill(redis, count, type=type)
            redis.deaf = False
            types += [type] * count
        case ("join", globs, since):
            patterns = Patterns.of(globs)
            resume = None if since is None else Resume("events", min(since, len(types)), E1)
            client, sink = join(
                broadcaster,
                patterns=patterns,
                resume=resume,
                encoding=WIRE if len(peers) % 2 else AsgiEncoding(None, level=6),
            )
            peers.append(Peer(client, sink))
            had = peers[-1].patterns
            sink.skips = lambda n: not all(matches(patterns, types[n - 1], {}) for patterns in had)
        case ("wait",):
            await eventually(lambda: broadcaster.sequence == redis.place.sequence)
        case (verb, index, *rest) if peers:
            peer = peers[index % len(peers)]
            if verb == "leave":
                broadcaster.disconnect(peer.client)
                peer.sink.close(INTERNAL_ERROR)
                peers.remove(peer)
            elif verb == "narrow":
                peer.sink.room = rest[0]
            elif verb == "drain":
                peer.sink.drain()
            elif peer.sink.blocked:
                pass  # the messages of such a client are not read, and it gets no heartbeats
            elif verb == "heartbeat":
                broadcaster.hub.heartbeat(peer.client)
            elif verb == "resync":
                resync(broadcaster, peer.client, last_sequence=min(rest[0], len(types)))
            else:
                peer.change_patterns(broadcaster, verb, rest[0])


@given(actions=st.lists(st.tuples(ACTIONS, TURNS), min_size=20, max_size=80))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
async def test_whatever_happens(actions: list[tuple[tuple[Any, ...], int]]) -> None:
    """In any sequence of actions each client gets exactly its events, in order and once."""
    redis, types, peers = FakeRedis(), ["event"] * 30, list[Peer]()
    fill(redis, 30)
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(fanout, "LOOK", 1)
        patch.setattr(pace, "SECONDS", 0.0)
        config = replace(FAST, message_buffer_size=7, chunk_bytes=200, position_check_seconds=0.01)
        broadcaster = await stack.enter_async_context(replica(redis, config))
        for globs in (None, ["event"], None, ["*"], ["event"], ["alert.*"], ["ev*"], []):
            await act(redis, broadcaster, peers, types, ("join", globs, None))
        for action, turns in actions:
            await act(redis, broadcaster, peers, types, action)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert len(broadcaster.hub) == broadcaster.connections == len(peers)
        for peer in peers:
            peer.sink.room = None
            peer.sink.drain()
        await eventually(
            lambda: all(
                p.client.state is ClientState.LIVE
                and p.client.place == redis.place == (broadcaster.epoch, broadcaster.sequence)
                for p in peers
            )
        )
        for peer in peers:
            assert violations(history_of(redis), [record_of(peer.sink)]) == []
