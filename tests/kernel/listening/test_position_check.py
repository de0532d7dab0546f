"""The replica's ear: nothing is lost between Redis and a replica, and nothing that is not Redis's gets through."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from kernel import EventBroadcaster, Observer, TransportUnavailable, WriteRefused
from kernel.clients import fanout
from kernel.observer import CircuitMoved, Lost, Refilled
from kernel.position import Fence, Position
from kernel.resilience.circuit import CircuitState
from tests.fakes import FakeRedis
from tests.kernel.world import FAST, HEARING, GatedTransport, fill, gated, join, replica, tail, turns_until
from tests.waiting import eventually

E1, E2, E3 = "epoch-1", "epoch-2", "epoch-3"


class Ears(Observer):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.refills: list[Refilled] = []
        self.losses: list[Lost] = []
        self.foreigners = 0
        self.restarts: list[str] = []
        self.moves: list[CircuitState] = []

    def refilled(self, refilled: Refilled) -> None:
        """Remember it."""
        self.refills.append(refilled)

    def lost(self, lost: Lost) -> None:
        """Remember it."""
        self.losses.append(lost)

    def foreign(self, count: int) -> None:
        """Count it."""
        assert count > 0
        self.foreigners += count

    def listener_restarted(self, reason: str) -> None:
        """Remember it."""
        self.restarts.append(reason)

    def circuit_moved(self, moved: CircuitMoved) -> None:
        """Remember it."""
        self.moves.append(CircuitState(moved.after))


@pytest.fixture
def ears() -> Ears:
    """Return an observer."""
    return Ears()


@pytest.fixture
def redis() -> FakeRedis:
    """Return a Redis with 250 events."""
    redis = FakeRedis()
    fill(redis, 250)
    return redis


def document(*numbers: int, epoch: str = E1, id: str = "forged") -> bytes:
    """Return an announcement as anybody could put it on the channel."""
    events = b",".join(b'{"sequence":%d%s' % (number, tail(id)) for number in numbers)
    return b'{"epoch":"%s","events":[%s]}' % (epoch.encode(), events)


def unheard(redis: FakeRedis, count: int) -> None:
    """Publish events whose announcements get lost on the way."""
    redis.deaf = True
    fill(redis, count)
    redis.deaf = False


# -- first contact


@pytest.mark.parametrize("events", [0, 1, 19, 20, 21, 250])
async def test_the_ring_is_filled_at_the_start(events: int) -> None:
    """Section 6, history: a replica begins with the newest events in memory, whatever there is."""
    redis = FakeRedis()
    fill(redis, events)
    async with replica(redis) as broadcaster:
        assert broadcaster.sequence == events
        assert broadcaster.ready
        numbers = [message["sequence"] for message in broadcaster.get_messages_since(0)]
        assert numbers == list(range(max(0, events - 20) + 1, events + 1))


@pytest.mark.parametrize("kept", [0, 1, 7])
async def test_a_short_history_at_the_start(redis: FakeRedis, kept: int) -> None:
    """Section 6, history: what was trimmed before this replica began is no loss of this replica."""
    redis.trim(kept)
    async with replica(redis) as broadcaster:
        assert broadcaster.sequence == 250
        assert len(broadcaster.get_messages_since(0)) == kept
        _, sink = join(broadcaster)
        fill(redis, 1)
        await sink.until(lambda: sink.outline == ["connected", "251"])


async def test_holes_at_the_start(redis: FakeRedis) -> None:
    """Section 7, gap: a hole in the history is in memory too, for those who resume."""
    del redis.history[245]
    async with replica(redis) as broadcaster:
        frames = broadcaster._log.ring.since(Position(E1, 243))
        assert frames is not None
        assert [frame.entry is None for frame in frames[:3]] == [False, True, False]


async def test_trimmed_while_it_starts(redis: FakeRedis) -> None:
    """Section 6, history: events that go while they are read at the start are not waited for."""
    transport = GatedTransport(redis)
    broadcaster = EventBroadcaster(transport, replace(FAST, message_buffer_size=200))
    transport.before["read"].clear()
    start = asyncio.create_task(broadcaster.start())
    await eventually(lambda: transport.held["read"])
    redis.trim(30)
    transport.before["read"].set()
    await start
    assert [message["sequence"] for message in broadcaster.get_messages_since(0)] == list(range(221, 251))
    await broadcaster.stop()


async def test_a_new_epoch_while_it_starts(redis: FakeRedis) -> None:
    """Section 7, epochs: if the numbering begins anew during the first contact, that is made again."""
    transport = GatedTransport(redis)
    broadcaster = EventBroadcaster(transport, FAST)
    transport.before["read"].clear()
    start = asyncio.create_task(broadcaster.start())
    await eventually(lambda: transport.held["read"])
    redis.flush()
    fill(redis, 3)
    transport.before["read"].set()
    await start
    assert (broadcaster.epoch, broadcaster.sequence) == (E2, 3)
    await broadcaster.stop()


async def test_an_empty_redis() -> None:
    """Section 7, epochs: the first contact begins the numbering where there is none."""
    redis = FakeRedis()
    async with replica(redis) as broadcaster:
        assert (broadcaster.epoch, broadcaster.sequence) == (E1, 0)
        _, sink = join(broadcaster)
        fill(redis, 1)
        await sink.until(lambda: sink.outline == ["connected", "1"])


# -- what is not heard


async def test_a_hole_is_refilled(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: a hole in the numbers is filled from the history at once, in order, each event once."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        unheard(redis, 30)
        assert broadcaster.sequence == 250
        fill(redis, 2)
        await sink.until(lambda: sink.numbers == list(range(251, 283)))
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == list(range(251, 284)))
        assert ears.refills == [Refilled(Position(E1, 250), Position(E1, 282))]
        assert (ears.foreigners, ears.losses) == (0, [])


async def test_a_tail_is_found_without_another_event(redis: FakeRedis) -> None:
    """Section 7, delivery: every few seconds positions are compared, so that what nobody follows is found too."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        unheard(redis, 3)
        await sink.until(lambda: sink.numbers == [251, 252, 253])


async def test_after_each_subscription_it_checks(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: what passed while the subscription was away is there when it is back."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.hang_up()
        await turns_until(lambda: not broadcaster.is_listener_healthy())
        unheard(redis, 3)
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        await eventually(broadcaster.is_listener_healthy)
        assert ears.restarts == ["fake: subscription lost"]
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1] == 254)


async def test_a_late_announcement(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: what was fetched and then arrives as well is delivered once and counted as nothing."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.hold()
        fill(redis, 5)
        await sink.until(lambda: len(sink.numbers) == 5)
        redis.release()
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1] == 256)
        assert sink.numbers == [251, 252, 253, 254, 255, 256]
        assert (ears.foreigners, ears.losses) == (0, [])


async def test_lost_events(redis: FakeRedis, ears: Ears, caplog: pytest.LogCaptureFixture) -> None:
    """Section 7, gap: only if the history has it no more is a hole reported, with both ends missing."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        unheard(redis, 30)
        redis.trim(10)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == list(range(271, 282)))
        assert sink.outline[:2] == ["connected", "gap 251-270"]
        assert ears.losses == [Lost(E1, 251, 270)]
        assert "events 251 to 270 are lost" in caplog.text


async def test_a_position_far_ahead(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, strangers: a position that somebody put far ahead is one gap, and the next event comes at once."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.place = redis.place._replace(sequence=10**5)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [10**5 + 1])
        assert sink.outline[1:] == [f"gap 251-{10**5}", str(10**5 + 1)]
        assert ears.losses == [Lost(E1, 251, 10**5)]
    async with replica(redis, HEARING) as late:
        assert late.sequence == 10**5 + 1


async def test_holes_in_the_history(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, gap: each hole is reported in its place."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        unheard(redis, 10)
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
        assert ears.losses == [Lost(E1, 252, 253), Lost(E1, 257, 257)]


async def test_a_history_that_is_lost(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, gap: with the whole history gone all that was missed is lost, and it goes on behind it."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        unheard(redis, 10)
        redis.lose_history()
        await sink.until(lambda: sink.outline == ["connected", "gap 251-260"])
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "261")
        assert ears.losses == [Lost(E1, 251, 260)]


# -- a subscription that is alive but deaf


async def test_deaf(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: a subscription that hears nothing while events pass is found and made anew."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])
        redis.deaf = True
        fill(redis, 1)
        await eventually(lambda: ears.restarts)
        redis.deaf = False
        assert ears.restarts[0] == "the subscription received nothing while events were published"
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        await eventually(broadcaster.is_listener_healthy)


async def test_slow_but_not_deaf(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: announcements that come a little late are no reason to subscribe anew."""
    async with replica(redis, observer=ears) as broadcaster:
        for number in range(251, 256):
            redis.hold()
            fill(redis, 1)
            await turns_until(lambda number=number: broadcaster.sequence == number)
            redis.release()
            checks = redis.calls.count("position")
            await eventually(lambda checks=checks: redis.calls.count("position") >= checks + 2)
        assert ears.restarts == []


async def test_on_its_way(redis: FakeRedis) -> None:
    """Section 7, delivery: a check leaves to the subscription what was published only just now."""
    async with replica(redis, HEARING) as broadcaster:
        broadcaster._position_check._deafness.grace = 60.0
        reads, checks = redis.calls.count("read"), redis.calls.count("position")
        redis.hold()
        fill(redis, 3)
        broadcaster.checks.request()
        await eventually(lambda: redis.calls.count("position") > checks)
        await asyncio.sleep(0)
        assert broadcaster.sequence == 250
        redis.release()
        await eventually(lambda: broadcaster.sequence == 253)
        assert redis.calls.count("read") == reads


async def test_hearing_nothing_during_a_refill(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: announcements that have to wait for a refill are no sign of deafness."""
    async with replica(redis, observer=ears) as broadcaster:
        transport = gated(broadcaster)
        transport.before["read"].clear()
        redis.hold()
        fill(redis, 30)
        await eventually(lambda: transport.held["read"])
        redis.release()
        await asyncio.sleep(4 * FAST.position_check_seconds)
        transport.before["read"].set()
        await eventually(lambda: broadcaster.sequence == 280)
        await asyncio.sleep(4 * FAST.position_check_seconds)
        assert ears.restarts == []


async def test_deaf_while_somebody_asks_all_the_time(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: checks that somebody waits for find a deaf subscription too."""
    async with replica(redis, observer=ears) as broadcaster:
        redis.deaf = True
        fill(redis, 3)
        async with asyncio.timeout(5):
            while not ears.restarts:
                await broadcaster.checks.completed()
                await asyncio.sleep(0)
        assert broadcaster.sequence == 253
        assert "received nothing" in ears.restarts[0]


async def test_an_outage_is_not_deaf(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: what was missed before a subscription was made is no sign that it is deaf."""
    async with replica(redis, observer=ears) as broadcaster:
        redis.hang_up()
        await turns_until(lambda: not broadcaster.is_listener_healthy())
        unheard(redis, 3)
        await eventually(lambda: broadcaster.sequence == 253 and broadcaster.is_listener_healthy())
        await asyncio.sleep(4 * FAST.position_check_seconds)
        assert ears.restarts == ["fake: subscription lost"]


async def test_a_hole_is_not_deaf(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: a subscription that missed some but heard what came behind them is alive."""
    async with replica(redis, observer=ears) as broadcaster:
        unheard(redis, 3)
        fill(redis, 1)
        await eventually(lambda: broadcaster.sequence == 254)
        await asyncio.sleep(4 * FAST.position_check_seconds)
        assert ears.restarts == []


async def test_many_checks_are_not_deafness(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: however often somebody asks, what is on its way has its time to arrive."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        redis.hold()
        fill(redis, 3)
        for _ in range(5):
            await broadcaster.checks.completed()
        redis.release()
        fill(redis, 1)
        await eventually(lambda: broadcaster.sequence == 254)
        assert ears.restarts == []


async def test_quiet_is_not_deaf(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: where nothing happens there is nothing to hear."""
    async with replica(redis, observer=ears) as broadcaster:
        checks = redis.calls.count("position")
        await eventually(lambda: redis.calls.count("position") >= checks + 4)
        assert ears.restarts == []
        assert broadcaster.is_listener_healthy()


# -- what others put on the channel


@pytest.mark.parametrize(
    "payload", [b"", b"hello", b"{}", b"\xff", b'{"epoch":"epoch-1","events":[{"sequence":251}]}', b"[" * 100_000]
)
async def test_what_is_no_document(redis: FakeRedis, ears: Ears, payload: bytes) -> None:
    """Section 7, foreign documents: anything that is none is counted and skipped, and the listener goes on."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        checks = redis.calls.count("position")
        for _ in range(3):
            redis.announce(payload)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])
        await eventually(lambda: ears.foreigners == 3)
        assert ears.restarts == []
        assert redis.calls.count("position") == checks


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(document(999), id="a far number"),
        pytest.param(document(251, epoch="forged"), id="another epoch"),
        pytest.param(document(epoch="forged"), id="a new epoch without events"),
        pytest.param(document(2**70), id="an enormous number"),
    ],
)
async def test_a_document_that_does_not_follow(redis: FakeRedis, ears: Ears, forged: bytes) -> None:
    """Section 7, foreign documents: one that Redis's own position does not explain is counted and skipped."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.announce(forged)
        await eventually(lambda: ears.foreigners == 1)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers[-1:] == [251])
        assert sink.outline == ["connected", "251"]
        assert (ears.refills, ears.losses, ears.restarts) == ([], [], [])


async def test_many_documents_one_check_at_a_time(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, foreign documents: one check is in flight, however many such documents come."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        transport = gated(broadcaster)
        checks = redis.calls.count("position")
        transport.before["position"].clear()
        for _ in range(500):
            redis.announce(document(999))
            await asyncio.sleep(0)
        assert transport.held["position"] == 1
        transport.before["position"].set()
        await eventually(lambda: ears.foreigners == 500)
        assert redis.calls.count("position") <= checks + 2


async def test_they_are_logged_once_a_minute(redis: FakeRedis, ears: Ears, caplog: pytest.LogCaptureFixture) -> None:
    """Section 7, foreign documents: the log has one line a minute at most."""
    async with replica(redis, HEARING, observer=ears):
        for count in range(1, 6):
            redis.announce(b"hello")
            redis.announce(document(999))
            await eventually(lambda count=count: ears.foreigners == 2 * count)
    assert len([record for record in caplog.records if "messages on the Redis channel" in record.message]) == 1


async def test_a_real_hole_is_not_foreign(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, foreign documents: what Redis's position explains is none, also where forged ones come along."""
    async with replica(redis, HEARING, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        unheard(redis, 3)
        redis.announce(document(999))
        fill(redis, 3)
        await sink.until(lambda: sink.numbers == list(range(251, 257)))
        await eventually(lambda: ears.foreigners == 1)


async def test_a_perfect_forgery(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, forks: a document with the right epoch and the very next number is found out at the next check."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.announce(document(251))
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        fill(redis, 2)
        await sink.until(lambda: sink.outline[-1] == "2")
        assert sink.outline == ["connected", "251", f"epoch {E2}", "1", "2"]
        assert broadcaster.sequence == 2


async def test_a_perfect_forgery_followed_by_the_real_one(redis: FakeRedis) -> None:
    """Section 7, forks: two events under one number cannot be; the numbering begins anew."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        redis.announce(document(251))
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        assert sink.numbers == [251]


# -- epochs


async def test_a_flush(redis: FakeRedis) -> None:
    """Section 7, epochs: after a flush a new epoch begins; its marker stands before its first event."""
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
    """Section 7, epochs: the position check itself finds it, and one new epoch is enough for all replicas."""
    async with replica(redis) as broadcaster, replica(redis) as other:
        sinks = [join(b)[1] for b in (broadcaster, other)]
        redis.flush()
        for sink in sinks:
            await sink.until(lambda sink=sink: sink.outline == ["connected", f"epoch {E2}"])
        await eventually(lambda: broadcaster.epoch == other.epoch == E2)


async def test_a_lagging_copy(redis: FakeRedis) -> None:
    """Section 7, forks: a Redis that comes back behind what was delivered begins a new epoch."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers[-1:] == [255])
        redis.rewind(252)
        await sink.until(lambda: sink.outline[-1] == f"epoch {E2}")
        fill(redis, 1)
        await sink.until(lambda: sink.outline[-1] == "1")


async def test_another_past(redis: FakeRedis) -> None:
    """Section 7, forks: nor are two events delivered under one number where Redis was ahead again with another past."""
    async with replica(redis, HEARING) as broadcaster:
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


async def test_a_position_overtaken_by_events(redis: FakeRedis) -> None:
    """Section 7, forks: a position that was read before newer events arrived does not look like a step back."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        transport = gated(broadcaster)
        transport.after["position"].clear()
        await eventually(lambda: transport.held["position"])
        fill(redis, 5)
        await sink.until(lambda: len(sink.numbers) == 5)
        transport.after["position"].set()
        checks = redis.calls.count("position")
        await eventually(lambda: redis.calls.count("position") >= checks + 2)
        assert sink.outline == ["connected", "251", "252", "253", "254", "255"]
        assert broadcaster.epoch == E1


async def test_two_new_epochs_in_a_row(redis: FakeRedis) -> None:
    """Section 7, epochs: a numbering that moves on while its predecessor is read is caught up with."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        transport = gated(broadcaster)
        transport.before["read"].clear()
        redis.flush()
        fill(redis, 3)
        await eventually(lambda: transport.held["read"])
        redis.flush()
        fill(redis, 2)
        transport.before["read"].set()
        await sink.until(lambda: sink.outline[-1] == "2")
        assert sink.outline == ["connected", f"epoch {E2}", f"epoch {E3}", "1", "2"]


async def test_no_refill_is_logged_where_none_was_needed(redis: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """Section 7, epochs: a new epoch without events is no refill in the log; one with events begins at 1."""
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


# -- circuit


async def test_failures_open_the_circuit(redis: FakeRedis, ears: Ears) -> None:
    """Section 8, circuit breaker: failed checks and subscriptions count, and the 5th in a row opens it."""
    async with replica(redis, replace(FAST, circuit_recovery_seconds=60.0), observer=ears) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        status = broadcaster.get_circuit_state()
        assert (status.state, status.failure_count) == (CircuitState.OPEN, 5)
        assert not broadcaster.is_listener_healthy()
        calls = len(redis.calls)
        await asyncio.sleep(5 * FAST.max_delay)
        assert len(redis.calls) == calls


async def test_a_trial_without_any_publisher(redis: FakeRedis, ears: Ears) -> None:
    """Section 8, what counts: the half-open trial is made by the listener's side, and it writes."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.down = True
        await eventually(lambda: ears.moves.count(CircuitState.HALF_OPEN) >= 2)
        assert set(ears.moves[1::2]) == {CircuitState.HALF_OPEN}
        assert set(ears.moves[::2]) == {CircuitState.OPEN}
        redis.down = False
        await eventually(lambda: not broadcaster.is_degraded())
        assert "probe" in redis.calls
        assert ears.moves[-2:] == [CircuitState.HALF_OPEN, CircuitState.CLOSED]
        await eventually(broadcaster.is_listener_healthy)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])


async def test_a_trial_in_time(redis: FakeRedis, ears: Ears) -> None:
    """Section 8, circuit breaker: however rarely positions are checked, the trial comes when the recovery is over."""
    config = replace(HEARING, circuit_recovery_seconds=0.2, base_delay=60.0, max_delay=60.0)
    async with replica(redis, config, observer=ears) as broadcaster:
        for _ in range(5):
            broadcaster._link.failed(TransportUnavailable("no connection"))
        await eventually(lambda: not broadcaster.is_degraded())
        # and neither does the pause after a failed check hold it up
        redis.fail()
        broadcaster.checks.request()
        await eventually(lambda: broadcaster.get_circuit_state().failure_count == 1)
        for _ in range(4):
            broadcaster._link.failed(TransportUnavailable("no connection"))
        await eventually(lambda: not broadcaster.is_degraded())
    assert ears.moves == [CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED] * 2


async def test_a_trial_that_may_not_write(redis: FakeRedis, ears: Ears) -> None:
    """Section 8, what counts: a Redis that answers but refuses writes does not close the circuit."""
    async with replica(redis, observer=ears) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        redis.read_only = True
        redis.down = False
        trials = redis.calls.count("probe")
        await eventually(lambda: redis.calls.count("probe") >= trials + 2)
        assert broadcaster.is_degraded()
        redis.read_only = False
        await eventually(lambda: not broadcaster.is_degraded())


async def test_reads_do_not_make_good_for_refused_writes(redis: FakeRedis) -> None:
    """Section 8, what counts: a successful position check does not reset a row of refused writes."""
    async with replica(redis) as broadcaster:
        for _ in range(4):
            broadcaster._link.failed(WriteRefused("READONLY"))
            checks = redis.calls.count("position")
            await eventually(lambda checks=checks: redis.calls.count("position") >= checks + 2)
        assert not broadcaster.is_degraded()
        broadcaster._link.failed(WriteRefused("READONLY"))
        assert broadcaster.is_degraded()
        await eventually(lambda: not broadcaster.is_degraded())


async def test_a_subscription_that_outlives_an_outage(redis: FakeRedis) -> None:
    """Section 8, leaving degraded: what an old subscription brings is delivered after clients were told of the end."""
    async with replica(redis, replace(FAST, circuit_recovery_seconds=0.3)) as broadcaster:
        _, sink = join(broadcaster)
        for _ in range(5):
            broadcaster._link.failed(TransportUnavailable("timed out"))
        fill(redis, 3)
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        assert sink.outline == ["connected", "degraded", "healthy", "251", "252", "253"]


async def test_only_writes_are_refused(redis: FakeRedis) -> None:
    """Section 8, degraded: where others may write and this replica may not, its clients hear them all the same."""
    async with replica(redis, replace(FAST, circuit_recovery_seconds=60.0)) as broadcaster:
        _, sink = join(broadcaster)
        for _ in range(5):
            broadcaster._link.failed(WriteRefused("NOPERM"))
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])
        assert broadcaster.is_degraded()


async def test_a_failure_after_the_trial(redis: FakeRedis, ears: Ears) -> None:
    """Section 8, circuit breaker: a read that fails after the trial succeeded is an ordinary failure, and retried."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        transport = gated(broadcaster)
        redis.down = True
        await eventually(broadcaster.is_degraded)
        unheard(redis, 3)
        transport.before["read"].clear()
        redis.down = False
        await eventually(lambda: transport.held["read"])
        assert not broadcaster.is_degraded()
        redis.fail()
        transport.before["read"].set()
        await sink.until(lambda: sink.numbers == [251, 252, 253])
        assert broadcaster.get_circuit_state().total_failures >= 6


async def test_a_failed_check_is_made_again_soon(redis: FakeRedis) -> None:
    """Section 8, retry: whoever waits for a check that failed does not wait for the next regular one."""
    async with replica(redis, HEARING) as broadcaster:
        redis.fail(2)
        async with asyncio.timeout(5):
            await broadcaster.checks.completed()
        assert redis.calls[-3:] == ["position"] * 3


async def test_whoever_gave_up_is_forgotten(redis: FakeRedis) -> None:
    """Section 9, bounded memory: those who waited for Redis and left do not pile up while it is away."""
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


# -- supervision


def tasks(broadcaster: EventBroadcaster) -> dict[str, asyncio.Task[None]]:
    """Return the listener's tasks by name."""
    return broadcaster._supervisor._tasks


@pytest.mark.parametrize("name", ["subscription", "position check"])
async def test_a_task_that_was_cancelled(redis: FakeRedis, ears: Ears, name: str) -> None:
    """Section 8, supervision: a listener task that ends, for whatever reason, is started again, and nothing is lost."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        tasks(broadcaster)[name].cancel()
        unheard(redis, 2)
        await sink.until(lambda: sink.numbers == [251, 252])
        await eventually(lambda: ears.restarts)
        assert ears.restarts == ["the task ended"]
        await eventually(broadcaster.is_listener_healthy)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251, 252, 253])


async def test_a_check_that_was_cancelled(redis: FakeRedis) -> None:
    """Section 8, supervision: whoever waited for that check gets the next one."""
    async with replica(redis, HEARING) as broadcaster:
        transport = gated(broadcaster)
        transport.before["position"].clear()
        waiting = asyncio.create_task(broadcaster.checks.completed())
        await eventually(lambda: transport.held["position"])
        tasks(broadcaster)["position check"].cancel()
        transport.before["position"].set()
        async with asyncio.timeout(5):
            await waiting


class Stubborn(GatedTransport):
    """Swallows the first cancellation of a check, as redis-py may on Python 3.11."""

    swallowed = False

    async def position(self, fence: Fence, *, probe: bool = False) -> Position:
        """As ever, but for that."""
        try:
            return await super().position(fence, probe=probe)
        except asyncio.CancelledError:
            if self.swallowed:
                raise
            self.swallowed = True
            return self.redis.place


async def test_a_cancellation_that_is_swallowed(redis: FakeRedis) -> None:
    """Section 9, drain: a listener that is stopped ends, even if the library in between swallows the first try."""
    transport = Stubborn(redis)
    async with replica(redis, HEARING, transport=transport) as broadcaster:
        transport.before["position"].clear()
        waiting = asyncio.create_task(broadcaster.checks.completed())
        await eventually(lambda: transport.held["position"])
        async with asyncio.timeout(10):
            await broadcaster.stop()
        assert transport.swallowed
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_a_trial_that_was_cancelled(redis: FakeRedis, ears: Ears) -> None:
    """Section 8, supervision: a trial that is cancelled does not leave the circuit half-open for ever."""
    async with replica(redis, observer=ears) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        transport = gated(broadcaster)
        transport.before["probe"].clear()
        await eventually(lambda: transport.held["probe"])
        tasks(broadcaster)["position check"].cancel()
        transport.before["probe"].set()
        redis.down = False
        await eventually(lambda: not broadcaster.is_degraded())


async def test_a_delivery_that_was_cancelled(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 8, supervision: a listener that is cancelled in the midst of a delivery leaves nobody behind."""
    monkeypatch.setattr(fanout, "_WRITES", 1)
    async with replica(redis) as broadcaster:
        sinks = [join(broadcaster)[1] for _ in range(30)]
        fill(redis, 50)
        await turns_until(lambda: sinks[5].numbers)
        assert not sinks[-1].numbers
        tasks(broadcaster)["subscription"].cancel()
        for sink in sinks:
            await sink.until(lambda sink=sink: sink.numbers == list(range(251, 301)))


async def test_an_unexpected_error(redis: FakeRedis, ears: Ears, caplog: pytest.LogCaptureFixture) -> None:
    """Section 8, listener: an error that nobody thought of is logged, and the subscription is made anew."""

    class BrokenTransport(GatedTransport):
        broken = False

        def listen(self, idle: float) -> AsyncIterator[Any]:  # type: ignore[override]
            if self.broken:
                self.broken = False
                raise ZeroDivisionError
            return super().listen(idle)

    transport = BrokenTransport(redis)
    async with replica(redis, observer=ears, transport=transport) as broadcaster:
        _, sink = join(broadcaster)
        transport.broken = True
        redis.hang_up()
        await eventually(lambda: len(ears.restarts) == 2)
        assert ears.restarts == ["fake: subscription lost", "unexpected error"]
        assert "ZeroDivisionError" in caplog.text
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251])


async def test_an_unexpected_error_in_a_check(redis: FakeRedis, ears: Ears, caplog: pytest.LogCaptureFixture) -> None:
    """Section 8, supervision: the check is started again too, in its own time and not in a storm."""

    class BrokenTransport(GatedTransport):
        broken = 0

        async def position(self, fence: Any, *, probe: bool = False) -> Position:
            if self.broken:
                self.broken -= 1
                raise ZeroDivisionError
            return await super().position(fence, probe=probe)

    transport = BrokenTransport(redis)
    config = replace(FAST, base_delay=0.1, max_delay=0.1)
    async with replica(redis, config, observer=ears, transport=transport) as broadcaster:
        _, sink = join(broadcaster)
        begun = asyncio.get_running_loop().time()
        transport.broken = 3
        unheard(redis, 1)
        await sink.until(lambda: sink.numbers == [251])
        assert ears.restarts == ["the task ended"] * 3
        assert asyncio.get_running_loop().time() - begun >= 3 * config.base_delay
        await eventually(lambda: "ZeroDivisionError" in caplog.text)


async def test_supervision_compares_positions(redis: FakeRedis) -> None:
    """Section 8, supervision: now and then it asks by itself whether the position is the one in Redis."""
    config = replace(FAST, position_check_seconds=60.0, supervision_interval_seconds=0.05)
    async with replica(redis, config) as broadcaster:
        _, sink = join(broadcaster)
        unheard(redis, 2)
        await sink.until(lambda: sink.numbers == [251, 252])


async def test_going_quiet(redis: FakeRedis) -> None:
    """Section 10, health: a listener whose last check is too long ago is not called healthy."""
    async with replica(redis) as broadcaster:
        assert broadcaster.is_listener_healthy()
        gated(broadcaster).before["position"].clear()
        await eventually(lambda: not broadcaster.is_listener_healthy())
        gated(broadcaster).before["position"].set()
        await eventually(broadcaster.is_listener_healthy)


async def test_subscription_failures_back_off(redis: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """Section 8, listener: it restarts with the publishers' back-off; a handled message resets the attempts."""
    config = replace(HEARING, base_delay=0.04, max_delay=0.1, circuit_failure_threshold=100)
    async with replica(redis, config) as broadcaster:
        _, sink = join(broadcaster)
        for number in (251, 252):
            for _ in range(3):
                redis.hang_up()
                await eventually(lambda: not broadcaster._subscription.subscribed.is_set())
                await eventually(broadcaster._subscription.subscribed.is_set)
            fill(redis, 1)
            await sink.until(lambda number=number: sink.numbers[-1:] == [number])
    delays = [record.args[0] for record in caplog.records if record.message.startswith("subscribing again")]
    for delay, base in zip(delays, [0.04, 0.08, 0.1] * 2, strict=True):
        assert base * 1.1 <= delay <= base * 1.3


async def test_the_trial_waits_for_its_time(redis: FakeRedis) -> None:
    """Section 8, circuit breaker: a trial that is not due yet is not made, even if the clocks disagree."""
    async with replica(redis) as broadcaster:
        redis.down = True
        await eventually(broadcaster.is_degraded)
        link = broadcaster._link
        clock, link._clock = link._clock, lambda: clock() - 0.01
        trials = redis.calls.count("probe")
        await eventually(lambda: redis.calls.count("probe") >= trials + 2)


async def test_a_deaf_subscription_is_made_anew(redis: FakeRedis, ears: Ears) -> None:
    """Section 7, delivery: a subscription that is alive but deaf is found by the positions, and made anew."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.deaf = True
        # the first check of a subscription only notes where it began, so one event may be too early to be missed
        for number in (251, 252):
            fill(redis, 1)
            await sink.until(lambda number=number: sink.numbers[-1:] == [number])
        await eventually(lambda: "the subscription received nothing while events were published" in ears.restarts)
        redis.deaf = False
        await eventually(broadcaster.is_listener_healthy)
        fill(redis, 1)
        await sink.until(lambda: sink.numbers == [251, 252, 253])
