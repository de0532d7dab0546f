"""Connections that are closed with unsent commands end at once, and the commands never arrive."""

import asyncio
import time

import pytest

from kernel.log.transport import Outgoing
from kernel.redis.transport import RedisTransport
from tests.proxy import Proxy, ProxyMode
from tests.transport_helpers import FRESH, event, fails, kept, publish

pytestmark = pytest.mark.real_time


async def test_unsent_commands_are_discarded(redis_url: str) -> None:
    """A large publish into a black hole ends at its deadline, and does not arrive when the network is back."""
    async with Proxy(redis_url) as proxy:
        replica = RedisTransport(proxy.url, deadline=0.5)
        await publish(replica, "a")
        await proxy.set_mode(ProxyMode.SWALLOW)
        begin = time.monotonic()
        await fails(replica.publish(Outgoing("large", None, [event("b", b'"%s"' % (b"." * 20_000_000))]), FRESH))
        assert time.monotonic() - begin < 0.9
        await proxy.set_mode(ProxyMode.PASS)
        await asyncio.sleep(0.2)
        assert await kept(replica) == [(1, "a")]
        await replica.close()
