"""The counters of one replica: each changes when its cause occurs."""

import pytest
from msgspec.structs import replace

from kernel.counters import OTHER, Counters, Exemplar, Histogram
from kernel.observer import Delivered, DeliveredEvent, Published, TraceContext, Written
from kernel.position import Position
from tests.fakes import FakeRedis
from tests.kernel.replicas import RARE_CHECKS, fill, replica
from tests.kernel.test_observer import DETAILS, HERE
from tests.virtual_time import eventually


@pytest.fixture
def counters() -> Counters:
    """Return counters that are all 0."""
    return Counters()


def published(*types: str, replayed: bool = False) -> Published:
    """A publish of these types that took a quarter of a second."""
    return Published(list(types), HERE, 2, replayed, 0, 0.25)


def test_publishes(counters: Counters) -> None:
    """Published and failed events are counted by type; a repetition under a key counts as none, but its time does."""
    counters.published(published("event", "event", "alert_created"))
    counters.published(published("event", replayed=True))
    counters.published(published("of tomorrow"))
    counters.failed(DETAILS["failed"])  # type: ignore[arg-type]
    assert {k: n for k, n in counters.published_events.items() if n} == {"event": 2, "alert_created": 1, OTHER: 1}
    assert {k: n for k, n in counters.failed_events.items() if n} == {"event": 1}
    assert sum(counters.publish_duration.counts) == 4
    assert counters.publish_duration.sum == pytest.approx(0.85)
    counters.retried(DETAILS["retried"])  # type: ignore[arg-type]
    assert counters.retries == 1


def test_deliveries(counters: Counters) -> None:
    """Deliveries count batches, messages to all clients, bytes saved, acks wanted, and the lag of each event."""
    lags = [(1.0, 1), (-1.5, 1), (0.5, 1)]
    counters.delivered(Delivered(HERE, Position("e", 6), 99.9, 100.5, 4, Written(41, 10, 7), lags, []))
    counters.caught_up(Written(2, 1, 3))
    assert (counters.batches, counters.deliveries, counters.acks_wanted, counters.saved_bytes) == (1, 43, 11, 10)
    assert sum(counters.delivery_lag.counts) == 3
    # a clock of another replica that is ahead gives a lag of 0, not a negative one
    assert counters.delivery_lag.sum == pytest.approx(1.0 + 0.0 + 0.5)
    assert counters.fanout_duration.sum == pytest.approx(0.6)


def test_exemplars() -> None:
    """Followed publishes and deliveries are exemplars of their buckets; a newer one replaces an older one."""
    counters = Counters(lambda: 7.0)
    counters.published(Published(["event"], HERE, 2, False, 0, 0.25))
    assert counters.publish_duration.exemplars == {}
    counters.published(Published(["event"], HERE, 2, False, 0, 0.25, "older"))
    counters.published(Published(["event"], HERE, 2, False, 0, 0.2, "newer"))
    counters.failed(replace(DETAILS["failed"], seconds=60.0, traceparent="slow"))  # type: ignore[type-var]
    bucket, last = counters.publish_duration.bounds.index(0.25), len(counters.publish_duration.bounds)
    assert counters.publish_duration.exemplars == {bucket: Exemplar(0.2, "newer", 7.0), last: Exemplar(60, "slow", 7.0)}

    events = [(None, "unstamped"), (98.0, None), (99.0, "first"), (99.2, "second"), (100.5, "ahead")]
    followed = [DeliveredEvent(HERE, "id", "event", TraceContext(trace), at, 100.0, 1) for at, trace in events]
    counters.delivered(Delivered(HERE, HERE, 99.9, 100.5, 5, Written(5, 0, 0), [(1.0, 5)], followed))
    exemplars = counters.delivery_lag.exemplars
    assert exemplars.keys() == {0, counters.delivery_lag.bounds.index(1.0)}
    assert exemplars.pop(0) == Exemplar(0.0, "ahead", 100.0)
    (lag,) = exemplars.values()
    assert lag == Exemplar(pytest.approx(0.8), "second", 100.0)


def test_the_rest(counters: Counters) -> None:
    """Replays by source and verdict, gaps, refills, slow clients, acks and foreign messages are counted."""
    for hook in ("replayed", "refilled", "lost", "renumbered", "listener_restarted", "acknowledged"):
        getattr(counters, hook)(DETAILS[hook])
    counters.foreign(3)
    counters.left(2)
    counters.slowed()
    assert {k: n for k, n in counters.replays.items() if n} == {("memory", "recovered"): 1}
    assert (counters.refills, counters.gaps, counters.listener_restarts, counters.acks) == (1, 1, 1, 1)
    assert counters.epoch_changes == 1
    assert (counters.foreign_documents, counters.unacknowledged_at_close, counters.slow_clients) == (3, 2, 1)
    assert sum(counters.acknowledge_duration.counts) == 0


@pytest.mark.parametrize(("code", "label"), [(1000, "1000"), (4008, "4008"), (3999, OTHER), (0, OTHER)])
def test_close_codes(counters: Counters, code: int, label: str) -> None:
    """Closes are counted by code, and codes that a client makes up do not make the table grow."""
    size = len(counters.closes)
    counters.closed(code)
    assert counters.closes[label] == 1
    assert len(counters.closes) == size


def test_histogram() -> None:
    """A value counts in the first bucket that it fits into, the bound included; what fits none is in the last."""
    histogram = Histogram((1.0, 2.0))
    for value in (-1.0, 0.5, 1.0, 1.5, 2.5):
        histogram.observe(value)
    assert histogram.counts == [3, 1, 1]
    assert histogram.sum == pytest.approx(5.5)


async def test_a_replica_knows_how_much_is_kept() -> None:
    """The depth of the history is that of the last position check."""
    redis = FakeRedis()
    fill(redis, 7)
    async with replica(redis, RARE_CHECKS) as broadcaster:
        assert broadcaster.history_depth == 7


async def test_a_new_epoch_is_counted() -> None:
    """A new epoch is counted once by every replica."""
    redis = FakeRedis()
    fill(redis, 7)
    async with replica(redis) as one, replica(redis) as other:
        redis.flush()
        await eventually(lambda: one.epoch == other.epoch == redis.place.epoch and one.sequence == 0)
        await eventually(lambda: (one.counters.epoch_changes, other.counters.epoch_changes) == (1, 1))
