"""The observer that creates spans: which spans there are, and that nothing is created for what is not sampled."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from kernel import BroadcastFailed, EventBroadcaster, PublishOptions, SceneChangeData
from kernel.log.transport import Outgoing
from kernel.observer import Published, Publishing, TraceContext
from kernel.position import NOWHERE, Fence, Position
from tests.fakes import FakeRedis
from tests.kernel.replicas import RARE_CHECKS, PausableTransport, join, replica, resync
from tests.telemetry.conftest import Watch
from tests.waiting import eventually

DATA = SceneChangeData(id=1, camera_id="door", detected_at="now", change_type="unknown", similarity_score=0.5)


def header(number: int, *, sampled: bool = True) -> str:
    """Return a producer's traceparent with that number as its trace id."""
    return f"00-{number:032x}-{number:016x}-0{int(sampled)}"


def put(redis: FakeRedis, traceparents: Sequence[str | None], at: float = 1.0) -> None:
    """Publish an event for each traceparent, as another replica would."""
    for number, traceparent in enumerate(traceparents):
        id = f"{redis.place.sequence}-{number}"
        context = f',"traceparent":"{traceparent}"' if traceparent is not None else ""
        tail = f',"id":"{id}","type":"scene_change","published_at":{at}{context},"data":{{}}}}'
        redis.run(Fence(NOWHERE, ""), Outgoing(id, None, [(id, tail.encode())]))


async def hear(watch: Watch, traceparents: Sequence[str | None], at: float = 1.0) -> list[ReadableSpan]:
    """Deliver these events as one batch to a replica with two clients, and return its deliver spans."""
    redis = FakeRedis()
    async with replica(redis, RARE_CHECKS, observer=watch.tracing) as broadcaster:
        clients = [join(broadcaster) for _ in range(2)]
        redis.hold()
        put(redis, traceparents, at)
        redis.release()
        await eventually(lambda: broadcaster.sequence == len(traceparents))
        await eventually(lambda: broadcaster.counters.batches == 1)
        assert all(len(sink.messages) == 1 + len(traceparents) for _, sink in clients)
    return watch.named("deliver c")


def links(span: ReadableSpan) -> list[str]:
    """Return the links of a span as traceparents."""
    contexts = [link.context for link in span.links]
    return [f"00-{format_trace_id(c.trace_id)}-{format_span_id(c.span_id)}-{c.trace_flags:02x}" for c in contexts]


def parent(span: ReadableSpan) -> str:
    """Return the parent of a span as a traceparent."""
    context = span.parent
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def value(span: ReadableSpan, name: str) -> object:
    """Return an attribute by the last part of its name."""
    (found,) = [v for k, v in (span.attributes or {}).items() if k.rpartition(".")[2] == name]
    return found


async def test_a_small_batch(watch: Watch) -> None:
    """Up to 16 sampled events of a batch get a span each, in their own traces."""
    headers = [header(number) for number in range(1, 17)]
    spans = await hear(watch, [*headers, None, header(99, sampled=False)])
    assert [parent(span) for span in spans] == headers
    assert [links(span) for span in spans] == [[each] for each in headers]
    assert [value(span, "sequence") for span in spans] == list(range(1, 17))
    assert {value(span, "recipients") for span in spans} == {2}
    assert not any("messaging.batch.message_count" in (span.attributes or {}) for span in spans)


async def test_a_large_batch(watch: Watch) -> None:
    """More than 16 sampled events get one span for the batch, with a link for each publish."""
    headers = [header(number) for number in range(1, 18)]
    (span,) = await hear(watch, [None, *headers])
    assert parent(span) == headers[0]
    assert links(span) == headers
    assert value(span, "message_count") == 18
    assert value(span, "recipients") == 2 * 18
    assert (value(span, "sequence"), value(span, "last")) == (1, 18)
    assert value(span, "epoch")
    assert value(span, "types") == ("scene_change",)


async def test_a_published_batch(watch: Watch) -> None:
    """The publish of a batch has its first and last number, its epoch, and each of its types once."""
    types = ["b", "a", "b"]
    with watch.tracing.publishing(Publishing(types, TraceContext())):
        first = Position(epoch="e", sequence=41)
        watch.tracing.published(Published(types, first, subscribers=1, replayed=False, retries=0, seconds=0.1))
    (span,) = watch.spans
    assert (value(span, "sequence"), value(span, "last"), value(span, "epoch")) == (41, 43, "e")
    assert value(span, "types") == ("a", "b")


async def test_a_huge_batch(watch: Watch) -> None:
    """The span of a batch has at most 128 links."""
    headers = [header(number) for number in range(1, 201)]
    (span,) = await hear(watch, headers)
    assert links(span) == headers[:128]
    assert value(span, "message_count") == 200


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        header(1, sampled=False),
        "",
        "00-0-0-01",
        f"00-{0:032x}-{1:016x}-01",
        f"00-{1:032x}-{0:016x}-01",
        "x" * 10_000,
        header(1) + "-more",
    ],
)
async def test_what_is_not_sampled(watch: Watch, traceparent: str | None) -> None:
    """An event without a sampled, valid trace context gets no span."""
    assert await hear(watch, [traceparent]) == []


async def test_a_clock_ahead(watch: Watch) -> None:
    """The time in the queue is 0, not negative, if the publisher's clock is ahead."""
    (span,) = await hear(watch, [header(1)], at=4e9)
    assert value(span, "queued") == 0.0


@pytest.fixture
def redis() -> FakeRedis:
    """Return a fake Redis for this test."""
    return FakeRedis()


async def attempt(broadcaster: EventBroadcaster) -> None:
    """Publish an event with a sampled traceparent; a failure is ignored."""
    with suppress(BroadcastFailed):
        await broadcaster.broadcast_scene_change(DATA, options=PublishOptions(traceparent=header(7)))


async def test_retries(redis: FakeRedis, watch: Watch) -> None:
    """A retry is a span until the next attempt is due; a publish that succeeds after retries is no error."""
    config = replace(RARE_CHECKS, max_retries=2, base_delay=0.02)
    async with replica(redis, config, observer=watch.tracing) as broadcaster:
        redis.fail(2)
        await attempt(broadcaster)
    (publish,) = watch.named("publish c")
    first, second = watch.named("retry c")
    assert publish.status.status_code is StatusCode.UNSET
    assert parent(publish) == header(7)
    assert value(publish, "retries") == 2
    assert [value(span, "attempt") for span in (first, second)] == [1, 2]
    assert first.parent == second.parent == publish.context
    for span in (first, second):
        assert span.start_time is not None
        assert span.end_time is not None
        delay = value(span, "delay")
        assert isinstance(delay, float)
        assert delay - 0.01 <= (span.end_time - span.start_time) / 1e9 < delay + 1
        assert value(span, "type") == "TransportUnavailable"
    assert first.end_time is not None
    assert second.start_time is not None
    assert first.end_time <= second.start_time


async def test_a_failure(redis: FakeRedis, watch: Watch) -> None:
    """The span of a failed publish is an error with the class of its cause as `error.type`."""
    async with replica(redis, RARE_CHECKS, observer=watch.tracing) as broadcaster:
        redis.fail(2)
        await attempt(broadcaster)
    (publish,) = watch.named("publish c")
    assert publish.status.status_code is StatusCode.ERROR
    assert (publish.attributes or {})["error.type"] == "TransportUnavailable"
    assert len(watch.named("retry c")) == 1


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
    (publish,), (retry,) = watch.named("publish c"), watch.named("retry c")
    assert (publish.attributes or {})["error.type"] == "CancelledError"
    assert publish.end_time is not None
    assert retry.end_time is not None
    assert retry.end_time <= publish.end_time


async def test_the_circuit(redis: FakeRedis, watch: Watch) -> None:
    """A transition of the circuit has a span, linked to the publish that caused it, if one did."""
    config = replace(RARE_CHECKS, circuit_failure_threshold=2, circuit_recovery_seconds=0.02)
    async with replica(redis, config, observer=watch.tracing) as broadcaster:
        redis.fail(2)
        await attempt(broadcaster)
        # A resync from a position beyond the log makes the listener check the position in Redis.
        client, _ = join(broadcaster)
        resync(broadcaster, client, last_sequence=9)
        await eventually(lambda: not broadcaster.is_degraded())
    (publish,) = watch.named("publish c")
    (opened,) = watch.named("circuit closed -> open")
    (tried,), (closed,) = watch.named("circuit open -> half_open"), watch.named("circuit half_open -> closed")
    assert [link.context for link in opened.links] == [publish.context]
    assert value(opened, "failure_count") == 2
    assert value(opened, "reason") == "fake: no connection"
    assert (tried.links, closed.links) == ((), ())
    assert opened.parent is tried.parent is closed.parent is None


async def test_the_circuit_by_itself(redis: FakeRedis, watch: Watch) -> None:
    """If Redis is unreachable at the start, the circuit's span has no link, as no publish caused it."""
    redis.down = True
    config = replace(RARE_CHECKS, circuit_recovery_seconds=60.0)
    transport = PausableTransport(redis)
    async with replica(redis, config, observer=watch.tracing, transport=transport, without_redis=True):
        (opened,) = watch.named("circuit closed -> open")
    assert opened.links == ()


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
    assert (publish.name, deliver.name) == ("publish c", "deliver c")
    assert parent(publish) == header(7)
    assert deliver.parent is not None
    assert sampled["traceparent"] == parent(deliver)


async def test_all_three_headers(watch: Watch) -> None:
    """The events of a sampled publish carry its span as traceparent, and tracestate and baggage as given."""
    theirs = TraceContext(header(7), "vendor=1,other=2", "site=north")
    with watch.tracing.publishing(Publishing(["event"], theirs)) as carried:
        pass
    (publish,) = watch.spans
    assert publish.context is not None
    own = f"00-{format_trace_id(publish.context.trace_id)}-{format_span_id(publish.context.span_id)}-01"
    assert carried == (own, "vendor=1,other=2", "site=north")
