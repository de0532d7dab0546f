"""The early sampler: it decides as the sampler that is configured, and asks it only where that may decide otherwise."""

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from telemetry.sampling import EarlySampler

STATE = TraceState([("vendor", "1")])


def child(flags: int, *, remote: bool, trace: int = 1) -> Context:
    """Return the context of a child of such a span."""
    parent = SpanContext(trace, 2, is_remote=remote, trace_flags=TraceFlags(flags), trace_state=STATE)
    return set_span_in_context(NonRecordingSpan(parent), Context())


CONTEXTS = [Context(), *(child(flags, remote=remote) for flags in (0, 1) for remote in (False, True))]


@pytest.mark.parametrize(
    "inner",
    [
        ALWAYS_ON,
        ALWAYS_OFF,
        DEFAULT_ON,
        DEFAULT_OFF,
        ParentBasedTraceIdRatio(0.5),
        ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF),
        ParentBased(ALWAYS_OFF, local_parent_not_sampled=ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF)),
    ],
    ids=lambda inner: inner.get_description()[:60],
)
def test_the_same_decisions(inner: Sampler) -> None:
    """Whatever the parent is, the decision, the attributes and the trace state are those of the inner sampler."""
    early = EarlySampler(inner)
    for context in [*CONTEXTS, child(1, remote=True, trace=0)]:
        for trace in (1, 2**64 - 1):
            one, other = (each.should_sample(context, trace, "x", attributes={"a": 1}) for each in (early, inner))
            assert (one.decision, one.attributes, one.trace_state) == (
                other.decision,
                other.attributes,
                other.trace_state,
            )


class Asked(ParentBased):
    """A parent-based sampler that counts how often it is asked."""

    times = 0

    def should_sample(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        self.times += 1
        return super().should_sample(*args, **kwargs)  # type: ignore[arg-type]


def test_asked_once_for_each_trace() -> None:
    """A parent-based sampler is not asked about the children of a sampled span."""
    inner = Asked(ALWAYS_ON)
    early = EarlySampler(inner)
    for context in CONTEXTS:
        early.should_sample(context, 1, "x")
    assert inner.times == 3
    assert early.should_sample(child(1, remote=False), 1, "x").decision is Decision.RECORD_AND_SAMPLE
    assert inner.times == 3
