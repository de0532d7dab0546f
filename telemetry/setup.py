"""Telemetry as the `OTEL_*` variables want it, and its end: what is made, where it goes, and how long it may take.

Unless an endpoint or an exporter is set nothing is made, nothing is patched and nothing is paid. Metrics are kept in
any case (metrics.py), and exported here where that is asked for.
"""

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from kernel import EventBroadcaster, Observer
from telemetry.http import http_spans
from telemetry.metrics import Meter, watch_loop
from telemetry.redis import instrument_redis
from telemetry.tracing import Tracing

__all__ = ["FLUSH_SECONDS", "Telemetry"]

_logger = logging.getLogger(__name__)

# For so long the end of the process waits for what has not been exported yet.
FLUSH_SECONDS: Final = 5.0

_SERVICE: Final = "event-broadcaster"
# Variables as the Kubernetes downward API is commonly told to set them; OTEL_RESOURCE_ATTRIBUTES goes before.
_KUBERNETES: Final = {
    "k8s.pod.name": "POD_NAME",
    "k8s.pod.uid": "POD_UID",
    "k8s.namespace.name": "POD_NAMESPACE",
    "k8s.node.name": "NODE_NAME",
}
_OTLP: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

Middleware = Callable[[Any], Callable[[Any, Any, Any], Awaitable[None]]]


class Telemetry:
    """Everything that one application tells operators.

    `observer` is the kernel's guest and `middleware` goes around HTTP routes; both are absent while tracing is off.
    """

    def __init__(self, environ: Mapping[str, str], *, channel: str, version: str) -> None:
        self._resource = _resource(environ, version)
        self._version = version
        self._provider: TracerProvider | None = None
        self.observer: Observer | None = None
        self.middleware: list[Middleware] = []
        spans: list[SpanExporter] = _exporters(environ, "traces")
        self._metrics: list[MetricExporter] = _exporters(environ, "metrics")
        self._interval = _interval(environ)
        self._pumps: list[_Pump] = []
        self._watch: asyncio.Task[None] | None = None
        if spans or self._metrics:
            _quieten()
        if spans:
            instrument_redis()
            self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
            for exporter in spans:
                self._provider.add_span_processor(BatchSpanProcessor(_PatientSpans(exporter)))
            self.observer = Tracing(self._provider, channel, version)
            self.middleware = [http_spans(self._provider, version)]

    def start(self, broadcaster: EventBroadcaster) -> None:
        """Watch the event loop, and export metrics where that is asked for."""
        self._watch = asyncio.create_task(watch_loop(broadcaster.counters.loop_lag))
        meter = Meter(broadcaster, self._resource, self._version)
        self._pumps = [_Pump(exporter, meter, self._interval) for exporter in self._metrics]

    async def stop(self) -> None:
        """Export what is left, within `FLUSH_SECONDS`."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        ends: list[Callable[[], None]] = [pump.stop for pump in self._pumps]
        if self._provider is not None:
            ends.append(self._provider.shutdown)
        if not await _all_done(ends, FLUSH_SECONDS):
            _logger.warning("not everything could be exported within %g s, the rest is dropped", FLUSH_SECONDS)


async def _all_done(ends: Sequence[Callable[[], None]], seconds: float) -> bool:
    """Whether these blocking calls, each on a thread that nobody waits for at exit, are done within so many seconds."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    left = len(ends)

    def one_less() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    def run(end: Callable[[], None]) -> None:
        try:
            end()
        finally:
            with contextlib.suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(one_less)

    for end in ends:
        threading.Thread(target=run, args=(end,), daemon=True, name="telemetry flush").start()
    try:
        async with asyncio.timeout(seconds):
            if ends:
                await done.wait()
    except TimeoutError:
        return False
    return True


def _exporters(environ: Mapping[str, str], signal: str) -> list[Any]:
    """The exporters that are asked for, of "traces" or "metrics"; one that cannot be made is named in the log."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    prefix = f"OTEL_EXPORTER_OTLP_{signal.upper()}"
    endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or environ.get(f"{prefix}_ENDPOINT", "").strip()
    given = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip() or ("otlp" if endpoint else "none")
    made = []
    for name in (part.strip().lower() for part in given.split(",")):
        # what Prometheus scrapes is there anyway
        if name in ("", "none") or (signal, name) == ("metrics", "prometheus"):
            continue
        try:
            if name == "otlp":
                protocol = environ.get(f"{prefix}_PROTOCOL", "").strip()
                protocol = protocol or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() or "http/protobuf"
                if protocol not in _OTLP:
                    raise LookupError(f"no OTLP over {protocol!r}, only over {' and '.join(_OTLP)}")
                name = _OTLP[protocol]
            found = tuple(entry_points(group=f"opentelemetry_{signal}_exporter", name=name))
            if not found:
                extra = ": install event-broadcaster[otlp-grpc]" if name == "otlp_proto_grpc" else ""
                raise LookupError(f"no exporter {name!r} is installed{extra}")
            made.append(found[0].load()())
        except Exception as error:
            _logger.error("%s are not exported: %s", signal, error)
    return made


def _resource(environ: Mapping[str, str], version: str) -> Resource:
    ours = {"service.name": _SERVICE, "service.version": version, "service.instance.id": str(uuid.uuid4())}
    ours |= {name: environ[variable] for name, variable in _KUBERNETES.items() if environ.get(variable)}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _interval(environ: Mapping[str, str]) -> float:
    """Seconds between two exports of metrics."""
    text = environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip()
    return int(text) / 1000 if text.isdigit() and int(text) else 60.0


def _quieten() -> None:
    """Nothing but our own word about a collector that cannot be reached, and one about spans that do not fit."""
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    logging.getLogger("opentelemetry.sdk._shared_internal").addFilter(_Once())


class _Once(logging.Filter):
    """Lets each kind of line through once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[object] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is the first of its kind."""
        new = record.msg not in self._seen
        self._seen.add(record.msg)
        return new


class _Patience:
    """One warning when exports begin to fail, one line when they succeed again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failing = False

    def note(self, succeeded: bool) -> None:
        if succeeded and self._failing:
            _logger.info("%s are exported again", self._what)
        elif not succeeded and not self._failing:
            _logger.warning("%s cannot be exported, trying on; nothing else depends on it", self._what)
        self._failing = not succeeded


class _PatientSpans(SpanExporter):
    """An exporter whose failures are said once."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._patience = _Patience("spans")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Pass them on."""
        result = self._inner.export(spans)
        self._patience.note(result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """End it."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Pass it on."""
        return self._inner.force_flush(timeout_millis)


class _Pump:
    """Exports all metrics every `interval` seconds, on a thread, and once more at the end."""

    def __init__(self, exporter: MetricExporter, meter: Meter, interval: float) -> None:
        self._exporter = exporter
        self._meter = meter
        self._interval = interval
        self._patience = _Patience("metrics")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="telemetry metrics")
        self._thread.start()

    def stop(self) -> None:
        """Export for the last time; blocks until that is done."""
        self._ended.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self._interval)
            data: MetricsData = self._meter.data()
            try:
                succeeded = self._exporter.export(data) is MetricExportResult.SUCCESS
            except Exception:  # an exporter's mistake must not end the thread
                succeeded = False
            self._patience.note(succeeded)
