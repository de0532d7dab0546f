"""Metrics: every metric changes when its cause occurs, and names and labels are fixed."""

import asyncio
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from handlers.server.embedded import EmbeddedValkey
from kernel.messages import MESSAGE_TYPES
from telemetry import METRICS
from tests.system.client import connected
from tests.system.producers import marked
from tests.system.raw_websocket import CLOSE, raw_websocket
from tests.system.replica import Replica, ReplicaFactory
from tests.system.slow_client import slow_client
from tests.waiting import eventually

CHANNEL: Final = "measured"
ROUTE: Final = "/broadcast/alert/deleted"
PREFIX: Final = "event_broadcaster_"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(replica: Replica) -> Samples:
    """Return every sample, by name (without the prefix) and labels."""
    families = text_string_to_metric_families(replica.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return {(s.name.removeprefix(PREFIX), tuple(sorted(s.labels.items()))): s.value for s in samples}


class ReplicaPair:
    """Two replicas on a Redis of their own; the tests read the metrics of `one`."""

    def __init__(self, one: Replica, other: Replica, url: str) -> None:
        self.one = one
        self.other = other
        self._url = url
        self._before: Samples = {}

    def redis(self) -> Any:
        """Return a connection to their Redis."""
        return redis.Redis.from_url(self._url)

    async def publish(self, count: int = 1, replica: Replica | None = None, **data: object) -> int:
        """Publish events and return the last sequence number."""
        async with (replica or self.one).http() as http:
            for _ in range(count):
                answer = await http.post("/broadcast/event", json=marked("event", "x") | data)
                assert answer.status_code == 202, answer.text
        return int(answer.json()["sequence"])

    async def wait_until_settled(self) -> None:
        """Wait until both replicas are healthy and at Redis's position."""
        with self.redis() as link:
            place = int(link.hget(f"{{{CHANNEL}}}:position", "sequence") or 0)

        def well() -> bool:
            reports = [replica.health() for replica in (self.one, self.other)]
            return all(r["sequence"] == place and r["status"] == "healthy" and r["listener_healthy"] for r in reports)

        await eventually(lambda: well() and self.one.metric("connections") == 0, 20)

    @asynccontextmanager
    async def suspended(self) -> AsyncIterator[None]:
        """Suspend `one` for the length of a block, and close its subscription meanwhile."""
        self.one.signal(signal.SIGSTOP)
        try:
            with self.redis() as link:
                link.client_kill_filter(_type="pubsub")
            yield
        finally:
            self.one.signal(signal.SIGCONT)

    @asynccontextmanager
    async def no_writes(self) -> AsyncIterator[None]:
        """Let Redis refuse writes for the length of a block."""
        with self.redis() as link:
            link.config_set("min-replicas-to-write", 1)
            try:
                yield
            finally:
                link.config_set("min-replicas-to-write", 0)


Cause = Callable[[ReplicaPair], Awaitable[object]]


# -- causes ------------------------------------------------------------------------------------------


async def joined(pair: ReplicaPair) -> None:
    """Connect a client and disconnect it."""
    async with connected(pair.one.websocket()) as client:
        await client.next()
        await eventually(lambda: pair.one.metric("connections") == 1, 15)


async def delivered(pair: ReplicaPair) -> None:
    """Deliver an event that requires an ack to a client, which acknowledges it."""
    async with connected(pair.one.websocket()) as client:
        await client.next()
        sequence = await pair.publish(risk_score=90)
        await client.next()
        await eventually(lambda: pair.one.metric("unacknowledged") == 1, 15)
        await client.send({"type": "ack", "sequence": sequence})
        await eventually(lambda: pair.one.metric("unacknowledged") == 0, 15)


async def unacknowledged(pair: ReplicaPair) -> None:
    """Deliver an event that requires an ack to a client, which leaves without acknowledging it."""
    async with connected(pair.one.websocket()) as client:
        await client.next()
        await pair.publish(risk_score=90)
        await client.next()
        # the gauge returns to 0 at the close, so it has to be read here
        await eventually(lambda: pair.one.metric("unacknowledged") == 1, 15)


async def published(pair: ReplicaPair) -> None:
    """Publish an event."""
    await pair.publish()


async def refused(pair: ReplicaPair) -> None:
    """Let Redis refuse publishes until the circuit opens, then accept them again."""
    async with pair.no_writes():
        for _ in range(2):
            answer = await pair.one.post("/broadcast/event", marked("event", "x"))
            assert answer.status_code == 503
        await eventually(lambda: pair.one.metric("degraded") == 1, 15)
        assert pair.one.metric("circuit_state", state="closed") == 0
        assert pair.one.metric("circuit_state") == 1
    await eventually(lambda: pair.one.metric("degraded") == 0, 15)


async def replayed(pair: ReplicaPair) -> None:
    """Let a client resume."""
    last = await pair.publish(2)
    await pair.one.delivers(last)
    async with connected(pair.one.websocket(since=last - 1)) as client:
        await client.take(type="resync_ack")


async def missed(pair: ReplicaPair) -> None:
    """Publish events while the replica is suspended; the history keeps them."""
    async with pair.suspended():
        await pair.publish(3, pair.other)


async def lost(pair: ReplicaPair) -> None:
    """Publish events while the replica is suspended, and trim most of them from the history."""
    async with pair.suspended():
        await pair.publish(3, pair.other)
        with pair.redis() as link:
            link.xtrim(f"{{{CHANNEL}}}:history", maxlen=1, approximate=False)


async def renumbered(pair: ReplicaPair) -> None:
    """Delete all data in Redis."""
    with pair.redis() as link:
        link.flushall()
    await eventually(lambda: pair.one.metric("sequence") == 0, 15)
    await pair.publish()


async def foreign(pair: ReplicaPair) -> None:
    """Publish an invalid message on the channel."""
    with pair.redis() as link:
        link.publish(CHANNEL, "hello")


async def compressed(pair: ReplicaPair) -> None:
    """Send a long event to a client with `format=zlib`."""
    async with connected(pair.one.websocket(format="zlib")) as client:
        await client.next()
        await pair.publish(reasoning="so long " * 1000)
        await client.next()


async def slow(pair: ReplicaPair) -> None:
    """Publish to a client that does not read."""
    async with slow_client(pair.one) as client:
        client.stall()
        before = pair.one.metric("slow_clients_total")
        for number in range(500):
            await pair.publish(reasoning=random.Random(number).randbytes(30_000).hex())
            if pair.one.metric("slow_clients_total") > before:
                break


async def ahead(pair: ReplicaPair) -> None:
    """Publish while the subscription is closed, so that the replica receives its own event only at the next check."""
    with pair.redis() as link:
        for _ in range(50):
            link.client_kill_filter(_type="pubsub")
            await pair.publish()
            if pair.one.metric("publish_ahead"):
                return
    raise AssertionError("always delivered at once")


async def nothing(pair: ReplicaPair) -> None:
    """Do nothing; the metric changes with time."""


CAUSES: Final[dict[str, Cause]] = {
    "accepts_total": joined,
    "closes_total": joined,
    "connections": joined,
    "published_total": published,
    "publish_duration_seconds": published,
    "sequence": published,
    "publish_ahead": ahead,
    "history_depth": published,
    "delivery_lag_seconds": published,
    "fanout_duration_seconds": published,
    "batches_total": published,
    "deliveries_total": delivered,
    "acks_total": delivered,
    "acks_wanted_total": delivered,
    "acknowledge_duration_seconds": delivered,
    "unacknowledged_at_close_total": unacknowledged,
    "unacknowledged": unacknowledged,
    "publish_failures_total": refused,
    "retries_total": refused,
    "degraded": refused,
    "circuit_state": refused,
    "replays_total": replayed,
    "refills_total": missed,
    "listener_restarts_total": missed,
    "gaps_total": lost,
    "epoch_changes_total": renumbered,
    "foreign_documents_total": foreign,
    "saved_bytes_total": compressed,
    "slow_clients_total": slow,
    "loop_lag_seconds": nothing,
}
# These may return to the earlier value; the cause itself waits for the change.
GAUGES: Final = {"connections", "unacknowledged", "degraded", "circuit_state", "publish_ahead"}


@pytest.fixture(scope="module")
def pair(start_for_module: ReplicaFactory) -> Iterator[ReplicaPair]:
    """The replicas, with short timeouts and few retries."""
    server = EmbeddedValkey()
    url = server.start()
    settings = {
        "redis_url": url,
        "redis_event_channel": CHANNEL,
        "position_check_seconds": 0.2,
        "broadcast_max_retries": 1,
        "circuit_failure_threshold": 4,
        "circuit_recovery_seconds": 0.3,
        "websocket_send_buffer_bytes": 65536,
    }
    expected = r" CRITICAL kernel\.resilience\.link: "
    expected += r"| ERROR kernel\.listening\.position_check: events \d+ to \d+ are lost"
    try:
        replicas = start_for_module.pair(**settings)
        yield ReplicaPair(*replicas, url)
        for replica in replicas:
            replica.stop(tolerate=expected)
    finally:
        server.stop()


@pytest.mark.parametrize("name", CAUSES)
async def test_metric_changes(pair: ReplicaPair, name: str) -> None:
    """Each metric changes when its cause occurs."""
    await pair.wait_until_settled()
    if name == "history_depth":
        with pair.redis() as link:
            link.flushall()
        await pair.wait_until_settled()

    def value() -> float:
        counted = f"{name}_count" if name.endswith("_seconds") else name
        return pair.one.metric(counted)

    before = value()
    await CAUSES[name](pair)
    if name not in GAUGES:
        await eventually(lambda: value() > before, 15)
    await pair.wait_until_settled()


def test_every_metric_has_its_cause() -> None:
    """The tests above leave no metric out, except those that have a test of their own."""
    elsewhere = ["draining", "log_lines_dropped_total"]
    assert {metric.name for metric in METRICS} == {PREFIX + name for name in [*CAUSES, *elsewhere]}


async def test_amounts(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """One event to two clients changes exactly the expected metrics, by the expected amounts."""
    # an event that a position check found first would count as a refill, so no check runs
    quiet = {"position_check_seconds": 60, "supervision_interval_seconds": 60, "websocket_ping_interval_seconds": 60}
    replica = start(redis_url=valkey, redis_event_channel=channel, **quiet)
    async with connected(replica.websocket()) as first, connected(replica.websocket()) as second:
        await first.next()
        await second.next()
        before = scraped(replica)
        assert (await replica.post("/broadcast/event", marked("event", "x") | {"risk_score": 90})).status_code == 202
        await first.next()
        await second.next()
        await eventually(lambda: replica.metric("deliveries_total") > 0, 15)
        after = scraped(replica)
    timed = ("_bucket", "_sum", "loop_lag_seconds_count", "_created")
    moved = {
        (name, labels): after[name, labels] - value
        for (name, labels), value in before.items()
        if after[name, labels] != value and not name.endswith(timed) and name != "history_depth"
    }
    assert moved == {
        ("published_total", (("type", "event"),)): 1,
        ("sequence", ()): 1,
        ("batches_total", ()): 1,
        ("deliveries_total", ()): 2,
        ("acks_wanted_total", ()): 2,
        ("unacknowledged", ()): 2,
        ("publish_duration_seconds_count", ()): 1,
        ("fanout_duration_seconds_count", ()): 1,
        ("delivery_lag_seconds_count", ()): 1,
    }


async def test_form(pair: ReplicaPair) -> None:
    """The format is Prometheus text or OpenMetrics, with exactly the documented names and labels."""
    answer = await pair.one.request("GET", "/metrics")
    assert answer.status_code == 200
    assert re.fullmatch(r"text/plain; version=[0-9.]+; charset=utf-8", answer.headers["content-type"])
    assert "no-store" in answer.headers["cache-control"]
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {f"{name}_total" if f.type == "counter" else name: f.type for name, f in families.items()} == {
        metric.name: metric.kind for metric in METRICS
    }
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert family.documentation == metric.help
        labels = {tuple(sorted(set(sample.labels) - {"le"})) for sample in family.samples}
        assert labels == {tuple(sorted(metric.labels))}
    open_ = await pair.one.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert open_.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in openmetrics(open_.text)} == families.keys()
    assert (await pair.one.request("HEAD", "/metrics")).content == b""


async def test_labels(pair: ReplicaPair) -> None:
    """Every value of a label exists from the start, and input cannot add values."""

    def labels() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for _, pairs in scraped(pair.one):
            for name, value in pairs:
                found.setdefault(name, set()).add(value)
        return found

    before = labels()
    assert before["type"] == {*MESSAGE_TYPES, "other"}
    assert before["state"] == {"closed", "open", "half_open"}
    assert before["source"] == {"memory", "redis"}
    assert before["verdict"] == {"recovered", "gap_too_old", "epoch_changed", "ahead"}
    assert {"1000", "1008", "1012", "4008", "other"} < before["code"]
    async with connected(pair.one.websocket()) as client:
        await client.next()
        await client.socket.close(code=3999)
    await eventually(lambda: pair.one.metric("closes_total", code="other") >= 1, 15)
    assert labels() == before


async def test_draining(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A replica reports `draining` while it drains."""
    replica = start(redis_url=valkey, redis_event_channel=channel, drain_seconds=3)
    assert replica.metric("draining") == 0
    async with connected(replica.websocket()) as client:
        await client.next()
        replica.signal(signal.SIGTERM)
        await eventually(lambda: replica.metric("draining") == 1, 15)
        assert (await client.closed())[0] == 1012
    assert await asyncio.to_thread(replica.ended) == 0


@pytest.fixture
def counting(start: ReplicaFactory, valkey: str, channel: str) -> Replica:
    """A replica whose counters are all zero."""
    return start(redis_url=valkey, redis_event_channel=channel, api_keys="key")


async def test_acks(counting: Replica) -> None:
    """The highest ack counts; one beyond the client's own position is ignored (protocol: acks)."""

    async def counted(acks: int, open_ones: int, at_close: int = 0) -> None:
        await eventually(lambda: counting.metric("acks_total") == acks, 15)
        assert counting.metric("unacknowledged") == open_ones
        assert counting.metric("unacknowledged_at_close_total") == at_close

    async with connected(counting.websocket(api_key="key")) as client:
        await client.next()
        for score in (90, 10, 90, 90):
            body = marked("event", "x") | {"risk_score": score, "risk_level": "low"}
            assert (await counting.post("/broadcast/event", body, X_API_Key="key")).status_code == 202
        await client.reached(4)
        assert [frame["requires_ack"] for frame in client.events] == [True, False, True, True]
        assert counting.metric("acks_wanted_total") == 3
        await counted(0, 3)
        for acks, (sequence, open_ones) in enumerate([(3, 1), (1, 1), (5, 1), (10**9, 1)], 1):
            await client.send({"type": "ack", "data": {"sequence": sequence}})
            await counted(acks, open_ones)
    await eventually(lambda: counting.metric("unacknowledged_at_close_total") == 1, 15)
    await counted(4, 0, at_close=1)
    assert counting.metric("acknowledge_duration_seconds_count") >= 1


async def test_closes(counting: Replica) -> None:
    """Accepted and closed connections are counted by close code; 1005 and 1006 are told apart (RFC 6455, 7.1.5)."""
    async with connected(counting.websocket()) as refused:
        assert (await refused.closed())[0] == 1008
    async with connected(counting.websocket(api_key="key")) as client:
        await client.next()
        assert counting.metric("connections") == 1
    await eventually(lambda: counting.metric("closes_total", code="1000") == 1, 15)
    await eventually(lambda: counting.metric("closes_total", code="1008") == 1, 15)
    assert counting.metric("accepts_total") == counting.metric("closes_total") == 2
    async with raw_websocket(counting, "/ws/events?api_key=key") as silent:
        silent.send(CLOSE)
        await silent.receive_close()
    async with raw_websocket(counting, "/ws/events?api_key=key") as vanishing:
        vanishing.abort()
    await eventually(lambda: counting.metric("closes_total", code="1005") == 1, 15)
    await eventually(lambda: counting.metric("closes_total", code="1006") == 1, 15)
    assert counting.metric("accepts_total") == counting.metric("closes_total") == 4
