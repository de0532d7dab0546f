"""The spans of deliveries: one for each sampled event, or one for a batch, and none for what is not sampled."""

import time
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from kernel.log.transport import Outgoing
from kernel.position import NOWHERE, Fence
from tests.fakes import FakeRedis
from tests.kernel.replicas import RARE_CHECKS, join, replica
from tests.telemetry.conftest import Watch, header, links, parent, value
from tests.waiting import eventually


def put(redis: FakeRedis, traceparents: Sequence[str | None], at: float = 1.0, wire_type: str = "scene_change") -> None:
    """Publish an event of that type for each traceparent, as another replica would."""
    for number, traceparent in enumerate(traceparents):
        id = f"{redis.place.sequence}-{number}"
        context = f',"traceparent":"{traceparent}"' if traceparent is not None else ""
        tail = f',"id":"{id}","type":"{wire_type}","published_at":{at}{context},"data":{{}}}}'
        redis.run(Fence(NOWHERE, ""), Outgoing(id, None, [(id, tail.encode())]))


async def hear(
    watch: Watch, traceparents: Sequence[str | None], at: float = 1.0, wire_type: str = "scene_change"
) -> list[ReadableSpan]:
    """Deliver these events as one batch to a replica with two clients, and return its deliver spans."""
    redis = FakeRedis()
    async with replica(redis, RARE_CHECKS, observer=watch.tracing) as broadcaster:
        clients = [join(broadcaster) for _ in range(2)]
        redis.hold()
        put(redis, traceparents, at, wire_type)
        redis.release()
        await eventually(lambda: broadcaster.sequence == len(traceparents))
        await eventually(lambda: broadcaster.counters.batches == 1)
        assert all(len(sink.messages) == 1 + len(traceparents) for _, sink in clients)
    return [span for span in watch.spans if span.name.startswith("deliver ")]


async def test_a_small_batch(watch: Watch) -> None:
    """Up to 16 sampled events of a batch get a span each, in their own traces."""
    headers = [header(number) for number in range(1, 17)]
    spans = await hear(watch, [*headers, None, header(99, sampled=False)])
    assert [parent(span) for span in spans] == headers
    assert [links(span) for span in spans] == [[each] for each in headers]
    assert [value(span, "sequence") for span in spans] == list(range(1, 17))
    assert {value(span, "recipients") for span in spans} == {2}
    assert {(span.name, value(span, "replica")) for span in spans} == {("deliver scene_change", "x2x4z")}
    assert not any("messaging.batch.message_count" in (span.attributes or {}) for span in spans)


async def test_a_large_batch(watch: Watch) -> None:
    """More than 16 sampled events get one span for the batch, with a link for each publish."""
    headers = [header(number) for number in range(1, 18)]
    (span,) = await hear(watch, [None, *headers])
    assert (span.name, value(span, "replica")) == ("deliver batch", "x2x4z")
    assert parent(span) == headers[0]
    assert links(span) == headers
    assert value(span, "message_count") == 18
    assert value(span, "recipients") == 2 * 18
    assert (value(span, "sequence"), value(span, "last")) == (1, 18)
    assert value(span, "epoch")
    assert value(span, "types") == ("scene_change",)


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
    """The age at delivery is 0, not negative, if the publisher's clock is ahead."""
    (span,) = await hear(watch, [header(1)], at=4e9)
    assert value(span, "age_seconds") == 0.0


async def test_the_age(watch: Watch) -> None:
    """The age at delivery is in seconds, rounded to microseconds."""
    published_at = time.time() - 0.25
    (span,) = await hear(watch, [header(1)], at=published_at)
    age = value(span, "age_seconds")
    assert isinstance(age, float)
    assert 0.25 <= age < 20
    assert age == round(age, 6)


@pytest.mark.parametrize("wire_type", ["alert", "batch", "other", "x" * 50])
async def test_a_type_that_is_not_built_in(watch: Watch, wire_type: str) -> None:
    """An event of another type, which another program has published, is named `other`: names must be few."""
    (span,) = await hear(watch, [header(1)], wire_type=wire_type)
    assert span.name == "deliver other"
    assert (span.attributes or {})["event_broadcaster.event.type"] == wire_type
