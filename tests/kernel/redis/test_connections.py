"""Connections that are closed with unsent commands end at once, and the commands never arrive; how they are packed."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import redis.asyncio
import uvloop

from kernel.log.transport import Outgoing
from kernel.redis.connections import adapt_connections
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


def test_packed_commands() -> None:
    """A command is packed as redis-py packs it, whatever its arguments are."""
    pool = redis.asyncio.ConnectionPool.from_url("unix:///nowhere", protocol=2, driver_info=None)
    plain = pool.make_connection()
    adapt_connections(pool)
    adapted = pool.make_connection()
    for command in [
        ("PING",),
        ("CLIENT SETINFO", "LIB-NAME", "x y"),
        (b"SCRIPT LOAD", b"\x00\r\n\xff"),
        ("EVALSHA", "sha", 0, "", -1, 10**15, 0.5, "ü", b"." * 100_000),
    ]:
        assert b"".join(adapted.pack_command(*command)) == b"".join(plain.pack_command(*command))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_connection_that_was_reset(run: Callable[[Coroutine[None, None, None]], None], tmp_path: Path) -> None:
    """A connection that Redis has closed can be closed here too, even if the event loop has no socket any more."""
    path = str(tmp_path / "redis")

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.abort()

    async def close() -> None:
        async with await asyncio.start_unix_server(reset, path):
            pool = redis.asyncio.ConnectionPool.from_url(f"unix://{path}", protocol=2, driver_info=None)
            adapt_connections(pool)
            connection = pool.make_connection()
            await connection.connect()
            await connection.send_command("PING")
            await asyncio.sleep(0.1)
            with pytest.raises(redis.exceptions.ConnectionError):
                await connection.send_command("PING")
            await connection.disconnect()

    run(close())
