"""The span of a publish, which is the current one while the publish is in progress."""

from collections.abc import Sequence
from contextvars import ContextVar, Token
from time import time_ns
from types import TracebackType
from typing import Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanContext, StatusCode, TracerProvider, set_span_in_context

from kernel.observer import TraceContext
from telemetry import names

__all__ = ["CURRENT", "Publish"]


class Publish:
    """One publish and its span, which is the current span while the publish is in progress.

    Several publishes may share one call of Redis. `companions` are then set on the first of them, to the others.
    `attempt` is the span of the last Redis command that was sent for this publish.
    """

    __slots__ = ("_retry", "_theirs", "_token", "attempt", "companions", "provider", "span")

    def __init__(self, provider: TracerProvider, span: Span, theirs: TraceContext) -> None:
        self.provider = provider
        self.span = span
        self.companions: Sequence[Publish] = ()
        self.attempt: SpanContext | None = None
        self._retry: tuple[Span, int] | None = None
        self._theirs = theirs

    def __enter__(self) -> TraceContext:
        self._token: tuple[Token[Context], Token[Publish | None]] = (
            attach(set_span_in_context(self.span)),
            CURRENT.set(self),
        )
        made = self.span.get_span_context()
        return TraceContext(
            f"00-{made.trace_id:032x}-{made.span_id:016x}-{made.trace_flags:02x}",
            made.trace_state.to_header() or None,
            self._theirs.baggage,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        detach(self._token[0])
        CURRENT.reset(self._token[1])
        self.end_retry()
        if error is not None:
            self.span.set_attribute(names.ERROR_TYPE, type(error.__cause__ or error).__name__)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()

    def start_retry(self, span: Span, seconds: float) -> None:
        """Keep the span of a retry that is due in `seconds`; it covers the time until then."""
        self.end_retry()
        self._retry = span, time_ns() + round(seconds * 1e9)

    def end_retry(self) -> None:
        """End the span of the retry: at the time when the retry was due, or now if the publish ends earlier."""
        if self._retry is not None:
            span, due = self._retry
            self._retry = None
            span.end(min(due, time_ns()))


CURRENT: Final[ContextVar[Publish | None]] = ContextVar("event_broadcaster_publish", default=None)
