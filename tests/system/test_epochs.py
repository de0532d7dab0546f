"""Epochs: a Redis that is behind, empty or has a different history means one new epoch, announced in its place."""

import pytest

from tests.proxy import Proxy, ProxyMode
from tests.system.client import PATIENCE, connected
from tests.system.fault_environment import FaultEnvironment, health, wait_for_health
from tests.system.redis_server import RedisServer
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually


async def wait_for_delivery(env: FaultEnvironment, replicas: list[Replica] | None = None) -> tuple[str, int]:
    """Wait until the replicas have delivered all events in Redis, and return the position."""
    epoch, sequence = env.server.position
    for replica in env.replicas if replicas is None else replicas:
        await wait_for_health(replica, epoch=epoch, sequence=sequence)
    return epoch, sequence


async def wait_for_new_epoch(env: FaultEnvironment, before: str) -> str:
    """Wait until all replicas are healthy and share a new epoch, and return it."""
    await env.wait_until_healthy()
    for replica in env.replicas:
        await eventually(lambda: replica.health()["epoch"] != before, PATIENCE)  # noqa: B023  it is over by then
    (epoch,) = {(await health(replica))["epoch"] for replica in env.replicas}
    return epoch


# -- one Redis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("publishing", [False, True], ids=["idle", "under load"])
async def test_restarted_empty(env: FaultEnvironment, publishing: bool) -> None:
    """A Redis that restarts empty means one new epoch for all replicas."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    before, _ = await wait_for_delivery(env)
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
    epoch = await wait_for_new_epoch(env, before)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


@pytest.mark.parametrize("publishing", [False, True], ids=["idle", "under load"])
async def test_restored_dump(env: FaultEnvironment, publishing: bool) -> None:
    """A Redis restored from an older dump is behind what was delivered, so one new epoch starts."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    env.server.link.save()
    await env.publish(env.replicas[1], 10)
    before, _ = await wait_for_delivery(env)
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
    epoch = await wait_for_new_epoch(env, before)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


async def test_restored_complete_dump(env: FaultEnvironment) -> None:
    """A Redis restored from a complete dump continues its numbering."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    before, _ = await wait_for_delivery(env)
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
    """A Redis that writes every command to disk may be killed under load without losing an event."""
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
    """Each flush under load means one new epoch, and between two flushes everything is delivered."""
    await env.start_replicas(2)
    recorders = await env.connect_clients()
    await env.publish(env.replicas[0])
    epochs = [(await wait_for_delivery(env))[0]]
    async with env.load() as producers:
        for _ in range(4):
            await env.wait_until_accepted(producers)
            env.server.link.flushall()
            epochs.append(await wait_for_new_epoch(env, epochs[-1]))
            await env.wait_until_accepted(producers)
    await env.wait_until_delivered()
    await env.check_history()
    assert len(set(epochs)) == 5
    for recorder in recorders:
        assert [f["epoch"] for f in recorder.frames if f.get("type") == "epoch_changed"] == epochs[1:]
    for replica in env.replicas:
        assert replica.metric("epoch_changes_total") == 4


async def test_lost_numbering(env: FaultEnvironment) -> None:
    """If the position is lost, the rest of the history is deleted and a new epoch starts."""
    await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(env.replicas[0], 10)
    before, _ = await wait_for_delivery(env)
    env.server.link.delete("{security_events}:position")
    epoch = await wait_for_new_epoch(env, before)
    assert env.server.link.xlen("{security_events}:history") == 0
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


async def test_lost_history(env: FaultEnvironment) -> None:
    """If the history is lost, clients that missed events get a `gap` with the exact numbers; others get none."""
    cut_off, well = await env.start_replicas(2)
    recorders = await env.connect_clients()
    await env.publish(well, 5)
    before, _ = await wait_for_delivery(env)
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


# -- resumes after a new epoch ---------------------------------------------------------------------------------


async def test_verdicts_after_a_new_epoch(env: FaultEnvironment) -> None:
    """A resume with the old epoch replays the new one; a number beyond the newest without an epoch replays nothing."""
    await env.start_replicas(2)
    stays, leaves = await env.connect(env.replicas[0]), await env.connect(env.replicas[1])
    await env.publish(env.replicas[0], 20)
    before, _ = await wait_for_delivery(env)
    for recorder in (stays, leaves):
        await recorder.reaches(before, 20)
    await leaves.leave()
    env.server.link.flushall()
    epoch = await wait_for_new_epoch(env, before)
    await env.publish(env.replicas[1], 5)
    await wait_for_delivery(env)
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
        # without an epoch only the number counts, and it is beyond the newest
        ack = await nameless.take(type="resync_ack")
        assert (ack["recovered"], ack["replayed_count"], nameless.numbers) == (False, 0, [])
        await env.wait_until_delivered()
        await nameless.reached(7)
        assert nameless.numbers == [6, 7]
    await env.check_history()


# -- another Redis --------------------------------------------------------------------------------------------------


class Copies:
    """A replica of the environment's Redis, which can lag and be promoted."""

    def __init__(self, env: FaultEnvironment, server: RedisServer, wire: Proxy) -> None:
        self._env = env
        self.server = server
        self._wire = wire

    async def in_step(self) -> None:
        """Wait until it has replicated everything."""
        await eventually(lambda: self.server.position == self._env.server.position, PATIENCE)

    async def lag(self) -> None:
        """Stop the replication."""
        await self.in_step()
        await self._wire.set_mode(ProxyMode.SWALLOW)

    def take_over(self) -> None:
        """Kill the primary and promote this copy; the service's connections are not redirected yet."""
        self._env.server.kill()
        self.server.promote()
        self._env.server = self.server

    def move(self, *numbers: int) -> None:
        """Redirect the replicas with these numbers, or all, to the copy."""
        for number in numbers or range(len(self._env.proxies)):
            self._env.proxies[number].move(self.server.path)


@pytest.fixture
async def copies(env: FaultEnvironment) -> Copies:
    """A copy of the environment's Redis that has replicated everything."""
    env.server.link.config_set("repl-diskless-sync-delay", 0)
    server, wire = env.start_redis(), await env.start_proxy()
    server.copy(wire.port)
    await eventually(lambda: server.link.info("replication")["master_link_status"] == "up", PATIENCE)
    return Copies(env, server, wire)


async def test_failover_to_a_copy_in_step(env: FaultEnvironment, copies: Copies) -> None:
    """A failover under load to a copy that has everything loses nothing and keeps the epoch."""
    await env.start_replicas(2)
    await env.connect_clients()
    async with env.load() as producers:
        await env.wait_until_accepted(producers)
        # an orderly failover: pause writes, then wait until all are replicated
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
    """Replicas that are connected to a read-only copy wait for a primary, and lose nothing."""
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
    """A failover to a copy that lacks delivered events starts one new epoch for all, announced to every client."""
    await env.start_replicas(2)
    recorders = await env.connect_clients()
    client = await env.connect(env.replicas[1])
    await env.publish(env.replicas[0], 10)
    await copies.lag()
    await env.publish(env.replicas[1], 10)
    before, last = await wait_for_delivery(env)
    await client.reaches(before, last)
    await client.leave()
    copies.take_over()
    copies.move()
    epoch = await wait_for_new_epoch(env, before)
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
    """After a failover to a lagging copy no two clients see different events at one position."""
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
        epoch = await wait_for_new_epoch(env, before)
        await env.wait_until_accepted(producers)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


FIRST: dict[str, dict[str, object]] = {
    "by a check": {},
    # the next check is far away: the publish is the next contact with Redis
    "by a publish": {
        "position_check_seconds": 10,
        "supervision_interval_seconds": 600,
        "circuit_failure_threshold": 1000,
    },
}


@pytest.mark.parametrize("contact", FIRST)
async def test_fresh_replica_publishes_first(env: FaultEnvironment, copies: Copies, contact: str) -> None:
    """A copy that lags, and has then grown beyond what was delivered, is detected by the ids of its events."""
    (old,) = await env.start_replicas(**FIRST[contact])
    await env.connect_clients()
    await env.publish(old, 5)
    await copies.lag()
    await env.publish(old, 5)
    before, last = await wait_for_delivery(env)
    assert last == 10
    copies.take_over()
    env.history.fork(before, 5)
    # the fresh replica never saw events 6 to 10; until it has published, the old one cannot connect
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
    epoch = await wait_for_new_epoch(env, before)
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
    """Two replicas that followed two primaries with different histories end in one common new epoch."""
    one, other = await env.start_replicas(2)
    await env.connect_clients()
    await env.publish(one, 5)
    await copies.lag()
    before, _ = await wait_for_delivery(env)
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
    epoch = await wait_for_new_epoch(env, before)
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)


async def test_epoch_change_at_a_slow_client(env: FaultEnvironment) -> None:
    """A slow client too gets `epoch_changed` exactly between the last old and the first new frame."""
    (replica,) = await env.start_replicas(websocket_send_buffer_bytes=16384)
    slow, fast = await env.connect(replica), await env.connect(replica)
    await env.publish(replica, 3)
    before, _ = await wait_for_delivery(env)
    await slow.reaches(before, 3)
    slow.open_connection.socket.transport.pause_reading()
    await env.publish_batch(replica, 100)
    env.server.link.flushall()
    epoch = await wait_for_new_epoch(env, before)
    for _ in range(3):
        await env.publish_batch(replica, 500)
    await fast.reaches(epoch, 1500)
    slow.open_connection.socket.transport.resume_reading()
    assert await env.wait_until_delivered() == epoch
    await env.check_history()
    env.check_new_epoch(epoch)
