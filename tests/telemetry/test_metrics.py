"""The table of metrics: equal to the README's, and with the same values as Prometheus text and by OTLP."""

import asyncio
import re
import time
from collections.abc import Iterable

import prometheus_client
import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric
from opentelemetry.sdk.resources import Resource
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar

from kernel import BroadcastFailed, EventBroadcaster, PublishOptions, SceneChangeData
from kernel.counters import Histogram
from telemetry import METRICS, Exposition
from telemetry.metrics import Meter, watch_loop
from tests.fakes import FakeRedis, FakeTransport
from tests.kernel.replicas import RARE_CHECKS, join, replica
from tests.system.replica import ROOT
from tests.telemetry.conftest import Watch
from tests.waiting import eventually

PREFIX = "event_broadcaster_"
README = (ROOT / "telemetry" / "README.md").read_text()
DATA = SceneChangeData(id=1, camera_id="door", detected_at="now", change_type="unknown", similarity_score=0.5)


def test_readme() -> None:
    """The README's table lists exactly the existing metrics, each with its kind, labels and help text."""
    rows = re.findall(r"^\| `([a-z_]+)` \| (gauge|counter|histogram) \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    shown = [(PREFIX + name, kind, tuple(re.findall(r"\w+", labels)), text) for name, kind, labels, text in rows]
    assert shown == [(metric.name, metric.kind, metric.labels, metric.help) for metric in METRICS]


def test_names() -> None:
    """Metric names follow Prometheus's conventions: a prefix, base units, and `_total` for counters only."""
    for metric in METRICS:
        assert re.fullmatch(r"event_broadcaster_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith("_seconds") == (metric.kind == "histogram")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def numbers(metric: Metric) -> dict[tuple[str, ...], float]:
    """Return an OTLP metric's values by labels; for a histogram, its counts."""
    found = {}
    for point in (getattr(metric, metric.WhichOneof("data") or "gauge")).data_points:
        labels = tuple(pair.value.string_value for pair in point.attributes)
        found[labels] = float(point.count) if metric.HasField("histogram") else point.as_double
    return found


async def test_both_ways() -> None:
    """OTLP data has the same metrics, labels and values as `/metrics`, cumulative since the start."""
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        _, sink = join(broadcaster)
        await broadcaster.broadcast_scene_change(DATA)
        await eventually(lambda: len(sink.messages) == 2)
        broadcaster.counters.closed(1000)
        text, _ = Exposition(broadcaster)("")
        data = encode_metrics(Meter(broadcaster, Resource({"a": "b"}), "1").data())
    (sent,) = data.resource_metrics
    by_otlp = {metric.name: metric for metric in sent.scope_metrics[0].metrics}
    scraped: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_sum")):
                labels = tuple(sample.labels.values())
                scraped.setdefault(sample.name.removesuffix("_count"), {})[labels] = sample.value
    assert {name: numbers(metric) for name, metric in by_otlp.items()} == scraped
    assert scraped["event_broadcaster_closes_total"]["1000",] == 1

    kinds = {metric.name: metric.kind for metric in METRICS}
    for name, metric in by_otlp.items():
        shape = metric.WhichOneof("data")
        assert shape == {"counter": "sum"}.get(kinds[name], kinds[name])
        if shape != "gauge":
            body = getattr(metric, str(shape))
            assert body.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert by_otlp["event_broadcaster_published_total"].sum.is_monotonic
    assert by_otlp["event_broadcaster_saved_bytes_total"].unit == "By"
    assert by_otlp["event_broadcaster_loop_lag_seconds"].unit == "s"


async def test_a_histogram() -> None:
    """The buckets of a histogram are cumulative in Prometheus text and separate in OTLP, with the same sum."""
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        for value in (0.0004, 0.002, 0.002, 99.0):
            broadcaster.counters.loop_lag.observe(value)
        text, _ = Exposition(broadcaster)("")
        data = encode_metrics(Meter(broadcaster, Resource({}), "1").data())
    name = "event_broadcaster_loop_lag_seconds"
    (family,) = [family for family in text_string_to_metric_families(text.decode()) if family.name == name]
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert (buckets["0.0005"], buckets["0.001"], buckets["0.0025"], buckets["30.0"], buckets["+Inf"]) == (1, 1, 3, 3, 4)
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    (point,) = next(metric for metric in metrics if metric.name == name).histogram.data_points
    assert (point.count, point.bucket_counts[0], point.bucket_counts[2], point.bucket_counts[-1]) == (4, 1, 2, 1)
    assert point.sum == pytest.approx(99.0044)


OPENMETRICS = "application/openmetrics-text"
PROMETHEUS = "text/plain"
# What Prometheus 2.42 and 3.4 send.
SCRAPERS = (
    f"{OPENMETRICS};version=1.0.0,{OPENMETRICS};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.5,{OPENMETRICS};version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
)


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        *((each, OPENMETRICS) for each in SCRAPERS),
        ("", PROMETHEUS),
        ("*/*", PROMETHEUS),
        ("application/*", PROMETHEUS),
        (OPENMETRICS, OPENMETRICS),
        ('Application/OpenMetrics-Text ; Version="1.0.0" ; Q=0.1', OPENMETRICS),
        (f"{OPENMETRICS}; version=2.0.0, text/plain; q=0.1", PROMETHEUS),
        (f"{OPENMETRICS};q=0", PROMETHEUS),
        (f"{OPENMETRICS};q=0.000, */*", PROMETHEUS),
        (f"{OPENMETRICS};q=nan", PROMETHEUS),
        (f"{OPENMETRICS};q=much", PROMETHEUS),
        (f"{OPENMETRICS};q=0.4, text/plain;q=0.5", PROMETHEUS),
        (f"text/plain;q=0.5, {OPENMETRICS};q=0.5", OPENMETRICS),
        (f"{OPENMETRICS};q=0.4, text/plain;q=0.3, */*;q=0.9", OPENMETRICS),
        (f"{OPENMETRICS};q=0.4, text/*;q=0.5, */*;q=0.1", PROMETHEUS),
        (f"{OPENMETRICS};q=0.4, */*;q=0.5", PROMETHEUS),
        (f"{OPENMETRICS};version=0.0.1;q=0.4, {OPENMETRICS};q=0.8, */*;q=0.5", OPENMETRICS),
        (",;=,;q", PROMETHEUS),
    ],
)
async def test_negotiation(accept: str, format: str) -> None:
    """The format is OpenMetrics if the client names it with at least the quality of Prometheus text, else that."""
    text, content_type = Exposition(EventBroadcaster(FakeTransport(FakeRedis())))(accept)
    version = {OPENMETRICS: "1.0.0", PROMETHEUS: "0.0.4"}[format]
    assert content_type == f"{format}; version={version}; charset=utf-8"
    assert text.endswith(b"# EOF\n") == (format == OPENMETRICS)


def exemplars(broadcaster: EventBroadcaster) -> dict[str, dict[float, Exemplar]]:
    """Return the exemplars in the OpenMetrics text, by histogram and bound of the bucket."""
    found: dict[str, dict[float, Exemplar]] = {}
    for family in openmetrics(Exposition(broadcaster)(OPENMETRICS)[0].decode()):
        for sample in family.samples:
            if sample.exemplar:
                found.setdefault(family.name.removeprefix(PREFIX), {})[float(sample.labels["le"])] = sample.exemplar
    return found


async def test_openmetrics() -> None:
    """The OpenMetrics text has every metric, with its unit, and the same samples as the Prometheus text."""
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        _, sink = join(broadcaster)
        await broadcaster.broadcast_scene_change(DATA)
        await eventually(lambda: len(sink.messages) == 2)
        plain, open_ = (Exposition(broadcaster)(accept)[0].decode() for accept in (PROMETHEUS, OPENMETRICS))
    families = list(openmetrics(open_))
    found = {family.name: (family.type, family.unit, family.documentation) for family in families}
    units = {"_seconds": "seconds", "_bytes": "bytes"}
    assert found == {
        (name := metric.name.removesuffix("_total")): (
            metric.kind,
            next((unit for end, unit in units.items() if name.endswith(end)), ""),
            metric.help,
        )
        for metric in METRICS
    }
    assert sum(unit != "" for _, unit, _ in found.values()) == 6

    def samples(of: Iterable[prometheus_client.Metric]) -> list[object]:
        return [(s.name, s.labels, s.value) for family in of for s in family.samples]

    assert samples(families) == samples(text_string_to_metric_families(plain))


async def test_exemplars(unsampled: Watch) -> None:
    """A sampled publish, also one that fails, and its delivery are exemplars, each in the bucket of its value."""
    redis = FakeRedis()
    async with replica(redis, RARE_CHECKS, observer=unsampled.tracing) as broadcaster:
        for number, sampled in ((1, True), (2, True), (3, False)):
            options = PublishOptions(traceparent=f"00-{number:032x}-{1:016x}-0{int(sampled)}")
            await broadcaster.broadcast_scene_change(DATA, options=options)
            await eventually(lambda: broadcaster.sequence == number)  # noqa: B023  called in this turn only
        await broadcaster.broadcast_scene_change(DATA)
        await eventually(lambda: broadcaster.sequence == 4)
        found = exemplars(broadcaster)
        assert found.keys() == {"publish_duration_seconds", "delivery_lag_seconds"}
        for name, buckets in found.items():
            histogram = getattr(broadcaster.counters, name.removesuffix("_seconds"))
            assert {exemplar.labels["trace_id"] for exemplar in buckets.values()} <= {f"{1:032x}", f"{2:032x}"}
            assert f"{2:032x}" in {exemplar.labels["trace_id"] for exemplar in buckets.values()}
            for bound, exemplar in buckets.items():
                below = max((each for each in histogram.bounds if each < bound), default=-1)
                assert below < exemplar.value <= bound
                assert float(exemplar.timestamp or 0) == pytest.approx(time.time(), abs=60)
        redis.fail(2)
        with pytest.raises(BroadcastFailed):
            await broadcaster.broadcast_scene_change(
                DATA, options=PublishOptions(traceparent=f"00-{5:032x}-{1:016x}-01")
            )
        published = exemplars(broadcaster)["publish_duration_seconds"]
        assert f"{5:032x}" in {exemplar.labels["trace_id"] for exemplar in published.values()}
        assert b"trace_id" not in Exposition(broadcaster)(PROMETHEUS)[0]


async def test_no_exemplars_without_tracing() -> None:
    """Without an observer that follows traces there are no exemplars, even of events that a producer sampled."""
    async with replica(FakeRedis(), RARE_CHECKS) as broadcaster:
        await broadcaster.broadcast_scene_change(DATA, options=PublishOptions(traceparent=f"00-{1:032x}-{1:016x}-01"))
        await eventually(lambda: broadcaster.sequence == 1)
        assert exemplars(broadcaster) == {}


@pytest.mark.parametrize(
    "traceparent", ["", "00-1-2-01", f"00-{1:032x}-{1:016x}-00", f"00-{'x' * 32}-{1:016x}-01", '"} 1']
)
async def test_exemplars_of_other_observers(traceparent: str) -> None:
    """A trace context that is not that of a sampled event is no exemplar, whatever an observer follows."""
    broadcaster = EventBroadcaster(FakeTransport(FakeRedis()))
    broadcaster.counters.delivery_lag.observe(1.0)
    broadcaster.counters.delivery_lag.exemplify(1.0, traceparent, 5.0)
    assert exemplars(broadcaster) == {}


async def test_the_loop_is_watched() -> None:
    """The event-loop delay is how late a timer fires."""
    histogram = Histogram()
    watch = asyncio.create_task(watch_loop(histogram, 0.01))
    await eventually(lambda: sum(histogram.counts) >= 3)
    watch.cancel()
    await asyncio.wait([watch])
    assert histogram.sum < 5


def test_metrics_of_one_that_never_ran() -> None:
    """Every metric can be read before the broadcaster is started."""

    async def read() -> bytes:
        return Exposition(EventBroadcaster(FakeTransport(FakeRedis())))("")[0]

    text = asyncio.run(read()).decode()
    assert len(list(text_string_to_metric_families(text))) == len(METRICS)
