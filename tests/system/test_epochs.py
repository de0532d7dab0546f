"""Numbers never lie: a Redis that comes back behind, empty or with another past means one new epoch, told in place."""

import pytest

from tests.proxy import Proxy, ProxyMode
from tests.system.client import PATIENCE, connected
from tests.system.fault_environment import FaultEnvironment, health, wait_for_health
from tests.system.redis_server import RedisServer
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually


async def delivered(env: FaultEnvironment, replicas: list[Replica] | None = None) -> tuple[str, int]:
    """Wait until replicas have delivered all that Redis has; returns the position."""
    epoch, sequence = env.server.position
    for replica in env.replicas if replicas is None else replicas:
        await wait_for_health(replica, epoch=epoch, sequence=sequence)
    return epoch, sequence


async def renewed(env: FaultEnvironment, before: str) -> str:
    """Wait until all replicas are well and in one new epoch; returns it."""
    await env.wait_until_healthy()
    for replica in env.replicas:
        await eventually(lambda: replica.health()["epoch"] != before, PATIENCE)  # noqa: B023  it is over by then
    (epoch,) = {(await health(replica))["epoch"] for replica in env.replicas}
    return epoch


# -- one Redis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("publishing", [False, True], ids=["idle", "under load"])
async def test_restarted_empty(env: FaultEnvironment, publishing: bool) -> None:
    """Section 7, epochs: a Redis that comes back empty means one new epoch for all replicas."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    before, _ = await delivered(env)
    if publishing:
        async with env.load() as producers:
            await env.wait_until_accepted(producers)
            env.server.kill()
            await wait_for_health(env.replicas[0], is_degraded=True)
            env.server.start()
            await env.wait_until_healthy()
            await env.wait_until_accepted(producers)
    else:
        env.server.kill()
        env.server.start()
    epoch = await renewed(env, before)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


@pytest.mark.parametrize("publishing", [False, True], ids=["idle", "under load"])
async def test_restored_dump(env: FaultEnvironment, publishing: bool) -> None:
    """Section 7, epochs: a Redis restored from an older dump is behind what was delivered: one new epoch."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    env.server.link.save()
    await env.publish(env.replicas[1], 10)
    before, _ = await delivered(env)
    if publishing:
        async with env.load() as producers:
            await env.wait_until_accepted(producers)
            env.server.kill()
            env.server.start()
            await env.wait_until_healthy()
            await env.wait_until_accepted(producers)
    else:
        env.server.kill()
        env.server.start()
    epoch = await renewed(env, before)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


async def test_restored_dump_of_now(env: FaultEnvironment) -> None:
    """Section 7, epochs: a Redis restored from a dump that has everything goes on with its numbering."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    before, _ = await delivered(env)
    env.server.link.save()
    env.server.kill()
    for replica in env.replicas:
        await wait_for_health(replica, is_degraded=True)
    env.server.start()
    await env.wait_until_healthy()
    assert await env.wait_until_delivered() == before
    await env.check_history()
    env.check_unbroken()


async def test_restarted_with_log(start: ReplicaFactory) -> None:
    """Section 7, nothing is lost: a Redis that writes every command to disk may be killed under load."""
    async with FaultEnvironment(start, appendonly="yes", appendfsync="always") as env:
        await env.start_replicas(2)
        await env.connect_clients()
        async with env.load() as producers:
            for _ in range(3):
                await env.wait_until_accepted(producers)
                env.server.kill()
                env.server.start()
                await env.wait_until_healthy()
            await env.wait_until_accepted(producers)
        await env.wait_until_delivered()
        await env.check_history()
        env.check_unbroken()


async def test_flushed_again_and_again(env: FaultEnvironment) -> None:
    """Section 7, epochs: each flush under load is one new epoch, and between two of them all is delivered."""
    await env.start_replicas(2)
    recorders = await env.connect_clients()
    await env.publish(env.replicas[0])
    epochs = [(await delivered(env))[0]]
    async with env.load() as producers:
        for _ in range(4):
            await env.wait_until_accepted(producers)
            env.server.link.flushall()
            epochs.append(await renewed(env, epochs[-1]))
            await env.wait_until_accepted(producers)
    await env.wait_until_delivered()
    await env.check_history()
    assert len(set(epochs)) == 5
    for recorder in recorders:
        assert [f["epoch"] for f in recorder.frames if f.get("type") == "epoch_changed"] == epochs[1:]
    for replica in env.replicas:
        assert replica.metric("epoch_changes_total") == 4


async def test_lost_numbering(env: FaultEnvironment) -> None:
    """Section 7, epochs: without the position what is left of the history is worthless, and goes with it."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    before, _ = await delivered(env)
    env.server.link.delete("{security_events}:position")
    epoch = await renewed(env, before)
    assert env.server.link.xlen("{security_events}:history") == 0
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


async def test_lost_history(env: FaultEnvironment) -> None:
    """Section 7, gap: with the history gone, who had missed something is told what exactly; others miss nothing."""
    cut_off, well = await env.start_replicas(2)
    recorders = await env.connect_clients()
    await env.publish(well, 5)
    before, _ = await delivered(env)
    await env.proxies[0].set_mode(ProxyMode.REFUSE)
    await wait_for_health(cut_off, is_degraded=True)
    await env.publish(well, 10)
    await wait_for_health(well, sequence=15)
    env.server.link.delete("{security_events}:history")
    await env.publish(well, 3)
    await env.proxies[0].set_mode(ProxyMode.PASS)
    await env.wait_until_healthy()
    assert await env.wait_until_delivered() == before
    await env.check_history()
    for recorder, gaps in zip(recorders, ([(6, 15)], [(6, 15)], [], []), strict=True):
        assert [(f["from"], f["to"]) for f in recorder.frames if f.get("type") == "gap"] == gaps
    env.tolerate += "| ERROR kernel.listening.position_check: events 6 to 15 are lost"


# -- verdicts for those who come back ---------------------------------------------------------------------------------


async def test_verdicts_after_a_new_epoch(env: FaultEnvironment) -> None:
    """Section 6, resume: positions of the old epoch, of a replica that is away, and beyond the newest differ."""
    await env.start_replicas(2)
    stays, leaves = await env.connect(env.replicas[0]), await env.connect(env.replicas[1])
    await env.publish(env.replicas[0], 20)
    before, _ = await delivered(env)
    for recorder in (stays, leaves):
        await recorder.reaches(before, 20)
    await leaves.leave()
    env.server.link.flushall()
    epoch = await renewed(env, before)
    await env.publish(env.replicas[1], 5)
    await delivered(env)
    await leaves.connect(env.replicas[0])
    ack = await leaves.open_connection.take(type="resync_ack")
    assert ack == {
        "type": "resync_ack",
        "channel": "events",
        "epoch": epoch,
        "last_sequence": 20,
        "replayed_count": 5,
        "recovered": False,
        "epoch_changed": True,
    }
    async with connected(env.replicas[0].websocket(since=20)) as nameless:
        # the number alone is beyond the newest: nothing can be said of an epoch that nobody named
        ack = await nameless.take(type="resync_ack")
        assert (ack["recovered"], ack["replayed_count"], nameless.numbers) == (False, 0, [])
        await env.wait_until_delivered()
        await nameless.reached(7)
        assert nameless.numbers == [6, 7]
    await env.check_history()


# -- another Redis --------------------------------------------------------------------------------------------------


class Copies:
    """A copy of the environment's Redis, which can be made to lag and to take over."""

    def __init__(self, env: FaultEnvironment, server: RedisServer, wire: Proxy) -> None:
        self._env = env
        self.server = server
        self._wire = wire

    async def in_step(self) -> None:
        """Wait until the copy has everything."""
        await eventually(lambda: self.server.position == self._env.server.position, PATIENCE)

    async def lag(self) -> None:
        """Let the copy hear nothing more."""
        await self.in_step()
        await self._wire.set_mode(ProxyMode.SWALLOW)

    def take_over(self) -> None:
        """Make the copy the one Redis, whatever it has; the other is lost. Who is connected is not moved yet."""
        self._env.server.kill()
        self.server.promote()
        self._env.server = self.server

    def move(self, *numbers: int) -> None:
        """Lead the replicas of these numbers to the copy."""
        for number in numbers or range(len(self._env.proxies)):
            self._env.proxies[number].move(self.server.path)


@pytest.fixture
async def copies(env: FaultEnvironment) -> Copies:
    """A copy of the environment's Redis, in step with it."""
    env.server.link.config_set("repl-diskless-sync-delay", 0)
    server, wire = env.start_redis(), await env.start_proxy()
    server.copy(wire.port)
    await eventually(lambda: server.link.info("replication")["master_link_status"] == "up", PATIENCE)
    return Copies(env, server, wire)


async def test_failover_to_a_copy_in_step(env: FaultEnvironment, copies: Copies) -> None:
    """Section 7, nothing is lost: a failover to a copy that has everything, under load, breaks nothing."""
    await env.start_replicas(2)
    await env.connect_clients()
    async with env.load() as producers:
        await env.wait_until_accepted(producers)
        # as an orderly failover does it: no more writes, and then all of them are there
        env.server.link.client_pause(60_000, all=False)
        await copies.in_step()
        copies.take_over()
        copies.move()
        await env.wait_until_healthy()
        await env.wait_until_accepted(producers)
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_connected_to_a_copy(env: FaultEnvironment, copies: Copies) -> None:
    """Section 8, what counts: replicas that find themselves on a copy wait for a primary, and lose nothing."""
    await env.start_replicas(2)
    await env.connect_clients()
    async with env.load() as producers:
        await env.wait_until_accepted(producers)
        env.server.link.client_pause(60_000, all=False)
        await copies.in_step()
        copies.move()
        for replica in env.replicas:
            await wait_for_health(replica, is_degraded=True)
        copies.take_over()
        await env.wait_until_healthy()
        await env.wait_until_accepted(producers)
    await env.wait_until_delivered()
    await env.check_history()
    env.check_unbroken()


async def test_failover_to_a_lagging_copy(env: FaultEnvironment, copies: Copies) -> None:
    """Section 7, epochs: a copy that never heard of what was delivered takes over: one new epoch for all, announced."""
    await env.start_replicas(2)
    recorders = await env.connect_clients()
    client = await env.connect(env.replicas[1])
    await env.publish(env.replicas[0], 10)
    await copies.lag()
    await env.publish(env.replicas[1], 10)
    before, last = await delivered(env)
    await client.reaches(before, last)
    await client.leave()
    copies.take_over()
    copies.move()
    epoch = await renewed(env, before)
    await env.publish(env.replicas[0], 10)
    await client.connect(env.replicas[0])
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.recorders.remove(client)
    env.check_new_epoch(epoch)
    for recorder in recorders[::2]:
        told = [frame.get("sequence") or frame["type"] for frame in recorder.frames[1:] if "lastSeq" not in frame]
        wanted = [*range(1, last + 1), "epoch_changed", *range(1, 13)]
        assert [each for each in told if each != "service_status"] == wanted


async def test_lagging_copy_under_load(env: FaultEnvironment, copies: Copies) -> None:
    """Section 7, epochs: whoever is first to reach a lagging copy, no client sees two events under one position."""
    await env.start_replicas(2)
    await env.connect_clients()
    async with env.load(0.005) as producers:
        await env.wait_until_accepted(producers)
        await copies.lag()
        await env.wait_until_accepted(producers, 40)
        before, behind = copies.server.position
        copies.take_over()
        env.history.fork(before, behind)
        copies.move(0)
        await env.wait_until_accepted(producers)
        copies.move(1)
        epoch = await renewed(env, before)
        await env.wait_until_accepted(producers)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


FIRST: dict[str, dict[str, object]] = {
    "by a check": {},
    # no check comes for long: the next contact is the publish's
    "by a publish": {
        "position_check_seconds": 10,
        "supervision_interval_seconds": 600,
        "circuit_failure_threshold": 1000,
    },
}


@pytest.mark.parametrize("contact", FIRST)
async def test_fresh_replica_publishes_first(env: FaultEnvironment, copies: Copies, contact: str) -> None:
    """Section 7, epochs: a fresh replica makes another past, longer than what was delivered; still found by its ids."""
    (old,) = await env.start_replicas(**FIRST[contact])
    await env.connect_clients()
    await env.publish(old, 5)
    await copies.lag()
    await env.publish(old, 5)
    before, last = await delivered(env)
    assert last == 10
    copies.take_over()
    env.history.fork(before, 5)
    # the fresh one never saw events 6 to 10; until it is done the old one reaches nobody
    await env.proxies[0].set_mode(ProxyMode.HANG_UP)
    fresh_way = await env.start_proxy()
    env.proxies.append(fresh_way)
    _, fresh = await env.start_replicas()
    await env.connect(fresh)
    await env.connect(fresh, ["alert.*"])
    assert await env.publish(fresh, 10) == list(range(6, 16))
    assert env.server.position == (before, 15)
    await wait_for_health(fresh, epoch=before, sequence=15)
    copies.move(0)
    await env.proxies[0].set_mode(ProxyMode.PASS)
    if contact == "by a publish":
        assert await env.publish(old) == [1]
    epoch = await renewed(env, before)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)
    seen_by_old, _, seen_by_fresh, _ = (
        [frame["sequence"] for frame in recorder.frames if "sequence" in frame] for recorder in env.recorders
    )
    assert seen_by_old[:10] == list(range(1, 11))
    assert seen_by_fresh[:10] == list(range(6, 16))
    assert seen_by_old[10:] == seen_by_fresh[10:]


async def test_two_primaries(env: FaultEnvironment, copies: Copies) -> None:
    """Section 7, epochs: two replicas that each followed a Redis of its own come together in one new epoch."""
    one, other = await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(one, 5)
    await copies.lag()
    before, _ = await delivered(env)
    copies.server.promote()
    env.history.fork(before, 5)
    copies.move(1)
    await wait_for_health(other, listener_healthy=True, status="healthy")
    assert await env.publish(one, 10) == list(range(6, 16))
    assert await env.publish(other, 7) == list(range(6, 13))
    await wait_for_health(one, epoch=before, sequence=15)
    await wait_for_health(other, epoch=before, sequence=12)
    copies.take_over()
    copies.move(0)
    epoch = await renewed(env, before)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


async def test_place_in_a_slow_stream(env: FaultEnvironment) -> None:
    """Section 7, epochs: for a client that lags the news stands exactly between the last and the first frame, too."""
    (replica,) = await env.start_replicas(websocket_send_buffer_bytes=16384)
    slow, fast = await env.connect(replica), await env.connect(replica)
    await env.publish(replica, 3)
    before, _ = await delivered(env)
    await slow.reaches(before, 3)
    slow.open_connection.socket.transport.pause_reading()
    await env.publish_batch(replica, 100)
    env.server.link.flushall()
    epoch = await renewed(env, before)
    for _ in range(3):
        await env.publish_batch(replica, 500)
    await fast.reaches(epoch, 1500)
    slow.open_connection.socket.transport.resume_reading()
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)
