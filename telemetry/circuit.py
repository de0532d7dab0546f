"""Spans of the circuit breaker for Redis."""

from opentelemetry.trace import Link, Tracer

from kernel.observer import CircuitMoved
from telemetry import names
from telemetry.publish import CURRENT
from telemetry.spans import ROOT, Attributes

__all__ = ["CircuitSpans"]


class CircuitSpans:
    """Creates the spans of the circuit's transitions."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def moved(self, moved: CircuitMoved) -> None:
        """Create a span without duration. If a publish caused the transition, link it to the publish's last attempt."""
        publish = CURRENT.get()
        links = []
        if publish is not None:
            links.append(Link(publish.attempt or publish.span.get_span_context()))
        name = names.CIRCUIT.format(moved.before, moved.after)
        attributes: Attributes = {names.REASON: moved.reason, names.FAILURES: moved.failure_count}
        self._tracer.start_span(name, ROOT, attributes=attributes, links=links).end()
