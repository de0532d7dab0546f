"""Numbers never lie: a Redis that comes back behind, empty or with another past means one new epoch, told in place."""

import pytest

from tests.proxy import Proxy, Way
from tests.system.client import PATIENCE, connected
from tests.system.conftest import Start
from tests.system.fault_environment import Stage, becomes, client_of, frames_of, health
from tests.system.redis_server import RedisServer
from tests.system.replica import Replica
from tests.waiting import eventually


async def delivered(stage: Stage, replicas: list[Replica] | None = None) -> tuple[str, int]:
    """Wait until replicas have delivered all that Redis has; returns the position."""
    epoch, sequence = stage.server.position
    for replica in stage.replicas if replicas is None else replicas:
        await becomes(replica, epoch=epoch, sequence=sequence)
    return epoch, sequence


async def renewed(stage: Stage, before: str) -> str:
    """Wait until all replicas are well and in one new epoch; returns it."""
    await stage.heal()
    for replica in stage.replicas:
        await eventually(lambda: replica.health()["epoch"] != before, PATIENCE)  # noqa: B023  it is over by then
    (epoch,) = {(await health(replica))["epoch"] for replica in stage.replicas}
    return epoch


# -- one Redis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("publishing", [False, True], ids=["idle", "under load"])
async def test_restarted_empty(stage: Stage, publishing: bool) -> None:
    """Section 7, epochs: a Redis that comes back empty means one new epoch for all replicas."""
    await stage.open(2)
    await stage.audience()
    await stage.publish(stage.replicas[0], 10)
    before, _ = await delivered(stage)
    if publishing:
        async with stage.load() as producers:
            await stage.more(producers)
            stage.server.kill()
            await becomes(stage.replicas[0], is_degraded=True)
            stage.server.start()
            await stage.heal()
            await stage.more(producers)
    else:
        stage.server.kill()
        stage.server.start()
    epoch = await renewed(stage, before)
    assert await stage.settle() == epoch
    await stage.judge()
    stage.check_new_epoch(epoch)


@pytest.mark.parametrize("publishing", [False, True], ids=["idle", "under load"])
async def test_restored_dump(stage: Stage, publishing: bool) -> None:
    """Section 7, epochs: a Redis restored from an older dump is behind what was delivered: one new epoch."""
    await stage.open(2)
    await stage.audience()
    await stage.publish(stage.replicas[0], 10)
    stage.server.link.save()
    await stage.publish(stage.replicas[1], 10)
    before, _ = await delivered(stage)
    if publishing:
        async with stage.load() as producers:
            await stage.more(producers)
            stage.server.kill()
            stage.server.start()
            await stage.heal()
            await stage.more(producers)
    else:
        stage.server.kill()
        stage.server.start()
    epoch = await renewed(stage, before)
    assert await stage.settle() == epoch
    await stage.judge()
    stage.check_new_epoch(epoch)


async def test_restored_dump_of_now(stage: Stage) -> None:
    """Section 7, epochs: a Redis restored from a dump that has everything goes on with its numbering."""
    await stage.open(2)
    await stage.audience()
    await stage.publish(stage.replicas[0], 10)
    before, _ = await delivered(stage)
    stage.server.link.save()
    stage.server.kill()
    for replica in stage.replicas:
        await becomes(replica, is_degraded=True)
    stage.server.start()
    await stage.heal()
    assert await stage.settle() == before
    await stage.judge()
    stage.check_unbroken()


async def test_restarted_with_log(start: Start) -> None:
    """Section 7, nothing is lost: a Redis that writes every command to disk may be killed under load."""
    async with Stage(start, appendonly="yes", appendfsync="always") as stage:
        await stage.open(2)
        await stage.audience()
        async with stage.load() as producers:
            for _ in range(3):
                await stage.more(producers)
                stage.server.kill()
                stage.server.start()
                await stage.heal()
            await stage.more(producers)
        await stage.settle()
        await stage.judge()
        stage.check_unbroken()


async def test_flushed_again_and_again(stage: Stage) -> None:
    """Section 7, epochs: each flush under load is one new epoch, and between two of them all is delivered."""
    await stage.open(2)
    witnesses = await stage.audience()
    await stage.publish(stage.replicas[0])
    epochs = [(await delivered(stage))[0]]
    async with stage.load() as producers:
        for _ in range(4):
            await stage.more(producers)
            stage.server.link.flushall()
            epochs.append(await renewed(stage, epochs[-1]))
            await stage.more(producers)
    await stage.settle()
    await stage.judge()
    assert len(set(epochs)) == 5
    for witness in witnesses:
        assert [f["epoch"] for f in frames_of(witness) if f.get("type") == "epoch_changed"] == epochs[1:]
    for replica in stage.replicas:
        assert replica.metric("epoch_changes_total") == 4


async def test_lost_numbering(stage: Stage) -> None:
    """Section 7, epochs: without the position what is left of the history is worthless, and goes with it."""
    await stage.open(2)
    await stage.audience()
    await stage.publish(stage.replicas[0], 10)
    before, _ = await delivered(stage)
    stage.server.link.delete("{security_events}:position")
    epoch = await renewed(stage, before)
    assert stage.server.link.xlen("{security_events}:history") == 0
    assert await stage.settle() == epoch
    await stage.judge()
    stage.check_new_epoch(epoch)


async def test_lost_history(stage: Stage) -> None:
    """Section 7, gap: with the history gone, who had missed something is told what exactly; others miss nothing."""
    cut_off, well = await stage.open(2)
    witnesses = await stage.audience()
    await stage.publish(well, 5)
    before, _ = await delivered(stage)
    await stage.proxies[0].go(Way.REFUSE)
    await becomes(cut_off, is_degraded=True)
    await stage.publish(well, 10)
    await becomes(well, sequence=15)
    stage.server.link.delete("{security_events}:history")
    await stage.publish(well, 3)
    await stage.proxies[0].go(Way.PASS)
    await stage.heal()
    assert await stage.settle() == before
    await stage.judge()
    for witness, gaps in zip(witnesses, ([(6, 15)], [(6, 15)], [], []), strict=True):
        assert [(f["from"], f["to"]) for f in frames_of(witness) if f.get("type") == "gap"] == gaps
    stage.tolerate += "| ERROR kernel.listening.listener: events 6 to 15 are lost"


# -- verdicts for those who come back ---------------------------------------------------------------------------------


async def test_verdicts_after_a_new_epoch(stage: Stage) -> None:
    """Section 6, resume: positions of the old epoch, of a replica that is away, and beyond the newest differ."""
    await stage.open(2)
    stays, leaves = await stage.watch(stage.replicas[0]), await stage.watch(stage.replicas[1])
    await stage.publish(stage.replicas[0], 20)
    before, _ = await delivered(stage)
    for witness in (stays, leaves):
        await witness.reaches(before, 20)
    await leaves.leave()
    stage.server.link.flushall()
    epoch = await renewed(stage, before)
    await stage.publish(stage.replicas[1], 5)
    await delivered(stage)
    await leaves.connect(stage.replicas[0])
    ack = await client_of(leaves).take(type="resync_ack")
    assert ack == {
        "type": "resync_ack",
        "channel": "events",
        "epoch": epoch,
        "last_sequence": 20,
        "replayed_count": 5,
        "recovered": False,
        "epoch_changed": True,
    }
    async with connected(stage.replicas[0].websocket(since=20)) as nameless:
        # the number alone is beyond the newest: nothing can be said of an epoch that nobody named
        ack = await nameless.take(type="resync_ack")
        assert (ack["recovered"], ack["replayed_count"], nameless.numbers) == (False, 0, [])
        await stage.settle()
        await nameless.reached(7)
        assert nameless.numbers == [6, 7]
    await stage.judge()


# -- another Redis --------------------------------------------------------------------------------------------------


class Copies:
    """A copy of the stage's Redis, which can be made to lag and to take over."""

    def __init__(self, stage: Stage, server: RedisServer, wire: Proxy) -> None:
        self._stage = stage
        self.server = server
        self._wire = wire

    async def in_step(self) -> None:
        """Wait until the copy has everything."""
        await eventually(lambda: self.server.position == self._stage.server.position, PATIENCE)

    async def lag(self) -> None:
        """Let the copy hear nothing more."""
        await self.in_step()
        await self._wire.go(Way.SWALLOW)

    def take_over(self) -> None:
        """Make the copy the one Redis, whatever it has; the other is lost. Who is connected is not moved yet."""
        self._stage.server.kill()
        self.server.promote()
        self._stage.server = self.server

    def move(self, *numbers: int) -> None:
        """Lead the replicas of these numbers to the copy."""
        for number in numbers or range(len(self._stage.proxies)):
            self._stage.proxies[number].move(self.server.path)


@pytest.fixture
async def copies(stage: Stage) -> Copies:
    """A copy of the stage's Redis, in step with it."""
    stage.server.link.config_set("repl-diskless-sync-delay", 0)
    server, wire = stage.serve(), await stage.proxy()
    server.copy(wire.port)
    await eventually(lambda: server.link.info("replication")["master_link_status"] == "up", PATIENCE)
    return Copies(stage, server, wire)


async def test_failover_to_a_copy_in_step(stage: Stage, copies: Copies) -> None:
    """Section 7, nothing is lost: a failover to a copy that has everything, under load, breaks nothing."""
    await stage.open(2)
    await stage.audience()
    async with stage.load() as producers:
        await stage.more(producers)
        # as an orderly failover does it: no more writes, and then all of them are there
        stage.server.link.client_pause(60_000, all=False)
        await copies.in_step()
        copies.take_over()
        copies.move()
        await stage.heal()
        await stage.more(producers)
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_connected_to_a_copy(stage: Stage, copies: Copies) -> None:
    """Section 8, what counts: replicas that find themselves on a copy wait for a primary, and lose nothing."""
    await stage.open(2)
    await stage.audience()
    async with stage.load() as producers:
        await stage.more(producers)
        stage.server.link.client_pause(60_000, all=False)
        await copies.in_step()
        copies.move()
        for replica in stage.replicas:
            await becomes(replica, is_degraded=True)
        copies.take_over()
        await stage.heal()
        await stage.more(producers)
    await stage.settle()
    await stage.judge()
    stage.check_unbroken()


async def test_failover_to_a_lagging_copy(stage: Stage, copies: Copies) -> None:
    """Section 7, epochs: a copy that never heard of what was delivered takes over: one new epoch for all, announced."""
    await stage.open(2)
    witnesses = await stage.audience()
    wanderer = await stage.watch(stage.replicas[1])
    await stage.publish(stage.replicas[0], 10)
    await copies.lag()
    await stage.publish(stage.replicas[1], 10)
    before, last = await delivered(stage)
    await wanderer.reaches(before, last)
    await wanderer.leave()
    copies.take_over()
    copies.move()
    epoch = await renewed(stage, before)
    await stage.publish(stage.replicas[0], 10)
    await wanderer.connect(stage.replicas[0])
    assert await stage.settle() == epoch
    await stage.judge()
    stage.witnesses.remove(wanderer)
    stage.check_new_epoch(epoch)
    for witness in witnesses[::2]:
        told = [frame.get("sequence") or frame["type"] for frame in frames_of(witness)[1:] if "lastSeq" not in frame]
        wanted = [*range(1, last + 1), "epoch_changed", *range(1, 13)]
        assert [each for each in told if each != "service_status"] == wanted


async def test_lagging_copy_under_load(stage: Stage, copies: Copies) -> None:
    """Section 7, epochs: whoever is first to reach a lagging copy, no client sees two events under one position."""
    await stage.open(2)
    await stage.audience()
    async with stage.load(0.005) as producers:
        await stage.more(producers)
        await copies.lag()
        await stage.more(producers, 40)
        before, behind = copies.server.position
        copies.take_over()
        stage.history.fork(before, behind)
        copies.move(0)
        await stage.more(producers)
        copies.move(1)
        epoch = await renewed(stage, before)
        await stage.more(producers)
    assert await stage.settle() == epoch
    await stage.judge()
    stage.check_new_epoch(epoch)


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
async def test_fresh_replica_publishes_first(stage: Stage, copies: Copies, contact: str) -> None:
    """Section 7, epochs: a fresh replica makes another past, longer than what was delivered; still found by its ids."""
    (old,) = await stage.open(**FIRST[contact])
    await stage.audience()
    await stage.publish(old, 5)
    await copies.lag()
    await stage.publish(old, 5)
    before, last = await delivered(stage)
    assert last == 10
    copies.take_over()
    stage.history.fork(before, 5)
    # the fresh one never saw events 6 to 10; until it is done the old one reaches nobody
    await stage.proxies[0].go(Way.HANG_UP)
    fresh_way = await stage.proxy()
    stage.proxies.append(fresh_way)
    _, fresh = await stage.open()
    await stage.watch(fresh)
    await stage.watch(fresh, ["alert.*"])
    assert await stage.publish(fresh, 10) == list(range(6, 16))
    assert stage.server.position == (before, 15)
    await becomes(fresh, epoch=before, sequence=15)
    copies.move(0)
    await stage.proxies[0].go(Way.PASS)
    if contact == "by a publish":
        assert await stage.publish(old) == [1]
    epoch = await renewed(stage, before)
    assert await stage.settle() == epoch
    await stage.judge()
    stage.check_new_epoch(epoch)
    seen_by_old, _, seen_by_fresh, _ = (
        [frame["sequence"] for frame in frames_of(witness) if "sequence" in frame] for witness in stage.witnesses
    )
    assert seen_by_old[:10] == list(range(1, 11))
    assert seen_by_fresh[:10] == list(range(6, 16))
    assert seen_by_old[10:] == seen_by_fresh[10:]


async def test_two_primaries(stage: Stage, copies: Copies) -> None:
    """Section 7, epochs: two replicas that each followed a Redis of its own come together in one new epoch."""
    one, other = await stage.open(2)
    await stage.audience()
    await stage.publish(one, 5)
    await copies.lag()
    before, _ = await delivered(stage)
    copies.server.promote()
    stage.history.fork(before, 5)
    copies.move(1)
    await becomes(other, listener_healthy=True, status="healthy")
    assert await stage.publish(one, 10) == list(range(6, 16))
    assert await stage.publish(other, 7) == list(range(6, 13))
    await becomes(one, epoch=before, sequence=15)
    await becomes(other, epoch=before, sequence=12)
    copies.take_over()
    copies.move(0)
    epoch = await renewed(stage, before)
    assert await stage.settle() == epoch
    await stage.judge()
    stage.check_new_epoch(epoch)


async def test_place_in_a_slow_stream(stage: Stage) -> None:
    """Section 7, epochs: for a client that lags the news stands exactly between the last and the first frame, too."""
    (replica,) = await stage.open(websocket_send_buffer_bytes=16384)
    slow, fast = await stage.watch(replica), await stage.watch(replica)
    await stage.publish(replica, 3)
    before, _ = await delivered(stage)
    await slow.reaches(before, 3)
    client_of(slow).socket.transport.pause_reading()
    await stage.publish_batch(replica, 100)
    stage.server.link.flushall()
    epoch = await renewed(stage, before)
    for _ in range(3):
        await stage.publish_batch(replica, 500)
    await fast.reaches(epoch, 1500)
    client_of(slow).socket.transport.resume_reading()
    assert await stage.settle() == epoch
    await stage.judge()
    stage.check_new_epoch(epoch)
