"""Trace contexts as the kernel and Redis carry them, the text of W3C's headers, and as OpenTelemetry has them."""

import re
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["SAMPLED", "remote", "surroundings"]

# Version 00, no id of zeros, the sampled bit set; anybody may have put anything else into Redis.
SAMPLED: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f][13579bdf])")
_ROOT: Final = Context()
_w3c: Final = TraceContextTextMapPropagator()


def surroundings(traceparent: str | None, tracestate: str | None) -> Context | None:
    """The context of a span somewhere else, None if there is none."""
    if traceparent is None:
        return None
    return _w3c.extract({"traceparent": traceparent, **({"tracestate": tracestate} if tracestate else {})}, _ROOT)


def remote(traceparent: str | None, tracestate: str | None) -> SpanContext:
    """The context of a span that was sampled elsewhere; the general way costs several times as much."""
    parsed = SAMPLED.fullmatch(traceparent or "")
    assert parsed is not None
    trace, span, flags = (int(part, 16) for part in parsed.groups())
    state = TraceState.from_header([tracestate]) if tracestate else None
    return SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
