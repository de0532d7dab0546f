"""Publishing: a message becomes one numbered event on every replica, or raises an error that says why not."""

import asyncio
import tracemalloc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from kernel import (
    AlertData,
    AlertDeletedData,
    BroadcasterConfig,
    BroadcastFailed,
    CameraStatusData,
    CircuitOpen,
    DetectionBatchData,
    DetectionNewData,
    EventBroadcaster,
    EventData,
    EventTooLarge,
    InfrastructureAlertData,
    Message,
    MessageInvalid,
    NotStarted,
    Observer,
    PublishOptions,
    Receipt,
    ReplayedReceipt,
    SceneChangeData,
    ServiceStatusData,
    Summary,
    WorkerStatusData,
    WriteRefused,
)
from kernel.errors import NotSent
from kernel.messages import MAX_BATCH
from kernel.messages.messages import AlertDeletedMessage, EventMessage, ServiceStatusMessage
from kernel.observer import Failed, Published, Publishing, Retried, TraceContext
from tests.fakes import FakeRedis
from tests.kernel.replicas import FAST, RARE_CHECKS, PausableTransport, fill, join, replica, transport_of
from tests.virtual_time import eventually

E1, E2 = "epoch-1", "epoch-2"

EVENT = EventData(
    id=1,
    event_id=1,
    batch_id="b1",
    camera_id="front_door",
    risk_score=20,
    risk_level="low",
    summary="Someone",
    reasoning="A person at the door",
)
ALERT = AlertData(
    id="a1",
    event_id=1,
    severity="high",
    status="pending",
    dedup_key="k",
    created_at="2026-01-01T00:00:00Z",
    updated_at="2026-01-01T00:00:00Z",
)
SUMMARY = Summary(id=1, content="quiet", event_count=0, window_start="08:00", window_end="09:00", generated_at="09:01")
FAMILIES: list[tuple[str, str, tuple[Any, ...]]] = [
    ("broadcast_event", "event", (EVENT,)),
    ("broadcast_service_status", "service_status", (ServiceStatusData(service="nemo", status="healthy"),)),
    (
        "broadcast_scene_change",
        "scene_change",
        (SceneChangeData(id=1, camera_id="c", detected_at="now", change_type="view_blocked", similarity_score=0.5),),
    ),
    (
        "broadcast_camera_status",
        "camera_status",
        (
            CameraStatusData(
                event_type="camera.offline", camera_id="c", camera_name="C", status="offline", timestamp="now"
            ),
        ),
    ),
    *(
        ("broadcast_alert", f"alert_{kind}", (ALERT, f"alert_{kind}"))
        for kind in ("created", "updated", "acknowledged", "resolved", "dismissed")
    ),
    ("broadcast_alert", "alert_deleted", (AlertDeletedData(id="a1"), "deleted")),
    ("broadcast_alert", "alert_created", (ALERT, "created")),
    (
        "broadcast_worker_status",
        "worker_status",
        (WorkerStatusData(event_type="worker.started", worker_name="w", worker_type="detection", timestamp="now"),),
    ),
    (
        "broadcast_detection_new",
        "detection.new",
        (DetectionNewData(detection_id=1, batch_id="b", camera_id="c", label="cat", confidence=1.0, timestamp="now"),),
    ),
    (
        "broadcast_detection_batch",
        "detection.batch",
        (
            DetectionBatchData(
                batch_id="b", camera_id="c", detection_ids=[], detection_count=0, started_at="now", closed_at="now"
            ),
        ),
    ),
    (
        "broadcast_infrastructure_alert",
        "infrastructure_alert",
        (InfrastructureAlertData(alertname="disk", status="firing", fingerprint="f"),),
    ),
    ("broadcast_summary_update", "summary_update", (SUMMARY, None)),
]


class Ears(Observer):
    """Records publishes, retries and failures."""

    def __init__(self) -> None:
        self.publishes: list[Published] = []
        self.retries: list[Retried] = []
        self.started: list[Publishing] = []
        self.failures: list[Failed] = []

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Record it."""
        self.started.append(publishing)
        return super().publishing(publishing)

    def failed(self, failed: Failed) -> None:
        """Record it."""
        self.failures.append(failed)

    @property
    def outcomes(self) -> list[tuple[str, int, str | None]]:
        """The error of each failure, its retries, and why no further attempt was made."""
        return [(failed.error, failed.retries, failed.refused) for failed in self.failures]

    def published(self, published: Published) -> None:
        """Record it."""
        self.publishes.append(published)

    def retried(self, retried: Retried) -> None:
        """Record it."""
        self.retries.append(retried)


@pytest.fixture
def redis() -> FakeRedis:
    """Return an empty Redis."""
    return FakeRedis()


@pytest.fixture
def ears() -> Ears:
    """Return an observer."""
    return Ears()


def batch(count: int) -> list[Message]:
    """Return `count` messages."""
    return [EventMessage(data=replace(EVENT, id=number)) for number in range(count)]


# -- success


@pytest.mark.parametrize(("method", "wire_type", "arguments"), FAMILIES)
async def test_each_family(redis: FakeRedis, method: str, wire_type: str, arguments: Sequence[Any]) -> None:
    """Each message family has a method that takes its struct, publishes it to the clients and returns the receipt."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        receipt = await getattr(broadcaster, method)(*arguments)
        assert receipt == Receipt(1, E1, 1)
        await sink.until(lambda: sink.numbers)
        frame = sink.messages[-1]
        data = arguments[0] if method != "broadcast_summary_update" else {"hourly": SUMMARY, "daily": None}
        assert (frame["type"], frame["sequence"], frame["requires_ack"]) == (wire_type, 1, False)
        assert frame["data"] == msgspec.to_builtins(data)


async def test_numbers_of_several_replicas(redis: FakeRedis) -> None:
    """Redis numbers each event once, whichever replica publishes; `subscribers` is the number of replicas."""
    async with replica(redis) as one, replica(redis) as two:
        _, sink = join(two)
        receipts = [await broadcaster.broadcast_event(EVENT) for broadcaster in (one, two, one)]
        assert receipts == [Receipt(number, E1, 2) for number in (1, 2, 3)]
        await sink.until(lambda: sink.numbers == [1, 2, 3])


async def test_nobody_listens(redis: FakeRedis) -> None:
    """A publish that reaches 0 subscribers succeeds."""
    async with replica(redis) as broadcaster:
        subscriptions = redis.ears.copy()
        redis.ears.clear()
        receipt = await broadcaster.broadcast_event(EVENT)
        assert receipt.subscribers == 0
        redis.ears += subscriptions


async def test_an_observer_has_the_ids(redis: FakeRedis, ears: Ears) -> None:
    """An observer gets the id of each publish before it is sent; a single event has the same id."""
    async with replica(redis, observer=ears) as broadcaster:
        await broadcaster.broadcast_event(EVENT)
        await broadcaster.broadcast_batch(batch(2))
    first, second = (publishing.id for publishing in ears.started)
    assert [id for id, _ in redis.history.values()] == [first, f"{second}-0", f"{second}-1"]


async def test_a_batch(redis: FakeRedis, ears: Ears) -> None:
    """A batch of any mix is numbered consecutively in the order given, in one round trip."""
    async with replica(redis, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 1)
        messages = [*batch(2), AlertDeletedMessage(data=AlertDeletedData(id="a"))]
        receipts = await broadcaster.broadcast_batch(messages)
        assert receipts == [Receipt(number, E1, 1) for number in (2, 3, 4)]
        await sink.until(lambda: sink.numbers == [1, 2, 3, 4])
        assert [message["type"] for message in sink.messages[2:]] == ["event", "event", "alert_deleted"]
        assert redis.calls.count("publish") == 1
        (published,) = ears.publishes
        assert published.types == ["event", "event", "alert_deleted"]
        ids = [redis.history[number][0] for number in (2, 3, 4)]
        assert len(set(ids)) == 3


@pytest.mark.parametrize("count", [0, MAX_BATCH + 1])
async def test_a_batch_of_any_other_size(redis: FakeRedis, count: int) -> None:
    """A batch has 1 to 1,000 messages; otherwise nothing is published."""
    async with replica(redis) as broadcaster:
        with pytest.raises(MessageInvalid, match="1 to 1,000"):
            await broadcaster.broadcast_batch(batch(count))
        assert "publish" not in redis.calls
        assert len(await broadcaster.broadcast_batch(batch(MAX_BATCH))) == MAX_BATCH


@pytest.mark.parametrize(
    ("score", "level", "expected"), [(79, "high", False), (80, "low", True), (0, "critical", True), (100, "low", True)]
)
async def test_requires_ack(redis: FakeRedis, score: int, level: str, expected: bool) -> None:
    """`requires_ack` is true for an event whose risk is 80 or more, or critical."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        await broadcaster.broadcast_event(replace(EVENT, risk_score=score, risk_level=level))
        await sink.until(lambda: sink.numbers)
        assert sink.messages[-1]["requires_ack"] is expected


async def test_timestamps(redis: FakeRedis) -> None:
    """The timestamp of a service status is the present unless given; that of a worker status is null unless given."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        service = ServiceStatusData(service="s", status="running")
        worker = WorkerStatusData(event_type="worker.started", worker_name="w", worker_type="metrics", timestamp="t")
        await broadcaster.broadcast_service_status(service)
        await broadcaster.broadcast_service_status(service, timestamp="then")
        await broadcaster.broadcast_worker_status(worker)
        await broadcaster.broadcast_worker_status(worker, timestamp="then")
        await sink.until(lambda: len(sink.numbers) == 4)
        first, *rest = [message["timestamp"] for message in sink.messages[1:]]
        assert first.endswith("+00:00")
        assert rest == ["then", None, "then"]


async def test_trace_context(redis: FakeRedis) -> None:
    """The trace context travels in the payload, and its traceparent to the clients."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        options = PublishOptions(traceparent="00-ab-cd-01", tracestate="a=b", baggage="c=d")
        await broadcaster.broadcast_event(EVENT, options=options)
        await sink.until(lambda: sink.numbers)
        assert sink.messages[-1]["traceparent"] == "00-ab-cd-01"
        assert not sink.messages[-1].keys() & {"tracestate", "baggage", "id", "event_type"}
        kept = redis.history[1][1]
        assert b'"tracestate":"a=b"' in kept
        assert b'"baggage":"c=d"' in kept


class Follower(Observer):
    """Follows the trace context that it gives to each publish, and records the one that it is told."""

    def __init__(self) -> None:
        self.told: list[str | None] = []

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Continue the trace of the producer, if there is one."""
        theirs = publishing.trace
        return nullcontext(theirs if theirs.traceparent is None else TraceContext(f"{theirs.traceparent}, continued"))

    def follows(self, traceparent: str) -> bool:
        """Return True for the context of this observer, of a sampled producer."""
        return traceparent == "00-ab-cd-01, continued"

    def published(self, published: Published) -> None:
        """Record it."""
        self.told.append(published.traceparent)

    def failed(self, failed: Failed) -> None:
        """Record it."""
        self.told.append(failed.traceparent)


async def test_followed_publishes(redis: FakeRedis) -> None:
    """An observer is told the trace context of a publish that it follows, whether the publish succeeds or fails."""
    follower = Follower()
    async with replica(redis, RARE_CHECKS, observer=follower) as broadcaster:
        for traceparent in ("00-ab-cd-01", "00-ab-cd-00", None):
            options = PublishOptions(traceparent=traceparent)
            await broadcaster.broadcast_event(EVENT, options=options)
            redis.fail(2)
            with pytest.raises(BroadcastFailed):
                await broadcaster.broadcast_event(EVENT, options=options)
    followed = "00-ab-cd-01, continued"
    assert follower.told == [followed, followed, None, None, None, None]
    assert {each.traceparent for each in broadcaster.counters.publish_duration.exemplars.values()} == {followed}


@pytest.mark.parametrize(
    ("data", "event_type"),
    [
        (ALERT, "alert_invented"),
        (ALERT, ""),
        (ALERT, "event"),
        (ALERT, "deleted"),
        (AlertDeletedData(id="a"), "created"),
    ],
)
async def test_alerts_of_no_kind(redis: FakeRedis, data: AlertData | AlertDeletedData, event_type: str) -> None:
    """An alert of another kind, or with data of another kind, is refused before anything is published."""
    async with replica(redis) as broadcaster:
        with pytest.raises(MessageInvalid):
            await broadcaster.broadcast_alert(data, event_type)
        assert "publish" not in redis.calls


async def test_messages_built_in_python_are_checked(redis: FakeRedis, ears: Ears) -> None:
    """An invalid message is refused with the fields at fault before anything is published."""
    bad: Any = {"id": "x", "risk_score": 500, "risk_level": "nope"}
    async with replica(redis, observer=ears) as broadcaster:
        with pytest.raises(MessageInvalid) as caught:
            await broadcaster.broadcast_event(replace(EVENT, **bad))
        assert [error.field for error in caught.value.errors] == ["data.id", "data.risk_score", "data.risk_level"]
        with pytest.raises(MessageInvalid) as caught:
            await broadcaster.broadcast_batch([*batch(3), EventMessage(data=replace(EVENT, **bad))])
        assert caught.value.errors[0].field == "[3].data.id"
        assert "publish" not in redis.calls
        assert ears.publishes == []


@pytest.mark.parametrize("validated", [False, True])
async def test_the_size_of_an_event(redis: FakeRedis, ears: Ears, validated: bool) -> None:
    """Data of at most `event_max_bytes` as compact JSON is published; of a larger one nothing reaches Redis."""
    options = PublishOptions(validated=validated)
    size = len(msgspec.json.encode(EVENT))
    async with replica(redis, replace(FAST, event_max_bytes=size), observer=ears) as broadcaster:
        assert (await broadcaster.broadcast_event(EVENT, options=options)).sequence == 1
        larger = replace(EVENT, summary=EVENT.summary + "x")
        text = rf"data: must not be larger than {size} bytes as compact JSON"
        with pytest.raises(EventTooLarge, match=text) as caught:
            await broadcaster.broadcast_event(larger, options=options)
        assert caught.value.index is None
        with pytest.raises(EventTooLarge) as caught:
            await broadcaster.broadcast_batch([*batch(3), EventMessage(data=larger)], options=options)
        assert caught.value.index == 3
        assert caught.value.errors[0].field == "[3].data"
        assert redis.calls.count("publish") == 1
        assert len(ears.publishes) == 1


async def test_the_size_of_details(redis: FakeRedis) -> None:
    """Whitespace in `details` does not count, and `details` that are too large on their own are refused at once."""
    async with replica(redis, replace(FAST, event_max_bytes=500)) as broadcaster:
        camera = CameraStatusData(
            event_type="camera.error", camera_id="c", camera_name="n", status="error", timestamp="t"
        )
        with pytest.raises(EventTooLarge):
            await broadcaster.broadcast_camera_status(replace(camera, details={"a": "x" * 500}))
        _, sink = join(broadcaster)
        details = msgspec.Raw(b'{"a":' + b" " * 500 + b"1.50}")
        await broadcaster.broadcast_camera_status(replace(camera, details=details))
        await sink.until(lambda: sink.numbers)
        assert sink.messages[-1]["data"]["details"] == {"a": 1.5}


async def test_enums_in_lower_case(redis: FakeRedis) -> None:
    """Enums from Python are taken in any letter case and sent in lower case."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        await broadcaster.broadcast_event(replace(EVENT, risk_level="CRITICAL"))
        await sink.until(lambda: sink.numbers)
        assert sink.messages[-1]["data"]["risk_level"] == "critical"
        assert sink.messages[-1]["requires_ack"] is True


# -- idempotency


async def test_the_same_key_again(redis: FakeRedis, ears: Ears) -> None:
    """The same idempotency key returns the first receipt, says so, and publishes nothing."""
    async with replica(redis, observer=ears) as broadcaster:
        options = PublishOptions(idempotency_key="POST /broadcast/event key")
        first = await broadcaster.broadcast_event(EVENT, options=options)
        fill(redis, 3)
        again = await broadcaster.broadcast_event(replace(EVENT, id=2), options=options)
        assert type(first) is Receipt
        assert again == ReplayedReceipt(1, E1, 1)
        assert redis.place.sequence == 4
        assert [published.replayed for published in ears.publishes] == [False, True]


async def test_the_same_key_for_a_batch(redis: FakeRedis) -> None:
    """A repeated batch gets all its receipts again, whatever the new body."""
    async with replica(redis) as broadcaster:
        options = PublishOptions(idempotency_key="k")
        first = await broadcaster.broadcast_batch(batch(3), options=options)
        again = await broadcaster.broadcast_batch(batch(1), options=options)
        assert [(r.sequence, r.epoch) for r in again] == [(r.sequence, r.epoch) for r in first]


# -- retries


async def test_a_retry(redis: FakeRedis, ears: Ears) -> None:
    """A failed attempt is made again, with back-off, and counted."""
    async with replica(redis, observer=ears) as broadcaster:
        redis.fail()
        assert (await broadcaster.broadcast_event(EVENT)).sequence == 1
        (retried,) = ears.retries
        assert (retried.types, retried.attempt, retried.error) == (["event"], 1, "TransportUnavailable")
        assert FAST.base_delay * 1.1 <= retried.delay <= FAST.base_delay * 1.3
        assert ears.publishes[0].retries == 1
        assert broadcaster.get_broadcast_metrics().as_dict() == {
            "total_attempts": 2,
            "successful_broadcasts": 1,
            "failed_broadcasts": 0,
            "retries_exhausted": 0,
            "retry_counts": {1: 1},
            "success_rate": 1.0,
        }


async def test_fate_unknown(redis: FakeRedis, ears: Ears) -> None:
    """A publish whose answer was lost is retried under its id, so it is never published twice."""
    async with replica(redis, RARE_CHECKS, observer=ears) as broadcaster:
        _, sink = join(broadcaster)
        redis.fail(after=True)
        receipt = await broadcaster.broadcast_event(EVENT)
        assert type(receipt) is Receipt
        assert receipt.sequence == redis.place.sequence == 1
        await sink.until(lambda: sink.numbers == [1])
        assert len(ears.retries) == 1


async def test_retries_are_exhausted(redis: FakeRedis, ears: Ears) -> None:
    """After the last retry the publish fails, and says when to try again."""
    async with replica(redis, RARE_CHECKS, observer=ears) as broadcaster:
        redis.fail(2)
        with pytest.raises(BroadcastFailed, match="no connection") as failed:
            await broadcaster.broadcast_event(EVENT)
        assert failed.value.retry_after == RARE_CHECKS.base_delay
        metrics = broadcaster.get_broadcast_metrics()
        assert (metrics.failed_broadcasts, metrics.retries_exhausted, metrics.total_attempts) == (1, 1, 2)
        assert broadcaster.get_circuit_state().failure_count == 2
        assert ears.outcomes == [("TransportUnavailable", 1, None)]
        assert ears.failures[0].seconds >= RARE_CHECKS.base_delay


async def test_validation_is_never_retried(redis: FakeRedis, ears: Ears) -> None:
    """A message that cannot be encoded is the caller's fault and says nothing of the link."""
    async with replica(redis, observer=ears) as broadcaster:
        with pytest.raises(TypeError):
            await broadcaster.broadcast_event(replace(EVENT, summary=object()), options=PublishOptions(validated=True))
        assert ears.retries == []
        assert broadcaster.get_circuit_state().total_failures == 0


async def test_a_batch_that_was_validated(redis: FakeRedis) -> None:
    """A batch that its caller has validated is not validated again: a value out of range is published as it is."""
    async with replica(redis) as broadcaster:
        _, sink = join(broadcaster)
        message = EventMessage(data=replace(EVENT, risk_score=500))
        await broadcaster.broadcast_batch([message], options=PublishOptions(validated=True))
        await sink.until(lambda: sink.numbers)
        assert sink.messages[-1]["data"]["risk_score"] == 500


# -- circuit


async def test_the_circuit_opens(redis: FakeRedis, ears: Ears) -> None:
    """Failed publishes open the circuit, and are then refused at once."""
    config = replace(RARE_CHECKS, max_retries=3, circuit_recovery_seconds=60.0)
    async with replica(redis, config, observer=ears) as broadcaster:
        redis.fail(5, WriteRefused("OOM"))
        with pytest.raises(BroadcastFailed, match="OOM"):
            await broadcaster.broadcast_event(EVENT)
        assert not broadcaster.is_degraded()
        # a publish that was sent before the circuit opened may have arrived, so the error must not deny it
        with pytest.raises(BroadcastFailed, match="OOM") as failed:
            await broadcaster.broadcast_event(EVENT)
        assert 50 < failed.value.retry_after <= 60
        assert broadcaster.is_degraded()
        calls = len(redis.calls)
        with pytest.raises(CircuitOpen) as refused:
            await broadcaster.broadcast_event(EVENT)
        assert 50 < refused.value.retry_after <= 60
        assert len(redis.calls) == calls
        metrics = broadcaster.get_broadcast_metrics()
        assert (metrics.failed_broadcasts, metrics.retries_exhausted) == (3, 1)
        # the second publish announced a retry, which the circuit then refused
        assert ears.outcomes == [
            ("WriteRefused", 3, None),
            ("WriteRefused", 1, "circuit open"),
            ("CircuitOpen", 0, "circuit open"),
        ]


async def test_the_last_failure_opens_the_circuit(redis: FakeRedis) -> None:
    """A publish that opens it on its last try tells how long it stays open."""
    config = replace(RARE_CHECKS, circuit_failure_threshold=2, circuit_recovery_seconds=60.0)
    async with replica(redis, config) as broadcaster:
        redis.fail(2)
        with pytest.raises(BroadcastFailed) as failed:
            await broadcaster.broadcast_event(EVENT)
        assert 50 < failed.value.retry_after <= 60


async def test_a_success_ends_the_row(redis: FakeRedis) -> None:
    """Only failures in a row count."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        for _ in range(6):
            redis.fail()
            await broadcaster.broadcast_event(EVENT)
        assert not broadcaster.is_degraded()
        status = broadcaster.get_circuit_state()
        assert (status.failure_count, status.total_failures) == (0, 6)


async def test_readonly_redis(redis: FakeRedis) -> None:
    """Refused writes degrade the service although checks succeed, and it recovers by itself."""
    async with replica(redis) as broadcaster:
        redis.read_only = True
        while not broadcaster.is_degraded():
            with pytest.raises((BroadcastFailed, CircuitOpen)):
                await broadcaster.broadcast_event(EVENT)
            checks = redis.calls.count("position")
            await eventually(lambda checks=checks: redis.calls.count("position") > checks or broadcaster.is_degraded())
        assert broadcaster.get_circuit_state().failure_count == 5
        redis.read_only = False
        await eventually(lambda: not broadcaster.is_degraded())
        assert (await broadcaster.broadcast_event(EVENT)).sequence == 1


# -- forks


async def test_a_publish_finds_the_fork(redis: FakeRedis) -> None:
    """A publish carries what this replica delivered, so that it finds a fork itself and begins the new epoch."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        _, sink = join(broadcaster)
        fill(redis, 5)
        await sink.until(lambda: sink.numbers == [1, 2, 3, 4, 5])
        redis.rewind(3)
        assert await broadcaster.broadcast_event(EVENT) == Receipt(1, E2, 1)
        await sink.until(lambda: sink.outline[-2:] == [f"epoch {E2}", "1"])


async def test_not_started(redis: FakeRedis) -> None:
    """Publishing before `start` and after `stop` raises NotStarted."""
    broadcaster = EventBroadcaster(PausableTransport(redis), BroadcasterConfig())
    with pytest.raises(NotStarted):
        await broadcaster.broadcast_event(EVENT)
    await broadcaster.start()
    await broadcaster.broadcast_batch([ServiceStatusMessage(data=ServiceStatusData(service="s", status="failed"))])
    await broadcaster.stop()
    with pytest.raises(NotStarted):
        await broadcaster.broadcast_event(EVENT)


# -- flow control


async def test_no_farther_ahead_than_the_window(redis: FakeRedis) -> None:
    """While announcements are held up, publishes wait at `most_ahead`; they go on once events are delivered."""
    async with replica(redis, replace(FAST, most_ahead=5, position_check_seconds=60)) as broadcaster:
        await eventually(broadcaster.is_listener_healthy)
        redis.hold()
        publishes = [asyncio.ensure_future(broadcaster.broadcast_event(EVENT)) for _ in range(12)]
        await eventually(lambda: redis.place.sequence == 5)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (redis.place.sequence, broadcaster.ahead) == (5, 5)
        redis.release()
        receipts = await asyncio.gather(*publishes)
        assert [receipt.sequence for receipt in receipts] == list(range(1, 13))


async def test_deaf_subscription_holds_nobody_up(redis: FakeRedis) -> None:
    """If the subscription receives nothing, publishes wait no longer than it takes to read the history."""
    async with replica(redis, replace(FAST, most_ahead=5, position_check_seconds=60)) as broadcaster:
        await eventually(broadcaster.is_listener_healthy)
        redis.deaf = True
        await asyncio.gather(*(broadcaster.broadcast_event(EVENT) for _ in range(12)))
        await eventually(lambda: broadcaster.sequence >= 10)
        assert broadcaster.counters.gaps == 0


async def test_a_lost_tail_holds_nobody_up(redis: FakeRedis) -> None:
    """Publishes do not wait long for events that Redis lost before they were delivered, in the same epoch."""
    config = replace(FAST, most_ahead=5, position_check_seconds=60, flow_patience_seconds=0.01)
    async with replica(redis, config) as broadcaster:
        await eventually(broadcaster.is_listener_healthy)
        redis.hold()
        await asyncio.gather(*(broadcaster.broadcast_event(EVENT) for _ in range(5)))
        redis.rewind(0)
        redis.hold()
        assert (await broadcaster.broadcast_event(EVENT)).sequence == 1
        redis.release()
        assert (await broadcaster.broadcast_event(EVENT)).sequence == 2
        await eventually(lambda: broadcaster.sequence == 2)


async def test_stop_ends_the_waiting(redis: FakeRedis) -> None:
    """`stop` refuses the publishes that wait for room, and nothing is published any more."""
    async with replica(redis, replace(RARE_CHECKS, most_ahead=5)) as broadcaster:
        redis.hold()
        publishes = [asyncio.ensure_future(broadcaster.broadcast_event(EVENT)) for _ in range(7)]
        await eventually(lambda: redis.place.sequence == 5)
        await broadcaster.stop()
        assert [type(error) for error in await asyncio.gather(*publishes[5:], return_exceptions=True)] == [
            NotStarted
        ] * 2
        assert redis.place.sequence == 5


async def test_retries_do_not_wait_for_room(redis: FakeRedis) -> None:
    """A retry does not wait for room, so that it goes out before its id is forgotten."""
    config = replace(RARE_CHECKS, most_ahead=5, flow_patience_seconds=60.0)
    async with asyncio.timeout(5), replica(redis, config) as broadcaster:
        redis.hold()
        redis.fail(after=True)
        first = asyncio.ensure_future(broadcaster.broadcast_event(EVENT))
        await eventually(lambda: redis.place.sequence == 1)
        others = [asyncio.ensure_future(broadcaster.broadcast_event(EVENT)) for _ in range(7)]
        assert (await first).sequence == 1
        redis.release()
        assert sorted(receipt.sequence for receipt in await asyncio.gather(*others)) == list(range(2, 9))


# -- deadlines


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def settled(broadcaster: EventBroadcaster, redis: FakeRedis) -> None:
    """Start, and wait until the check that follows the subscription is over."""
    await broadcaster.start()
    await eventually(lambda: redis.calls.count("position") >= 2)


async def test_never_again_when_the_id_may_be_forgotten(redis: FakeRedis, ears: Ears) -> None:
    """A publish that may have been sent is not sent again once Redis may have forgotten its id."""
    clock = Clock()
    transport = PausableTransport(redis)
    config = replace(RARE_CHECKS, max_retries=3)
    broadcaster = EventBroadcaster(transport, config, [ears], elapsed=clock)
    await settled(broadcaster, redis)
    for sleep, sent in ((config.retry_lifetime - config.position_check_seconds + 1, 1), (10.0, 2)):
        calls = redis.calls.count("publish")
        redis.fail(after=True)
        transport.after["publish"].clear()
        publishing = asyncio.create_task(broadcaster.broadcast_event(EVENT))
        await eventually(lambda: redis.calls.count("publish") == calls + 1)  # noqa: B023  it is over by then
        clock.now += sleep
        transport.after["publish"].set()
        if sent == 1:
            with pytest.raises(BroadcastFailed, match="no connection"):
                await publishing
        else:
            await publishing
        assert redis.calls.count("publish") == calls + sent
    assert ears.outcomes == [("BroadcastFailed", 1, "suspended")]
    await broadcaster.stop()


async def test_what_was_never_sent_may_be_sent_late(redis: FakeRedis) -> None:
    """A publish that was not sent yet has no id that could be forgotten: it is sent however late, and once."""
    clock = Clock()
    transport = PausableTransport(redis)
    broadcaster = EventBroadcaster(transport, RARE_CHECKS, elapsed=clock)
    await settled(broadcaster, redis)
    redis.fail(error=NotSent("not sent"))
    publishing = asyncio.create_task(broadcaster.broadcast_event(EVENT))
    await eventually(lambda: "publish" in redis.calls)
    clock.now = 1e6
    assert (await publishing).sequence == 1
    assert broadcaster.get_circuit_state().total_failures == 0
    await broadcaster.stop()


async def test_never_sent_and_exhausted(redis: FakeRedis) -> None:
    """If no attempt was sent within the retries, the publish fails like any other."""
    async with replica(redis, RARE_CHECKS) as broadcaster:
        redis.fail(2, NotSent("not sent"))
        with pytest.raises(BroadcastFailed, match="not sent"):
            await broadcaster.broadcast_event(EVENT)
        assert redis.place.sequence == 0


async def test_those_that_wait_fail_with_the_circuit(redis: FakeRedis) -> None:
    """When the circuit opens, publishes that wait in the queue are refused at once, and nothing of them goes out."""
    config = replace(RARE_CHECKS, circuit_failure_threshold=1, circuit_recovery_seconds=60.0, max_retries=0)
    async with replica(redis, config) as broadcaster:
        transport_of(broadcaster).before["publish"].clear()
        redis.fail(error=WriteRefused("OOM"))
        publishes = [asyncio.create_task(broadcaster.broadcast_event(EVENT))]
        await eventually(lambda: transport_of(broadcaster).in_progress["publish"])
        publishes += [asyncio.create_task(broadcaster.broadcast_event(EVENT)) for _ in range(3)]
        await asyncio.sleep(0)
        transport_of(broadcaster).before["publish"].set()
        outcomes = await asyncio.gather(*publishes, return_exceptions=True)
        assert [type(error) for error in outcomes] == [BroadcastFailed, CircuitOpen, CircuitOpen, CircuitOpen]
        assert redis.calls.count("publish") == 1


async def test_a_partition(redis: FakeRedis) -> None:
    """Publishes that wait for a call without an answer fail with it, all within one deadline."""
    transport = PausableTransport(redis, deadline=0.1)
    config = replace(RARE_CHECKS, max_retries=0, circuit_recovery_seconds=60.0)
    async with replica(redis, config, transport=transport) as broadcaster:
        transport.before["publish"].clear()
        first = asyncio.create_task(broadcaster.broadcast_event(EVENT))
        await eventually(lambda: transport.in_progress["publish"])
        waiting = [asyncio.create_task(broadcaster.broadcast_event(EVENT)) for _ in range(20)]
        async with asyncio.timeout(0.2):
            outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert {type(error) for error in outcomes} == {BroadcastFailed}
        assert broadcaster.get_circuit_state().total_failures == 1
        # the call that was given up arrives after all
        transport.before["publish"].set()
        await eventually(lambda: redis.place.sequence == 1)


# -- the end


@pytest.mark.parametrize("end", ["end_publishes", "stop"])
async def test_the_end_of_publishes(redis: FakeRedis, ears: Ears, end: str) -> None:
    """Publishes that wait for Redis, for a retry or for room fail at once; those that may be in Redis say so."""
    config = replace(
        RARE_CHECKS, most_ahead=3, base_delay=60.0, max_delay=60.0, flow_patience_seconds=60.0, max_retries=3
    )
    transport = PausableTransport(redis)
    broadcaster = EventBroadcaster(transport, config, [ears])
    await settled(broadcaster, redis)
    redis.fail()
    retrying = asyncio.create_task(broadcaster.broadcast_event(EVENT))
    await eventually(lambda: broadcaster.counters.retries == 1)
    transport.after["publish"].clear()
    sent = asyncio.create_task(broadcaster.broadcast_event(EVENT))
    await eventually(lambda: redis.place.sequence == 1)
    queued = asyncio.create_task(broadcaster.broadcast_event(EVENT))
    too_many = asyncio.create_task(broadcaster.broadcast_batch(batch(3)))
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        if end == "stop":
            await broadcaster.stop()
        else:
            broadcaster.end_publishes()
        outcomes = await asyncio.gather(retrying, sent, queued, too_many, return_exceptions=True)
    assert [type(error) for error in outcomes] == [BroadcastFailed, BroadcastFailed, NotStarted, NotStarted]
    assert sorted(ears.outcomes) == [
        ("NotStarted", 0, "stopped"),
        ("NotStarted", 0, "stopped"),
        ("TransportUnavailable", 0, "stopped"),
        ("TransportUnavailable", 1, "stopped"),
    ]
    with pytest.raises(NotStarted):
        await broadcaster.broadcast_event(EVENT)
    assert (redis.place.sequence, broadcaster.counters.retries) == (1, 1)
    transport.after["publish"].set()
    await broadcaster.stop()
    await broadcaster.start()
    assert (await broadcaster.broadcast_event(EVENT)).sequence == 2
    await broadcaster.stop()


async def test_memory_of_publishes_that_wait(redis: FakeRedis) -> None:
    """While Redis does not answer, a publish holds its message and the JSON of it, each once."""
    size, count = 1_000_000, 10
    event = replace(EVENT, reasoning="a" * size)
    async with replica(redis, BroadcasterConfig(event_max_bytes=2 * size)) as broadcaster:
        transport = transport_of(broadcaster)
        transport.before["publish"].clear()
        tracemalloc.start()
        try:
            publishing = [asyncio.create_task(broadcaster.broadcast_event(event)) for _ in range(count)]
            await asyncio.sleep(1.0)  # in virtual time: now one call is in flight, and the others wait for it
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 2.2 * size * count
        transport.before["publish"].set()
        await asyncio.gather(*publishing)
