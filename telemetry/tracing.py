"""The kernel's observer that makes spans: one per publish, retry, delivery, replay and transition, none per client.

Span names and attributes are in names.py, how Redis commands get theirs is in redis.py. Nothing is looked at for an
event that is not sampled, and attributes are given at creation where they are known then.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context as Surroundings
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
from telemetry.contexts import SAMPLED, remote, surroundings
from telemetry.sampling import untraced

__all__ = ["CURRENT", "MOST_LINKS", "Publish", "Tracing"]

MOST_LINKS: Final = 128
_MOST_SPANS: Final = 16

_ROOT: Final = Context()

_Attributes = dict[str, AttributeValue]


class Publish:
    """One publish and its span, current while the publish is under way.

    `companions` are publishes whose call of Redis it carries, `attempt` is its last command's span.
    """

    __slots__ = ("_pause", "_theirs", "_token", "attempt", "companions", "span", "tracing")

    def __init__(self, tracing: "Tracing", span: Span, theirs: TraceContext) -> None:
        self.tracing = tracing
        self.span = span
        self.companions: Sequence[Publish] = ()
        self.attempt: SpanContext | None = None
        self._pause: tuple[Span, int] | None = None
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
        self.resume()
        if error is not None:
            self.span.set_attribute(names.ERROR_TYPE, type(error.__cause__ or error).__name__)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()

    def pause(self, span: Span, seconds: float) -> None:
        """A retry will be made in so many seconds; `span` is for the time until then."""
        self.resume()
        self._pause = span, time_ns() + round(seconds * 1e9)

    def resume(self) -> None:
        """End the pause: when it was due, or now, if the publish is given up before."""
        if self._pause is not None:
            span, due = self._pause
            self._pause = None
            span.end(min(due, time_ns()))


CURRENT: Final[ContextVar[Publish | None]] = ContextVar("event_broadcaster_publish", default=None)


class Tracing(Observer):
    """Makes spans of what the kernel tells; `channel` is the Redis channel."""

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
        """Put a span around the publish, in the producer's trace; the events carry it on.

        What is not sampled is left alone: the events carry their producer's trace, and nothing below costs anything.
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
            parent = surroundings(theirs.traceparent, theirs.tracestate)
        attributes: _Attributes = {**self._sending}
        if len(types) == 1:
            attributes[names.EVENT_TYPE] = types[0]
        else:
            attributes[names.BATCH_COUNT] = len(types)
        span = self._tracer.start_span(self._publish, parent, SpanKind.PRODUCER, attributes)
        return Publish(self, span, theirs) if span.is_recording() else nullcontext(theirs)

    def sharing(self, contexts: Sequence[Surroundings]) -> Surroundings | None:
        """The call is under the first publish that is sampled, and linked to the others."""
        sampled: list[Publish] = []
        chosen: Surroundings | None = None
        for context in contexts:
            publish = context.get(CURRENT)
            if publish is not None and publish.span.is_recording():  # not cancelled meanwhile
                chosen = chosen or context
                sampled.append(publish)
        if chosen is None:
            # this is the calls' own task: there may be a publish in it that is long over
            attach(self._silence)
            return None
        sampled[0].companions = sampled[1:]
        return chosen

    def published(self, published: Published) -> None:
        """Add what is known only now."""
        publish = CURRENT.get()
        if publish is not None:
            publish.span.set_attributes(_outcome(published))

    def retried(self, retried: Retried) -> None:
        """A span for the time until the next attempt."""
        publish = CURRENT.get()
        if publish is not None:
            attributes: _Attributes = {
                names.ATTEMPT: retried.attempt,
                names.DELAY: retried.delay,
                names.ERROR_TYPE: retried.error,
            }
            publish.pause(self._tracer.start_span(self._retry, attributes=attributes), retried.delay)

    def follows(self, traceparent: str) -> bool:
        """Follow what is sampled."""
        return SAMPLED.fullmatch(traceparent) is not None

    def delivered(self, delivered: Delivered) -> None:
        """Up to 16 sampled events get a span each, in their own traces; more of them get one, linked to them all."""
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
                names.RECIPIENTS: delivered.written.messages,
            }
            self._consume(sampled, attributes, delivered.begin, delivered.end)

    def _consume(self, events: Sequence[DeliveredEvent], attributes: _Attributes, begin: float, end: float) -> None:
        """Make one span for these events, in the trace of the first."""
        published_at = events[0].published_at
        if published_at is not None:
            attributes[names.QUEUED] = max(0.0, begin - published_at)
        # the events of one publish have one context
        origins = dict.fromkeys((event.trace.traceparent, event.trace.tracestate) for event in events)
        contexts = [remote(*origin) for origin in list(origins)[:MOST_LINKS]]
        links = [Link(context) for context in contexts]
        parent = set_span_in_context(NonRecordingSpan(contexts[0]), _ROOT)
        self._span(self._deliver, begin, end, attributes, SpanKind.CONSUMER, links, parent)

    def replayed(self, replayed: Replayed) -> None:
        """A span for the time from the request to the verdict."""
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
        """A span for the moment, linked to the attempt that tripped it, if that was a publish's."""
        publish = CURRENT.get()
        links = []
        if publish is not None:
            links.append(Link(publish.attempt or publish.span.get_span_context()))
        name = names.CIRCUIT.format(moved.before, moved.after)
        attributes: _Attributes = {names.REASON: moved.reason, names.FAILURES: moved.failure_count}
        self._tracer.start_span(name, _ROOT, attributes=attributes, links=links).end()

    def listener_restarted(self, reason: str) -> None:
        """A span for the moment."""
        self._tracer.start_span(self._listener, _ROOT, attributes={names.REASON: reason}).end()

    def drained(self, drained: Drained) -> None:
        """A span for the whole drain."""
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
        """Make a span of what is over; times are seconds since the epoch."""
        start = round(begin * 1e9)
        span = self._tracer.start_span(name, parent, kind, attributes, links, start)
        span.end(max(start, round(end * 1e9)))


def _outcome(published: Published) -> _Attributes:
    outcome: _Attributes = {
        names.SEQUENCE: published.first.sequence,
        names.EPOCH: published.first.epoch,
        names.SUBSCRIBERS: published.subscribers,
    }
    if published.retries:
        outcome[names.RETRIES] = published.retries
    if published.replayed:
        outcome[names.REPEATED] = True
    return outcome
