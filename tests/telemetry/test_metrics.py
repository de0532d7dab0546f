"""The table of metrics: equal to the README's, and with the same values as Prometheus text and by OTLP."""

import asyncio
import re

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families

from kernel import EventBroadcaster, SceneChangeData
from kernel.counters import Histogram
from telemetry import METRICS, Exposition
from telemetry.metrics import Meter, watch_loop
from tests.fakes import FakeRedis, FakeTransport
from tests.kernel.replicas import RARE_CHECKS, join, replica
from tests.system.replica import ROOT
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
