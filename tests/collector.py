"""An OTLP/HTTP collector that keeps what the service exports, and shows a trace as a tree.

`python -m tests.collector [PORT]` listens on the port to which the service exports by default, and prints each trace.
"""

import contextlib
import gzip
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.waiting import eventually

__all__ = ["Collector", "Span", "tree"]

PATIENCE = 20.0


@dataclass(frozen=True)
class Span:
    """One span as it was received; times are in seconds since 1970, ids in hexadecimal, `parent` "" for a root.

    `description` is that of the status. `events` have a name and attributes.
    """

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    begin: float
    end: float
    failed: bool
    description: str
    state: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    events: list[tuple[str, dict[str, Any]]]
    resource: dict[str, Any] = field(repr=False)

    @property
    def traceparent(self) -> str:
        """The W3C header that makes another span its child."""
        return f"00-{self.trace}-{self.id}-01"

    @property
    def context(self) -> tuple[str, str]:
        """Trace id and span id, as a link to it has them."""
        return self.trace, self.id

    @property
    def instance(self) -> str:
        """The id of the replica that it comes from."""
        return str(self.resource.get("service.instance.id", ""))


class Collector:
    """Use it as `with Collector() as collector`; it answers with `status`, and not at all while `open` is clear."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.metrics: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.collector = self

    @property
    def url(self) -> str:
        """The value for `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()

    def named(self, name: str, **attributes: object) -> list[Span]:
        """Return the spans with this name and these attributes (`.` as `_`), in the order of their start."""
        found = [span for span in self.spans if span.name == name and _has(span, attributes)]
        return sorted(found, key=lambda span: span.begin)

    def trace(self, id: str) -> list[Span]:
        """Return the spans of one trace."""
        return [span for span in self.spans if span.trace == id]

    async def wait(self, name: str, count: int = 1, **attributes: object) -> list[Span]:
        """Wait for exactly `count` spans with this name and these attributes."""
        await self._until(lambda: len(self.named(name, **attributes)) >= count)
        found = self.named(name, **attributes)
        assert len(found) == count, found
        return found

    async def complete(self, id: str, count: int) -> list[Span]:
        """Wait until a trace has `count` spans."""
        await self._until(lambda: len(self.trace(id)) >= count)
        return self.trace(id)

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            await eventually(condition, PATIENCE)
        except AssertionError:
            raise AssertionError("only\n" + "\n".join(map(repr, self.spans))) from None

    def take(self, path: str, body: bytes) -> None:
        """Decode the body of one request."""
        self.requests.append(path)
        if path == "/v1/traces":
            for traces in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _values(traces.resource.attributes)
                self.spans += [_span(span, resource) for scope in traces.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                found = {metric.name: metric for scope in metrics.scope_metrics for metric in scope.metrics}
                self.metrics.append({"": _values(metrics.resource.attributes), **found})


def tree(spans: Sequence[Span], *, durations: bool = False) -> list[str]:
    """Return spans as indented lines, children below their parents in the order of their start."""
    known = {span.id for span in spans}
    lines: list[str] = []

    def show(span: Span, depth: int) -> None:
        line = "  " * depth + span.name + (" !" if span.failed else "")
        if durations:
            line = f"{line:<44} {span.instance[:8]:<9} {(span.end - span.begin) * 1000:6.1f} ms"
        lines.append(line)
        for child in _ordered(each for each in spans if each.parent == span.id):
            show(child, depth + 1)

    for root in _ordered(span for span in spans if span.parent not in known):
        show(root, 0)
    return lines


def _ordered(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (span.begin, span.name))


def _has(span: Span, attributes: dict[str, object]) -> bool:
    given = {key.replace(".", "_"): value for key, value in span.attributes.items()} | {"instance": span.instance}
    return attributes.items() <= given.items()


def _span(span: SpanMessage, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        begin=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        description=span.status.message,
        state=span.trace_state,
        attributes=_values(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        events=[(event.name, _values(event.attributes)) for event in span.events],
        resource=resource,
    )


def _values(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    collector: Collector

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore an exporter that disconnects while it waits."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        """Keep what is exported."""
        body = self.rfile.read(int(self.headers["content-length"]))
        collector = self.server.collector
        collector.open.wait()
        if collector.status == 200:
            collector.take(self.path, gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
        self.send_response(collector.status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def _watch(port: int) -> None:
    """Print each trace once no span has arrived for a second."""
    with Collector(port) as collector:
        print(f"waiting for spans: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={collector.url}/v1/traces")
        seen = 0
        while True:
            time.sleep(1)
            if seen != len(collector.spans):
                seen = len(collector.spans)
                continue
            spans, collector.spans, seen = collector.spans[:seen], collector.spans[seen:], 0
            for trace in dict.fromkeys(span.trace for span in spans):
                print(f"\ntrace {trace}")
                print("\n".join(tree([span for span in spans if span.trace == trace], durations=True)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _watch(int(sys.argv[1]) if len(sys.argv) > 1 else 4318)
