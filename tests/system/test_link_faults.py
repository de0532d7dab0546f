"""Every way in which the link to Redis can break while it is used: found, healed, nothing lost, one listener always."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import redis

from tests.proxy import Way
from tests.system.client import PATIENCE
from tests.system.fault_environment import Stage, becomes
from tests.waiting import eventually

# -- the faults; each ends when the link could work again -------------------------------------------------------------


async def reset(stage: Stage) -> None:
    """The connections of one replica are reset."""
    stage.proxies[0].cut()


async def reset_all(stage: Stage) -> None:
    """The connections of all replicas are reset, at the same time."""
    for proxy in stage.proxies:
        proxy.cut()


async def kill_subscriptions(stage: Stage) -> None:
    """Redis ends the subscriptions."""
    assert stage.server.link.client_kill_filter(_type="pubsub") > 0


async def kill_connections(stage: Stage) -> None:
    """Redis ends all other connections."""
    stage.server.link.client_kill_filter(_type="normal", skipme=True)


async def half_open(stage: Stage) -> None:
    """The connections of one replica go dead without a word; new ones would work."""
    proxy = stage.proxies[0]
    before = proxy.connections
    proxy.freeze()
    # publishes, checks and the subscription: all three have to be found out
    await eventually(lambda: proxy.connections >= before + 3, PATIENCE)
    proxy.cut_frozen()


async def deaf(stage: Stage) -> None:
    """A subscription is alive and hears nothing."""
    proxy = stage.proxies[0]
    before = proxy.subscriptions
    proxy.deafen()
    await eventually(lambda: proxy.subscriptions > before, PATIENCE)


async def black_hole(stage: Stage) -> None:
    """A network swallows everything for a while, and lets it out then."""
    await stage.proxies[0].go(Way.SWALLOW)
    await becomes(stage.replicas[0], is_degraded=True)
    await stage.proxies[0].go(Way.PASS)


async def dead_black_hole(stage: Stage) -> None:
    """A network swallows everything for a while, for good."""
    await stage.proxies[0].go(Way.SWALLOW)
    await becomes(stage.replicas[0], is_degraded=True)
    stage.proxies[0].cut()
    await stage.proxies[0].go(Way.PASS)


async def one_direction(stage: Stage) -> None:
    """What a replica says arrives, and nothing comes back."""
    await stage.proxies[0].go(Way.DEAF)
    await becomes(stage.replicas[0], is_degraded=True)
    stage.proxies[0].cut()
    await stage.proxies[0].go(Way.PASS)


async def refused(stage: Stage) -> None:
    """Nothing listens where Redis was."""
    await stage.proxies[0].go(Way.REFUSE)
    await becomes(stage.replicas[0], is_degraded=True)
    await stage.proxies[0].go(Way.PASS)


async def refused_to_all(stage: Stage) -> None:
    """Nothing listens where Redis was, for all replicas."""
    for proxy in stage.proxies:
        await proxy.go(Way.REFUSE)
    for replica in stage.replicas:
        await becomes(replica, is_degraded=True)
    for proxy in stage.proxies:
        await proxy.go(Way.PASS)


async def frozen(stage: Stage) -> None:
    """Redis itself stands still."""
    stage.server.freeze()
    try:
        for replica in stage.replicas:
            await becomes(replica, is_degraded=True)
    finally:
        stage.server.thaw()


async def paused(stage: Stage) -> None:
    """Redis answers nobody for a while (`CLIENT PAUSE`)."""
    begin = time.monotonic()
    stage.server.link.client_pause(1500)
    await asyncio.to_thread(stage.server.link.ping)
    assert time.monotonic() - begin >= 1.4


async def busy(stage: Stage) -> None:
    """Somebody's script keeps Redis busy: it answers with an error."""
    link = stage.server.link
    link.config_set("busy-reply-threshold", 50)
    script = asyncio.ensure_future(asyncio.to_thread(_run_for_ever, stage))
    try:
        for replica in stage.replicas:
            await becomes(replica, is_degraded=True)
    finally:
        link.script_kill()
        await script


def _run_for_ever(stage: Stage) -> None:
    with redis.Redis(unix_socket_path=stage.server.path) as one, pytest.raises(redis.ResponseError):
        one.eval("while true do end", 0)


async def forgotten_script(stage: Stage) -> None:
    """Redis forgets the script."""
    stage.server.link.script_flush()


Fault = Callable[[Stage], Awaitable[None]]
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
async def test_nothing_is_lost(stage: Stage, fault: Fault) -> None:
    """Sections 7 and 8, whatever happens to the link: every client gets everything, once and in order."""
    await stage.open(2)
    await stage.audience()
    async with stage.load() as producers:
        for _ in range(2):
            await stage.more(producers)
            await fault(stage)
            await stage.heal()
        await stage.more(producers)
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()
    assert [proxy.listeners for proxy in stage.proxies] == [1, 1], "one listener at a time"


async def test_output_buffer(stage: Stage) -> None:
    """Section 7, nothing is lost: Redis ends a subscription that reads too slowly, in the midst of a document."""
    await stage.open(2, position_check_seconds=5)
    await stage.audience()
    slow, server = stage.proxies[0], stage.server
    server.link.config_set("client-output-buffer-limit", "pubsub 65536 0 0")
    await stage.publish(stage.replicas[1], 5)
    slow.deafen()
    async with asyncio.timeout(PATIENCE):
        while server.listeners == 2:
            await stage.publish_batch(stage.replicas[1], 100)
    assert slow.subscriptions == 1, "Redis was first to end it"
    slow.release()
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()
    assert [proxy.listeners for proxy in stage.proxies] == [1, 1]


async def test_flood(stage: Stage) -> None:
    """Section 7, nothing is lost: a replica that hears nothing publishes no farther ahead than the history reaches."""
    (replica,) = await stage.open(position_check_seconds=5, history_size=4000)
    (proxy,) = stage.proxies
    await stage.audience()
    proxy.deafen()
    # at once, and twice what is kept
    assert all(await asyncio.gather(*(stage.publish_batch(replica, 1000) for _ in range(8))))
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_deaf_without_a_further_event(stage: Stage) -> None:
    """Section 7, nothing is lost: a subscription that went deaf before the last event of all is found by a check."""
    await stage.open(2, supervision_interval_seconds=600)
    await stage.audience()
    await stage.publish(stage.replicas[1], 3)
    stage.proxies[0].deafen()
    await stage.publish(stage.replicas[1])
    epoch, last = stage.server.position
    for witness in stage.witnesses:
        await witness.reaches(epoch, last)
    # and it is not only found, but left
    await eventually(lambda: stage.proxies[0].subscriptions == 2, PATIENCE)
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()
    assert [proxy.listeners for proxy in stage.proxies] == [1, 1]


async def test_check_overtaken(stage: Stage) -> None:
    """Section 7, epochs: a position that was read before newer events arrived does not look like a step back."""
    await stage.open(2, position_check_seconds=2)
    await stage.audience()
    late = stage.proxies[0]
    for _ in range(3):
        late.hold(_checks)
        async with asyncio.timeout(PATIENCE):
            await late.held.wait()
        # Redis has answered, or is about to: what follows is behind that answer, and arrives before it
        await asyncio.to_thread(stage.server.link.ping)
        await stage.publish(stage.replicas[1], 5)
        epoch, last = stage.server.position
        for witness in stage.witnesses:
            await witness.reaches(epoch, last)
        late.release()
    await stage.heal()
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


def _checks(piece: bytes) -> bool:
    """Whether this is a position check, and no publish."""
    return b"EVALSHA" in piece and b'"data":' not in piece
