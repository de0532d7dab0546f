"""A small world for the kernel's tests: one Redis in memory, replicas on it, clients on them. No tests here."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from kernel import BroadcasterConfig, Client, Encoding, EventBroadcaster, Observer, Patterns, Resume, WireEncoding
from kernel.subscriptions import EVERYTHING
from kernel.transport import NOWHERE, Fence, Outgoing
from tests.fakes import FakeRedis, FakeSink, FakeTransport

_T = TypeVar("_T")

WIRE = WireEncoding(None, deflate=False, level=6)

# Everything that the service does in seconds, in hundredths.
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


class GatedTransport(FakeTransport):
    """A transport whose calls can be held up: before they take effect, or after it with their answers on the way."""

    def __init__(self, redis: FakeRedis) -> None:
        super().__init__(redis)
        self.before: defaultdict[str, asyncio.Event] = defaultdict(_open_gate)
        self.after: defaultdict[str, asyncio.Event] = defaultdict(_open_gate)
        self.held: defaultdict[str, int] = defaultdict(int)

    async def _call(self, name: str, act: Callable[[], _T]) -> _T:
        self.held[name] += 1
        try:
            await self.before[name].wait()
            answer = await super()._call(name, act)
            await self.after[name].wait()
            return answer
        finally:
            self.held[name] -= 1


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


def tail(id: str, type: str = "event", data: str = "{}") -> bytes:
    """Return what a publisher hands to Redis for an event."""
    return f',"id":"{id}","type":"{type}","data":{data}}}'.encode()


def fill(redis: FakeRedis, count: int, *, type: str = "event", data: str = "{}") -> None:
    """Publish so many events, one by one, as another replica would."""
    for _ in range(count):
        id = f"{redis.place.epoch}-{redis.place.sequence + 1}"
        redis.run(Fence(NOWHERE, ""), Outgoing(id, None, [(id, tail(id, type, data))]))


def join(
    broadcaster: EventBroadcaster,
    *,
    patterns: Patterns = EVERYTHING,
    resume: Resume | None = None,
    room: int | None = None,
    encoding: Encoding = WIRE,
    **sink_options: Any,
) -> tuple[Client, FakeSink]:
    """Connect a client as the server room does."""
    if resume is not None:
        sink_options.setdefault("since", resume.last_sequence)
    sink = FakeSink(room, **sink_options)
    client = broadcaster.connect(sink, encoding, patterns=patterns, resume=resume)
    sink.on_blocked = lambda: broadcaster.hub.fall_behind(client)
    if sink.blocked:
        broadcaster.hub.fall_behind(client)
    return client, sink


@asynccontextmanager
async def replica(
    redis: FakeRedis,
    config: BroadcasterConfig = FAST,
    *,
    observer: Observer | None = None,
    without_redis: bool = False,
) -> AsyncIterator[EventBroadcaster]:
    """Run a replica; when it stops, no task of it may be left."""
    before = asyncio.all_tasks()
    broadcaster = EventBroadcaster(GatedTransport(redis), config, observer)
    await broadcaster.start(without_redis=without_redis)
    try:
        yield broadcaster
    finally:
        await broadcaster.stop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before, "tasks are left"
        assert broadcaster.connections == 0
