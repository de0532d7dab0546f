"""The table of metrics, read from the kernel's counters on request and exposed as Prometheus text or OTLP data.

The instruments of the OpenTelemetry SDK cost about 5 µs per measurement. Here a measurement is an addition to a plain
number; all other work is done when the metrics are read.
"""

import asyncio
import re
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
from prometheus_client.samples import Exemplar

from kernel import CircuitState, EventBroadcaster
from kernel.counters import Histogram
from telemetry.contexts import SAMPLED
from telemetry.logs import dropped_lines

__all__ = ["METRICS", "Exposition", "Meter", "Metric", "watch_loop"]

_PREFIX: Final = "event_broadcaster_"
_OPENMETRICS: Final = "application/openmetrics-text"
# The units of Prometheus, and their UCUM codes for OTLP.
_UNITS: Final = {"seconds": "s", "bytes": "By"}

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
        """The unit, with which the name ends (before `_total`): "seconds", "bytes" or ""."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in _UNITS else ""

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
    """All metrics of one broadcaster as Prometheus text, or as OpenMetrics with exemplars."""

    def __init__(self, broadcaster: EventBroadcaster) -> None:
        self._broadcaster = broadcaster
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def __call__(self, accept: str) -> tuple[bytes, str]:
        """Return the text in the format that the `Accept` header prefers, and its content type."""
        encode, content_type = choose_encoder(_OPENMETRICS if _prefers_openmetrics(accept) else "")
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
            family: Any = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
            for values, histogram in samples:
                family.add_metric(values, list(_buckets(histogram)), histogram.sum)
            return family
        make = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
        family = make(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
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
        metrics = [otlp.Metric(m.name, m.help, _UNITS.get(m.unit, ""), self._points(m, now)) for m in METRICS]
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


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    total = 0
    for index, (bound, count) in enumerate(zip((*histogram.bounds, "+Inf"), list(histogram.counts), strict=True)):
        total += count
        exemplar = _exemplar(histogram, index)
        yield (str(bound), float(total), exemplar) if exemplar else (str(bound), float(total))


def _exemplar(histogram: Histogram, bucket: int) -> Exemplar | None:
    found = histogram.exemplars.get(bucket)
    sampled = found and SAMPLED.fullmatch(found.traceparent)
    return Exemplar({"trace_id": sampled[1]}, found.value, found.at) if found and sampled else None


def _prefers_openmetrics(accept: str) -> bool:
    """Return True if the header names OpenMetrics 1.0.0, with at least the quality of the Prometheus text.

    A wildcard names no format, so it stands for the Prometheus text. A malformed quality counts as 0.
    """
    qualities: dict[str, float] = {}
    for given in accept.lower().split(","):
        name, *rest = (part.strip() for part in given.split(";"))
        parameters = {key.strip(): value.strip(' "') for key, _, value in (part.partition("=") for part in rest)}
        if name == _OPENMETRICS and parameters.get("version", "1.0.0") not in ("1.0.0", "0.0.1"):
            continue
        quality = parameters.get("q", "1")
        number = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0
        qualities[name] = max(number, qualities.get(name, 0.0))
    text = next((qualities[name] for name in ("text/plain", "text/*", "*/*") if name in qualities), 0.0)
    return 0 < qualities.get(_OPENMETRICS, 0.0) >= text
