"""Spans of the circuit breaker for Redis.

An outage is one trace. Its root is the span `circuit open`, from the opening of the circuit until it closes, with an
event for each trial. As that span is only exported when the outage is over, each transition also has a span of its own,
which is a child of it and is exported at once.
"""

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, StatusCode, Tracer, set_span_in_context

from kernel.observer import CircuitMoved
from telemetry import names
from telemetry.publish import CURRENT
from telemetry.spans import ROOT, Attributes

__all__ = ["CircuitSpans"]


class CircuitSpans:
    """Creates the spans of outages and of the circuit's transitions."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._outage: Span | None = None

    def moved(self, moved: CircuitMoved) -> None:
        """Create the span of a transition; start or end that of the outage.

        If a publish caused the transition, both are linked to its last attempt.
        """
        publish = CURRENT.get()
        links = []
        if publish is not None:
            links.append(Link(publish.attempt or publish.span.get_span_context()))
        attributes: Attributes = {names.REASON: moved.reason, names.FAILURES: moved.failure_count}
        if moved.before == "closed":
            self._outage = self._tracer.start_span(names.OUTAGE, ROOT, attributes=attributes, links=links)
            self._outage.set_status(StatusCode.ERROR)
        outage = self._outage
        around: Context = ROOT if outage is None else set_span_in_context(outage, ROOT)
        name = names.CIRCUIT.format(moved.before, moved.after)
        self._tracer.start_span(name, around, attributes=attributes, links=links).end()
        if outage is None:
            return
        closed = moved.after == "closed"
        if moved.before == "half_open":
            outage.add_event(names.TRIAL, {names.SUCCEEDED: closed, names.REASON: moved.reason})
        if closed:
            self._outage = None
            outage.end()

    def stop(self) -> None:
        """End the span of an outage that is not over, and mark it as unfinished."""
        if self._outage is not None:
            self._outage.set_attribute(names.UNFINISHED, True)
            self._outage.end()
            self._outage = None
