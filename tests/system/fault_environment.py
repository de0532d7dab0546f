"""The environment of the fault tests: a Redis to break, replicas each behind a proxy, producers and recording clients.

A test that uses it ends with `check_history`: the history checker decides whether any event was lost, duplicated or
reordered.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from tests.history import History, violations
from tests.proxy import Proxy
from tests.system.producers import KINDS, Producer, RetryingProducer
from tests.system.recording_client import RecordingClient, wait_until_delivered
from tests.system.redis_server import RedisServer
from tests.system.replica import PATIENCE, Replica
from tests.waiting import eventually

__all__ = ["FaultEnvironment", "degraded_notices", "health", "wait_for_health"]

# Intervals and delays that take seconds in production are a fraction of a second here.
FAST = {
    "position_check_seconds": 0.3,
    "circuit_recovery_seconds": 0.5,
    "broadcast_base_delay_seconds": 0.05,
    "broadcast_max_delay_seconds": 0.5,
}

# The one log line above WARNING that an outage is expected to cause.
CUT_OFF = r" CRITICAL kernel\.resilience\.link: "


class _StartReplica(Protocol):
    def __call__(self, *, ready: object = True, **settings: object) -> Replica: ...


class FaultEnvironment:
    """Redis, replicas, producers and clients of one test; use it as `async with FaultEnvironment(start) as env`.

    The proxies lead to `server` at first. `tolerate` is a pattern for the log lines that the replicas may have.
    """

    def __init__(self, start: _StartReplica, **server: str) -> None:
        self._start = start
        self._stack = AsyncExitStack()
        self._producer = Producer(History(), "")
        self._numbers = 0
        self._loads = 0
        self._server_options = server
        self.server: RedisServer
        self.history = History()
        self.replicas: list[Replica] = []
        self.proxies: list[Proxy] = []
        self.recorders: list[RecordingClient] = []
        self.tolerate = CUT_OFF

    async def __aenter__(self) -> Self:
        self.server = self.start_redis(**self._server_options)
        self._producer = Producer(self.history, "one")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for replica in self.replicas if kind is None else ():
                await asyncio.to_thread(replica.stop, tolerate=self.tolerate)
        finally:
            for replica in self.replicas:
                replica.kill()
            await self._stack.aclose()

    def start_redis(self, **options: str) -> RedisServer:
        """Start another Redis; it is ended with this environment."""
        return self._stack.enter_context(RedisServer(**options))

    async def start_proxy(self, server: RedisServer | None = None) -> Proxy:
        """Start another proxy to a Redis."""
        return await self._stack.enter_async_context(Proxy((server or self.server).path))

    async def start_replicas(self, count: int = 1, *, ready: bool = True, **settings: object) -> list[Replica]:
        """Start replicas concurrently, each behind a proxy of its own; returns all replicas started so far."""
        proxies = self.proxies[len(self.replicas) :]
        while len(proxies) < count:
            proxies.append(await self.start_proxy())
        self.proxies[len(self.replicas) :] = proxies
        options = FAST | {"ready": ready} | settings
        self.replicas += await asyncio.gather(
            *(asyncio.to_thread(self._start, redis_url=proxy.url, **options) for proxy in proxies)
        )
        return self.replicas

    # -- clients and producers ----------------------------------------------------------------------------------------

    async def connect(self, replica: Replica, patterns: Sequence[str] | None = None) -> RecordingClient:
        """Connect a client that stays with this replica."""
        recorder = RecordingClient(f"client {len(self.recorders)}", patterns)
        await recorder.connect(replica)
        self.recorders.append(recorder)
        return recorder

    async def connect_clients(self) -> list[RecordingClient]:
        """Connect two clients to every replica, one with patterns, and wait for their first frames."""
        for replica in self.replicas:
            await self.connect(replica)
            await self.connect(replica, ["alert.*", "camera.offline", "summary*"])
        for recorder in self.recorders:
            await recorder.open_connection.next()
        return self.recorders

    async def publish(self, replica: Replica, count: int = 1) -> list[int | None]:
        """Publish messages of all types in turn; returns the sequence numbers, None where the outcome is unknown."""
        numbers = []
        async with replica.http() as http:
            for _ in range(count):
                self._numbers += 1
                numbers.append(await self._producer.publish(http, KINDS[self._numbers % len(KINDS)]))
        return numbers

    async def publish_batch(self, replica: Replica, count: int) -> list[int]:
        """Publish messages of all types in one batch."""
        async with replica.http() as http:
            return await self._producer.publish_batch(http, [KINDS[n % len(KINDS)] for n in range(count)])

    @asynccontextmanager
    async def load(self, pause: float = 0.02) -> AsyncIterator[list[RetryingProducer]]:
        """Publish through all replicas for the length of a block; each message is retried until it is accepted."""
        stop = asyncio.Event()
        self._loads += 1
        producers = [
            RetryingProducer(self.history, f"load-{self._loads}-{number}", self.replicas, random.Random(number))
            for number in range(2)
        ]
        async with asyncio.TaskGroup() as group:
            for producer in producers:
                group.create_task(producer.publish(pause, stop))
            try:
                yield producers
            finally:
                stop.set()

    async def wait_until_accepted(self, producers: Sequence[RetryingProducer], count: int = 10) -> None:
        """Wait until `count` more messages have been accepted."""
        before = sum(producer.count for producer in producers)
        await eventually(lambda: sum(each.count for each in producers) >= before + count, 2 * PATIENCE)

    # -- checks -------------------------------------------------------------------------------------------------------

    async def wait_until_healthy(self) -> None:
        """Wait until every replica is healthy and has exactly one subscription to Redis."""
        for replica in self.replicas:
            await wait_for_health(replica, status="healthy", listener_healthy=True)
        await eventually(lambda: self.server.listeners == len(self.replicas), PATIENCE)

    async def wait_until_delivered(self) -> str:
        """Publish one more event through each replica, and wait until every client has it; returns the epoch."""
        for replica in self.replicas:
            assert None not in await self.publish(replica)
        (epoch,) = {epoch for epoch, _ in list(self.history.accepted)[-len(self.replicas) :]}
        await wait_until_delivered(self.history, epoch, self.recorders)
        return epoch

    async def check_history(self) -> None:
        """Disconnect the clients, and check everything they received against everything that was published."""
        for recorder in self.recorders:
            await recorder.leave(politely=True)
        assert violations(self.history, [recorder.record for recorder in self.recorders]) == []

    def check_unbroken(self) -> None:
        """Check that no client was told of a gap or of a new epoch."""
        assert len({epoch for epoch, _ in self.history.accepted}) == 1
        for recorder in self.recorders:
            assert not [frame for frame in recorder.frames if frame.get("type") in ("gap", "epoch_changed")]

    def check_new_epoch(self, epoch: str) -> None:
        """Check that every client was told of exactly one new epoch, this one."""
        for recorder in self.recorders:
            told = [frame["epoch"] for frame in recorder.frames if frame.get("type") == "epoch_changed"]
            assert told == [epoch], recorder.record.name


def degraded_notices(frames: Sequence[Any]) -> list[str]:
    """Return the notices on degraded mode among these frames, in order, as `status circuit_state`."""
    return [
        f"{frame['data']['status']} {frame['data']['circuit_state']}"
        for frame in frames
        if frame.get("type") == "service_status" and frame["data"]["service"] == "event_broadcaster"
    ]


async def health(replica: Replica) -> dict[str, Any]:
    """Return the report of `/health`."""
    report: dict[str, Any] = (await replica.request("GET", "/health")).json()
    return report


async def wait_for_health(replica: Replica, **fields: object) -> dict[str, Any]:
    """Wait until the report of `/health` has these fields; returns the report."""
    report: dict[str, Any] = {}

    async def matches() -> bool:
        nonlocal report
        report = await health(replica)
        return fields.items() <= report.items()

    try:
        await eventually(matches, PATIENCE)
    except AssertionError:
        raise AssertionError(f"not {fields}: {report}\n{replica.log}") from None
    return report
