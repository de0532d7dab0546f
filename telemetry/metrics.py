"""The metrics: one table, read from the kernel's plain counters when somebody asks, as Prometheus text or for OTLP.

Instruments of the OpenTelemetry SDK would have to be called for each measurement, at some 5 µs each; here counting is
an addition, and everything else is paid for when scraped.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import time_ns
from typing import Any, Final, NamedTuple

from opentelemetry.sdk.metrics import export as otlp
from opentelemetry.sdk.metrics.export import AggregationTemporality
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kernel import CircuitState, EventBroadcaster
from kernel.counters import Histogram

__all__ = ["METRICS", "Exposition", "Meter", "Metric", "watch_loop"]

_PREFIX: Final = "event_broadcaster_"

_Value = float | Histogram
_Labelled = Mapping[Any, _Value]


class Metric(NamedTuple):
    """One metric: `read` answers its value, or for one with labels a table of label values (a tuple, if several)."""

    name: str
    kind: str
    help: str
    read: Callable[[EventBroadcaster], _Value | _Labelled]
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The unit as OTLP has it (UCUM)."""
        return "s" if self.name.endswith("_seconds") else "By" if "_bytes" in self.name else ""

    def samples(self, broadcaster: EventBroadcaster) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Label values, and what is measured under them."""
        found = self.read(broadcaster)
        if not self.labels:
            yield (), found
            return
        assert isinstance(found, Mapping)
        for key, value in found.copy().items() if isinstance(found, dict) else found.items():
            yield (key if isinstance(key, tuple) else (key,)), value


def _circuit(broadcaster: EventBroadcaster) -> dict[str, float]:
    now = broadcaster.get_circuit_state().state
    return {state.value: float(state is now) for state in CircuitState}


def _table(kind: str, *rows: tuple[Any, ...]) -> list[Metric]:
    return [Metric(_PREFIX + name, kind, help, read, tuple(labels)) for name, help, read, *labels in rows]


METRICS: Final = (
    *_table(
        "gauge",
        ("connections", "WebSocket clients connected to this replica", lambda b: b.connections),
        ("degraded", "1 while Redis is away", lambda b: b.is_degraded()),
        ("draining", "1 while this replica sends its clients away", lambda b: b.draining),
        ("circuit_state", "1 for the state of the circuit of the link to Redis", _circuit, "state"),
        ("sequence", "Number of the newest event delivered here; a new epoch starts again at 1", lambda b: b.sequence),
        ("publish_ahead", "Events by which publishes here are ahead of deliveries here; they wait at 3,000",
         lambda b: b.ahead),
        ("history_depth", "Events kept in Redis, at the last position check", lambda b: b.history_depth),
        ("unacknowledged", "Events sent to clients connected now that they should have acknowledged and have not",
         lambda b: b.unacknowledged),
    ),
    *_table(
        "counter",
        ("accepts_total", "WebSocket connections accepted", lambda b: b.counters.accepts),
        ("closes_total", "WebSocket connections closed, by close code", lambda b: b.counters.closes, "code"),
        ("published_total", "Events published by this replica", lambda b: b.counters.published_events, "type"),
        ("publish_failures_total", "Events that could not be published", lambda b: b.counters.failed_events, "type"),
        ("retries_total", "Publishes tried again", lambda b: b.counters.retries),
        ("deliveries_total", "Messages written to clients", lambda b: b.counters.deliveries),
        ("batches_total", "Batches of events handed to the live clients", lambda b: b.counters.batches),
        ("replays_total", "Resumes answered, by where the events came from and how it ended",
         lambda b: b.counters.replays, "source", "verdict"),
        ("gaps_total", "Holes in the numbering that could not be filled", lambda b: b.counters.gaps),
        ("epoch_changes_total", "Times that the numbering began anew", lambda b: b.counters.epoch_changes),
        ("refills_total", "Times that events missed were fetched from the history", lambda b: b.counters.refills),
        ("listener_restarts_total", "Times that the subscription was made anew",
         lambda b: b.counters.listener_restarts),
        ("slow_clients_total", "Times that a client's socket was full", lambda b: b.counters.slow_clients),
        ("acks_total", "Acks received", lambda b: b.counters.acks),
        ("acks_wanted_total", "Messages written that require an ack", lambda b: b.counters.acks_wanted),
        ("unacknowledged_at_close_total", "Events that a client should have acknowledged and had not when it went",
         lambda b: b.counters.unacknowledged_at_close),
        ("foreign_documents_total", "Documents on the channel that were none of ours",
         lambda b: b.counters.foreign_documents),
        ("saved_bytes_total", "Bytes that compression saved, over all messages written",
         lambda b: b.counters.saved_bytes),
    ),
    *_table(
        "histogram",
        ("publish_duration_seconds", "Time of a publish, with its retries", lambda b: b.counters.publish_duration),
        ("fanout_duration_seconds", "Time to hand a batch to all live clients", lambda b: b.counters.fanout_duration),
        ("delivery_lag_seconds", "Time from an event's publish, on whichever replica, until it was written here",
         lambda b: b.counters.delivery_lag),
        ("loop_lag_seconds", "Time by which the event loop was late", lambda b: b.counters.loop_lag),
        ("acknowledge_duration_seconds", "Time from an event's delivery until a client's ack of it",
         lambda b: b.counters.acknowledge_duration),
    ),
)  # fmt: skip


class Exposition(Collector):
    """All metrics of one broadcaster as Prometheus (or OpenMetrics) text."""

    def __init__(self, broadcaster: EventBroadcaster) -> None:
        self._broadcaster = broadcaster
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def __call__(self, accept: str) -> tuple[bytes, str]:
        """The text in the best form that the `Accept` header allows, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Any]:
        """Read every metric; called by the registry."""
        return [self._family(metric) for metric in METRICS]

    def describe(self) -> Iterable[Any]:
        """Nothing in advance."""
        return ()

    def _family(self, metric: Metric) -> Any:  # noqa: ANN401  the families share no base with these methods
        samples = metric.samples(self._broadcaster)
        if metric.kind == "histogram":
            family: Any = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for values, histogram in samples:
                family.add_metric(values, list(_buckets(histogram)), histogram.sum)
            return family
        make = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
        family = make(metric.name, metric.help, labels=metric.labels)
        for values, value in samples:
            family.add_metric(values, float(value))
        return family


class Meter:
    """All metrics of one broadcaster as the data that OTLP exporters take; sums are cumulative since the start."""

    def __init__(self, broadcaster: EventBroadcaster, resource: Resource, version: str) -> None:
        self._broadcaster = broadcaster
        self._resource = resource
        self._scope = InstrumentationScope("event_broadcaster", version)
        self._start = time_ns()

    def data(self) -> otlp.MetricsData:
        """Read every metric."""
        now = time_ns()
        metrics = [otlp.Metric(m.name, m.help, m.unit, self._points(m, now)) for m in METRICS]
        scopes = [otlp.ScopeMetrics(self._scope, metrics, "")]
        return otlp.MetricsData([otlp.ResourceMetrics(self._resource, scopes, "")])

    def _points(self, metric: Metric, now: int) -> otlp.Gauge | otlp.Sum | otlp.Histogram:
        samples = [
            (dict(zip(metric.labels, values, strict=True)), value)
            for values, value in metric.samples(self._broadcaster)
        ]
        if metric.kind == "histogram":
            points = [self._histogram(labels, histogram, now) for labels, histogram in samples]
            return otlp.Histogram(points, AggregationTemporality.CUMULATIVE)
        # all of one kind: the encoder takes no truth values
        numbers = [otlp.NumberDataPoint(labels, self._start, now, float(value)) for labels, value in samples]
        if metric.kind == "gauge":
            return otlp.Gauge(numbers)
        return otlp.Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True)

    def _histogram(self, labels: dict[str, str], histogram: Histogram, now: int) -> otlp.HistogramDataPoint:
        counts = list(histogram.counts)
        unknown: Any = None  # the smallest and the largest value are not kept, and OTLP does not need them
        return otlp.HistogramDataPoint(
            labels, self._start, now, sum(counts), histogram.sum, counts, histogram.bounds, unknown, unknown
        )


async def watch_loop(histogram: Histogram, interval: float = 0.25) -> None:
    """Measure every `interval` seconds by how much the event loop is late."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        histogram.observe(loop.time() - due)


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), list(histogram.counts), strict=True):
        total += count
        yield str(bound), float(total)
