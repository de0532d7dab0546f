"""Helpers for the kernel's tests: replicas that share a Redis in memory, and their clients. This file has no tests."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from kernel import BroadcasterConfig, EventBroadcaster, Observer
from kernel.clients import Client, Patterns, Resume
from kernel.clients.patterns import EVERYTHING
from kernel.log import Encoding, WireEncoding
from kernel.log.transport import Outgoing
from kernel.position import NOWHERE, Fence, Position
from tests.fakes import FakeRedis, FakeSink, FakeTransport
from tests.history import MARKS, ClientRecord, Connection, History, Place
from tests.virtual_time import VirtualTimeLoop, at_every_turn
from tests.waiting import eventually

_T = TypeVar("_T")

WIRE = WireEncoding(None, deflate=False, level=6)

# Short intervals, so that tests are fast.
FAST = BroadcasterConfig(
    message_buffer_size=20,
    max_retries=1,
    base_delay=0.01,
    max_delay=0.05,
    circuit_recovery_seconds=0.05,
    position_check_seconds=0.05,
    supervision_interval_seconds=0.2,
    chunk_bytes=1000,
)

# Makes no position check unless one is requested, so that events arrive only by the subscription.
RARE_CHECKS = replace(FAST, position_check_seconds=60.0, supervision_interval_seconds=60.0)


_transports: WeakKeyDictionary[EventBroadcaster, "PausableTransport"] = WeakKeyDictionary()
_records: WeakKeyDictionary[FakeSink, ClientRecord] = WeakKeyDictionary()


class PausableTransport(FakeTransport):
    """A transport on which calls can be paused, by the name of the method.

    Clear `before[name]` to pause calls before they reach Redis, or `after[name]` to pause them before they return. Set
    the event to let them continue. `in_progress[name]` is the number of calls that have not returned.
    """

    def __init__(self, redis: FakeRedis, deadline: float = 5.0) -> None:
        super().__init__(redis, deadline)
        self.before: defaultdict[str, asyncio.Event] = defaultdict(_set_event)
        self.after: defaultdict[str, asyncio.Event] = defaultdict(_set_event)
        self.in_progress: defaultdict[str, int] = defaultdict(int)

    async def call(self, name: str, act: Callable[[], _T]) -> _T:
        """Make the call, and pause before and after it while the events of its name are cleared."""
        self.in_progress[name] += 1
        try:
            await self.before[name].wait()
            answer = await super().call(name, act)
            await self.after[name].wait()
            return answer
        finally:
            self.in_progress[name] -= 1


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


def tail(id: str, type: str = "event", data: str = "{}", event_type: str | None = None) -> bytes:
    """Return an event as a publisher hands it to Redis: its JSON without the number."""
    named = "" if event_type is None else f',"event_type":"{event_type}"'
    return f',"id":"{id}","type":"{type}"{named},"data":{data}}}'.encode()


def fill(
    redis: FakeRedis, count: int, *, type: str = "event", data: str | None = None, event_type: str | None = None
) -> None:
    """Publish `count` events, one by one, as another replica would.

    If `data` is None, the data of each event contains its id, by which the history checker tells them apart.
    """
    for _ in range(count):
        id = f"{redis.place.epoch}-{redis.place.sequence + 1}"
        marked = json.dumps({MARKS[type]: id}) if data is None else data
        redis.run(Fence(NOWHERE, ""), Outgoing(id, None, [(id, tail(id, type, marked, event_type))]))


def transport_of(broadcaster: EventBroadcaster) -> PausableTransport:
    """Return the transport of a replica that `replica` runs."""
    return _transports[broadcaster]


def join(
    broadcaster: EventBroadcaster,
    *,
    patterns: Patterns = EVERYTHING,
    resume: Resume | None = None,
    room: int | None = None,
    encoding: Encoding = WIRE,
    **sink_options: Any,
) -> tuple[Client, FakeSink]:
    """Connect a client with a fake sink, as the WebSocket route does; return both.

    With `room`, the sink is blocked while more bytes are unsent. `sink_options` are passed to `FakeSink`.
    """
    if resume is not None:
        sink_options.setdefault("since", resume.last_sequence)
        sink_options.setdefault("lossy", resume.epoch not in (None, broadcaster.epoch))
    sink = FakeSink(room, **sink_options)
    since, epoch = (None, "") if resume is None else (resume.last_sequence, resume.epoch or "")
    globs = None if patterns.globs is None else sorted(patterns.globs)
    _records[sink] = ClientRecord("client", globs, [Connection("replica", since, epoch, sink.messages)])
    client = broadcaster.connect(sink, encoding, patterns=patterns, resume=resume)
    sink.on_blocked = lambda: broadcaster.hub.fall_behind(client)
    if sink.blocked:
        broadcaster.hub.fall_behind(client)
    return client, sink


def resync(broadcaster: EventBroadcaster, client: Client, **data: Any) -> None:
    """Receive a `resync` with this data from a client; add it to the client's record unless it was refused."""
    sink = client.sink
    assert isinstance(sink, FakeSink)
    sink.claims = max(sink.claims, data.get("last_sequence", 0))
    errors = len(sink.of("error"))
    broadcaster.hub.receive(client, json.dumps({"type": "resync", "data": data}))
    if len(sink.of("error")) == errors:
        asked = Place(data.get("epoch") or "", data.get("last_sequence", 0))
        record_of(sink).connections[-1].resyncs.append(asked)


def record_of(sink: FakeSink) -> ClientRecord:
    """Return what the client with this sink has asked for and received, for the history checker.

    A test that changes a client's patterns must add them to the connection in the record.
    """
    record = _records[sink]
    record.connections[-1].open = sink.closed is None
    return record


def history_of(redis: FakeRedis) -> History:
    """Return all events in a Redis, for the history checker; that Redis must have lost none."""
    history = History(complete=True)
    for sequence, (_, tail) in redis.history.items():
        event = json.loads(b'{"sequence":%d%b' % (sequence, tail))
        history.receipt(event["type"], event["data"], {"epoch": redis.place.epoch, "sequence": sequence})
    return history


@asynccontextmanager
async def replica(
    redis: FakeRedis,
    config: BroadcasterConfig = FAST,
    *,
    observer: Observer | None = None,
    transport: PausableTransport | None = None,
    without_redis: bool = False,
) -> AsyncIterator[EventBroadcaster]:
    """Run a replica while the context lasts, and check afterwards that none of its tasks is left.

    On virtual time, `_Invariants` are checked each time the event loop has run its callbacks.
    """
    before = asyncio.all_tasks()
    observers = [] if observer is None else [observer]
    transport = transport or PausableTransport(redis)
    loop = asyncio.get_running_loop()
    virtual = isinstance(loop, VirtualTimeLoop)
    broadcaster = EventBroadcaster(transport, config, observers, clock=loop.time if virtual else time.time)
    _transports[broadcaster] = transport
    await broadcaster.start(without_redis=without_redis)
    try:
        with at_every_turn(_Invariants(broadcaster, transport)) if virtual else nullcontext():
            # Wait for the position checks of the start and of the subscription.
            await eventually(lambda: without_redis or redis.calls.count("position") >= 2)
            yield broadcaster
    finally:
        await broadcaster.stop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before, "tasks are left"
        assert broadcaster.connections == 0


class _Invariants:
    """Checks that a replica has at most one subscription, and that no client's place is ahead of what was written.

    A heartbeat, which may be sent at any moment, contains the place: all matching events up to it must be written.
    """

    def __init__(self, broadcaster: EventBroadcaster, transport: PausableTransport) -> None:
        self._broadcaster = broadcaster
        self._transport = transport
        # Place and number of writes of each client at the last check. Most clients have not changed, and are skipped.
        self._seen: WeakKeyDictionary[FakeSink, tuple[Position, int]] = WeakKeyDictionary()

    def __call__(self) -> None:
        """Check both; raises AssertionError."""
        assert self._transport.subscriptions <= 1, "two subscriptions"
        for client in self._broadcaster.hub:
            if isinstance(client.sink, FakeSink):
                state = client.place, client.sink.writes
                if self._seen.get(client.sink) != state:
                    client.sink.check_place(client.place.epoch, client.place.sequence)
                    self._seen[client.sink] = state
