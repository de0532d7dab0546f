"""The connection of a subscription: a proxy does not take it for idle, and refused pings do no harm."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis

from kernel.errors import TransportUnavailable
from kernel.redis import subscriber
from kernel.redis.transport import RedisTransport
from tests.proxy import Proxy
from tests.system.proxies import haproxy_tcp
from tests.transport_helpers import heard, listening, publish

pytestmark = pytest.mark.real_time


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisTransport]:
    """A replica's transport."""
    transport = RedisTransport(url)
    try:
        yield transport
    finally:
        await transport.close()


async def test_a_proxy_that_cuts_idle_connections(redis_url: str) -> None:
    """A subscription through HAProxy outlives its time limit of 4 s, and receives what is published then."""
    with haproxy_tcp(f"unix@{redis_url.removeprefix('unix://')}", "4s") as port:
        async with connected(f"redis://127.0.0.1:{port}") as replica, listening(replica, idle=1.0) as ear:
            end = asyncio.get_running_loop().time() + 9
            while asyncio.get_running_loop().time() < end:
                assert (await anext(ear)).announcements == []
            published = await publish(replica, "a")
            assert await heard(ear) == (published.position.epoch, [(1, "a")])


async def test_pings(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings are sent at their interval, and only then; their answers are no messages."""
    monkeypatch.setattr(subscriber, "PING_SECONDS", 0.1)
    async with Proxy(redis_url) as proxy, connected(proxy.url) as replica, listening(replica, idle=0.01) as ear:
        carried = proxy.carried
        end = asyncio.get_running_loop().time() + 0.55
        while asyncio.get_running_loop().time() < end:
            batch = await anext(ear)
            assert (batch.announcements, batch.foreign) == ([], 0)
        assert 2 <= proxy.carried - carried <= 5


@pytest.mark.parametrize("denied", ["-ping", "+ping"])
async def test_denied_pings(each_redis_url: str, monkeypatch: pytest.MonkeyPatch, denied: str) -> None:
    """A subscription stays although the ACL does not allow PING."""
    monkeypatch.setattr(subscriber, "PING_SECONDS", 0.0)
    async with redis.Redis.from_url(each_redis_url) as admin:
        rules = ("reset", "on", ">sesame", "~*", "&*", "+@all", denied)
        await admin.execute_command("ACL", "SETUSER", "listener", *rules)
        url = each_redis_url.replace("unix://", "unix://listener:sesame@")
        async with connected(url) as replica, listening(replica, idle=0.01) as ear:
            for number in range(1, 4):
                published = await publish(replica, f"{number}")
                assert await heard(ear) == (published.position.epoch, [(number, f"{number}")])
        await admin.execute_command("ACL", "DELUSER", "listener")


async def test_a_refused_subscription(each_redis_url: str) -> None:
    """A refusal that no ping has caused ends the subscription, and is named."""
    async with redis.Redis.from_url(each_redis_url) as admin:
        rules = ("reset", "on", ">sesame", "~*", "resetchannels", "+@all")
        await admin.execute_command("ACL", "SETUSER", "listener", *rules)
        async with connected(each_redis_url.replace("unix://", "unix://listener:sesame@")) as replica:
            with pytest.raises(TransportUnavailable, match=r"^subscription lost: NoPermissionError: .* the channel"):
                await anext(replica.listen(1))
        await admin.execute_command("ACL", "DELUSER", "listener")
