"""Replay and catch-up: a client that is not live reads the log and misses nothing that is still kept."""

import asyncio
import json
import time
from typing import Any

import pytest
from msgspec.structs import replace

from kernel import Observer
from kernel.clients import Client, Patterns, Resume, pace
from kernel.clients.client import ClientState
from kernel.clients.close_reasons import SLOW_CLIENT
from kernel.log import WireEncoding
from kernel.log.event_stream import EventStreamEncoding
from kernel.observer import Replayed
from kernel.position import Position
from tests.fakes import FakeRedis, FakeSink
from tests.history import violations
from tests.kernel.replicas import RARE_CHECKS, fill, history_of, join, record_of, replica, resync, transport_of
from tests.virtual_time import eventually

E1, E2 = "epoch-1", "epoch-2"
STREAM = EventStreamEncoding(chunked=False)


async def acked(sink: FakeSink, count: int = 1) -> dict[str, Any]:
    """Wait for `count` resync_acks, and return the last."""
    await sink.until(lambda: len(sink.of("resync_ack")) == count)
    return sink.of("resync_ack")[-1]


def live(client: Client) -> bool:
    """Return True if the fan-out writes to the client."""
    return client.state is ClientState.LIVE


def replayed(first: int, last: int) -> list[str]:
    """Return the outline of a replay."""
    return [f"r{number}" for number in range(first, last + 1)]


@pytest.fixture
def redis() -> FakeRedis:
    """Return a Redis with 250 events, of which a replica keeps the newest 20 in memory."""
    redis = FakeRedis()
    fill(redis, 250)
    return redis


# -- verdicts


@pytest.mark.parametrize("epoch", [None, E1])
@pytest.mark.parametrize("last", [0, 1, 99, 100, 230, 249])
async def test_recovered(redis: FakeRedis, last: int, epoch: str | None) -> None:
    """All events after N are sent in order and marked, whether from the history or from memory, then the ack."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, resume=Resume("events", last, epoch))
        assert await acked(sink) == {
            "type": "resync_ack",
            "channel": "events",
            "epoch": E1,
            "last_sequence": last,
            "replayed_count": 250 - last,
            "recovered": True,
        }
        assert sink.outline == ["connected", *replayed(last + 1, 250), "resync_ack"]
        fill(redis, 2)
        await sink.until(lambda: sink.outline[-2:] == ["251", "252"])
        assert live(client)


@pytest.mark.parametrize("epoch", [None, E1])
async def test_at_the_newest(redis: FakeRedis, epoch: str | None) -> None:
    """A resume from the newest event replays nothing and is recovered."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, resume=Resume("events", 250, epoch))
        ack = await acked(sink)
        assert (ack["recovered"], ack["replayed_count"]) == (True, 0)
        assert ack.keys() == {"type", "channel", "epoch", "last_sequence", "replayed_count", "recovered"}


async def test_gap_too_old(redis: FakeRedis) -> None:
    """If some events are no longer kept, the others are sent, and the ack names the oldest available."""
    redis.trim(100)
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, resume=Resume("events", 149, E1), lossy=True)
        assert await acked(sink) == {
            "type": "resync_ack",
            "channel": "events",
            "epoch": E1,
            "last_sequence": 149,
            "replayed_count": 100,
            "recovered": False,
            "gap_too_old": True,
            "oldest_available": 151,
        }
        assert sink.outline == ["connected", *replayed(151, 250), "resync_ack"]


async def test_just_old_enough(redis: FakeRedis) -> None:
    """A resume from just before the oldest event that is kept is not a gap."""
    redis.trim(100)
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, resume=Resume("events", 150, E1))
        ack = await acked(sink)
        assert (ack["recovered"], ack["replayed_count"]) == (True, 100)
        assert "gap_too_old" not in ack


async def test_nothing_is_kept(redis: FakeRedis) -> None:
    """With an empty history nothing is sent, and the next event is the oldest available."""
    redis.lose_history()
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, resume=Resume("events", 149, E1), lossy=True)
        ack = await acked(sink)
        assert (ack["gap_too_old"], ack["oldest_available"], ack["replayed_count"]) == (True, 251, 0)
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "251")
        assert live(client)


async def test_a_hole_within(redis: FakeRedis) -> None:
    """Within a replay a gap marker stands where the missing events would be, and the verdict is not recovered."""
    del redis.history[120], redis.history[121]
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, resume=Resume("events", 117, E1))
        ack = await acked(sink)
        assert sink.outline == ["connected", "r118", "r119", "gap 120-121", *replayed(122, 250), "resync_ack"]
        assert (ack["recovered"], ack["gap_too_old"], ack["oldest_available"]) == (False, True, 122)
        assert ack["replayed_count"] == 131


@pytest.mark.parametrize("last", [0, 3, 250, 10**30])
async def test_another_epoch(redis: FakeRedis, last: int) -> None:
    """A resume from another epoch is sent all of the history, and the ack says that the epoch changed."""
    redis.trim(100)
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster, resume=Resume("events", last, "another"))
        assert await acked(sink) == {
            "type": "resync_ack",
            "channel": "events",
            "epoch": E1,
            "last_sequence": last,
            "replayed_count": 100,
            "recovered": False,
            "gap_too_old": True,
            "oldest_available": 151,
            "epoch_changed": True,
        }
        assert sink.outline == ["connected", *replayed(151, 250), "resync_ack"]


@pytest.mark.parametrize("epoch", [E1, "another"])
async def test_memory_that_is_older_than_the_history(redis: FakeRedis, epoch: str) -> None:
    """A replay is one unbroken run: what only this replica's memory still has is not sent before it."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        _, first = join(broadcaster, resume=Resume("events", 0, E1))
        assert (await acked(first))["replayed_count"] == 250
        redis.trim(30)
        _, sink = join(broadcaster, resume=Resume("events", 0, epoch), lossy=True)
        ack = await acked(sink)
        assert sink.outline == ["connected", *replayed(221, 250), "resync_ack"]
        assert (ack["recovered"], ack["gap_too_old"], ack["oldest_available"]) == (False, True, 221)
        assert ack.get("epoch_changed", False) is (epoch != E1)


async def test_a_hole_that_opens_during_a_replay(redis: FakeRedis) -> None:
    """When the history loses the next events of a replay, a gap marker stands where they would be."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        client, sink = join(broadcaster, resume=Resume("events", 0, E1), room=1000)
        await sink.until(lambda: sink.blocked)
        redis.trim(50)
        while not sink.of("resync_ack"):
            sink.drain()
            await asyncio.sleep(0)
        assert sink.outline == ["connected", *replayed(1, 100), "gap 101-200", *replayed(201, 250), "resync_ack"]
        ack = await acked(sink)
        assert (ack["recovered"], ack["gap_too_old"], ack["oldest_available"]) == (False, True, 201)
        sink.drain()
        await eventually(lambda: live(client))


async def test_a_history_that_is_trimmed_before_the_first_page(redis: FakeRedis) -> None:
    """A replay that has sent nothing yet starts later without a gap marker, as if it had come later."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        gate = transport_of(broadcaster).after["read"]
        gate.clear()
        _, sink = join(broadcaster, resume=Resume("events", 0, E1), lossy=True)
        await eventually(lambda: transport_of(broadcaster).in_progress["read"] == 1)
        redis.trim(50)
        gate.set()
        assert (await acked(sink))["oldest_available"] == 201
        assert sink.outline == ["connected", *replayed(201, 250), "resync_ack"]


async def test_replays_that_start_together_share_their_reads(redis: FakeRedis) -> None:
    """Clients that resume at the same time share one read of the oldest number, and one of each page."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        before = redis.calls.count("read")
        sinks = [join(broadcaster, resume=Resume("events", number, E1))[1] for number in range(20)]
        for number, sink in enumerate(sinks):
            assert (await acked(sink))["replayed_count"] == 250 - number
        assert redis.calls.count("read") == before + 4


@pytest.mark.parametrize("epoch", [None, E1])
@pytest.mark.parametrize("last", [251, 10**30])
async def test_beyond_redis(redis: FakeRedis, last: int, epoch: str | None) -> None:
    """A resume from beyond Redis's own position replays nothing, and live events continue from the newest."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, resume=Resume("events", last, epoch))
        broadcaster.hub.heartbeat(client)
        assert sink.messages[-1]["lastSeq"] == 250
        ack = await acked(sink)
        assert (ack["last_sequence"], ack["recovered"], ack["replayed_count"]) == (last, False, 0)
        assert not ack.keys() & {"gap_too_old", "oldest_available", "epoch_changed"}
        assert not broadcaster.record_ack(client, 251)
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "251")


async def test_beyond_the_replica(redis: FakeRedis) -> None:
    """A resume from a number that Redis has and this replica does not have yet waits until it does."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        redis.hold()
        fill(redis, 10)
        assert broadcaster.sequence == 250
        _, sink = join(broadcaster, resume=Resume("events", 257, E1))
        ack = await acked(sink)
        assert (ack["recovered"], ack["replayed_count"]) == (True, 3)
        assert sink.outline == ["connected", *replayed(258, 260), "resync_ack"]
        redis.release()
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "261")
        assert sink.numbers == [258, 259, 260, 261]


@pytest.mark.parametrize(("data", "channel"), [({"channel": "cams"}, "cams"), ({}, "unknown"), ({"channel": ""}, "")])
async def test_channel(redis: FakeRedis, data: dict[str, Any], channel: str) -> None:
    """The ack repeats the channel, "unknown" if it is absent."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        resync(broadcaster, client, last_sequence=249, **data)
        assert (await acked(sink))["channel"] == channel


async def test_absent_last_sequence(redis: FakeRedis) -> None:
    """An absent last_sequence is 0."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        resync(broadcaster, client)
        ack = await acked(sink)
        assert (ack["last_sequence"], ack["replayed_count"], ack["recovered"]) == (0, 250, True)


async def test_patterns_hold_for_a_replay(redis: FakeRedis) -> None:
    """Only events that match the client's patterns are sent and counted."""
    fill(redis, 3, type="alert_created")
    fill(redis, 50)
    async with replica(redis) as broadcaster:
        _, sink = join(
            broadcaster,
            patterns=Patterns.of(["alert.*"]),
            resume=Resume("events", 5, E1),
            skips=lambda number: number not in (251, 252, 253),
        )
        ack = await acked(sink)
        assert sink.outline == ["connected", "r251", "r252", "r253", "resync_ack"]
        assert (ack["replayed_count"], ack["recovered"]) == (3, True)


async def test_patterns_that_change_during_a_replay(redis: FakeRedis) -> None:
    """After the `subscribed` reply replayed events obey the new patterns too."""
    fill(redis, 1, type="alert_created")
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=300, resume=Resume("events", 0, E1), skips=lambda number: number != 251)
        await sink.until(lambda: len(sink.numbers) > 2)
        broadcaster.hub.receive(client, '{"type":"subscribe","data":{"events":["alert.*"]}}')
        sink.room = None
        sink.drain()
        await acked(sink)
        at = sink.outline.index("subscribed")
        assert sink.outline[1:at] == replayed(1, at - 1)
        assert sink.outline[at + 1 :] == ["r251", "resync_ack"]


async def test_several_resyncs_in_a_row(redis: FakeRedis) -> None:
    """Several resyncs are answered one after the other, and live events follow without a hole or a repeat."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        for last in (248, 249, 245):
            resync(broadcaster, client, channel=str(last), last_sequence=last)
        fill(redis, 1)
        await acked(sink, 3)
        assert [ack["channel"] for ack in sink.of("resync_ack")] == ["248", "249", "245"]
        fill(redis, 1)
        await eventually(lambda: live(client) and client.place.sequence == 252)
        assert violations(history_of(redis), [record_of(sink)]) == []


async def test_too_many_resyncs(redis: FakeRedis) -> None:
    """Four resyncs are answered at once, then one every 5 s; one beyond gets an error, no replay, and stays live."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster)
        for _ in range(6):
            resync(broadcaster, client, last_sequence=249)
        await acked(sink, 4)
        first, second = sink.of("error")
        assert first["error"] == second["error"] == "rate_limited"
        assert first["details"].keys() == {"retry_after_ms"}
        assert 4900 < second["details"]["retry_after_ms"] <= 5000
        await eventually(lambda: live(client))
        resync(broadcaster, client, last_sequence=10)
        assert live(client)
        assert client.place == Position(E1, 250)
        error = sink.of("error")[-1]
        await asyncio.sleep(error["details"]["retry_after_ms"] / 1000)
        resync(broadcaster, client, last_sequence=249)
        await acked(sink, 5)
        assert len(sink.of("error")) == 3
        resync(broadcaster, client, last_sequence=249)
        assert len(sink.of("error")) == 4
        await asyncio.sleep(60)
        for _ in range(5):
            resync(broadcaster, client, last_sequence=249)
        await acked(sink, 9)
        assert len(sink.of("error")) == 5


async def test_resyncs_that_are_not_counted(redis: FakeRedis) -> None:
    """A resume by query and a resync that is refused as invalid cost nothing of the limit."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, resume=Resume("events", 249, E1))
        for _ in range(10):
            resync(broadcaster, client, last_sequence=-1)
        for _ in range(4):
            resync(broadcaster, client, last_sequence=249)
        await acked(sink, 5)
        assert {error["error"] for error in sink.of("error")} == {"validation_error"}


async def test_resyncs_do_not_pile_up(redis: FakeRedis) -> None:
    """While Redis is away at most five resyncs wait, however long that takes."""
    async with replica(redis) as broadcaster:
        redis.down = True
        client, sink = join(broadcaster, resume=Resume("events", 0, E1))
        for _ in range(20):
            resync(broadcaster, client, last_sequence=0)
            await asyncio.sleep(10)
        assert [error["details"] for error in sink.of("error")] == [{"retry_after_ms": 5000}] * 15
        redis.down = False
        await acked(sink, 6)


async def test_a_resync_does_not_repeat_what_comes_live(redis: FakeRedis) -> None:
    """Live events follow the ack without a hole or a repeat while events are published all the time."""
    async with replica(redis) as broadcaster:
        publishing = True

        async def publish() -> None:
            while publishing:
                fill(redis, 3)
                await asyncio.sleep(0)

        publisher = asyncio.create_task(publish())
        sinks = []
        for last in (0, 40, 100, 230, 250):
            sinks.append(join(broadcaster, resume=Resume("events", last, E1))[1])
            await asyncio.sleep(0.01)
        for sink in sinks:
            await acked(sink)
        publishing = False
        await publisher
        newest = redis.place.sequence
        for sink, last in zip(sinks, (0, 40, 100, 230, 250), strict=True):
            await sink.until(lambda sink=sink: sink.numbers[-1] == newest)
            assert sink.numbers == list(range(last + 1, newest + 1))
            assert sink.of("resync_ack")[0]["recovered"]
            at = sink.outline.index("resync_ack")
            assert all(name.startswith("r") for name in sink.outline[1:at])
            assert not any(name.startswith("r") for name in sink.outline[at + 1 :])


async def test_a_replay_is_observed(redis: FakeRedis) -> None:
    """An observer is told of each replay: its range and what was asked for, count, verdict, source and times."""

    class Recorder(Observer):
        def __init__(self) -> None:
            self.replays: list[Replayed] = []

        def replayed(self, replayed: Replayed) -> None:
            self.replays.append(replayed)

    recorder = Recorder()
    async with replica(redis, observer=recorder) as broadcaster:
        _, sink = join(broadcaster, resume=Resume("events", 245, E1))
        await acked(sink)
        _, ahead = join(broadcaster, resume=Resume("events", 999, E1))
        await acked(ahead)
    seen, beyond = recorder.replays
    assert (seen.requested, seen.first, seen.last, seen.count) == (245, Position(E1, 245), Position(E1, 250), 5)
    assert (beyond.requested, beyond.first, beyond.verdict) == (999, Position(E1, 250), "ahead")
    assert (seen.verdict, seen.source) == ("recovered", "memory")
    assert seen.begin <= seen.end


# -- without Redis


async def test_memory_is_enough(redis: FakeRedis) -> None:
    """A resume that memory alone can answer does not need Redis."""
    async with replica(redis) as broadcaster:
        redis.down = True
        _, sink = join(broadcaster, resume=Resume("events", 240, E1))
        ack = await acked(sink)
        assert (ack["recovered"], sink.numbers) == (True, list(range(241, 251)))


@pytest.mark.parametrize(
    ("resume", "numbers"),
    [
        pytest.param(Resume("events", 100, E1), range(101, 251), id="older than memory"),
        pytest.param(Resume("events", 245, "another"), range(1, 251), id="another epoch"),
        pytest.param(Resume("events", 251, None), range(0), id="beyond"),
    ],
)
async def test_waiting_for_redis(redis: FakeRedis, resume: Resume, numbers: range) -> None:
    """A resume that needs Redis waits for it, while heartbeats and replies continue."""
    async with replica(redis) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        client, sink = join(broadcaster, resume=resume)
        for _ in range(3):
            broadcaster.hub.receive(client, "ping")
            broadcaster.hub.heartbeat(client)
            await asyncio.sleep(0.02)
        assert sink.outline == ["connected", "degraded", *["pong", "ping"] * 3]
        redis.down = False
        await acked(sink)
        assert sink.numbers == list(numbers)
        assert sink.outline.index("healthy") < sink.outline.index("resync_ack")


@pytest.mark.parametrize("resume", [Resume("events", 245, "another"), Resume("events", 251, E1)])
async def test_heartbeats_of_a_stream_that_waits_for_redis(redis: FakeRedis, resume: Resume) -> None:
    """A stream whose resume waits gets heartbeats without an id, which would replace the one that it resumes from."""
    async with replica(redis) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        client, sink = join(broadcaster, resume=resume, encoding=STREAM, stream=True)
        for _ in range(2):
            broadcaster.hub.heartbeat(client)
            await asyncio.sleep(0.02)
        assert sink.blocks[-2:] == [":", ":"]
        redis.down = False
        ack = await acked(sink)
        assert (ack["recovered"], ack.get("epoch_changed", False)) == (False, resume.epoch == "another")
        broadcaster.hub.heartbeat(client)
        assert sink.blocks[-1] == f"id: {E1}:250"


async def test_redis_goes_during_a_replay(redis: FakeRedis) -> None:
    """A replay that loses Redis half-way continues where it was when Redis is back."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=300, resume=Resume("events", 0, E1))
        await sink.until(lambda: sink.blocked)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.numbers and sink.numbers[-1] == 100)
        redis.down = False
        await acked(sink)
        assert sink.numbers == list(range(1, 251))
        await eventually(lambda: live(client))


async def test_the_epoch_changes_during_a_replay(redis: FakeRedis) -> None:
    """If the epoch changes during a replay, it ends there, and the new epoch follows whole after `epoch_changed`."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=300, resume=Resume("events", 0, E1))
        await sink.until(lambda: sink.blocked)
        redis.flush()
        fill(redis, 30)
        await eventually(lambda: broadcaster.epoch == E2)
        await asyncio.sleep(0)
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.outline[-1] == "30")
        at = sink.outline.index("resync_ack")
        assert sink.outline[at + 1 :] == [f"epoch {E2}", *map(str, range(1, 31))]
        ack = sink.messages[at]
        assert (ack["recovered"], ack["epoch_changed"], ack["epoch"]) == (False, True, E1)
        assert ack["replayed_count"] == len(
            [name for name in sink.outline if name.startswith("r") and name != "resync_ack"]
        )
        await eventually(lambda: live(client))


@pytest.mark.parametrize("epoch", [None, E1])
async def test_the_epoch_changed_before_a_replay(redis: FakeRedis, epoch: str | None) -> None:
    """A client that was not told of the new epoch yet is told first, whatever it asks for."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=10)
        fill(redis, 5)
        await eventually(lambda: broadcaster.sequence == 255)
        redis.flush()
        fill(redis, 30)
        await eventually(lambda: broadcaster.epoch == E2)
        resync(broadcaster, client, last_sequence=12, epoch=epoch)
        sink.room = None
        sink.drain()
        ack = await acked(sink)
        assert sink.outline == ["connected", f"epoch {E2}", *replayed(1, 30), "resync_ack"]
        assert (ack["epoch"], ack["recovered"], ack["epoch_changed"], ack["replayed_count"]) == (E2, False, True, 30)
        await eventually(lambda: live(client))


async def test_a_client_that_knows_the_new_epoch_first(redis: FakeRedis) -> None:
    """A resume from an epoch that this replica does not have yet waits for it, announces it and is recovered."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        redis.hold()
        redis.flush()
        fill(redis, 10)
        client, sink = join(broadcaster, resume=Resume("events", 7, E2))
        broadcaster.hub.heartbeat(client)
        ack = await acked(sink)
        assert sink.messages[0]["epoch"] == E1
        assert sink.outline == ["connected", "ping", f"epoch {E2}", "r8", "r9", "r10", "resync_ack"]
        assert (ack["epoch"], ack["recovered"]) == (E2, True)
        redis.release()
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "11")
        assert sink.numbers == [8, 9, 10, 11]


# -- before Redis was reached


async def test_before_redis_was_reached(redis: FakeRedis) -> None:
    """The epoch is "" until Redis is reached; then `epoch_changed` and the live events from there on are sent."""
    redis.down = True
    async with replica(redis, without_redis=True) as broadcaster:
        client, sink = join(broadcaster)
        assert (sink.messages[0]["epoch"], sink.messages[0]["lastSeq"]) == ("", 0)
        broadcaster.hub.heartbeat(client)
        assert sink.messages[-1] == {"type": "ping", "lastSeq": 0, "epoch": ""}
        assert not broadcaster.ready
        redis.down = False
        await sink.until(lambda: sink.of("epoch_changed"))
        broadcaster.hub.heartbeat(client)
        fill(redis, 2)
        await sink.until(lambda: sink.outline[-1] == "252")
        assert sink.outline == ["connected", "degraded", "ping", "healthy", f"epoch {E1}", "ping", "251", "252"]
        assert sink.of("ping")[-1]["lastSeq"] == 250


@pytest.mark.parametrize("epoch", [None, E1, "another"])
async def test_resume_before_redis_was_reached(redis: FakeRedis, epoch: str | None) -> None:
    """A client that asked to resume gets `epoch_changed` first, then the missed events and the ack."""
    redis.down = True
    async with replica(redis, without_redis=True) as broadcaster:
        client, sink = join(broadcaster, resume=Resume("events", 240, epoch))
        broadcaster.hub.heartbeat(client)
        redis.down = False
        ack = await acked(sink)
        first = 1 if epoch == "another" else 241
        assert sink.outline[:5] == ["connected", "degraded", "ping", "healthy", f"epoch {E1}"]
        assert sink.outline[5:] == [*replayed(first, 250), "resync_ack"]
        assert ack["recovered"] is (epoch != "another")
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "251")


async def test_resync_before_redis_was_reached(redis: FakeRedis) -> None:
    """A client that asks after its connect, and one whose socket was full meanwhile, get `epoch_changed` first too."""
    redis.down = True
    async with replica(redis, without_redis=True) as broadcaster:
        client, sink = join(broadcaster)
        resync(broadcaster, client, last_sequence=248)
        slow_client, slow = join(broadcaster, room=10)
        assert slow.blocked
        redis.down = False
        await acked(sink)
        assert sink.outline == ["connected", "degraded", "healthy", f"epoch {E1}", "r249", "r250", "resync_ack"]
        fill(redis, 1)
        await eventually(lambda: broadcaster.sequence == 251)
        slow.room = None
        slow.drain()
        await slow.until(lambda: len(slow.of("epoch_changed")) == 1)
        fill(redis, 1)
        await slow.until(lambda: slow.outline[-1] == "252")
        assert live(slow_client)


# -- slow clients


async def test_catch_up_from_memory(redis: FakeRedis) -> None:
    """Over the high-water mark nothing is sent; when the socket drains, the missed events follow as live frames."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=200)
        while not sink.blocked:
            fill(redis, 1)
            await eventually(lambda: broadcaster.sequence == redis.place.sequence)
        sent = list(sink.messages)
        fill(redis, 10)
        await eventually(lambda: broadcaster.sequence == redis.place.sequence)
        assert (sink.messages, client.state) == (sent, ClientState.BEHIND)
        reads = redis.calls.count("read")
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.numbers[-1] == redis.place.sequence)
        assert sink.numbers == list(range(251, redis.place.sequence + 1))
        assert not any(name.startswith("r") for name in sink.outline)
        await eventually(lambda: live(client))
        assert redis.calls.count("read") == reads
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1] == redis.place.sequence)


async def test_catch_up_from_the_history(redis: FakeRedis) -> None:
    """Events that are no longer in memory come from the history, in order, as the socket takes them."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=500)
        fill(redis, 300)
        await eventually(lambda: broadcaster.sequence == 550)
        for _ in range(300):
            if sink.numbers[-1:] == [550]:
                break
            assert sink.unsent < 2000
            broadcaster.hub.heartbeat(client)
            sink.drain()
            await asyncio.sleep(0.001)
        assert sink.numbers == list(range(251, 551))
        sink.drain()
        await eventually(lambda: live(client))


async def test_the_loop_runs_during_a_replay_with_hostile_patterns(redis: FakeRedis) -> None:
    """Patterns that take long to compare are compared in steps, and everything that matches is replayed."""
    redis.trim(0)
    for length in range(300, 305):
        fill(redis, 1, type="worker_status", event_type="a" * length)
    async with replica(redis, RARE_CHECKS) as broadcaster:
        hostile = Patterns.of(["*a" * 126 + f"{number:04}" for number in range(100)])
        longest = turns = 0.0
        _, sink = join(broadcaster, resume=Resume("events", 250, E1), patterns=hostile, skips=lambda _: True)
        before = time.thread_time()
        while not sink.of("resync_ack"):
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, before, turns = max(longest, now - before), now, turns + 1
        assert sink.outline == ["connected", "resync_ack"]
        assert longest < 0.05
        assert turns > 5


async def test_the_loop_runs_while_a_replay_is_compressed(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large messages are compressed in steps, and patterns that change meanwhile decide about them."""
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    redis.trim(0)
    fill(redis, 1, data='"%s"' % ("large " * 50_000))
    fill(redis, 1, type="alert_created", data='"%s"' % ("large " * 50_000))
    async with replica(redis, replace(RARE_CHECKS, chunk_bytes=1_000_000)) as broadcaster:
        deflate = WireEncoding(None, deflate=True, level=6)
        client, sink = join(broadcaster, encoding=deflate, resume=Resume("events", 250, E1), skips=lambda _: True)
        turns = 0
        while not sink.of("resync_ack"):
            await asyncio.sleep(0)
            turns += 1
            if turns == 5:
                broadcaster.hub.receive(client, json.dumps({"type": "subscribe", "data": {"events": ["alert.*"]}}))
        assert turns > 300_000 // 2048
        assert sink.outline == ["connected", "subscribed", "r252", "resync_ack"]


async def test_a_slow_client_delays_nobody(redis: FakeRedis) -> None:
    """A slow client does not delay others."""
    async with replica(redis) as broadcaster:
        join(broadcaster, room=10)
        _, fast = join(broadcaster)
        fill(redis, 100)
        await fast.until(lambda: fast.numbers == list(range(251, 351)))


async def test_too_slow(redis: FakeRedis) -> None:
    """A client whose position has left the history is closed with 4008."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        client, sink = join(broadcaster, room=10)
        fill(redis, 100)
        await eventually(lambda: broadcaster.sequence == 350)
        redis.trim(50)
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.closed is not None)
        assert sink.closed == SLOW_CLIENT
        assert sink.closed.code == 4008
        broadcaster.disconnect(client)


async def test_too_slow_for_a_stream(redis: FakeRedis) -> None:
    """A client without close codes is told by a resync_ack that its position has left the history."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        client, sink = join(broadcaster, room=10, encoding=STREAM, stream=True)
        fill(redis, 100)
        await eventually(lambda: broadcaster.sequence == 350)
        redis.trim(50)
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.closed is not None)
        assert sink.closed == SLOW_CLIENT
        assert sink.messages[-1] == {
            "type": "resync_ack",
            "channel": "events",
            "epoch": E1,
            "last_sequence": client.place.sequence,
            "replayed_count": 0,
            "recovered": False,
            "gap_too_old": True,
            "oldest_available": 301,
        }
        assert sink.blocks[-1].startswith("event: resync_ack\n")
        broadcaster.disconnect(client)


async def test_ids_of_a_stream(redis: FakeRedis) -> None:
    """Each event has its position as id, `resync_ack` the one where the replay ended, else `connected`."""
    async with replica(redis) as broadcaster:
        _, resumed = join(broadcaster, encoding=STREAM, stream=True, resume=Resume("events", 248, None))
        await acked(resumed)
        _, fresh = join(broadcaster, encoding=STREAM, stream=True)
        fill(redis, 1)
        await resumed.until(lambda: resumed.numbers[-1:] == [251])
        await fresh.until(lambda: fresh.numbers == [251])
        heads = [block.partition("data:")[0] for block in resumed.blocks]
        ids = [f"id: {E1}:{number}\n" for number in (249, 250, 250, 251)]
        assert heads == ["event: connected\n", *ids[:2], f"{ids[2]}event: resync_ack\n", ids[3]]
        assert fresh.blocks[0].startswith(f"id: {E1}:250\nevent: connected\n")


async def test_patterns_that_change_while_behind(redis: FakeRedis) -> None:
    """After the `subscribed` reply the events of a catch-up obey the new patterns."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=10, skips=lambda number: number != 301)
        fill(redis, 50)
        fill(redis, 1, type="alert_created")
        await eventually(lambda: broadcaster.sequence == 301)
        sink.drain()
        broadcaster.hub.receive(client, '{"type":"subscribe","data":{"events":["alert.*"]}}')
        sink.room = None
        sink.drain()
        await sink.until(lambda: "301" in sink.outline)
        at = sink.outline.index("subscribed")
        assert sink.outline[at + 1 :] == ["301"]
        await eventually(lambda: live(client))


async def test_epochs_and_gaps_in_place_for_slow_clients(redis: FakeRedis) -> None:
    """Slow clients get epoch and gap markers in the same place as live clients."""
    async with replica(redis) as broadcaster:
        _, fast = join(broadcaster)
        slow_client, slow = join(broadcaster, room=10)
        redis.deaf = True
        fill(redis, 5)
        del redis.history[252], redis.history[253]
        redis.deaf = False
        fill(redis, 1)
        await fast.until(lambda: fast.outline[-1] == "256")
        redis.flush()
        fill(redis, 2)
        await fast.until(lambda: fast.outline[-1] == "2")
        slow.room = None
        slow.drain()
        await slow.until(lambda: slow.outline[-1] == "2")
        assert slow.outline == fast.outline
        assert fast.outline == ["connected", "251", "gap 252-253", "254", "255", "256", f"epoch {E2}", "1", "2"]
        await eventually(lambda: live(slow_client))


async def test_a_slow_client_far_back_in_the_old_epoch(redis: FakeRedis) -> None:
    """A slow client of an epoch that memory no longer has gets the marker, and all of the new epoch as live frames."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=10)
        fill(redis, 100)
        await eventually(lambda: broadcaster.sequence == 350)
        redis.flush()
        fill(redis, 130)
        await eventually(lambda: broadcaster.sequence == 130)
        sink.room = None
        sink.drain()
        await sink.until(lambda: sink.outline[-1] == "130")
        assert sink.outline == ["connected", f"epoch {E2}", *map(str, range(1, 131))]
        await eventually(lambda: live(client))


async def test_redis_goes_during_catch_up(redis: FakeRedis) -> None:
    """A slow client that needs the history while Redis is away waits for it and misses nothing."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        client, sink = join(broadcaster, room=10)
        fill(redis, 100)
        await eventually(lambda: broadcaster.sequence == 350)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        reads = redis.calls.count("read")
        sink.room = None
        sink.drain()
        broadcaster.hub.receive(client, "ping")
        await sink.until(lambda: sink.outline[1:] == ["pong", "degraded"])
        await eventually(lambda: redis.calls.count("read") == reads + 1)
        redis.down = False
        await sink.until(lambda: sink.numbers[-1:] == [350])
        assert sink.numbers == list(range(251, 351))
        await eventually(lambda: live(client))


async def test_a_resync_of_a_slow_client(redis: FakeRedis) -> None:
    """A slow client that asks for a replay gets it next, and continues after it."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=500)
        fill(redis, 300)
        await eventually(lambda: broadcaster.sequence == 550)
        assert sink.blocked
        resync(broadcaster, client, last_sequence=400, epoch=E1)
        sink.room = None
        sink.drain()
        ack = await acked(sink)
        assert (ack["recovered"], ack["replayed_count"]) == (True, 150)
        at = sink.outline.index("r401")
        assert sink.outline[1:at] == [str(n) for n in range(251, 250 + at)]
        assert sink.outline[at:] == [*replayed(401, 550), "resync_ack"]
        await eventually(lambda: live(client))


async def test_a_resync_during_the_read(redis: FakeRedis) -> None:
    """A replay that is requested while the history is being read is not forgotten."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        client, sink = join(broadcaster, room=10)
        fill(redis, 100)
        await eventually(lambda: broadcaster.sequence == 350)
        transport = transport_of(broadcaster)
        transport.before["read"].clear()
        sink.room = None
        sink.drain()
        await eventually(lambda: transport.in_progress["read"])
        resync(broadcaster, client, last_sequence=240)
        transport.before["read"].set()
        await acked(sink)
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "351")
        assert violations(history_of(redis), [record_of(sink)]) == []


async def test_going_away_during_a_read(redis: FakeRedis) -> None:
    """A client that disconnects while the history is read for it gets nothing more and leaves no task."""
    async with replica(redis) as broadcaster:
        transport = transport_of(broadcaster)
        transport.before["read"].clear()
        client, sink = join(broadcaster, resume=Resume("events", 0, E1))
        await eventually(lambda: transport.in_progress["read"])
        broadcaster.disconnect(client)
        transport.before["read"].set()
        await eventually(lambda: not transport.in_progress["read"])
        assert sink.outline == ["connected"]
        assert (len(broadcaster.hub), client.state) == (0, ClientState.GONE)


async def test_full_again_at_the_last_moment(redis: FakeRedis) -> None:
    """A client whose socket a reply fills again just after it has drained is not live yet."""
    async with replica(redis) as broadcaster:
        client, sink = join(broadcaster, room=10)
        await asyncio.sleep(0)
        sink.drain()
        broadcaster.hub.receive(client, "ping")
        for _ in range(5):
            await asyncio.sleep(0)
        assert (sink.blocked, client.state) == (True, ClientState.BEHIND)
        sink.drain()
        await eventually(lambda: live(client))
