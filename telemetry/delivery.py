"""Spans of deliveries: one for each sampled event on each replica, or one for a whole batch."""

from collections.abc import Sequence
from typing import Final

from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, Tracer, set_span_in_context

from kernel.observer import Delivered, DeliveredEvent
from telemetry import names
from telemetry.contexts import remote
from telemetry.spans import MOST_LINKS, ROOT, Attributes, record_span

__all__ = ["DeliverySpans"]

_MOST_SPANS: Final = 16


class DeliverySpans:
    """Creates the spans of delivered events, in the traces of their publishes."""

    def __init__(self, tracer: Tracer, channel: str, replica: str) -> None:
        self._tracer = tracer
        self._processing = {**names.messaging(channel, "deliver", "process"), names.REPLICA: replica}

    def record(self, delivered: Delivered) -> None:
        """Create a span for each sampled event, in the trace of the event.

        If there are more than 16, create one span that is linked to their publishes. In that span, RECIPIENTS is the
        number of messages that were written for the whole batch, including the events that are not sampled.
        """
        sampled = delivered.followed
        if not sampled:
            return
        if len(sampled) <= _MOST_SPANS:
            for event in sampled:
                attributes: Attributes = {
                    **self._processing,
                    names.MESSAGE_ID: event.id,
                    names.EVENT_TYPE: event.type,
                    names.SEQUENCE: event.position.sequence,
                    names.EPOCH: event.position.epoch,
                    names.RECIPIENTS: event.recipients,
                }
                self._consume(names.DELIVER[event.type], [event], attributes, delivered.begin, event.written_at)
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
            self._consume(names.DELIVER.batch, sampled, attributes, delivered.begin, delivered.end)

    def _consume(
        self, name: str, events: Sequence[DeliveredEvent], attributes: Attributes, begin: float, end: float
    ) -> None:
        """Create one span for these events, as a child of the publish of the first, linked to all their publishes."""
        published_at = events[0].published_at
        if published_at is not None:
            attributes[names.AGE] = names.seconds(max(0.0, begin - published_at))
        # One link for each publish: the events of a publish have the same context.
        origins = dict.fromkeys((event.trace.traceparent, event.trace.tracestate) for event in events)
        contexts = [remote(*origin) for origin in list(origins)[:MOST_LINKS]]
        links = [Link(context) for context in contexts]
        parent = set_span_in_context(NonRecordingSpan(contexts[0]), ROOT)
        record_span(self._tracer, name, begin, end, attributes, SpanKind.CONSUMER, links, parent)
