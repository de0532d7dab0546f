"""ASGI middleware that creates the server span of an HTTP request.

It runs on every publish, so it replaces `opentelemetry-instrumentation-asgi`, which costs several times as much: that
one also creates a span per ASGI message, two metrics and header attributes, none of which is needed here.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.util.types import AttributeValue

from telemetry import names
from telemetry.sampling import UNTRACED, EarlySampler

__all__ = ["http_spans"]

_App = Callable[[Any, Any, Any], Awaitable[None]]
_Pairs = Iterable[tuple[bytes, bytes]]


class _RawHeaders(Getter[_Pairs]):
    def get(self, carrier: _Pairs, key: str) -> list[str] | None:
        wanted = key.lower().encode()
        return [value.decode("latin-1") for name, value in carrier if name == wanted] or None

    def keys(self, carrier: _Pairs) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_getter: Final = _RawHeaders()
_ROOT: Final = Context()


def http_spans(provider: TracerProvider, sampler: EarlySampler, version: str) -> Callable[[_App], _App]:
    """Return a middleware that gives each HTTP request a server span named after its route's template.

    The span continues the producer's trace, read from the headers by the propagators in `OTEL_PROPAGATORS`. Other
    scopes pass through. `sampler` must be the provider's own.
    """
    tracer = provider.get_tracer("event_broadcaster", version)
    propagator = get_global_textmap()
    fields = frozenset(field.lower().encode() for field in propagator.fields)

    def wrap(app: _App) -> _App:
        async def traced(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  ASGI
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            method, template, headers = scope["method"], scope.get("path_template", ""), scope["headers"]
            name = f"{method} {template}"
            attributes: dict[str, AttributeValue] = {
                "http.request.method": method,
                "http.route": template,
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
            }
            context = _ROOT
            span: Span = INVALID_SPAN
            if not fields.isdisjoint([header for header, _ in headers]):
                context = propagator.extract(headers, getter=_getter)
                span = tracer.start_span(name, context, SpanKind.SERVER, attributes)
            elif sampler.decide(name, SpanKind.SERVER, attributes):
                span = tracer.start_span(name, _ROOT, SpanKind.SERVER, attributes)
            recording = span.is_recording()
            token = attach(set_span_in_context(span, context) if span is not INVALID_SPAN else UNTRACED)
            try:
                await app(scope, receive, _noting(span, send) if recording else send)
            except Exception as error:
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise
            finally:
                detach(token)
                span.end()

        return traced

    return wrap


def _noting(span: Span, send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Wrap `send` so that the response's status is recorded on the span; 500 and above is an error."""

    async def noting(message: Any) -> None:  # noqa: ANN401  ASGI
        if message["type"] == "http.response.start":
            status = message["status"]
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute(names.ERROR_TYPE, str(status))
                span.set_status(StatusCode.ERROR)
        await send(message)

    return noting
