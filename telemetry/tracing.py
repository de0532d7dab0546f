"""An observer of the kernel that creates spans.

There is one span for each publish, retry, delivered event, replay, circuit transition, restart of the listener and
drain. The number of spans does not depend on the number of clients. The names of spans and attributes are in names.py,
and redis.py creates the spans of Redis commands.

No span is created for an event that is not sampled. Attributes that are known when a span starts are passed to
`start_span`, because setting them later takes longer.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context as TaskContext
from contextvars import ContextVar, Token
from time import time_ns
from types import TracebackType
from typing import Final

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from kernel import Observer
from kernel.observer import (
    CircuitMoved,
    Delivered,
    DeliveredEvent,
    Drained,
    Published,
    Publishing,
    Replayed,
    Retried,
    TraceContext,
)
from telemetry import names
from telemetry.contexts import SAMPLED, parent_context, remote
from telemetry.sampling import untraced

__all__ = ["CURRENT", "MOST_LINKS", "Publish", "Tracing"]

MOST_LINKS: Final = 128
_MOST_SPANS: Final = 16

_ROOT: Final = Context()

_Attributes = dict[str, AttributeValue]


class Publish:
    """One publish and its span, which is the current span while the publish is in progress.

    Several publishes may share one call of Redis. `companions` are then set on the first of them, to the others.
    `attempt` is the span of the last Redis command that was sent for this publish.
    """

    __slots__ = ("_retry", "_theirs", "_token", "attempt", "companions", "span", "tracing")

    def __init__(self, tracing: "Tracing", span: Span, theirs: TraceContext) -> None:
        self.tracing = tracing
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


class Tracing(Observer):
    """Creates spans from the calls of the kernel; `channel` is the Redis channel."""

    def __init__(self, provider: TracerProvider, channel: str, version: str) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("event_broadcaster", version)
        self._publish, self._retry = names.PUBLISH.format(channel), names.RETRY.format(channel)
        self._deliver, self._replay = names.DELIVER.format(channel), names.REPLAY.format(channel)
        self._drain, self._listener = names.DRAIN.format(channel), names.LISTENER.format(channel)
        self._sending = names.messaging(channel, "publish", "send")
        self._processing = names.messaging(channel, "deliver", "process")
        with suppress_instrumentation():
            self._silence = get_current()

    def publishing(self, publishing: Publishing) -> AbstractContextManager[TraceContext]:
        """Create the span of a publish; return a context manager that ends it and that returns the events' context.

        The span is a child of the current span, which is that of the HTTP request, or else of the producer's span. The
        events carry the context of the new span. If the publish is not sampled, no span is created, and the events
        carry the producer's context unchanged.
        """
        theirs, types = publishing.trace, publishing.types
        around = get_current_span().get_span_context()
        parent = None
        if around.is_valid:
            if not around.trace_flags.sampled:
                return nullcontext(theirs)
        elif untraced():
            return nullcontext(theirs)
        else:
            parent = parent_context(theirs.traceparent, theirs.tracestate)
        attributes: _Attributes = {**self._sending}
        if len(types) == 1:
            attributes[names.EVENT_TYPE] = types[0]
        else:
            attributes[names.BATCH_COUNT] = len(types)
            attributes[names.EVENT_TYPES] = sorted(set(types))
        span = self._tracer.start_span(self._publish, parent, SpanKind.PRODUCER, attributes)
        return Publish(self, span, theirs) if span.is_recording() else nullcontext(theirs)

    def sharing(self, contexts: Sequence[TaskContext]) -> TaskContext | None:
        """Return the context in which a call of Redis runs that several publishes share.

        It is the context of the first sampled publish, whose span becomes the parent of the call's span. The call's
        span is linked to the other sampled publishes, which become its companions. Returns None if none is sampled.
        """
        sampled: list[Publish] = []
        chosen: TaskContext | None = None
        for context in contexts:
            publish = context.get(CURRENT)
            if publish is not None and publish.span.is_recording():  # False after the publish was cancelled
                chosen = chosen or context
                sampled.append(publish)
        if chosen is None:
            # The call then runs in the context of this task, which may still hold the publish that started the task.
            attach(self._silence)
            return None
        sampled[0].companions = sampled[1:]
        return chosen

    def published(self, published: Published) -> None:
        """Add the outcome to the span of the publish."""
        publish = CURRENT.get()
        if publish is not None:
            publish.span.set_attributes(_outcome(published))

    def retried(self, retried: Retried) -> None:
        """Start a span for the time until the next attempt."""
        publish = CURRENT.get()
        if publish is not None:
            attributes: _Attributes = {
                names.ATTEMPT: retried.attempt,
                names.DELAY: retried.delay,
                names.ERROR_TYPE: retried.error,
            }
            publish.start_retry(self._tracer.start_span(self._retry, attributes=attributes), retried.delay)

    def follows(self, traceparent: str) -> bool:
        """Return True if the trace context is sampled."""
        return SAMPLED.fullmatch(traceparent) is not None

    def delivered(self, delivered: Delivered) -> None:
        """Create a span for each sampled event, in the trace of the event.

        If there are more than 16, create one span that is linked to their publishes. In that span, RECIPIENTS is the
        number of messages that were written for the whole batch, including the events that are not sampled.
        """
        sampled = delivered.followed
        if not sampled:
            return
        if len(sampled) <= _MOST_SPANS:
            for event in sampled:
                attributes: _Attributes = {
                    **self._processing,
                    "messaging.message.id": event.id,
                    names.EVENT_TYPE: event.type,
                    names.SEQUENCE: event.position.sequence,
                    names.EPOCH: event.position.epoch,
                    names.RECIPIENTS: event.recipients,
                }
                self._consume([event], attributes, delivered.begin, event.written_at)
        else:
            attributes = {
                **self._processing,
                names.BATCH_COUNT: delivered.events,
                names.SEQUENCE: delivered.first.sequence + 1,
                names.LAST_SEQUENCE: delivered.last.sequence,
                names.EPOCH: delivered.last.epoch,
                names.EVENT_TYPES: sorted({event.type for event in sampled}),
                names.RECIPIENTS: delivered.written.messages,
            }
            self._consume(sampled, attributes, delivered.begin, delivered.end)

    def _consume(self, events: Sequence[DeliveredEvent], attributes: _Attributes, begin: float, end: float) -> None:
        """Create one span for these events, as a child of the publish of the first, linked to all their publishes."""
        published_at = events[0].published_at
        if published_at is not None:
            attributes[names.QUEUED] = max(0.0, begin - published_at)
        # One link for each publish: the events of a publish have the same context.
        origins = dict.fromkeys((event.trace.traceparent, event.trace.tracestate) for event in events)
        contexts = [remote(*origin) for origin in list(origins)[:MOST_LINKS]]
        links = [Link(context) for context in contexts]
        parent = set_span_in_context(NonRecordingSpan(contexts[0]), _ROOT)
        self._span(self._deliver, begin, end, attributes, SpanKind.CONSUMER, links, parent)

    def replayed(self, replayed: Replayed) -> None:
        """Create a span that starts with the client's request and ends with the verdict."""
        attributes: _Attributes = {
            names.FROM: replayed.first.sequence,
            names.TO: replayed.last.sequence,
            names.EPOCH: replayed.last.epoch,
            names.COUNT: replayed.count,
            names.SOURCE: replayed.source,
            names.RECOVERED: replayed.verdict == "recovered",
            names.REASON: replayed.verdict,
        }
        self._span(self._replay, replayed.begin, replayed.end, attributes)

    def circuit_moved(self, moved: CircuitMoved) -> None:
        """Create a span without duration. If a publish caused the transition, link it to the publish's last attempt."""
        publish = CURRENT.get()
        links = []
        if publish is not None:
            links.append(Link(publish.attempt or publish.span.get_span_context()))
        name = names.CIRCUIT.format(moved.before, moved.after)
        attributes: _Attributes = {names.REASON: moved.reason, names.FAILURES: moved.failure_count}
        self._tracer.start_span(name, _ROOT, attributes=attributes, links=links).end()

    def listener_restarted(self, reason: str) -> None:
        """Create a span without duration, with the reason of the restart."""
        self._tracer.start_span(self._listener, _ROOT, attributes={names.REASON: reason}).end()

    def drained(self, drained: Drained) -> None:
        """Create a span that covers the drain."""
        self._span(self._drain, drained.begin, drained.end, {names.CONNECTIONS: drained.connections})

    def _span(
        self,
        name: str,
        begin: float,
        end: float,
        attributes: _Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        parent: Context | None = _ROOT,
    ) -> None:
        """Create a span with these start and end times, in seconds since 1970."""
        start = round(begin * 1e9)
        span = self._tracer.start_span(name, parent, kind, attributes, links, start)
        span.end(max(start, round(end * 1e9)))


def _outcome(published: Published) -> _Attributes:
    outcome: _Attributes = {
        names.SEQUENCE: published.first.sequence,
        names.EPOCH: published.first.epoch,
        names.SUBSCRIBERS: published.subscribers,
    }
    if len(published.types) > 1:
        outcome[names.LAST_SEQUENCE] = published.first.sequence + len(published.types) - 1
    if published.retries:
        outcome[names.RETRIES] = published.retries
    if published.replayed:
        outcome[names.REPEATED] = True
    return outcome
