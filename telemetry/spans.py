"""Spans of what is over: their start and end are times in seconds since 1970."""

from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

__all__ = ["MOST_LINKS", "ROOT", "Attributes", "record_span"]

Attributes = dict[str, AttributeValue]

ROOT: Final = Context()
"""The parent of a span that starts a trace."""

MOST_LINKS: Final = 128
"""The most links of one span."""


def record_span(
    tracer: Tracer,
    name: str,
    begin: float,
    end: float,
    attributes: Attributes,
    kind: SpanKind = SpanKind.INTERNAL,
    links: Sequence[Link] = (),
    parent: Context = ROOT,
) -> None:
    """Create a span with these start and end times."""
    start = round(begin * 1e9)
    span = tracer.start_span(name, parent, kind, attributes, links, start)
    span.end(max(start, round(end * 1e9)))
