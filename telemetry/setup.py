"""Telemetry as the `OTEL_*` variables want it: what is made, where it goes, and how long its end may take.

Unless an endpoint or an exporter is set nothing is made, nothing is patched and nothing is paid. Metrics are kept in
any case (metrics.py), and exported here where that is asked for.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from kernel import EventBroadcaster, Observer
from telemetry.environment import UNKNOWN_PROPAGATORS
from telemetry.export import Patience, PatientSpans, Pump, quieten, unfinished
from telemetry.http import http_spans
from telemetry.metrics import Meter, watch_loop
from telemetry.redis import instrument_redis
from telemetry.sampling import Ahead
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

    `observers` are for the kernel and `middleware` goes around HTTP routes; both are empty while tracing is off.
    """

    def __init__(self, environ: Mapping[str, str], *, channel: str, version: str) -> None:
        self._resource = _resource(environ, version)
        self._version = version
        self.observers: list[Observer] = []
        self.middleware: list[Middleware] = []
        spans: list[SpanExporter] = _exporters(environ, "traces")
        self._metrics: list[MetricExporter] = _exporters(environ, "metrics")
        self._interval = _interval(environ)
        # what has to be ended, and who tells how that went
        self._ends: dict[Patience, Callable[[], None]] = {}
        self._watch: asyncio.Task[None] | None = None
        if spans or self._metrics:
            quieten()
        if spans:
            try:
                self._trace(spans, channel)
            except ValueError as error:  # a variable of the SDK that it cannot use
                _logger.error("traces are not exported: %s", error)

    def _trace(self, exporters: Sequence[SpanExporter], channel: str) -> None:
        ahead = Ahead(TracerProvider(shutdown_on_exit=False).sampler)
        provider = TracerProvider(ahead, self._resource, shutdown_on_exit=False, id_generator=ahead)
        for exporter in exporters:
            patience = Patience("spans")
            processor = BatchSpanProcessor(PatientSpans(exporter, patience))
            provider.add_span_processor(processor)
            self._ends[patience] = processor.shutdown
        instrument_redis()
        for name in UNKNOWN_PROPAGATORS:
            _logger.warning("OTEL_PROPAGATORS: %r is not installed and left out", name)
        self.observers = [Tracing(provider, channel, self._version)]
        self.middleware = [http_spans(provider, ahead, self._version)]

    def start(self, broadcaster: EventBroadcaster) -> None:
        """Watch the event loop, and export metrics where that is asked for."""
        self._watch = asyncio.create_task(watch_loop(broadcaster.counters.loop_lag))
        meter = Meter(broadcaster, self._resource, self._version)
        for exporter in self._metrics:
            patience = Patience("metrics")
            self._ends[patience] = Pump(exporter, meter, self._interval, patience).stop

    async def stop(self) -> None:
        """Export what is left, within `FLUSH_SECONDS`; what is not done then is dropped."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        for patience in await unfinished(self._ends, FLUSH_SECONDS):
            patience.note(False, f"the last were not taken within {FLUSH_SECONDS:g} s")


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
    made = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
    return _TheResource(made.attributes, made.schema_url)


class _TheResource(Resource):
    """The one resource of the process: exporters look it up for every span, and its hash would be that of its JSON."""

    def __hash__(self) -> int:
        return id(self)


def _interval(environ: Mapping[str, str]) -> float:
    """Seconds between two exports of metrics."""
    text = environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip()
    return int(text) / 1000 if text.isdigit() and int(text) else 60.0
