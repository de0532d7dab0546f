"""Sets up tracing and metric export from the `OTEL_*` variables, and shuts both down in bounded time.

Unless an endpoint or an exporter is set, no span is created and no library is patched, so tracing costs nothing.
Metrics are always counted (metrics.py); this module exports them if a variable asks for it.
"""

import asyncio
import logging
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from kernel import EventBroadcaster, Observer
from telemetry.encoding import encode_attributes_once
from telemetry.environment import UNKNOWN_PROPAGATORS
from telemetry.export import ExportHealth, PeriodicExport, ReportingSpanExporter, quieten, unfinished
from telemetry.http import http_spans, record_problem
from telemetry.metrics import Meter, watch_loop
from telemetry.redis import instrument_redis, server_attributes
from telemetry.sampling import EarlySampler
from telemetry.tracing import Tracing

__all__ = ["FLUSH_SECONDS", "Telemetry"]

_logger = logging.getLogger(__name__)

# How long `Telemetry.stop` waits for the last exports.
FLUSH_SECONDS: Final = 5.0

_SERVICE: Final = "event-broadcaster"
# Variables that are commonly set through the Kubernetes downward API; OTEL_RESOURCE_ATTRIBUTES overrides them.
_KUBERNETES: Final = {
    "k8s.pod.name": "POD_NAME",
    "k8s.pod.uid": "POD_UID",
    "k8s.namespace.name": "POD_NAMESPACE",
    "k8s.node.name": "NODE_NAME",
}
_OTLP: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

ExceptionHook = Callable[[Exception, Any], Awaitable[None]]
Middleware = Callable[[Any], Callable[[Any, Any, Any], Awaitable[None]]]


class Telemetry:
    """Tracing and metric export of one application.

    `observers` are for the kernel, `middleware` is for the HTTP routes, and `after_exception` is called with each error
    that they raise; all are empty while tracing is off. `environ` holds the `OTEL_*` variables. A variable that cannot
    be used is logged as an error, and its signal is not exported.
    """

    def __init__(self, environ: Mapping[str, str], *, channel: str, redis_url: str, version: str) -> None:
        self._instance = str(uuid.uuid4())
        self._resource = _resource(environ, version, self._instance)
        self._version = version
        self.observers: list[Observer] = []
        self.middleware: list[Middleware] = []
        self.after_exception: list[ExceptionHook] = []
        spans: list[SpanExporter] = _exporters(environ, "traces")
        self._metrics: list[MetricExporter] = _exporters(environ, "metrics")
        self._interval = _interval(environ)
        # Blocking shutdown calls, by the object that reports their outcome.
        self._shutdowns: dict[ExportHealth, Callable[[], None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._tracing: Tracing | None = None
        if spans or self._metrics:
            quieten()
        if spans:
            try:
                self._trace(spans, channel, redis_url)
            except ValueError as error:  # the SDK rejected the value of a variable
                _logger.error("traces are not exported: %s", error)

    def _trace(self, exporters: Sequence[SpanExporter], channel: str, redis_url: str) -> None:
        sampler = EarlySampler(TracerProvider(shutdown_on_exit=False).sampler)
        provider = TracerProvider(sampler, self._resource, shutdown_on_exit=False, id_generator=sampler)
        for exporter in exporters:
            health = ExportHealth("spans")
            processor = BatchSpanProcessor(ReportingSpanExporter(exporter, health))
            provider.add_span_processor(processor)
            self._shutdowns[health] = processor.shutdown
        encode_attributes_once()
        instrument_redis()
        for name in UNKNOWN_PROPAGATORS:
            _logger.warning("OTEL_PROPAGATORS: propagator %r is not installed, ignoring it", name)
        self._tracing = Tracing(
            provider,
            channel=channel,
            version=self._version,
            replica=_short_name(self._resource, self._instance),
            server=server_attributes(redis_url),
        )
        self.observers = [self._tracing]
        self.after_exception = [record_problem]
        self.middleware = [http_spans(provider, sampler, self._version)]

    def start(self, broadcaster: EventBroadcaster) -> None:
        """Start measuring the event-loop delay, and exporting metrics if a variable asks for it."""
        self._watch = asyncio.create_task(watch_loop(broadcaster.counters.loop_lag))
        meter = Meter(broadcaster, self._resource, self._version)
        for exporter in self._metrics:
            health = ExportHealth("metrics")
            self._shutdowns[health] = PeriodicExport(exporter, meter, self._interval, health).stop

    async def stop(self) -> None:
        """Export the remaining spans and metrics; what is not exported within `FLUSH_SECONDS` is dropped."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._tracing is not None:
            self._tracing.stop()
        for health in await unfinished(self._shutdowns, FLUSH_SECONDS):
            health.note(False, f"the last export took longer than {FLUSH_SECONDS:g} s")


def _exporters(environ: Mapping[str, str], signal: str) -> list[Any]:
    """Create the exporters that the variables ask for; `signal` is "traces" or "metrics".

    An exporter that cannot be created is logged as an error and left out.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    prefix = f"OTEL_EXPORTER_OTLP_{signal.upper()}"
    endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or environ.get(f"{prefix}_ENDPOINT", "").strip()
    given = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip() or ("otlp" if endpoint else "none")
    made = []
    for name in (part.strip().lower() for part in given.split(",")):
        # /metrics is always served, so the "prometheus" exporter has nothing to add.
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


def _resource(environ: Mapping[str, str], version: str, instance: str) -> Resource:
    own = {"service.name": _SERVICE, "service.version": version, "service.instance.id": instance}
    # Jaeger takes the host from host.name; without one it warns of clock skew between spans of one host.
    own["host.name"] = environ.get("NODE_NAME") or socket.gethostname()
    own |= {name: environ[variable] for name, variable in _KUBERNETES.items() if environ.get(variable)}
    made = Resource.create({**own, **OTELResourceDetector().detect().attributes})
    return _IdentityHashedResource(made.attributes, made.schema_url)


def _short_name(resource: Resource, generated: str) -> str:
    """Return a name of this replica that is short enough to be read in a list of spans.

    It is the end of the pod's name ("x2x4z" of "event-broadcaster-7d9f8b-x2x4z"), or else the id of the instance: as
    the operator has set it, or the beginning of the `generated` one.
    """
    pod = str(resource.attributes.get("k8s.pod.name", ""))
    instance = str(resource.attributes["service.instance.id"])
    return pod.rpartition("-")[2] or (instance.partition("-")[0] if instance == generated else instance)


class _IdentityHashedResource(Resource):
    """The resource of the process, hashed by identity.

    Exporters hash the resource of every span, and the default hash encodes it as JSON each time.
    """

    def __hash__(self) -> int:
        return id(self)


def _interval(environ: Mapping[str, str]) -> float:
    """Return the seconds between two exports of metrics, 60 unless the variable holds milliseconds above 0."""
    text = environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip()
    return int(text) / 1000 if text.isdigit() and int(text) else 60.0
