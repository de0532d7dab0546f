"""An observer of the kernel that creates spans.

There is one span for each publish, retry, delivered event, replay, outage, circuit transition, restart of the listener
and drain. The number of spans does not depend on the number of clients.

The names of spans and attributes are in names.py. The span of a publish is in publish.py; other modules create the
spans of deliveries (delivery.py), of the circuit (circuit.py) and of Redis commands (redis.py).

No span is created for an event that is not sampled. Attributes that are known when a span starts are passed to
`start_span`, because setting them later takes longer.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context as TaskContext

from opentelemetry.context import attach, get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, TracerProvider, get_current_span
from opentelemetry.util.types import AttributeValue

from kernel import Observer
from kernel.observer import (
    CircuitMoved,
    Delivered,
    Drained,
    Failed,
    Published,
    Publishing,
    Replayed,
    Retried,
    TraceContext,
)
from telemetry import names
from telemetry.circuit import CircuitSpans
from telemetry.contexts import SAMPLED, parent_context
from telemetry.delivery import DeliverySpans
from telemetry.publish import CURRENT, Publish
from telemetry.sampling import untraced
from telemetry.spans import ROOT, Attributes, record_span

__all__ = ["Tracing"]


class Tracing(Observer):
    """Creates spans from the calls of the kernel.

    `channel` is the Redis channel, `replica` a short name of this replica. `server` has the attributes that say where
    Redis is.
    """

    def __init__(
        self,
        provider: TracerProvider,
        *,
        channel: str,
        version: str,
        replica: str,
        server: Mapping[str, AttributeValue],
    ) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("event_broadcaster", version)
        self._replay = names.REPLAY.format(channel)
        self._drain, self._listener = names.DRAIN.format(channel), names.LISTENER.format(channel)
        self._sending = {**names.messaging(channel, "publish", "send"), **server}
        self._deliveries = DeliverySpans(self._tracer, channel, replica)
        self._circuit = CircuitSpans(self._tracer)
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
        attributes: Attributes = {**self._sending}
        id = None
        if len(types) == 1:
            id = publishing.id
            attributes[names.EVENT_TYPE] = types[0]
        else:
            attributes[names.BATCH_COUNT] = len(types)
            attributes[names.EVENT_TYPES] = sorted(set(types))
        span = self._tracer.start_span(names.PUBLISH.of(types), parent, SpanKind.PRODUCER, attributes)
        return Publish(self.provider, span, theirs, id) if span.is_recording() else nullcontext(theirs)

    def sharing(self, contexts: Sequence[TaskContext], waited: Sequence[float]) -> TaskContext | None:
        """Return the context in which a call of Redis runs that several publishes share.

        It is the context of the first sampled publish, whose span becomes the parent of the call's span. The call's
        span is linked to the other sampled publishes, which become its companions. Returns None if none is sampled.
        The retries for which the publishes waited end here.
        """
        sampled: list[Publish] = []
        chosen: TaskContext | None = None
        for context, seconds in zip(contexts, waited, strict=True):
            publish = context.get(CURRENT)
            if publish is not None and publish.span.is_recording():  # False after the publish was cancelled
                chosen = chosen or context
                sampled.append(publish)
                publish.sending(seconds)
        if chosen is None:
            # The call then runs in the context of this task, which may still hold the publish that started the task.
            attach(self._silence)
            return None
        sampled[0].companions = sampled[1:]
        sampled[0].publishes = len(contexts)
        return chosen

    def published(self, published: Published) -> None:
        """Add the outcome to the span of the publish."""
        publish = CURRENT.get()
        if publish is not None:
            publish.published(published)

    def failed(self, failed: Failed) -> None:
        """Add the retries to the span of the publish, and why there were no more."""
        publish = CURRENT.get()
        if publish is not None:
            publish.failed(failed)

    def retried(self, retried: Retried) -> None:
        """Start a span for the time until the next attempt."""
        publish = CURRENT.get()
        if publish is not None:
            attributes: Attributes = {
                names.ATTEMPT: retried.attempt,
                names.DELAY: names.seconds(retried.delay),
                names.CAUSE: retried.error,
            }
            span = self._tracer.start_span(names.RETRY.of(retried.types), attributes=attributes)
            publish.start_retry(span, retried.delay)

    def follows(self, traceparent: str) -> bool:
        """Return True if the trace context is sampled."""
        return SAMPLED.fullmatch(traceparent) is not None

    def delivered(self, delivered: Delivered) -> None:
        """Create the spans of the events that were delivered."""
        self._deliveries.record(delivered)

    def replayed(self, replayed: Replayed) -> None:
        """Create a span that starts with the client's request and ends with the verdict."""
        attributes: Attributes = {
            names.REQUESTED: replayed.requested,
            names.FROM: replayed.first.sequence,
            names.TO: replayed.last.sequence,
            names.EPOCH: replayed.last.epoch,
            names.COUNT: replayed.count,
            names.SOURCE: replayed.source,
            names.VERDICT: replayed.verdict,
        }
        record_span(self._tracer, self._replay, replayed.begin, replayed.end, attributes)

    def circuit_moved(self, moved: CircuitMoved) -> None:
        """Create the span of the transition, and start or end that of the outage."""
        self._circuit.moved(moved)

    def stop(self) -> None:
        """End the spans of what is still going on."""
        self._circuit.stop()

    def listener_restarted(self, reason: str) -> None:
        """Create a span without duration, with the reason of the restart."""
        self._tracer.start_span(self._listener, ROOT, attributes={names.REASON: reason}).end()

    def drained(self, drained: Drained) -> None:
        """Create a span that covers the drain."""
        record_span(self._tracer, self._drain, drained.begin, drained.end, {names.CONNECTIONS: drained.connections})
