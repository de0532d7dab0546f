"""A soak: everything that can happen to replicas, links and clients, in an order that a seed decides.

By hand: `SOAK_SECONDS=600 SOAK_SEED=7 pytest tests/system/test_soak.py`; the same seed runs once more what failed.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import httpx
import pytest
import redis.asyncio

from tests.network import Proxy, Way
from tests.system.conftest import Start
from tests.system.crowd import FILTERS, Persistent, Wanderer, settled
from tests.system.history import History, complaints
from tests.system.replica import Replica

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
CLIENTS = 24
# What a replica may complain of while it is cut off from Redis, or Redis forgets.
_EXPECTED = r" (ERROR|CRITICAL) kernel\.(link|listener): "


@pytest.mark.skipif("SOAK_SECONDS" not in os.environ, reason="a soak is run by hand: set SOAK_SECONDS")
async def test_soak(start: Start, private_redis: str) -> None:
    """Sections 7 to 9, together: whatever happens, nothing is lost without a word, doubled or moved."""
    print(f"SOAK_SEED={SEED} SOAK_SECONDS={SECONDS:g}")
    async with AsyncExitStack() as stack:
        upstream = private_redis.removeprefix("unix://").replace("%2F", "/")
        proxies = [await stack.enter_async_context(Proxy(upstream)) for _ in range(3)]
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
        demon = Demon(rng, replicas, proxies, private_redis, crowd, Persistent(history, "large", replicas, rng))
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
        redis_url: str,
        crowd: list[Wanderer],
        producer: Persistent,
    ) -> None:
        self._producer = producer
        self._rng = rng
        self._replicas = replicas
        self._proxies = proxies
        self._redis_url = redis_url
        self._crowd = crowd
        self.deeds: dict[str, int] = {}

    async def rage(self, seconds: float) -> None:
        """Go on for so many seconds."""
        deeds: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self.terminate, 2),
            (self.kill, 2),
            (self.cut, 2),
            (self.cut_before_the_answer, 2),
            (self.break_for_a_while, 4),
            (self.kill_connections, 2),
            (self.stall_clients, 3),
            (self.flush, 0.7),
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            (deed,) = self._rng.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])
            self.deeds[deed.__name__] = self.deeds.get(deed.__name__, 0) + 1
            await deed()
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))

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
        async with redis.asyncio.Redis.from_url(self._redis_url) as link:
            await link.client_kill_filter(_type=self._rng.choice(["pubsub", "normal"]), skipme=True)

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
        async with redis.asyncio.Redis.from_url(self._redis_url) as link:
            await link.flushall()
