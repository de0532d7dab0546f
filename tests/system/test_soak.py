"""Soak test: faults of Redis, replicas, links and clients, in an order that a seed determines.

To run it longer: `SOAK_SECONDS=600 SOAK_SEED=7 pytest -s tests/system/test_soak.py`. The same seed injects the same
faults in the same order; their timing depends on the machine.
"""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import httpx

from kernel import RedisTransport
from kernel.log.transport import Outgoing
from tests.history import History, violations
from tests.proxy import Proxy, ProxyMode
from tests.system.fault_environment import health
from tests.system.producers import Producer, RetryingProducer, marked
from tests.system.recording_client import PATTERNS, ReconnectingClient, wait_until_delivered
from tests.system.redis_server import RedisServer
from tests.system.replica import PATIENCE, Replica, ReplicaFactory
from tests.transport_helpers import FRESH
from tests.transport_helpers import event as transport_event
from tests.waiting import eventually

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
CLIENTS = 24
# Errors that a replica may log while it is cut off from Redis, or when Redis loses data.
_EXPECTED = r" (ERROR|CRITICAL) kernel\.(resilience\.link|listening\.\w+): "


async def test_soak(start: ReplicaFactory) -> None:
    """Whatever happens, no event is lost without notice, duplicated or reordered."""
    print(f"SOAK_SEED={SEED} SOAK_SECONDS={SECONDS:g}")
    async with AsyncExitStack() as stack:
        # a killed server comes back with everything that it confirmed; only `flush` loses data
        server = stack.enter_context(RedisServer(appendonly="yes", appendfsync="always"))
        proxies = [await stack.enter_async_context(Proxy(server.path)) for _ in range(3)]
        settings = {
            "drain_seconds": 1,
            "circuit_recovery_seconds": 1,
            "event_max_bytes": 1048576,
            "websocket_send_buffer_bytes": 65536,
        }
        replicas = [await asyncio.to_thread(start, redis_url=proxy.url, **settings) for proxy in proxies]
        rng, history = random.Random(SEED), History()
        stop, gone = asyncio.Event(), asyncio.Event()
        producers = [
            RetryingProducer(history, f"producer-{number}", replicas, random.Random(SEED + number))
            for number in range(3)
        ]
        clients = [
            ReconnectingClient(f"client-{number}", PATTERNS[number % len(PATTERNS)], random.Random(SEED + number))
            for number in range(CLIENTS)
        ]
        bulk = RetryingProducer(history, "large", replicas, rng)
        injector = FaultInjector(rng, history, replicas, proxies, server, clients, bulk)
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.stay(replicas, gone))
            publishing = [group.create_task(producer.publish(0.03, stop)) for producer in producers]
            await injector.run(SECONDS)
            stop.set()
            await asyncio.wait(publishing)
            async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
                await producers[0].publish_one(http)
            epoch = [place.epoch for place in history.accepted][-1]
            await wait_until_delivered(history, epoch, clients, 60)
            gone.set()
        connections = sum(len(client.reconnections) for client in clients)
        print(f"{len(history.accepted)} events, {connections} connections, {injector.counts}")
        assert violations(history, [client.record for client in clients]) == []
        for replica in replicas:
            await asyncio.to_thread(replica.stop, tolerate=_EXPECTED)


class FaultInjector:
    """Injects one random fault after another, and repairs each."""

    def __init__(
        self,
        rng: random.Random,
        history: History,
        replicas: list[Replica],
        proxies: list[Proxy],
        server: RedisServer,
        clients: list[ReconnectingClient],
        producer: RetryingProducer,
    ) -> None:
        self._producer = producer
        self._rng = rng
        self._history = history
        self._once = Producer(history, "once")
        self._replicas = replicas
        self._proxies = proxies
        self._server = server
        self._clients = clients
        self.counts: dict[str, int] = {}

    async def run(self, seconds: float) -> None:
        """Inject each fault once, then random ones until `seconds` have passed."""
        counts: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self.terminate, 2),
            (self.kill, 2),
            (self.cut, 2),
            (self.cut_before_the_answer, 2),
            (self.break_for_a_while, 4),
            (self.kill_connections, 2),
            (self.kill_redis, 1),
            (self.freeze_redis, 1),
            (self.refuse_writes, 1),
            (self.stall_clients, 3),
            (self.flush, 0.7),
            (self.fork_in_place, 1),
            (self.restore_an_old_epoch, 0.7),
            (self.publish_in_a_partition, 1),
        ]
        end = time.monotonic() + seconds
        choice, weights = [fault for fault, _ in counts], [weight for _, weight in counts]
        once = self._rng.sample(choice, len(choice))
        while once or time.monotonic() < end:
            fault = once.pop() if once else self._rng.choices(choice, weights)[0]
            self.counts[fault.__name__] = self.counts.get(fault.__name__, 0) + 1
            await fault()
            await asyncio.sleep(self._rng.uniform(0.0, 0.8))

    async def terminate(self) -> None:
        """End a replica with SIGTERM, and start it again."""
        replica = self._rng.choice(self._replicas)
        await asyncio.to_thread(replica.stop, tolerate=_EXPECTED)
        await asyncio.to_thread(replica.start)

    async def kill(self) -> None:
        """Kill a replica and start it again; sometimes it is frozen first, or only frozen."""
        replica = self._rng.choice(self._replicas)
        if self._rng.random() < 0.3:
            replica.signal(signal.SIGSTOP)
            await asyncio.sleep(self._rng.uniform(0.1, 1.5))
            if self._rng.random() < 0.5:
                replica.signal(signal.SIGCONT)
                return
        replica.kill()
        await asyncio.to_thread(replica.start)

    async def cut(self) -> None:
        """Close every connection of a replica to Redis."""
        self._rng.choice(self._proxies).cut()

    async def cut_before_the_answer(self) -> None:
        """Cut off the answer to a publish."""
        self._rng.choice(self._proxies).cut_after(lambda piece: b"EVALSHA" in piece)

    async def break_for_a_while(self) -> None:
        """Make a link to Redis refuse connections, pass nothing, or pass no answers, for a while."""
        proxy = self._rng.choice(self._proxies)
        await proxy.set_mode(self._rng.choice([ProxyMode.REFUSE, ProxyMode.SWALLOW, ProxyMode.DEAF]))
        await asyncio.sleep(self._rng.uniform(0.2, 3.0))
        # data held by a black hole arrives afterwards, as when a network heals, unless the connections are cut
        if self._rng.random() < 0.5:
            proxy.cut()
        await proxy.set_mode(ProxyMode.PASS)

    async def kill_connections(self) -> None:
        """Let Redis close connections."""
        self._server.link.client_kill_filter(_type=self._rng.choice(["pubsub", "normal"]), skipme=True)

    async def kill_redis(self) -> None:
        """Kill Redis, and start it again with the data on disk."""
        self._server.kill()
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))
        await asyncio.to_thread(self._server.start)

    async def freeze_redis(self) -> None:
        """Suspend Redis for a while."""
        self._server.freeze()
        await asyncio.sleep(self._rng.uniform(0.2, 3.0))
        self._server.thaw()

    async def refuse_writes(self) -> None:
        """Let Redis refuse writes for a while, as if its memory were full."""
        self._server.link.config_set("maxmemory", 1)
        await asyncio.sleep(self._rng.uniform(0.2, 3.0))
        self._server.link.config_set("maxmemory", 0)

    async def stall_clients(self) -> None:
        """Stop some clients reading for a while; sometimes publish more than their sockets can buffer."""
        stalled = [w.connection for w in self._rng.sample(self._clients, CLIENTS // 4) if w.connection is not None]
        for client in stalled:
            client.socket.transport.pause_reading()
        if self._rng.random() < 0.4:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
                for _ in range(10):
                    await self._producer.publish_one(http, size=800_000)
        await asyncio.sleep(self._rng.uniform(0.2, 2.0))
        for client in stalled:
            client.socket.transport.resume_reading()

    async def flush(self) -> None:
        """Delete all data in Redis."""
        self._server.link.flushall()

    async def fork_in_place(self) -> None:
        """Let Redis go back some events while subscriptions live, and another publisher add others before any check."""
        dump, epoch, sequence = await self._dump()
        await self._publish_and_deliver()
        self._server.restore(dump)
        self._history.fork(epoch, sequence)
        if self._rng.random() < 0.5:
            self._server.link.client_kill_filter(_type="pubsub", skipme=True)  # the announcement of the others is lost
        await self._publish_past_the_replicas(self._rng.randint(1, 12))
        await self._wait_for_other_epoch(epoch)

    async def restore_an_old_epoch(self) -> None:
        """Let Redis lose its data, and after a new epoch has begun go back to a dump of the one before."""
        dump, epoch, sequence = await self._dump()
        await self._publish_and_deliver()
        self._server.link.flushall()
        await self._wait_for_other_epoch(epoch)
        await self._publish_and_deliver()
        second, _ = self._server.position
        self._server.restore(dump)
        self._history.fork(epoch, sequence)
        await self._wait_for_other_epoch(epoch, second)

    async def publish_in_a_partition(self) -> None:
        """Let large publishes without a key queue up in a replica that gets no answers, maybe after one was lost."""
        at = self._rng.randrange(len(self._replicas))
        proxy = self._proxies[at]
        if self._rng.random() < 0.5:
            proxy.cut_after(lambda piece: b"EVALSHA" in piece)
        async with self._replicas[at].http() as http, asyncio.TaskGroup() as group:
            small = group.create_task(self._once.publish(http, "event"))
            await asyncio.sleep(0.05)
            await proxy.set_mode(self._rng.choice([ProxyMode.SWALLOW, ProxyMode.DEAF]))
            text = "." * 600_000
            for _ in range(self._rng.randint(4, 18)):
                group.create_task(self._once.publish(http, "event", reasoning=text))
            await asyncio.sleep(self._rng.uniform(0.5, 8.0))
            if self._rng.random() < 0.5:
                proxy.cut()
            await proxy.set_mode(ProxyMode.PASS)
            await small

    async def _dump(self) -> tuple[tuple[bytes, bytes], str, int]:
        """Return a dump that has an event at least, and its position."""
        await self._publish_and_deliver()
        position = None
        while position != self._server.position:  # producers are publishing
            position = self._server.position
            dump = self._server.dump()
        return dump, *position

    async def _publish_and_deliver(self) -> None:
        """Publish at least one event, and wait until every replica has delivered what Redis has."""
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            await self._producer.publish_one(http)
        await self._wait_for_other_epoch()

    async def _publish_past_the_replicas(self, count: int) -> None:
        """Publish as a replica does that has just started, and has delivered nothing."""
        marks = [f"other-{self._rng.random()}" for _ in range(count)]
        events = [marked("event", mark) for mark in marks]
        for event in events:
            self._history.unknown("event", event)
        tails = [transport_event(mark, json.dumps(event).encode()) for mark, event in zip(marks, events, strict=True)]
        other = RedisTransport(self._server.url)
        try:
            await other.publish(Outgoing(marks[0], None, tails), FRESH)
        finally:
            await other.close()

    async def _wait_for_other_epoch(self, *left: str) -> None:
        """Wait until every replica has delivered what Redis has, in an epoch that is none of these."""

        async def in_step() -> bool:
            epoch, sequence = self._server.position
            reports = [await health(replica) for replica in self._replicas]
            return epoch not in left and all(
                report["epoch"] == epoch and report["sequence"] >= sequence for report in reports
            )

        await eventually(in_step, 2 * PATIENCE)
