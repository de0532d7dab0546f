"""A stage for faults: a Redis that may be broken, replicas each behind a proxy of its own, producers and witnesses.

Every test on it ends with `judge`: the history checker decides whether anything was lost, doubled or moved.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from tests.proxy import Proxy
from tests.system.client import Client
from tests.system.history import History, complaints
from tests.system.producers import KINDS, Producer, Witness
from tests.system.recording_client import Persistent, settled
from tests.system.redis_server import RedisServer
from tests.system.replica import PATIENCE, Replica
from tests.waiting import eventually

__all__ = ["Stage", "becomes", "client_of", "frames_of", "health", "marks"]

# What takes seconds in service takes a fraction of one here; the deadline of each command with it.
FAST = {
    "position_check_seconds": 0.3,
    "circuit_recovery_seconds": 0.5,
    "broadcast_base_delay_seconds": 0.05,
    "broadcast_max_delay_seconds": 0.5,
}

# The one complaint that belongs to an outage.
CUT_OFF = r" CRITICAL kernel\.resilience\.link: "


class _Start(Protocol):
    def __call__(self, *, ready: object = True, **settings: object) -> Replica: ...


class Stage:
    """Use it as `async with Stage(start) as stage`; `server` is the Redis that proxies lead to at first."""

    def __init__(self, start: _Start, **server: str) -> None:
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
        self.witnesses: list[Witness] = []
        self.tolerate = CUT_OFF

    async def __aenter__(self) -> Self:
        self.server = self.serve(**self._server_options)
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

    def serve(self, **options: str) -> RedisServer:
        """Another Redis, for as long as this stage stands."""
        return self._stack.enter_context(RedisServer(**options))

    async def proxy(self, server: RedisServer | None = None) -> Proxy:
        """Another way to a Redis."""
        return await self._stack.enter_async_context(Proxy((server or self.server).path))

    async def open(self, count: int = 1, *, ready: bool = True, **settings: object) -> list[Replica]:
        """Start replicas at the same time, each behind a proxy of its own; returns all that there are."""
        proxies = self.proxies[len(self.replicas) :]
        while len(proxies) < count:
            proxies.append(await self.proxy())
        self.proxies[len(self.replicas) :] = proxies
        options = FAST | {"ready": ready} | settings
        self.replicas += await asyncio.gather(
            *(asyncio.to_thread(self._start, redis_url=proxy.url, **options) for proxy in proxies)
        )
        return self.replicas

    # -- those who publish and listen -------------------------------------------------------------------------------

    async def watch(self, replica: Replica, patterns: Sequence[str] | None = None) -> Witness:
        """A client that stays where it is."""
        witness = Witness(f"client {len(self.witnesses)}", patterns)
        await witness.connect(replica)
        self.witnesses.append(witness)
        return witness

    async def audience(self) -> list[Witness]:
        """Clients of every replica, with and without filters, that are live."""
        for replica in self.replicas:
            await self.watch(replica)
            await self.watch(replica, ["alert.*", "camera.offline", "summary*"])
        for witness in self.witnesses:
            await client_of(witness).next()
        return self.witnesses

    async def publish(self, replica: Replica, count: int = 1) -> list[int | None]:
        """Publish messages of all kinds one after the other; their numbers, None where the fate is unknown."""
        numbers = []
        async with replica.http() as http:
            for _ in range(count):
                self._numbers += 1
                numbers.append(await self._producer.publish(http, KINDS[self._numbers % len(KINDS)]))
        return numbers

    async def publish_batch(self, replica: Replica, count: int) -> list[int]:
        """Publish messages of all kinds at once."""
        async with replica.http() as http:
            return await self._producer.publish_batch(http, [KINDS[n % len(KINDS)] for n in range(count)])

    @asynccontextmanager
    async def load(self, pause: float = 0.02) -> AsyncIterator[list[Persistent]]:
        """For the length of a block, publish through all replicas; each message until somebody has accepted it."""
        stop = asyncio.Event()
        self._loads += 1
        producers = [
            Persistent(self.history, f"load-{self._loads}-{number}", self.replicas, random.Random(number))
            for number in range(2)
        ]
        async with asyncio.TaskGroup() as group:
            for producer in producers:
                group.create_task(producer.publish(pause, stop))
            try:
                yield producers
            finally:
                stop.set()

    async def more(self, producers: Sequence[Persistent], count: int = 10) -> None:
        """Wait until so many more messages have been accepted."""
        before = sum(producer.count for producer in producers)
        await eventually(lambda: sum(each.count for each in producers) >= before + count, 2 * PATIENCE)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def heal(self) -> None:
        """Wait until every replica is healthy, and hears by exactly one subscription."""
        for replica in self.replicas:
            await becomes(replica, status="healthy", listener_healthy=True)
        await eventually(lambda: self.server.listeners == len(self.replicas), PATIENCE)

    async def settle(self) -> str:
        """Publish one more through each replica, and wait until every witness has it; returns the epoch."""
        for replica in self.replicas:
            assert None not in await self.publish(replica)
        (epoch,) = {epoch for epoch, _ in list(self.history.accepted)[-len(self.replicas) :]}
        await settled(self.history, epoch, self.witnesses)
        return epoch

    async def judge(self) -> None:
        """Let the witnesses go, and hear what they have to say."""
        for witness in self.witnesses:
            await witness.leave(politely=True)
        assert complaints(self.history, [witness.seen for witness in self.witnesses]) == []

    def check_unbroken(self) -> None:
        """Check that no loss was announced to anybody, and no epoch."""
        assert len({epoch for epoch, _ in self.history.accepted}) == 1
        for witness in self.witnesses:
            assert not [frame for frame in frames_of(witness) if frame.get("type") in ("gap", "epoch_changed")]

    def check_new_epoch(self, epoch: str) -> None:
        """Check that exactly one new epoch was announced to everybody, and this one."""
        for witness in self.witnesses:
            told = [frame["epoch"] for frame in frames_of(witness) if frame.get("type") == "epoch_changed"]
            assert told == [epoch], witness.seen.name


def client_of(witness: Witness) -> Client:
    """The open connection of a witness."""
    assert witness.client is not None
    return witness.client


def frames_of(witness: Witness) -> list[Any]:
    """Everything that it got, on all its connections."""
    return [frame for connection in witness.seen.connections for frame in connection.frames]


def marks(frames: Sequence[Any]) -> list[str]:
    """Which notices of the broadcaster itself are among these frames, in order."""
    return [
        f"{frame['data']['status']} {frame['data']['circuit_state']}"
        for frame in frames
        if frame.get("type") == "service_status" and frame["data"]["service"] == "event_broadcaster"
    ]


async def health(replica: Replica) -> dict[str, Any]:
    """What `/health` says."""
    report: dict[str, Any] = (await replica.request("GET", "/health")).json()
    return report


async def becomes(replica: Replica, **fields: object) -> dict[str, Any]:
    """Wait until `/health` says so; returns the report."""
    report: dict[str, Any] = {}

    async def says_so() -> bool:
        nonlocal report
        report = await health(replica)
        return fields.items() <= report.items()

    try:
        await eventually(says_so, PATIENCE)
    except AssertionError:
        raise AssertionError(f"not {fields}: {report}\n{replica.log}") from None
    return report
