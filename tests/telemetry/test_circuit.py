"""The spans of the circuit breaker for Redis: one for each outage, and one for each transition."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from kernel import EventBroadcaster
from kernel.observer import CircuitMoved
from tests.fakes import FakeRedis
from tests.kernel.replicas import RARE_CHECKS, PausableTransport, join, replica, resync
from tests.telemetry.conftest import Watch, attempt, value
from tests.waiting import eventually

FLAPPING = replace(RARE_CHECKS, circuit_failure_threshold=2, circuit_recovery_seconds=0.02)


def trials(span: ReadableSpan) -> list[tuple[str, bool, str]]:
    """Return the name, the success and the reason of each event of a span."""
    return [
        (event.name, *((event.attributes or {})[f"event_broadcaster.{name}"] for name in ("succeeded", "reason")))  # type: ignore[misc]
        for event in span.events
    ]


def check(broadcaster: EventBroadcaster) -> None:
    """Make the listener check the position in Redis, by a resync from a position beyond the log."""
    client, _ = join(broadcaster)
    resync(broadcaster, client, last_sequence=9)


async def test_an_outage(redis: FakeRedis, watch: Watch) -> None:
    """An outage is an error from opening to closing, with an event for each trial; its transitions are children.

    If a publish caused it, the outage and its first transition are linked to that publish.
    """
    async with replica(redis, FLAPPING, observer=watch.tracing) as broadcaster:
        redis.fail(3)
        await attempt(broadcaster)
        assert watch.named("circuit open") == []
        (opened,) = watch.named("circuit closed -> open")
        check(broadcaster)
        await eventually(lambda: not broadcaster.is_degraded())
    (publish,), (outage,) = watch.named("publish scene_change"), watch.named("circuit open")
    assert outage.parent is None
    assert outage.status.status_code is StatusCode.ERROR
    assert trials(outage) == [("trial", False, "fake: no connection"), ("trial", True, "trial succeeded")]
    transitions = sorted((span for span in watch.spans if " -> " in span.name), key=lambda span: span.start_time or 0)
    assert [span.name.removeprefix("circuit ") for span in transitions] == [
        "closed -> open",
        "open -> half_open",
        "half_open -> open",
        "open -> half_open",
        "half_open -> closed",
    ]
    assert [span.parent for span in transitions] == [outage.context] * 5
    for span in (outage, opened):
        assert [link.context for link in span.links] == [publish.context]
        assert (value(span, "failure_count"), value(span, "reason")) == (2, "fake: no connection")
    assert [span.links for span in transitions[1:]] == [()] * 4
    assert "event_broadcaster.unfinished" not in (outage.attributes or {})
    first, last = opened.start_time, transitions[-1].end_time
    assert first is not None
    assert last is not None
    assert outage.start_time is not None
    assert outage.end_time is not None
    assert outage.start_time <= first < last <= outage.end_time


async def test_two_outages(redis: FakeRedis, watch: Watch) -> None:
    """Each outage is a trace of its own."""
    async with replica(redis, FLAPPING, observer=watch.tracing) as broadcaster:
        for _ in range(2):
            redis.fail(2)
            await attempt(broadcaster)
            check(broadcaster)
            await eventually(lambda: not broadcaster.is_degraded())
    traces = [span.context.trace_id for span in watch.named("circuit open") if span.context]
    assert len(set(traces)) == 2
    assert [span.context.trace_id for span in watch.named("circuit half_open -> closed") if span.context] == traces


async def test_an_outage_at_the_start(redis: FakeRedis, watch: Watch) -> None:
    """If Redis is unreachable at the start, the outage has no link, as no publish caused it."""
    redis.down = True
    config = replace(RARE_CHECKS, circuit_recovery_seconds=60.0)
    transport = PausableTransport(redis)
    async with replica(redis, config, observer=watch.tracing, transport=transport, without_redis=True):
        (opened,) = watch.named("circuit closed -> open")
    assert opened.links == ()
    assert watch.named("circuit open") == []


@pytest.mark.parametrize("moves", [["open"], ["open", "half_open"]])
def test_an_outage_that_is_not_over(watch: Watch, moves: Sequence[str]) -> None:
    """If the service stops during an outage, the span ends and is marked as unfinished, once."""
    before = "closed"
    for after in moves:
        watch.tracing.circuit_moved(CircuitMoved(before, after, "down", 5))
        before = after
    for _ in range(2):
        watch.tracing.stop()
    (outage,) = watch.named("circuit open")
    assert value(outage, "unfinished") is True
    assert outage.status.status_code is StatusCode.ERROR
    # started again, the service reaches Redis: that belongs to no outage
    watch.tracing.circuit_moved(CircuitMoved(before, "closed", "connected", 5))
    (closed,) = watch.named(f"circuit {before} -> closed")
    assert closed.parent is None
    assert len(watch.named("circuit open")) == 1


def test_a_trial_that_is_abandoned(watch: Watch) -> None:
    """A trial without an outcome is an event too."""
    for before, after, reason in (
        ("closed", "open", "down"),
        ("open", "half_open", "recovery time is over"),
        ("half_open", "open", "trial abandoned"),
        ("open", "closed", "connected"),
    ):
        watch.tracing.circuit_moved(CircuitMoved(before, after, reason, 5))
    (outage,) = watch.named("circuit open")
    assert trials(outage) == [("trial", False, "trial abandoned")]
