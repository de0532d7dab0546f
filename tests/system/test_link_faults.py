"""Faults of the link to Redis under load: each is detected and repaired, no event is lost, one subscription remains."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import redis

from tests.proxy import ProxyMode
from tests.system.client import PATIENCE
from tests.system.fault_environment import FaultEnvironment, wait_for_health
from tests.waiting import eventually

# -- the faults; each ends when the link could work again -------------------------------------------------------------


async def reset(env: FaultEnvironment) -> None:
    """Reset the connections of one replica."""
    env.proxies[0].cut()


async def reset_all(env: FaultEnvironment) -> None:
    """Reset the connections of all replicas at the same time."""
    for proxy in env.proxies:
        proxy.cut()


async def kill_subscriptions(env: FaultEnvironment) -> None:
    """Let Redis close the subscriptions."""
    assert env.server.link.client_kill_filter(_type="pubsub") > 0


async def kill_connections(env: FaultEnvironment) -> None:
    """Let Redis close all other connections."""
    env.server.link.client_kill_filter(_type="normal", skipme=True)


async def half_open(env: FaultEnvironment) -> None:
    """Let the connections of one replica stop passing data without an error; new connections work."""
    proxy = env.proxies[0]
    before = proxy.connections
    proxy.freeze()
    # the replica must replace all three: for publishes, for checks and for the subscription
    await eventually(lambda: proxy.connections >= before + 3, PATIENCE)
    proxy.cut_frozen()


async def deaf(env: FaultEnvironment) -> None:
    """Let a subscription stay connected but receive nothing."""
    proxy = env.proxies[0]
    before = proxy.subscriptions
    proxy.deafen()
    await eventually(lambda: proxy.subscriptions > before, PATIENCE)


async def black_hole(env: FaultEnvironment) -> None:
    """Hold back all data for a while, and deliver it afterwards."""
    await env.proxies[0].set_mode(ProxyMode.SWALLOW)
    await wait_for_health(env.replicas[0], is_degraded=True)
    await env.proxies[0].set_mode(ProxyMode.PASS)


async def dead_black_hole(env: FaultEnvironment) -> None:
    """Hold back all data for a while, and then drop it by closing the connections."""
    await env.proxies[0].set_mode(ProxyMode.SWALLOW)
    await wait_for_health(env.replicas[0], is_degraded=True)
    env.proxies[0].cut()
    await env.proxies[0].set_mode(ProxyMode.PASS)


async def one_direction(env: FaultEnvironment) -> None:
    """Pass what the replica sends, but none of the answers."""
    await env.proxies[0].set_mode(ProxyMode.DEAF)
    await wait_for_health(env.replicas[0], is_degraded=True)
    env.proxies[0].cut()
    await env.proxies[0].set_mode(ProxyMode.PASS)


async def refused(env: FaultEnvironment) -> None:
    """Refuse the connections of one replica."""
    await env.proxies[0].set_mode(ProxyMode.REFUSE)
    await wait_for_health(env.replicas[0], is_degraded=True)
    await env.proxies[0].set_mode(ProxyMode.PASS)


async def refused_to_all(env: FaultEnvironment) -> None:
    """Refuse the connections of all replicas."""
    for proxy in env.proxies:
        await proxy.set_mode(ProxyMode.REFUSE)
    for replica in env.replicas:
        await wait_for_health(replica, is_degraded=True)
    for proxy in env.proxies:
        await proxy.set_mode(ProxyMode.PASS)


async def frozen(env: FaultEnvironment) -> None:
    """Suspend the Redis process."""
    env.server.freeze()
    try:
        for replica in env.replicas:
            await wait_for_health(replica, is_degraded=True)
    finally:
        env.server.thaw()


async def paused(env: FaultEnvironment) -> None:
    """Let Redis pause all clients for a while (`CLIENT PAUSE`)."""
    begin = time.monotonic()
    env.server.link.client_pause(1500)
    await asyncio.to_thread(env.server.link.ping)
    assert time.monotonic() - begin >= 1.4


async def busy(env: FaultEnvironment) -> None:
    """Run an endless script, so that Redis answers everything with an error."""
    link = env.server.link
    link.config_set("busy-reply-threshold", 50)
    script = asyncio.ensure_future(asyncio.to_thread(_run_for_ever, env))
    try:
        for replica in env.replicas:
            await wait_for_health(replica, is_degraded=True)
    finally:
        link.script_kill()
        await script


def _run_for_ever(env: FaultEnvironment) -> None:
    with redis.Redis(unix_socket_path=env.server.path) as one, pytest.raises(redis.ResponseError):
        one.eval("while true do end", 0)


async def forgotten_script(env: FaultEnvironment) -> None:
    """Delete the script from Redis's cache."""
    env.server.link.script_flush()


Fault = Callable[[FaultEnvironment], Awaitable[None]]
FAULTS: list[Fault] = [
    reset,
    reset_all,
    kill_subscriptions,
    kill_connections,
    half_open,
    deaf,
    black_hole,
    dead_black_hole,
    one_direction,
    refused,
    refused_to_all,
    frozen,
    paused,
    busy,
    forgotten_script,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_nothing_is_lost(env: FaultEnvironment, fault: Fault) -> None:
    """Whatever fault hits the link, every client gets every event once and in order."""
    await env.start_replicas(2)
    await env.connect_clients()
    async with env.load() as producers:
        for _ in range(2):
            await env.wait_until_accepted(producers)
            await fault(env)
            await env.wait_until_healthy()
        await env.wait_until_accepted(producers)
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()
    assert [proxy.listeners for proxy in env.proxies] == [1, 1], "one subscription for each replica"


async def test_output_buffer(env: FaultEnvironment) -> None:
    """Redis closes a subscription that reads too slowly, in the middle of an announcement; nothing is lost."""
    await env.start_replicas(2, position_check_seconds=5)
    await env.connect_clients()
    slow, server = env.proxies[0], env.server
    server.link.config_set("client-output-buffer-limit", "pubsub 65536 0 0")
    await env.publish(env.replicas[1], 5)
    slow.deafen()
    async with asyncio.timeout(PATIENCE):
        while server.listeners == 2:
            await env.publish_batch(env.replicas[1], 100)
    assert slow.subscriptions == 1, "Redis closed it, not the replica"
    slow.release()
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()
    assert [proxy.listeners for proxy in env.proxies] == [1, 1]


async def test_flood(env: FaultEnvironment) -> None:
    """A replica whose subscription receives nothing does not publish further ahead than the history reaches."""
    (replica,) = await env.start_replicas(position_check_seconds=5, history_size=4000)
    (proxy,) = env.proxies
    await env.connect_clients()
    proxy.deafen()
    # concurrently, and twice what the history keeps
    assert all(await asyncio.gather(*(env.publish_batch(replica, 1000) for _ in range(8))))
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_deaf_without_a_further_event(env: FaultEnvironment) -> None:
    """A position check finds a subscription that stopped receiving before the very last event."""
    await env.start_replicas(2, supervision_interval_seconds=600)
    await env.connect_clients()
    await env.publish(env.replicas[1], 3)
    env.proxies[0].deafen()
    await env.publish(env.replicas[1])
    epoch, last = env.server.position
    for recorder in env.recorders:
        await recorder.reaches(epoch, last)
    # the dead subscription is replaced too
    await eventually(lambda: env.proxies[0].subscriptions == 2, PATIENCE)
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()
    assert [proxy.listeners for proxy in env.proxies] == [1, 1]


async def test_check_overtaken(env: FaultEnvironment) -> None:
    """A position that was read before newer events arrived is not mistaken for a Redis that went back."""
    await env.start_replicas(2, position_check_seconds=2)
    await env.connect_clients()
    late = env.proxies[0]
    for _ in range(3):
        late.hold(_is_position_check)
        async with asyncio.timeout(PATIENCE):
            await late.held.wait()
        # Redis's answer is held back by now, so the next events arrive before it
        await asyncio.to_thread(env.server.link.ping)
        await env.publish(env.replicas[1], 5)
        epoch, last = env.server.position
        for recorder in env.recorders:
            await recorder.reaches(epoch, last)
        late.release()
    await env.wait_until_healthy()
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


def _is_position_check(piece: bytes) -> bool:
    """Return True for a position check, False for a publish."""
    return b"EVALSHA" in piece and b'"data":' not in piece
