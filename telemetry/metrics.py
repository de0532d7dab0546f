"""The table of metrics, read from the kernel's counters on request and exposed as Prometheus text or OTLP data.

The instruments of the OpenTelemetry SDK cost about 5 µs per measurement. Here a measurement is an addition to a plain
number; all other work is done when the metrics are read.
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
from telemetry.logs import dropped_lines

__all__ = ["METRICS", "Exposition", "Meter", "Metric", "watch_loop"]

_PREFIX: Final = "event_broadcaster_"

_Value = float | Histogram
_Labelled = Mapping[Any, _Value]


class Metric(NamedTuple):
    """One metric.

    `read` returns its value, or for a metric with labels a mapping from label values to values. The key of that mapping
    is a string for one label and a tuple for several.
    """

    name: str
    kind: str
    help: str
    read: Callable[[EventBroadcaster], _Value | _Labelled]
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The unit in OTLP (a UCUM code), "" if it has none."""
        return "s" if self.name.endswith("_seconds") else "By" if "_bytes" in self.name else ""

    def samples(self, broadcaster: EventBroadcaster) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Yield pairs of label values and the value measured for them."""
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
        ("connections", "Clients connected to this replica, waiting polls too", lambda b: b.connections),
        ("degraded", "1 while Redis cannot be used (degraded mode)", lambda b: b.is_degraded()),
        ("draining", "1 while this replica closes its connections before it stops", lambda b: b.draining),
        ("circuit_state", "1 for the current state of the circuit breaker for Redis, 0 for the others",
         _circuit, "state"),
        ("sequence", "Sequence of the newest event delivered by this replica; restarts at 1 in a new epoch",
         lambda b: b.sequence),
        ("publish_ahead",
         "Events published but not yet delivered by this replica; publishes wait at 3,000 or half of HISTORY_SIZE",
         lambda b: b.ahead),
        ("history_depth", "Events in the Redis history at the last position check", lambda b: b.history_depth),
        ("unacknowledged", "Acks outstanding from clients that are connected now", lambda b: b.unacknowledged),
    ),
    *_table(
        "counter",
        ("accepts_total", "WebSocket connections accepted", lambda b: b.counters.accepts),
        ("closes_total", "WebSocket connections closed, by close code", lambda b: b.counters.closes, "code"),
        ("published_total", "Events published by this replica", lambda b: b.counters.published_events, "type"),
        ("publish_failures_total", "Events that could not be published", lambda b: b.counters.failed_events, "type"),
        ("retries_total", "Retries of publishes", lambda b: b.counters.retries),
        ("deliveries_total", "Messages written to clients", lambda b: b.counters.deliveries),
        ("batches_total", "Batches of events fanned out to live clients", lambda b: b.counters.batches),
        ("replays_total", "Replays finished, by source of the events and verdict",
         lambda b: b.counters.replays, "source", "verdict"),
        ("gaps_total", "Gaps: missed events that were no longer in the history", lambda b: b.counters.gaps),
        ("epoch_changes_total", "New epochs: the numbering restarted", lambda b: b.counters.epoch_changes),
        ("refills_total", "Refills: missed events were fetched from the history", lambda b: b.counters.refills),
        ("listener_restarts_total", "Restarts of the subscription to the Redis channel",
         lambda b: b.counters.listener_restarts),
        ("slow_clients_total", "Times that a client's write buffer exceeded its high-water mark",
         lambda b: b.counters.slow_clients),
        ("acks_total", "Acks received", lambda b: b.counters.acks),
        ("acks_wanted_total", "Messages written that require an ack", lambda b: b.counters.acks_wanted),
        ("unacknowledged_at_close_total", "Acks still outstanding when a connection closed",
         lambda b: b.counters.unacknowledged_at_close),
        ("foreign_documents_total",
         "Messages on the Redis channel that were skipped: invalid, or announcing events that Redis does not have",
         lambda b: b.counters.foreign_documents),
        ("saved_bytes_total", "Bytes saved by compression, over all messages written",
         lambda b: b.counters.saved_bytes),
        ("log_lines_dropped_total", "Log lines dropped because stderr did not accept them", lambda _: dropped_lines()),
    ),
    *_table(
        "histogram",
        ("publish_duration_seconds", "Duration of a publish, including its retries",
         lambda b: b.counters.publish_duration),
        ("fanout_duration_seconds", "Time to fan a batch out to all live clients",
         lambda b: b.counters.fanout_duration),
        ("delivery_lag_seconds", "Time from the publish of an event, on any replica, until this replica wrote it",
         lambda b: b.counters.delivery_lag),
        ("loop_lag_seconds", "Event-loop delay", lambda b: b.counters.loop_lag),
        ("acknowledge_duration_seconds", "Time from the delivery of an event until the client's ack",
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
        """Return the text in the best format that the `Accept` header allows, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Any]:
        """Return every metric with its current values; called by the registry."""
        return [self._family(metric) for metric in METRICS]

    def describe(self) -> Iterable[Any]:
        """Return nothing: the registry needs no descriptions in advance."""
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
    """All metrics of one broadcaster as OTLP data; sums and histograms are cumulative since the start."""

    def __init__(self, broadcaster: EventBroadcaster, resource: Resource, version: str) -> None:
        self._broadcaster = broadcaster
        self._resource = resource
        self._scope = InstrumentationScope("event_broadcaster", version)
        self._start = time_ns()

    def data(self) -> otlp.MetricsData:
        """Return every metric with its current values."""
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
        # All as float: the encoder rejects bools.
        numbers = [otlp.NumberDataPoint(labels, self._start, now, float(value)) for labels, value in samples]
        if metric.kind == "gauge":
            return otlp.Gauge(numbers)
        return otlp.Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True)

    def _histogram(self, labels: dict[str, str], histogram: Histogram, now: int) -> otlp.HistogramDataPoint:
        counts = list(histogram.counts)
        unknown: Any = None  # minimum and maximum are not recorded; they are optional in OTLP
        return otlp.HistogramDataPoint(
            labels, self._start, now, sum(counts), histogram.sum, counts, histogram.bounds, unknown, unknown
        )


async def watch_loop(histogram: Histogram, interval: float = 0.25) -> None:
    """Measure the event-loop delay every `interval` seconds: how late a timer fires."""
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
