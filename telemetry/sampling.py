"""Decides sampling before creating a span; creating and dropping one costs three times as much."""

from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes, AttributeValue

__all__ = ["UNTRACED", "EarlySampler", "untraced"]

_ROOT: Final = Context()
_KEY: Final = create_key("untraced")

# The end of the description of a parent-based sampler that samples the children of each sampled span, and no others.
_FOLLOWS: Final = (
    ",remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler"
    ",localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}"
)

# The context of a request for which the sampler decided against a trace.
UNTRACED: Final = set_value(_KEY, True, _ROOT)


def untraced() -> bool:
    """Return True if the current context belongs to a request that is not traced (see `UNTRACED`)."""
    return get_value(_KEY) is not None


class EarlySampler(Sampler, RandomIdGenerator):
    """A sampler and id generator in one, so that a decision can be made before its span is created.

    `decide()` generates the id of a new trace and asks `inner` about it once. If it returns True, the caller must
    create that root span next, with no other span in between: it gets the kept id and decision. Without a call of
    `decide()`, ids are random and `inner` decides, as usual. It is not asked about a child of a sampled span if its
    description says that it samples all of those.
    """

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner
        self._follows = inner.get_description().endswith(_FOLLOWS)
        self._trace_id = 0
        self._result: SamplingResult | None = None

    def decide(self, name: str, kind: SpanKind, attributes: dict[str, AttributeValue]) -> bool:
        """Return True if a root span with these properties is to be recorded; the caller then creates it next."""
        trace_id = super().generate_trace_id()
        result = self._inner.should_sample(_ROOT, trace_id, name, kind, attributes, ())
        if result.decision is Decision.DROP:
            return False
        self._trace_id, self._result = trace_id, result
        return True

    def generate_trace_id(self) -> int:
        """Return the id that `decide()` kept, or else a random one."""
        drawn, self._trace_id = self._trace_id, 0
        return drawn or super().generate_trace_id()

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Return the result that `decide()` kept, or else that of `inner`."""
        result, self._result = self._result, None
        if result is not None:
            return result
        if self._follows:
            parent = get_current_span(parent_context).get_span_context()
            if parent.trace_flags.sampled and parent.is_valid:
                return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, parent.trace_state)
        return self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Return the description of `inner`."""
        return self._inner.get_description()
