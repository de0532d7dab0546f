"""A soak: everything that can happen to Redis, replicas, links and clients, in an order that a seed decides.

By hand: `SOAK_SECONDS=600 SOAK_SEED=7 pytest -s tests/system/test_soak.py`; the same seed does the same once more, as
far as it is the test that decides.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import httpx

from tests.proxy import Proxy, Way
from tests.system.conftest import Start
from tests.system.history import History, complaints
from tests.system.recording_client import FILTERS, Persistent, Wanderer, settled
from tests.system.redis_server import RedisServer
from tests.system.replica import Replica

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
CLIENTS = 24
# What a replica may complain of while it is cut off from Redis, or Redis forgets.
_EXPECTED = r" (ERROR|CRITICAL) kernel\.(link|listener): "


async def test_soak(start: Start) -> None:
    """Sections 7 to 9, together: whatever happens, nothing is lost without a word, doubled or moved."""
    print(f"SOAK_SEED={SEED} SOAK_SECONDS={SECONDS:g}")
    async with AsyncExitStack() as stack:
        # killed, it comes back with all that it has answered for; what is lost, `flush` loses
        server = stack.enter_context(RedisServer(appendonly="yes", appendfsync="always"))
        proxies = [await stack.enter_async_context(Proxy(server.path)) for _ in range(3)]
        settings = {"drain_seconds": 1, "circuit_recovery_seconds": 1, "websocket_send_buffer_bytes": 65536}
        replicas = [await asyncio.to_thread(start, redis_url=proxy.url, **settings) for proxy in proxies]
        rng, history = random.Random(SEED), History()
        stop, gone = asyncio.Event(), asyncio.Event()
        producers = [
            Persistent(history, f"producer-{number}", replicas, random.Random(SEED + number)) for number in range(3)
        ]
        crowd = [
            Wanderer(f"client-{number}", FILTERS[number % len(FILTERS)], random.Random(SEED + number))
            for number in range(CLIENTS)
        ]
        demon = Demon(rng, replicas, proxies, server, crowd, Persistent(history, "large", replicas, rng))
        async with asyncio.TaskGroup() as group:
            for wanderer in crowd:
                group.create_task(wanderer.stay(replicas, gone))
            publishing = [group.create_task(producer.publish(0.03, stop)) for producer in producers]
            await demon.rage(SECONDS)
            stop.set()
            await asyncio.wait(publishing)
            async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
                await producers[0].publish_one(http)
            epoch = [place.epoch for place in history.accepted][-1]
            await settled(history, epoch, crowd, 60)
            gone.set()
        print(f"{len(history.accepted)} events, {sum(len(w.returns) for w in crowd)} connections, {demon.deeds}")
        assert complaints(history, [wanderer.seen for wanderer in crowd]) == []
        for replica in replicas:
            await asyncio.to_thread(replica.stop, tolerate=_EXPECTED)


class Demon:
    """Does one thing after the other, as its dice say; what it breaks it mends."""

    def __init__(
        self,
        rng: random.Random,
        replicas: list[Replica],
        proxies: list[Proxy],
        server: RedisServer,
        crowd: list[Wanderer],
        producer: Persistent,
    ) -> None:
        self._producer = producer
        self._rng = rng
        self._replicas = replicas
        self._proxies = proxies
        self._server = server
        self._crowd = crowd
        self.deeds: dict[str, int] = {}

    async def rage(self, seconds: float) -> None:
        """Do each thing once, and go on for so many seconds in all."""
        deeds: list[tuple[Callable[[], Awaitable[None]], float]] = [
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
        ]
        end = time.monotonic() + seconds
        choice, weights = [deed for deed, _ in deeds], [weight for _, weight in deeds]
        once = self._rng.sample(choice, len(choice))
        while once or time.monotonic() < end:
            deed = once.pop() if once else self._rng.choices(choice, weights)[0]
            self.deeds[deed.__name__] = self.deeds.get(deed.__name__, 0) + 1
            await deed()
            await asyncio.sleep(self._rng.uniform(0.0, 0.8))

    async def terminate(self) -> None:
        """SIGTERM, and another replica in its place."""
        replica = self._rng.choice(self._replicas)
        await asyncio.to_thread(replica.stop, tolerate=_EXPECTED)
        await asyncio.to_thread(replica.start)

    async def kill(self) -> None:
        """SIGKILL, or a replica that is frozen before."""
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
        """Every connection of a replica to Redis is reset."""
        self._rng.choice(self._proxies).cut()

    async def cut_before_the_answer(self) -> None:
        """A publish arrives, and its answer does not."""
        self._rng.choice(self._proxies).cut_after(lambda piece: b"EVALSHA" in piece)

    async def break_for_a_while(self) -> None:
        """A link is dead, deaf or refused."""
        proxy = self._rng.choice(self._proxies)
        await proxy.go(self._rng.choice([Way.REFUSE, Way.SWALLOW, Way.DEAF]))
        await asyncio.sleep(self._rng.uniform(0.2, 3.0))
        # what a black hole has swallowed comes out of it again, as with a network that heals, unless it is cut
        if self._rng.random() < 0.5:
            proxy.cut()
        await proxy.go(Way.PASS)

    async def kill_connections(self) -> None:
        """Redis itself closes connections."""
        self._server.link.client_kill_filter(_type=self._rng.choice(["pubsub", "normal"]), skipme=True)

    async def kill_redis(self) -> None:
        """Redis dies, and is started again from what it has written."""
        self._server.kill()
        await asyncio.sleep(self._rng.uniform(0.0, 2.0))
        await asyncio.to_thread(self._server.start)

    async def freeze_redis(self) -> None:
        """Redis stands still for a while."""
        self._server.freeze()
        await asyncio.sleep(self._rng.uniform(0.2, 3.0))
        self._server.thaw()

    async def refuse_writes(self) -> None:
        """Redis has no room for a while."""
        self._server.link.config_set("maxmemory", 1)
        await asyncio.sleep(self._rng.uniform(0.2, 3.0))
        self._server.link.config_set("maxmemory", 0)

    async def stall_clients(self) -> None:
        """Some clients read nothing for a while, and sometimes there is more for them than sockets hold."""
        stalled = [w.client for w in self._rng.sample(self._crowd, CLIENTS // 4) if w.client is not None]
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
        """Redis forgets everything."""
        self._server.link.flushall()
