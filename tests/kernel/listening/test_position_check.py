"""The position check: missed events are found and fetched, forks are detected, and the circuit is tried again."""

import asyncio
import logging

import pytest
from msgspec.structs import replace

from kernel import EventBroadcaster, TransportUnavailable, WriteRefused
from kernel.clients import Resume
from kernel.log.transport import Outgoing
from kernel.observer import Lost, Refilled
from kernel.position import NOWHERE, Fence, Position
from kernel.resilience.circuit import CircuitState
from tests.fakes import FakeRedis
from tests.kernel.listening.listening_side import (
    E1,
    E2,
    E3,
    RecordingObserver,
    checks_made,
    document,
    fill_unannounced,
    listening_side,
)
from tests.kernel.replicas import FAST, RARE_CHECKS, PausableTransport, fill, join, replica, tail, transport_of
from tests.virtual_time import eventually


@pytest.mark.parametrize("events", [0, 1, 19, 20, 21, 250])
async def test_the_ring_is_filled_at_the_start(events: int) -> None:
    """A replica starts with the newest events in memory, however many there are."""
    redis = FakeRedis()
    fill(redis, events)
    async with replica(redis) as broadcaster:
        assert broadcaster.sequence == events
        assert broadcaster.ready
        numbers = [message["sequence"] for message in broadcaster.get_messages_since(0)]
        assert numbers == list(range(max(0, events - 20) + 1, events + 1))


@pytest.mark.parametrize("kept", [0, 1, 7])
async def test_a_short_history_at_the_start(redis: FakeRedis, kept: int) -> None:
    """Events that were trimmed before this replica started are not lost events of this replica."""
    redis.trim(kept)
    async with replica(redis) as broadcaster:
        assert broadcaster.sequence == 250
        assert len(broadcaster.get_messages_since(0)) == kept
        _, sink = join(broadcaster)
        fill(redis, 1)
        await sink.until(lambda: sink.outline == ["connected", "251"])


async def test_events_that_are_trimmed_while_it_starts(redis: FakeRedis) -> None:
    """Events that are trimmed while a replica reads them at the start are skipped."""
    transport = PausableTransport(redis)
    broadcaster = EventBroadcaster(transport, replace(FAST, message_buffer_size=200))
    transport.before["read"].clear()
    start = asyncio.create_task(broadcaster.start())
    await eventually(lambda: transport.in_progress["read"])
    redis.trim(30)
    transport.before["read"].set()
    await start
    assert [message["sequence"] for message in broadcaster.get_messages_since(0)] == list(range(221, 251))
    await broadcaster.stop()


async def test_a_new_epoch_while_it_starts(redis: FakeRedis) -> None:
    """If a new epoch begins during the first contact, the first contact is made again."""
    transport = PausableTransport(redis)
    broadcaster = EventBroadcaster(transport, FAST)
    transport.before["read"].clear()
    start = asyncio.create_task(broadcaster.start())
    await eventually(lambda: transport.in_progress["read"])
    redis.flush()
    fill(redis, 3)
    transport.before["read"].set()
    await start
    assert (broadcaster.epoch, broadcaster.sequence) == (E2, 3)
    await broadcaster.stop()


async def test_an_empty_redis() -> None:
    """The first contact begins the first epoch in an empty Redis."""
    redis = FakeRedis()
    async with replica(redis) as broadcaster:
        assert (broadcaster.epoch, broadcaster.sequence) == (E1, 0)
        _, sink = join(broadcaster)
        fill(redis, 1)
        await sink.until(lambda: sink.outline == ["connected", "1"])


async def test_a_hole_is_refilled(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A hole in the numbers is filled from the history at once, in order, each event once."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill_unannounced(redis, 30)
        assert broadcaster.sequence == 250
        fill(redis, 2)
        await sink.until(lambda: sink.numbers == list(range(251, 283)))
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == list(range(251, 284)))
        assert observer.refills == [Refilled(Position(E1, 250), Position(E1, 282))]
        assert (observer.foreign_count, observer.losses) == (0, [])


async def test_missed_events_are_found_without_another_event(redis: FakeRedis) -> None:
    """Positions are compared every few seconds, so that missed events are found although no event follows them."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        fill_unannounced(redis, 3)
        await sink.until(lambda: sink.numbers == [251, 252, 253])


async def test_a_late_announcement(redis: FakeRedis, observer: RecordingObserver) -> None:
    """An event that was fetched and is announced afterwards is delivered once and not counted as foreign."""
    async with replica(redis, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        redis.hold()
        fill(redis, 5)
        await sink.until(lambda: len(sink.numbers) == 5)
        redis.release()
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1] == 256)
        assert sink.numbers == [251, 252, 253, 254, 255, 256]
        assert (observer.foreign_count, observer.losses) == (0, [])


async def test_lost_events(redis: FakeRedis, observer: RecordingObserver, caplog: pytest.LogCaptureFixture) -> None:
    """A hole is reported as a gap, with both ends, only if the history no longer has the events."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill_unannounced(redis, 30)
        redis.trim(10)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == list(range(271, 282)))
        assert sink.outline[:2] == ["connected", "gap 251-270"]
        assert observer.losses == [Lost(E1, 251, 270)]
        assert "events 251 to 270 are lost" in caplog.text


async def test_a_position_far_ahead(redis: FakeRedis, observer: RecordingObserver) -> None:
    """If the position in Redis is set far ahead, that is one gap, and the next event is delivered at once."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        redis.place = redis.place._replace(sequence=10**5)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [10**5 + 1])
        assert sink.outline[1:] == [f"gap 251-{10**5}", str(10**5 + 1)]
        assert observer.losses == [Lost(E1, 251, 10**5)]
    async with replica(redis, RARE_CHECKS) as late:
        assert late.sequence == 10**5 + 1


async def test_holes_in_the_history(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Each hole in the history is reported in its place."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill_unannounced(redis, 10)
        for number in (252, 253, 257):
            del redis.history[number]
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1:] == [261])
        assert sink.outline[1:] == [
            "251",
            "gap 252-253",
            "254",
            "255",
            "256",
            "gap 257-257",
            *["258", "259", "260", "261"],
        ]
        assert observer.losses == [Lost(E1, 252, 253), Lost(E1, 257, 257)]


async def test_a_history_that_is_lost(redis: FakeRedis, observer: RecordingObserver) -> None:
    """If the whole history is gone, everything that was missed is one gap, and later events are delivered."""
    async with replica(redis, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill_unannounced(redis, 10)
        redis.lose_history()
        await sink.until(lambda: sink.outline == ["connected", "gap 251-260"])
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "261")
        assert observer.losses == [Lost(E1, 251, 260)]


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(document(999), id="a far number"),
        pytest.param(document(251, epoch="forged"), id="another epoch"),
        pytest.param(document(epoch="forged"), id="a new epoch without events"),
        pytest.param(document(2**70), id="an enormous number"),
    ],
)
async def test_an_announcement_that_does_not_fit(redis: FakeRedis, observer: RecordingObserver, forged: bytes) -> None:
    """An announcement that Redis's own position does not explain is counted and skipped."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        redis.announce(forged)
        await eventually(lambda: observer.foreign_count == 1)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1:] == [251])
        assert sink.outline == ["connected", "251"]
        assert (observer.refills, observer.losses, observer.restarts) == ([], [], [])


async def test_one_check_at_a_time(redis: FakeRedis, observer: RecordingObserver) -> None:
    """One check is under way at a time, however many announcements do not fit."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        transport = transport_of(broadcaster)
        checks = redis.calls.count("position")
        transport.before["position"].clear()
        for _ in range(500):
            redis.announce(document(999))
            await asyncio.sleep(0)
        assert transport.in_progress["position"] == 1
        transport.before["position"].set()
        await eventually(lambda: observer.foreign_count == 500)
        assert redis.calls.count("position") <= checks + 2


async def test_a_real_hole_is_not_foreign(redis: FakeRedis, observer: RecordingObserver) -> None:
    """An announcement that Redis's position explains is not foreign, also if forged ones arrive with it."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill_unannounced(redis, 3)
        redis.announce(document(999))
        fill(redis, 3)
        await sink.until(lambda: sink.numbers == list(range(251, 257)))
        await eventually(lambda: observer.foreign_count == 1)


async def test_a_perfect_forgery(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A forged announcement with the right epoch and the next number is detected by the next check."""
    async with replica(redis, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        redis.announce(document(251))
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        fill(redis, 2)
        await sink.until(lambda: sink.outline[-1] == "2")
        assert sink.outline == ["connected", "251", f"epoch {E2}", "1", "2"]
        assert broadcaster.sequence == 2


async def test_a_perfect_forgery_followed_by_the_real_one(redis: FakeRedis) -> None:
    """If a forged and a real event have the same number, a new epoch begins."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        redis.announce(document(251))
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        assert sink.numbers == [251]


async def test_a_flush(redis: FakeRedis) -> None:
    """After a flush a new epoch begins; its marker is delivered before its first event."""
    async with replica(redis) as broadcaster, replica(redis) as other:
        sinks = [join(b)[1] for b in (broadcaster, other)]
        fill(redis, 1)
        await eventually(lambda: all(sink.numbers == [251] for sink in sinks))
        redis.flush()
        fill(redis, 3)
        for sink in sinks:
            await sink.until(lambda sink=sink: sink.outline[-1] == "3")
            assert sink.outline == ["connected", "251", f"epoch {E2}", "1", "2", "3"]


async def test_a_flush_without_another_event(redis: FakeRedis) -> None:
    """The position check itself detects a flush, and all replicas agree on one new epoch."""
    async with replica(redis) as broadcaster, replica(redis) as other:
        sinks = [join(b)[1] for b in (broadcaster, other)]
        redis.flush()
        for sink in sinks:
            await sink.until(lambda sink=sink: sink.outline == ["connected", f"epoch {E2}"])
        await eventually(lambda: broadcaster.epoch == other.epoch == E2)


async def test_a_lagging_copy(redis: FakeRedis) -> None:
    """A Redis that comes back behind the delivered position begins a new epoch."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers[-1:] == [255])
        redis.rewind(252)
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "1")


async def test_a_copy_with_another_past(redis: FakeRedis) -> None:
    """Two events are not delivered under one number, even if Redis has other events and is ahead again."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 3)
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        redis.rewind(250)
        redis.deaf = True
        for number in range(251, 256):
            redis.place = Position(E1, number)
            redis.history[number] = (f"other-{number}", tail(f"other-{number}"))
        redis.deaf = False
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1].startswith("epoch"))
        assert sink.outline == ["connected", "251", "252", "253", f"epoch {E2}"]


async def fork_in_place(redis: FakeRedis, back: int, others: int) -> None:
    """Let Redis go back some events, and another publisher publish others, while subscriptions live on."""
    redis.rewind(redis.place.sequence - back)
    for number in range(others):
        id = f"other-{number}"
        redis.run(Fence(NOWHERE, ""), Outgoing(id, None, [(id, tail(id))]))


@pytest.mark.parametrize("edition", ["this", "first"])
@pytest.mark.parametrize("trouble", ["none", "the check fails once", "the history is trimmed"])
async def test_a_fork_in_place(redis: FakeRedis, observer: RecordingObserver, edition: str, trouble: str) -> None:
    """Known numbers with other ids are found before a number follows: nothing is passed over or delivered twice."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 10)
        await sink.until(lambda: sink.numbers[-1:] == [260])
        redis.first_edition = edition == "first"
        if trouble == "the check fails once":
            redis.fail()
        await fork_in_place(redis, 5, 10)
        if trouble == "the history is trimmed":
            redis.trim(2)
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        assert sink.numbers == list(range(251, 261))
        redis.first_edition = False
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "1")
        assert broadcaster.counters.epoch_changes == 1
        assert observer.losses == []


async def test_hearsay_of_another_past(redis: FakeRedis) -> None:
    """If only the end of another past was received, the next check finds it by the last verified event."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers[-1:] == [255])
        redis.first_edition = redis.deaf = True
        await fork_in_place(redis, 3, 3)
        redis.deaf = False
        redis.run(Fence(NOWHERE, ""), Outgoing("late", None, [("late", tail("late"))]))
        await sink.until(lambda: sink.numbers[-1:] == [256])
        broadcaster.checks.request()
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")


async def test_the_next_event_names_another_one_before_it(redis: FakeRedis) -> None:
    """An announcement that names another event before its first is not taken, whatever its number."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers[-1:] == [255])
        redis.deaf = True
        await fork_in_place(redis, 3, 3)
        redis.deaf = False
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        assert sink.numbers == list(range(251, 256))


async def test_a_forged_contradiction(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A forged announcement that contradicts is refuted by Redis and counted; no epoch begins and nothing is lost."""
    async with replica(redis, RARE_CHECKS, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers[-1:] == [255])
        redis.announce(document(253, 254))
        fill(redis, 2)
        await sink.until(lambda: sink.numbers[-1:] == [257])
        await eventually(lambda: observer.foreign_count == 1)
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "258")
        assert sink.numbers == list(range(251, 259))
        assert (broadcaster.epoch, observer.losses) == (E1, [])


async def test_an_epoch_that_comes_back(redis: FakeRedis) -> None:
    """A dump of an epoch that this replica has left is not continued: a new epoch begins."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 3)
        await sink.until(lambda: sink.numbers[-1:] == [253])
        place, history = Position(E1, 251), {n: redis.history[n] for n in range(1, 252)}
        redis.flush()
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-2:] == [f"epoch {E2}", "1"])
        redis.place, redis.history = place, history
        await sink.until(lambda: sink.outline[-1] == f"epoch {E3}")
        _, late = join(broadcaster, resume=Resume("events", 253, E1))
        await late.until(lambda: late.of("resync_ack"))
        assert late.of("resync_ack")[0]["epoch_changed"] is True


async def test_a_rewind_while_the_history_is_read(redis: FakeRedis) -> None:
    """If Redis goes back between a check and the read that it leads to, no event of the other past is delivered."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 2)
        await sink.until(lambda: sink.numbers[-1:] == [252])
        transport = transport_of(broadcaster)
        transport.before["read"].clear()
        fill_unannounced(redis, 3)
        await eventually(lambda: transport.in_progress["read"])
        redis.deaf = True
        await fork_in_place(redis, 4, 6)
        redis.deaf = False
        transport.before["read"].set()
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        assert sink.numbers == [251, 252]


async def test_a_rewind_between_the_first_pages(redis: FakeRedis) -> None:
    """If Redis goes back while a replica starts, the pages that it has read are not joined with others."""
    transport = PausableTransport(redis)
    broadcaster = EventBroadcaster(transport, replace(FAST, message_buffer_size=250))
    transport.after["read"].clear()
    start = asyncio.create_task(broadcaster.start())
    await eventually(lambda: transport.in_progress["read"])
    await fork_in_place(redis, 200, 210)
    transport.after["read"].set()
    await start
    assert broadcaster.sequence == 260
    ids = {message["sequence"] for message in broadcaster.get_messages_since(0)}
    assert len(ids) == 250
    assert redis.calls.count("position") >= 2
    await broadcaster.stop()


async def test_a_position_overtaken_by_events(redis: FakeRedis) -> None:
    """A position that was read before newer events arrived is not taken for a step back."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        transport = transport_of(broadcaster)
        transport.after["position"].clear()
        await eventually(lambda: transport.in_progress["position"])
        fill(redis, 5)
        await sink.until(lambda: len(sink.numbers) == 5)
        transport.after["position"].set()
        checks = redis.calls.count("position")
        await eventually(lambda: redis.calls.count("position") >= checks + 2)
        assert sink.outline == ["connected", "251", "252", "253", "254", "255"]
        assert broadcaster.epoch == E1


async def test_two_new_epochs_in_a_row(redis: FakeRedis) -> None:
    """If another epoch begins while the events of a new one are read, both markers are delivered."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        transport = transport_of(broadcaster)
        transport.before["read"].clear()
        redis.flush()
        fill(redis, 3)
        await eventually(lambda: transport.in_progress["read"])
        redis.flush()
        fill(redis, 2)
        transport.before["read"].set()
        await sink.until(lambda: sink.outline[-1] == "2")
        assert sink.outline == ["connected", f"epoch {E2}", f"epoch {E3}", "1", "2"]


async def test_the_log_line_of_a_refill(redis: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A new epoch without events is not logged as a refill; one with events is, from event 1 on."""
    caplog.set_level(logging.INFO)
    async with replica(redis) as broadcaster:
        redis.flush()
        await eventually(lambda: broadcaster.epoch == E2)
        assert "refilled" not in caplog.text
        redis.flush()
        redis.deaf = True
        fill(redis, 2)
        redis.deaf = False
        await eventually(lambda: broadcaster.sequence == 2)
        await eventually(lambda: "events 1 to 2" in caplog.text)


async def test_failures_open_the_circuit(redis: FakeRedis, observer: RecordingObserver) -> None:
    """Failed checks and subscriptions count as failures, and the 5th in a row opens the circuit."""
    async with replica(redis, replace(FAST, circuit_recovery_seconds=60.0), observer=observer) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        status = broadcaster.get_circuit_state()
        assert (status.state, status.failure_count) == (CircuitState.OPEN, 5)
        assert not broadcaster.is_listener_healthy()
        calls = len(redis.calls)
        await asyncio.sleep(5 * FAST.max_delay)
        assert len(redis.calls) == calls


async def test_a_trial_without_a_publisher(redis: FakeRedis, observer: RecordingObserver) -> None:
    """The position check makes the trial call of the circuit, and that call writes."""
    async with replica(redis, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        redis.down = True
        await eventually(lambda: observer.circuit_states.count(CircuitState.HALF_OPEN) >= 2)
        assert set(observer.circuit_states[1::2]) == {CircuitState.HALF_OPEN}
        assert set(observer.circuit_states[::2]) == {CircuitState.OPEN}
        redis.down = False
        await eventually(lambda: not broadcaster.is_degraded())
        assert "probe" in redis.calls
        assert observer.circuit_states[-2:] == [CircuitState.HALF_OPEN, CircuitState.CLOSED]
        await eventually(broadcaster.is_listener_healthy)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])


async def test_a_trial_that_may_not_write(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A Redis that answers but refuses writes does not close the circuit."""
    async with replica(redis, observer=observer) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        redis.read_only = True
        redis.down = False
        trials = redis.calls.count("probe")
        await eventually(lambda: redis.calls.count("probe") >= trials + 2)
        assert broadcaster.is_degraded()
        redis.read_only = False
        await eventually(lambda: not broadcaster.is_degraded())


async def test_a_failure_after_the_trial(redis: FakeRedis, observer: RecordingObserver) -> None:
    """A read that fails after the trial has succeeded is an ordinary failure, and is retried."""
    async with replica(redis, observer=observer) as broadcaster:
        _, sink = join(broadcaster)
        transport = transport_of(broadcaster)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        fill_unannounced(redis, 3)
        transport.before["read"].clear()
        redis.down = False
        await eventually(lambda: transport.in_progress["read"])
        assert not broadcaster.is_degraded()
        redis.fail()
        transport.before["read"].set()
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        assert broadcaster.get_circuit_state().total_failures >= 6


async def test_a_failed_check_is_made_again_soon(redis: FakeRedis) -> None:
    """A caller that waits for a check that failed does not have to wait for the next regular one."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        redis.fail(2)
        async with asyncio.timeout(5):
            await broadcaster.checks.completed()
        assert redis.calls[-3:] == ["position"] * 3


async def test_callers_that_gave_up_are_forgotten(redis: FakeRedis) -> None:
    """Callers that waited for a check and gave up do not pile up while Redis is away."""
    async with replica(redis) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        for _ in range(50):
            waiting = asyncio.create_task(broadcaster.checks.completed())
            await asyncio.sleep(0)
            waiting.cancel()
        trials = redis.calls.count("probe")
        await eventually(lambda: redis.calls.count("probe") >= trials + 3)
        assert not broadcaster.checks.start()
        patient, gone = (asyncio.create_task(broadcaster.checks.completed()) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        redis.down = False
        async with asyncio.timeout(5):
            await patient


async def test_holes_at_the_start(redis: FakeRedis) -> None:
    """A hole in the history is in memory as a gap, for clients that resume."""
    del redis.history[245]
    async with replica(redis) as broadcaster:
        reads = redis.calls.count("read")
        _, sink = join(broadcaster, resume=Resume("events", 243, E1))
        await sink.until(lambda: sink.of("resync_ack"))
        assert sink.outline[1:4] == ["r244", "gap 245-245", "r246"]
        assert redis.calls.count("read") == reads


async def test_events_in_flight_are_not_fetched(redis: FakeRedis) -> None:
    """A check leaves events that were just published to the subscription."""
    async with listening_side(redis, idle=300.0) as side:
        reads = redis.calls.count("read")
        redis.hold()
        fill(redis, 3)
        side.checks.request()
        await checks_made(redis, 1)
        await asyncio.sleep(0)
        assert side.log.place.sequence == 250
        redis.release()
        await eventually(lambda: side.log.place.sequence == 253)
        assert redis.calls.count("read") == reads


async def test_a_trial_in_time(redis: FakeRedis, observer: RecordingObserver) -> None:
    """The trial is made when the recovery is over, however rarely positions are checked and failures are retried."""
    async with listening_side(redis, observer, recovery=0.2, delays=(60.0, 60.0)) as side:
        for _ in range(5):
            side.link.failed(TransportUnavailable("no connection"))
        await eventually(lambda: not side.degraded)
        # the pause after a failed check does not delay it either
        redis.fail()
        side.checks.request()
        await eventually(lambda: side.link.status.failure_count == 1)
        for _ in range(4):
            side.link.failed(TransportUnavailable("no connection"))
        await eventually(lambda: not side.degraded)
    assert observer.circuit_states == [CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED] * 2


async def test_reads_do_not_make_up_for_refused_writes(redis: FakeRedis) -> None:
    """A successful position check does not end a row of refused writes."""
    async with listening_side(redis, check_seconds=0.05) as side:
        for _ in range(4):
            side.link.failed(WriteRefused("READONLY"))
            await checks_made(redis, 2)
        assert not side.degraded
        side.link.failed(WriteRefused("READONLY"))
        assert side.degraded
        await eventually(lambda: not side.degraded)


async def test_the_trial_waits_for_its_time(redis: FakeRedis) -> None:
    """A trial that is not due yet is not made, even if the clocks of link and event loop disagree."""
    async with listening_side(redis) as side:
        redis.down = True
        await eventually(lambda: side.degraded)
        side.clock_behind = 0.01
        trials = redis.calls.count("probe")
        await eventually(lambda: redis.calls.count("probe") >= trials + 2)
        assert side.degraded
