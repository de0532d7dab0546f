"""ASGI middleware that creates the server span of an HTTP request.

It runs on every publish, so it replaces `opentelemetry-instrumentation-asgi`, which costs several times as much: that
one also creates a span per ASGI message, two metrics and header attributes, none of which is needed here.
"""

from collections.abc import Awaitable, Callable, Iterable
from time import time_ns
from typing import Any, Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from kernel import MessageInvalid
from telemetry import names
from telemetry.sampling import UNTRACED, EarlySampler

__all__ = ["http_spans", "record_problem"]

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
_MOST_USER_AGENT: Final = 200  # of the characters of a client's User-Agent header


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
            if scope["client"] is not None:  # None for a Unix socket
                attributes["client.address"] = scope["client"][0]
            given = dict(headers)
            agent = given.get(b"user-agent")
            if agent is not None:
                attributes["user_agent.original"] = agent[:_MOST_USER_AGENT].decode("latin-1")
            if not fields.isdisjoint(given):
                context = propagator.extract(headers, getter=_getter)
                span = tracer.start_span(name, context, SpanKind.SERVER, attributes)
            elif sampler.decide(name, SpanKind.SERVER, attributes):
                span = tracer.start_span(name, _ROOT, SpanKind.SERVER, attributes)
            answer = _Answer(span, send) if span.is_recording() else None
            token = attach(set_span_in_context(span, context) if span is not INVALID_SPAN else UNTRACED)
            try:
                await app(scope, receive, answer or send)
            except Exception as error:
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise
            finally:
                detach(token)
                span.end(None if answer is None else answer.sent_at)

        return traced

    return wrap


class _Answer:
    """The `send` of a request whose span is recorded.

    It records the response's status on the span; 500 and above is an error. `sent_at` is the time in nanoseconds just
    before the last part of the answer is sent, None before. The span ends then, because its client may have the answer
    before `send` returns, and would otherwise seem to end first.
    """

    __slots__ = ("_send", "_span", "sent_at")

    def __init__(self, span: Span, send: Callable[[Any], Awaitable[None]]) -> None:
        self._span = span
        self._send = send
        self.sent_at: int | None = None

    async def __call__(self, message: Any) -> None:  # noqa: ANN401  ASGI
        if message["type"] == "http.response.start":
            status = message["status"]
            self._span.set_attribute("http.response.status_code", status)
            if status >= 500:
                self._span.set_attribute(names.ERROR_TYPE, str(status))
                self._span.set_status(StatusCode.ERROR)
        elif not message.get("more_body", False):
            self.sent_at = time_ns()
        await self._send(message)


async def record_problem(error: Exception, scope: object) -> None:
    """Record the first invalid field of a refused request on its span, if it has one; "body" is the whole body."""
    if isinstance(error, MessageInvalid):
        get_current_span().set_attribute(names.PROBLEM, error.errors[0].field or "body")
