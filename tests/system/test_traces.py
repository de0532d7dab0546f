"""Traces of two real replicas, as a collector receives them."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from telemetry import FLUSH_SECONDS
from tests.collector import Collector, Span, tree
from tests.proxy import Proxy, ProxyMode
from tests.system.client import connected
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

CHANNEL = "traced"
PRODUCER = "4bf92f3577b34da6a3ce929d0e0e4736"
BODY = {"id": "x"}
ROUTE = "/broadcast/alert/deleted"
SERVER = f"POST {ROUTE}"
PUBLISH, DELIVER = "publish alert_deleted", "deliver alert_deleted"


def exporting(collector: Collector, name: str, **settings: object) -> dict[str, object]:
    """Return the settings of a replica that exports to this collector, with little delay, under this name."""
    return {
        "otel_exporter_otlp_endpoint": collector.url,
        "otel_resource_attributes": f"service.instance.id={name}",
        "otel_bsp_schedule_delay": 20,
        **settings,
    }


def producer_headers(trace: str = "") -> dict[str, str]:
    """Return the headers of a producer that traces, each call with a new trace unless one is given."""
    return {
        "traceparent": f"00-{trace or os.urandom(16).hex()}-00f067aa0ba902b7-01",
        "tracestate": "vendor=1,other=2",
        "baggage": "site=north",
    }


def trace_of(headers: dict[str, str]) -> str:
    """Return the trace id in these headers."""
    return headers["traceparent"].split("-")[1]


def only_span(spans: list[Span], name: str, instance: str = "") -> Span:
    """Return the only span with this name, of this replica."""
    (found,) = [span for span in spans if span.name == name and instance in ("", span.instance)]
    return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """The collector to which the replicas of this module export."""
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, valkey: str, start_for_module: ReplicaFactory) -> tuple[Replica, Replica]:
    """Two replicas that trace everything."""
    settings = {"redis_url": valkey, "redis_event_channel": CHANNEL, "message_buffer_size": 2}
    first = start_for_module(**settings, **exporting(collector, "one"))
    second = start_for_module(**settings, **exporting(collector, "two"))
    return first, second


async def test_a_publish(traced: tuple[Replica, Replica], collector: Collector, valkey: str) -> None:
    """The request, publish, Redis call and a delivery on each replica are spans of the producer's trace."""
    headers = producer_headers(PRODUCER)
    async with connected(traced[0].websocket()) as here, connected(traced[1].websocket()) as there:
        await here.next()
        await there.next()
        answer = await traced[0].request("POST", ROUTE + "?token=secret", json=BODY, headers=headers)
        receipt = answer.json()
        frames = [await here.next(), await there.next()]
    spans = await collector.complete(PRODUCER, 5)
    assert tree(spans) == [SERVER, f"  {PUBLISH}", "    EVALSHA", f"    {DELIVER}", f"    {DELIVER}"]
    server, publish, command = only_span(spans, SERVER), only_span(spans, PUBLISH), only_span(spans, "EVALSHA")
    where = {"server.address": urlsplit(valkey).path}
    place = {"event_broadcaster.sequence": receipt["sequence"], "event_broadcaster.epoch": receipt["epoch"]}
    messaging = {"messaging.system": "redis", "messaging.destination.name": CHANNEL}

    assert (server.kind, server.parent, server.failed) == ("server", "00f067aa0ba902b7", False)
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "url.path": ROUTE,
        "url.scheme": "http",
        "http.response.status_code": 202,
        "client.address": "127.0.0.1",
        "user_agent.original": answer.request.headers["user-agent"],
    }
    assert (publish.kind, publish.failed, publish.links) == ("producer", False, [])
    attributes = dict(publish.attributes)
    attributes.pop("event_broadcaster.waited_seconds", None)  # from a millisecond on
    message_id = attributes.pop("messaging.message.id")
    assert attributes == place | messaging | where | {
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "event_broadcaster.event.type": "alert_deleted",
        "event_broadcaster.subscribers": 2,
    }
    assert (command.kind, command.failed, command.links) == ("client", False, [])
    assert command.attributes == where | {"db.system.name": "redis", "db.query.text": "EVALSHA"}
    assert "alert" not in json.dumps(command.attributes)

    for name in ("one", "two"):
        deliver = only_span(spans, DELIVER, name)
        assert (deliver.kind, deliver.links, deliver.failed) == ("consumer", [publish.context], False)
        attributes = dict(deliver.attributes)
        assert 0 <= attributes.pop("event_broadcaster.age_seconds") < 20
        assert re.fullmatch(r"[0-9a-f]{16}-\d+", message_id)
        assert attributes == place | messaging | {
            "messaging.operation.name": "deliver",
            "messaging.operation.type": "process",
            "event_broadcaster.event.type": "alert_deleted",
            "event_broadcaster.recipients": 1,
            "event_broadcaster.replica": name,
            "messaging.message.id": message_id,
        }
        assert deliver.begin >= publish.begin
    assert {span.state for span in spans} == {headers["tracestate"]}
    assert {span.resource["service.name"] for span in spans} == {"event-broadcaster"}

    # the trace is in the frame and in the history
    assert [frame["traceparent"] for frame in frames] == [publish.traceparent] * 2
    with redis.Redis.from_url(valkey) as link:
        ((_, fields),) = link.xrevrange(f"{{{CHANNEL}}}:history", count=1)
    kept = json.loads(b"{" + fields[b"event"][1:])
    context = {name: kept[name] for name in headers}
    assert context == headers | {"traceparent": publish.traceparent}


async def test_publish_without_producer_trace(traced: tuple[Replica, Replica], collector: Collector) -> None:
    """Without a producer's trace the request starts one; without clients the trace is complete too."""
    async with connected(traced[1].websocket(events="nothing")) as client:
        await client.next()
        receipt = (await traced[0].post(ROUTE, BODY)).json()
    (publish,) = await collector.wait(PUBLISH, event_broadcaster_sequence=receipt["sequence"])
    spans = await collector.complete(publish.trace, 5)
    assert tree(spans) == [SERVER, f"  {PUBLISH}", "    EVALSHA", f"    {DELIVER}", f"    {DELIVER}"]
    assert only_span(spans, SERVER).parent == ""
    assert only_span(spans, DELIVER, "two").attributes["event_broadcaster.recipients"] == 0


async def test_publishes_that_share_a_call(traced: tuple[Replica, Replica], collector: Collector, valkey: str) -> None:
    """Publishes that share a call of Redis are linked to its span, which is in the trace of the first, and it to them.

    The server span of each ends no later than the client has its answer.
    """
    headers = [producer_headers() for _ in range(30)]
    ended = []

    async def post(own: dict[str, str]) -> None:
        answer = await http.post(ROUTE, json=BODY, headers=own)
        ended.append((trace_of(own), time.time()))
        assert answer.status_code == 202

    async with traced[0].http() as http:
        with redis.Redis.from_url(valkey) as link:
            link.client_pause(150)  # much less than the deadline of a call
        await asyncio.gather(*map(post, headers))

    def arrived() -> bool:
        names = [{span.name for span in collector.trace(trace_of(own))} for own in headers]
        return all({SERVER, PUBLISH} <= found for found in names)

    await eventually(arrived, 15)
    spans = [span for own in headers for span in collector.trace(trace_of(own))]
    commands = {span.context: span for span in spans if span.name == "EVALSHA"}
    publishes = [span for span in spans if span.name == PUBLISH]
    carried = [span for span in publishes if span.links]
    assert carried
    for span in carried:
        assert all(span.context in commands[link].links for link in span.links)
    answered = [command for command in commands.values() if not command.failed]
    assert sum(command.attributes.get("event_broadcaster.publishes", 1) for command in answered) == 30
    for trace, at in ended:
        assert only_span(collector.trace(trace), SERVER).end <= at


async def test_an_unsampled_publish(traced: tuple[Replica, Replica], collector: Collector) -> None:
    """A publish that its producer did not sample has no span, but its frame carries the producer's trace."""
    headers = producer_headers()
    headers["traceparent"] = headers["traceparent"][:-2] + "00"
    async with connected(traced[1].websocket()) as client:
        await client.next()
        await traced[0].request("POST", ROUTE, json=BODY, headers=headers)
        await client.take(traceparent=headers["traceparent"])  # events of tests before may still arrive
    later = producer_headers()
    await traced[0].request("POST", ROUTE, json=BODY, headers=later)
    await collector.complete(trace_of(later), 5)
    assert collector.trace(trace_of(headers)) == []


async def test_a_refused_request(traced: tuple[Replica, Replica], collector: Collector) -> None:
    """A request that the client got wrong is not an error of the server span, and starts no publish span."""
    headers = producer_headers()
    answer = await traced[0].request("POST", ROUTE, json={"id": 1}, headers=headers)
    assert answer.status_code == 400
    (span,) = await collector.complete(trace_of(headers), 1)
    assert (span.name, span.failed) == (SERVER, False)
    assert span.attributes["http.response.status_code"] == 400
    assert span.attributes["event_broadcaster.problem"] == "id"


async def test_what_is_not_traced(traced: tuple[Replica, Replica], collector: Collector) -> None:
    """Health, metrics, schema, WebSockets and unknown paths have no spans."""
    before = len(collector.spans)
    headers = producer_headers()
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/schema", "/nothing", "/broadcast/nothing"):
        await traced[0].request("GET", path, headers=headers)
    async with connected(traced[0].websocket(), headers=headers) as client:
        await client.next()
        await client.send("ping")
        await client.next()
    last = producer_headers()
    await traced[0].request("POST", ROUTE, json=BODY, headers=last)
    await collector.complete(trace_of(last), 5)
    assert {span.trace for span in collector.spans[before:]} == {trace_of(last)}


@pytest.mark.parametrize(("count", "delivers"), [(3, 3), (16, 16), (17, 1)])
async def test_a_batch(traced: tuple[Replica, Replica], collector: Collector, count: int, delivers: int) -> None:
    """A batch has one publish span with its count; up to 16 events have a delivery span each, more share one."""
    headers = producer_headers()
    batch = [{"type": "alert_deleted", "data": BODY}] * count
    answer = await traced[1].request("POST", "/broadcast/batch", json=batch, headers=headers)
    first, *_ = answer.json()["receipts"]
    spans = await collector.complete(trace_of(headers), 3 + 2 * delivers)
    deliver_name = "deliver batch" if delivers == 1 else DELIVER
    assert tree(spans) == [
        "POST /broadcast/batch",
        "  publish batch",
        "    EVALSHA",
        *[f"    {deliver_name}"] * (2 * delivers),
    ]
    publish = only_span(spans, "publish batch")
    assert publish.attributes["messaging.batch.message_count"] == count
    assert publish.attributes["event_broadcaster.sequence"] == first["sequence"]
    assert "event_broadcaster.event.type" not in publish.attributes
    for deliver in (span for span in spans if span.name == deliver_name):
        assert deliver.links == [publish.context]
        assert deliver.attributes.get("messaging.batch.message_count") == (count if delivers == 1 else None)


async def test_a_repetition(traced: tuple[Replica, Replica], collector: Collector) -> None:
    """A publish under a known idempotency key is marked as a repetition, and is not delivered."""
    first, again = producer_headers(), producer_headers()
    for headers in (first, again):
        answer = await traced[0].request("POST", ROUTE, json=BODY, headers=headers | {"Idempotency-Key": PRODUCER})
        assert answer.status_code == 202
    spans = await collector.complete(trace_of(again), 3)
    publish = only_span(spans, PUBLISH)
    assert publish.attributes["event_broadcaster.repeated"] is True
    assert "messaging.message.id" not in publish.attributes
    assert not publish.failed
    await collector.complete(trace_of(first), 5)
    assert len(collector.trace(trace_of(again))) == 3


async def test_replays(traced: tuple[Replica, Replica], collector: Collector) -> None:
    """A resume is a span with range, count, source and verdict; its frames keep their own traces."""
    contexts = [producer_headers() for _ in range(4)]
    numbers = []
    for headers in contexts:
        answer = await traced[0].request("POST", ROUTE, json=BODY, headers=headers)
        numbers.append(answer.json()["sequence"])
    epoch, last = answer.json()["epoch"], numbers[-1]
    await traced[1].delivers(last)

    async def resumed(since: int, known: str = epoch) -> tuple[list[Any], Span]:
        before = len(collector.named("replay traced"))
        async with connected(traced[1].websocket(since=since, epoch=known)) as client:
            verdict = await client.take(type="resync_ack")
            assert verdict["last_sequence"] == since
        return client.events, (await collector.wait("replay traced", before + 1))[-1]

    frames, span = await resumed(numbers[0] - 1)
    assert [frame["traceparent"].split("-")[1] for frame in frames] == list(map(trace_of, contexts))
    assert (span.kind, span.parent, span.failed) == ("internal", "", False)
    assert span.attributes == {
        "event_broadcaster.requested": numbers[0] - 1,
        "event_broadcaster.from": numbers[0] - 1,
        "event_broadcaster.to": last,
        "event_broadcaster.epoch": epoch,
        "event_broadcaster.count": 4,
        "event_broadcaster.source": "redis",
        "event_broadcaster.verdict": "recovered",
    }
    frames, span = await resumed(last - 1)
    assert [frame["traceparent"].split("-")[1] for frame in frames] == [trace_of(contexts[-1])]
    assert (span.attributes["event_broadcaster.source"], span.attributes["event_broadcaster.count"]) == ("memory", 1)
    _, span = await resumed(last - 1, "another")
    assert span.attributes["event_broadcaster.verdict"] == "epoch_changed"
    assert (span.attributes["event_broadcaster.requested"], span.attributes["event_broadcaster.from"]) == (last - 1, 0)


async def test_a_retried_publish(start: ReplicaFactory, valkey: str, channel: str, collector: Collector) -> None:
    """Attempts and retries are children of the publish span, which has no error if the publish succeeds."""
    async with Proxy(valkey) as proxy:
        # other calls fail too meanwhile, and must not open the circuit
        settings = {
            "redis_event_channel": channel,
            "broadcast_base_delay_seconds": 0.3,
            "circuit_failure_threshold": 100,
        }
        replica = await asyncio.to_thread(start, redis_url=proxy.url, **settings, **exporting(collector, "retrying"))
        await replica.post(ROUTE, BODY)
        await proxy.set_mode(ProxyMode.REFUSE)
        headers = producer_headers()
        publishing = asyncio.create_task(replica.request("POST", ROUTE, json=BODY, headers=headers))
        await eventually(lambda: replica.metric("retries_total") == 1, 15)
        await proxy.set_mode(ProxyMode.PASS)
        assert (await publishing).status_code == 202
        spans = await collector.complete(trace_of(headers), 6)
    assert tree(spans) == [
        SERVER,
        f"  {PUBLISH}",
        "    EVALSHA !",
        "    retry alert_deleted",
        "    EVALSHA",
        f"    {DELIVER}",
    ]
    broken, answered = sorted((span for span in spans if span.name == "EVALSHA"), key=lambda span: span.begin)
    assert broken.attributes["error.type"] == "ConnectionError"
    retry, publish = only_span(spans, "retry alert_deleted"), only_span(spans, PUBLISH)
    delay = retry.attributes["event_broadcaster.delay_seconds"]
    assert retry.attributes == {
        "event_broadcaster.attempt": 1,
        "event_broadcaster.delay_seconds": delay,
        "event_broadcaster.cause": "TransportUnavailable",
    }
    assert 0.33 <= delay <= 0.39
    assert broken.end <= retry.begin
    assert retry.end <= answered.begin
    assert delay - 0.01 <= retry.end - retry.begin < delay + 1
    assert publish.attributes["event_broadcaster.retries"] == 1
    assert "error.type" not in publish.attributes
    replica.stop()


async def test_a_failed_publish_and_the_circuit(
    start: ReplicaFactory, valkey: str, channel: str, collector: Collector
) -> None:
    """A failed publish has an error with a stable name; an outage is one trace, with a span for each transition.

    The span of the outage and that of its first transition link to the attempt that caused it. The transitions arrive
    while the outage lasts.
    """
    async with Proxy(valkey) as proxy:
        settings = {
            "redis_event_channel": channel,
            "broadcast_max_retries": 1,
            "circuit_failure_threshold": 2,
            "circuit_recovery_seconds": 0.3,
            "position_check_seconds": 60,
            "supervision_interval_seconds": 60,
        }
        replica = await asyncio.to_thread(start, redis_url=proxy.url, **settings, **exporting(collector, "failing"))
        # the subscription stays connected, so that only the failures of the publish count
        await proxy.set_mode(ProxyMode.SHUT)
        with redis.Redis.from_url(valkey) as link:
            link.client_kill_filter(_type="normal", skipme=True)
        headers = producer_headers()
        answer = await replica.request("POST", ROUTE, json=BODY, headers=headers)
        assert answer.status_code == 503
        spans = await collector.complete(trace_of(headers), 5)
        assert tree(spans) == [
            SERVER + " !",
            f"  {PUBLISH} !",
            "    EVALSHA !",
            "    retry alert_deleted",
            "    EVALSHA !",
        ]
        assert only_span(spans, SERVER).attributes["error.type"] == "503"
        publish = only_span(spans, PUBLISH)
        assert publish.attributes["error.type"] == "TransportUnavailable"
        assert publish.attributes["event_broadcaster.retries"] == 1
        assert "event_broadcaster.refused" not in publish.attributes
        (opened,) = await collector.wait("circuit closed -> open", instance="failing")
        last = max((span for span in spans if span.name == "EVALSHA"), key=lambda span: span.begin)
        assert (opened.kind, opened.links) == ("internal", [last.context])
        assert collector.trace(opened.trace) == [opened]
        assert opened.attributes == {
            "event_broadcaster.reason": "Redis cannot be reached: ECONNREFUSED: "
            "nothing listens at this address; check host and port, and whether Redis runs",
            "event_broadcaster.failure_count": 2,
        }

        headers = producer_headers()
        assert (await replica.request("POST", ROUTE, json=BODY, headers=headers)).status_code == 503
        spans = await collector.complete(trace_of(headers), 2)
        assert tree(spans) == [SERVER + " !", f"  {PUBLISH} !"]
        assert only_span(spans, PUBLISH).attributes["error.type"] == "CircuitOpen"
        assert only_span(spans, PUBLISH).attributes["event_broadcaster.refused"] == "circuit open"

        await proxy.set_mode(ProxyMode.PASS)
        # a resume from a number that is not there yet makes the listener ask Redis
        async with connected(replica.websocket(since=9)):
            (tried, *_) = await eventually_named(collector, "circuit open -> half_open", "failing")
            (closed,) = await collector.wait("circuit half_open -> closed", instance="failing")
        assert (tried.links, closed.links) == ([], [])
        assert closed.begin >= tried.begin
        (outage,) = await collector.wait("circuit open", instance="failing")
        assert (outage.parent, outage.links, outage.attributes) == ("", opened.links, opened.attributes)
        assert outage.begin <= opened.begin < closed.end <= outage.end
        trial = {"event_broadcaster.succeeded": True, "event_broadcaster.reason": "trial succeeded"}
        assert outage.events[-1] == ("trial", trial)
        lines = tree(collector.trace(outage.trace))
        assert lines[:3] == ["circuit open !", "  circuit closed -> open", "  circuit open -> half_open"]
        assert lines[-1] == "  circuit half_open -> closed"
    await asyncio.to_thread(replica.stop, tolerate=" CRITICAL kernel.resilience.link: ")


async def eventually_named(collector: Collector, name: str, instance: str) -> list[Span]:
    """Wait for a span with this name, of this replica; there may be more."""
    await eventually(lambda: collector.named(name, instance=instance), 15)
    return collector.named(name, instance=instance)


async def test_the_listener_and_the_drain(
    start: ReplicaFactory, valkey: str, channel: str, collector: Collector
) -> None:
    """A listener's restart and a drain are spans; spans that are left are exported before the exit."""
    settings = exporting(collector, "ending", otel_bsp_schedule_delay=60_000)
    replica = await asyncio.to_thread(start, redis_url=valkey, redis_event_channel=channel, **settings)
    with redis.Redis.from_url(valkey) as link:
        for client in link.client_list(_type="pubsub"):
            link.client_kill_filter(_id=client["id"])
    await eventually(lambda: replica.metric("listener_restarts_total") == 1, 15)
    async with connected(replica.websocket()) as client:
        await client.next()
        replica.signal(signal.SIGTERM)
        await client.closed()
    assert await asyncio.to_thread(replica.ended) == 0
    (restart,) = collector.named(f"restart listener {channel}", instance="ending")
    assert set(restart.attributes) == {"event_broadcaster.reason"}
    assert restart.attributes["event_broadcaster.reason"].startswith(
        "subscription lost: ConnectionError: Redis or a proxy"
    )
    (drain,) = collector.named(f"drain {channel}", instance="ending")
    assert drain.attributes == {"event_broadcaster.connections": 1}
    assert drain.end >= drain.begin


async def test_only_one_replica_traces(start: ReplicaFactory, valkey: str, channel: str, collector: Collector) -> None:
    """If the publishing replica does not trace, the producer's span is the parent of the delivery span."""
    settings = {"redis_url": valkey, "redis_event_channel": channel}
    silent = start(**settings)
    start(**settings, **exporting(collector, "hearing"))
    headers = producer_headers()
    await silent.request("POST", ROUTE, json=BODY, headers=headers)
    (deliver,) = await collector.wait(DELIVER, instance="hearing")
    parent = trace_of(headers), "00f067aa0ba902b7"
    assert (deliver.trace, deliver.parent) == parent
    assert deliver.links == [parent]
    assert deliver.state == headers["tracestate"]


async def test_resource_and_metrics(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Spans and metrics carry the service's name, version, instance and pod."""
    with Collector() as collector:
        replica = start(
            redis_url=valkey,
            redis_event_channel=channel,
            otel_exporter_otlp_endpoint=collector.url,
            otel_metric_export_interval=50,
            otel_bsp_schedule_delay=20,
            otel_service_name="cameras",
            otel_resource_attributes="k8s.namespace.name=prod,k8s.node.name=n1",
            pod_name="pod-7",
            pod_namespace="not this",
        )
        receipt = (await replica.post(ROUTE, BODY)).json()
        (span,) = await collector.wait(PUBLISH)

        def published() -> list[Any]:
            return [m for m in collector.metrics if m["event_broadcaster_sequence"].gauge.data_points[0].as_double]

        await eventually(published, 15)
        report = published()[0]
        assert span.resource == report[""]
        resource = dict(span.resource)
        assert len(resource.pop("service.instance.id")) == 36
        assert resource.pop("service.version")
        assert resource.pop("host.name")
        assert {name: value for name, value in resource.items() if not name.startswith("telemetry.")} == {
            "service.name": "cameras",
            "k8s.namespace.name": "prod",
            "k8s.node.name": "n1",
            "k8s.pod.name": "pod-7",
        }
        assert report["event_broadcaster_sequence"].gauge.data_points[0].as_double == receipt["sequence"]
        (mine,) = [
            point.as_double
            for point in report["event_broadcaster_published_total"].sum.data_points
            if point.attributes[0].value.string_value == "alert_deleted"
        ]
        assert mine == 1
        assert sum(report["event_broadcaster_publish_duration_seconds"].histogram.data_points[0].bucket_counts) == 1


@pytest.mark.parametrize(
    ("way", "reason"),
    [("refused", "Connection refused"), ("an error", "reason: Not Found"), ("no answer", "due to timeout")],
)
async def test_a_dead_collector(start: ReplicaFactory, valkey: str, channel: str, way: str, reason: str) -> None:
    """A collector that fails costs one warning, no publish, and at most 5 s at the exit."""
    with Collector() as collector:
        collector.status = 404
        if way == "no answer":
            collector.open.clear()
        url = "http://127.0.0.1:9" if way == "refused" else collector.url
        replica = start(
            redis_url=valkey,
            redis_event_channel=channel,
            log_level="debug",
            otel_exporter_otlp_traces_endpoint=f"{url}/v1/traces?key=secret",
            otel_exporter_otlp_timeout=3,
            otel_bsp_schedule_delay=20,
        )
        for _ in range(3):
            assert (await replica.post(ROUTE, BODY)).status_code == 202
        await eventually(lambda: "cannot be exported" in replica.log, 15)
        assert (await replica.post(ROUTE, BODY)).status_code == 202
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.to_thread(replica.stop)
        assert loop.time() - begin < FLUSH_SECONDS + 5
        (warning,) = [line for line in replica.log.splitlines() if " WARNING " in line]
        assert "telemetry.export: spans cannot be exported, " in warning
        assert reason in warning
        assert "secret" not in replica.log


async def test_a_collector_that_comes_back(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Exports resume when the collector is back, and the log says so once."""
    with Collector() as collector:
        collector.status = 400
        replica = start(redis_url=valkey, redis_event_channel=channel, **exporting(collector, "patient"))
        await replica.post(ROUTE, BODY)
        await eventually(lambda: "spans cannot be exported" in replica.log, 15)
        collector.status = 200
        receipt = (await replica.post(ROUTE, BODY)).json()
        await collector.wait(PUBLISH, event_broadcaster_sequence=receipt["sequence"])
        await eventually(lambda: "spans are exported again" in replica.log, 15)


async def test_a_collector_that_hangs_at_the_end(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """If the collector does not answer the last flush, the exit is delayed by its timeout only, with one warning."""
    with Collector() as collector:
        settings = exporting(collector, "hung", otel_bsp_schedule_delay=60_000, otel_metrics_exporter="none")
        replica = start(redis_url=valkey, redis_event_channel=channel, **settings)
        assert (await replica.post(ROUTE, BODY)).status_code == 202
        collector.open.clear()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.to_thread(replica.stop)
        assert FLUSH_SECONDS <= loop.time() - begin < FLUSH_SECONDS + 5
        (warning,) = [line for line in replica.log.splitlines() if " WARNING " in line]
        assert warning.endswith("check the collector: the last export took longer than 5 s")
