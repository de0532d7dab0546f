"""The observer that creates spans: publishes and their retries, and nothing for what is not sampled."""

import asyncio
import time
from contextlib import suppress
from contextvars import copy_context

import pytest
from msgspec.structs import replace
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from kernel import CircuitOpen, PublishOptions
from kernel.observer import Failed, Published, Publishing, Retried, TraceContext
from kernel.position import Position
from tests.fakes import FakeRedis
from tests.kernel.replicas import RARE_CHECKS, join, replica
from tests.telemetry.conftest import DATA, SERVER, Watch, attempt, header, parent, value
from tests.waiting import eventually


async def test_a_published_batch(watch: Watch) -> None:
    """The publish of a batch has its first and last number, its epoch, and each of its types once."""
    types = ["b", "a", "b"]
    with watch.tracing.publishing(Publishing(types, TraceContext(), "id-1")):
        first = Position(epoch="e", sequence=41)
        watch.tracing.published(Published(types, first, subscribers=1, replayed=False, retries=0, seconds=0.1))
    (span,) = watch.spans
    assert span.name == "publish batch"
    assert (value(span, "sequence"), value(span, "last"), value(span, "epoch")) == (41, 43, "e")
    assert value(span, "types") == ("a", "b")
    assert "messaging.message.id" not in (span.attributes or {})


@pytest.mark.parametrize("repeated", [False, True])
def test_a_single_publish(watch: Watch, repeated: bool) -> None:
    """A publish has the id of its event and the address of Redis; a repeated one has no id of its own."""
    with watch.tracing.publishing(Publishing(["event"], TraceContext(), "id-1")):
        first = Position(epoch="e", sequence=41)
        watch.tracing.published(Published(["event"], first, 1, replayed=repeated, retries=0, seconds=0.1))
    (span,) = watch.spans
    assert span.name == "publish event"
    attributes = span.attributes or {}
    assert attributes.get("messaging.message.id") == (None if repeated else "id-1")
    assert {name: attributes[name] for name in SERVER} == SERVER
    assert "event_broadcaster.waited_seconds" not in attributes


@pytest.mark.parametrize("fails", [False, True])
def test_the_wait_for_calls(watch: Watch, fails: bool) -> None:
    """A publish has the seconds for which its attempts waited for the calls before, rounded to microseconds."""
    with watch.tracing.publishing(Publishing(["event"], TraceContext(), "id-1")):
        for seconds in (0.25, 0.1000004):
            assert watch.tracing.sharing([copy_context()], [seconds])
        if fails:
            watch.tracing.failed(Failed(["event"], "TransportUnavailable", 1, None, 0.5))
        else:
            watch.tracing.published(Published(["event"], Position("e", 1), 1, replayed=False, retries=1, seconds=0.5))
    (span,) = watch.spans
    assert value(span, "waited_seconds") == 0.35


def test_a_wait_for_the_loop_alone(watch: Watch) -> None:
    """A publish that was sent within a millisecond has not waited."""
    with watch.tracing.publishing(Publishing(["event"], TraceContext(), "id-1")):
        assert watch.tracing.sharing([copy_context()], [0.0009])
        watch.tracing.published(Published(["event"], Position("e", 1), 1, replayed=False, retries=0, seconds=0.1))
    (span,) = watch.spans
    assert "event_broadcaster.waited_seconds" not in (span.attributes or {})


def test_a_timer_that_fires_early(watch: Watch) -> None:
    """A retry ends before the next attempt is sent, even if that is sooner than the retry was due."""
    with watch.tracing.publishing(Publishing(["event"], TraceContext(), "id-1")):
        watch.tracing.retried(Retried(["event"], 1, 60.0, "TransportUnavailable"))
        watch.tracing.sharing([copy_context()], [0.0])
        sent_at = time.time_ns()
    (retry,) = watch.named("retry event")
    assert retry.end_time is not None
    assert retry.end_time <= sent_at


async def test_retries(redis: FakeRedis, watch: Watch) -> None:
    """A retry is a span until the next attempt is due; a publish that succeeds after retries is no error."""
    config = replace(RARE_CHECKS, max_retries=2, base_delay=0.02)
    async with replica(redis, config, observer=watch.tracing) as broadcaster:
        redis.fail(2)
        await attempt(broadcaster)
    (publish,) = watch.named("publish scene_change")
    first, second = watch.named("retry scene_change")
    assert publish.status.status_code is StatusCode.UNSET
    assert parent(publish) == header(7)
    assert value(publish, "retries") == 2
    assert [value(span, "attempt") for span in (first, second)] == [1, 2]
    assert first.parent == second.parent == publish.context
    for span in (first, second):
        assert span.start_time is not None
        assert span.end_time is not None
        delay = value(span, "delay_seconds")
        assert isinstance(delay, float)
        assert delay == round(delay, 6)
        assert delay - 0.01 <= (span.end_time - span.start_time) / 1e9 < delay + 1
        assert value(span, "cause") == "TransportUnavailable"
        assert "error.type" not in (span.attributes or {})
    assert first.end_time is not None
    assert second.start_time is not None
    assert first.end_time <= second.start_time


async def test_a_failure(redis: FakeRedis, watch: Watch) -> None:
    """The span of a failed publish is an error with its retries and the class of its cause as `error.type`."""
    async with replica(redis, RARE_CHECKS, observer=watch.tracing) as broadcaster:
        redis.fail(2)
        await attempt(broadcaster)
    (publish,) = watch.named("publish scene_change")
    assert publish.status.status_code is StatusCode.ERROR
    assert (publish.attributes or {})["error.type"] == "TransportUnavailable"
    assert len(watch.named("retry scene_change")) == 1
    assert value(publish, "retries") == 1
    assert value(publish, "id")
    assert "event_broadcaster.refused" not in (publish.attributes or {})


async def test_a_failure_because_the_circuit_opened(redis: FakeRedis, watch: Watch) -> None:
    """If the last attempt was not made, the span says why; a publish that is refused at once has no retries."""
    config = replace(RARE_CHECKS, circuit_failure_threshold=1, circuit_recovery_seconds=60.0)
    async with replica(redis, config, observer=watch.tracing) as broadcaster:
        redis.fail()
        await attempt(broadcaster)
        with suppress(CircuitOpen):
            await attempt(broadcaster)
    tried, refused = watch.named("publish scene_change")
    assert [value(span, "refused") for span in (tried, refused)] == ["circuit open"] * 2
    assert [(span.attributes or {})["error.type"] for span in (tried, refused)] == [
        "TransportUnavailable",
        "CircuitOpen",
    ]
    assert value(tried, "retries") == 1
    assert "event_broadcaster.retries" not in (refused.attributes or {})


async def test_a_publish_that_is_given_up(redis: FakeRedis, watch: Watch) -> None:
    """A publish that is cancelled while it waits for a retry ends its spans at once."""
    config = replace(RARE_CHECKS, base_delay=60.0, max_delay=60.0)
    async with replica(redis, config, observer=watch.tracing) as broadcaster:
        redis.fail()
        publishing = asyncio.create_task(attempt(broadcaster))
        await eventually(lambda: broadcaster.counters.retries == 1)
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing
    (publish,), (retry,) = watch.named("publish scene_change"), watch.named("retry scene_change")
    assert (publish.attributes or {})["error.type"] == "CancelledError"
    assert publish.end_time is not None
    assert retry.end_time is not None
    assert retry.end_time <= publish.end_time


async def test_unsampled_publishes(redis: FakeRedis, unsampled: Watch) -> None:
    """An event that is not sampled gets no span, and carries its producer's context, or none."""
    async with replica(redis, RARE_CHECKS, observer=unsampled.tracing) as broadcaster:
        _, sink = join(broadcaster)
        for options in (None, PublishOptions(traceparent=header(7, sampled=False))):
            await broadcaster.broadcast_scene_change(DATA, options=options)
        redis.fail()
        await broadcaster.broadcast_scene_change(DATA)
        await eventually(lambda: broadcaster.sequence == 3)
        await attempt(broadcaster)
        await eventually(lambda: len(sink.messages) == 5)
    plain, theirs, retried, sampled = sink.messages[1:]
    assert "traceparent" not in plain
    assert "traceparent" not in retried
    assert theirs["traceparent"] == header(7, sampled=False)
    # the event may be delivered before the answer to its publish arrives
    deliver, publish = sorted(unsampled.spans, key=lambda span: span.name)
    assert (publish.name, deliver.name) == ("publish scene_change", "deliver scene_change")
    assert parent(publish) == header(7)
    assert deliver.parent is not None
    assert sampled["traceparent"] == parent(deliver)


async def test_all_three_headers(watch: Watch) -> None:
    """The events of a sampled publish carry its span as traceparent, and tracestate and baggage as given."""
    theirs = TraceContext(header(7), "vendor=1,other=2", "site=north")
    with watch.tracing.publishing(Publishing(["event"], theirs, "id-1")) as carried:
        pass
    (publish,) = watch.spans
    assert publish.context is not None
    own = f"00-{format_trace_id(publish.context.trace_id)}-{format_span_id(publish.context.span_id)}-01"
    assert carried == (own, "vendor=1,other=2", "site=north")
