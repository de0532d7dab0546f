"""Whether a request is traced, decided before it has a span: to make one and drop it costs three times as much."""

from typing import Any, Final

from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

__all__ = ["UNTRACED", "Ahead", "untraced"]

_ROOT: Final = Context()
_KEY: Final = create_key("untraced")

# Where a request is under way that was decided to have no trace.
UNTRACED: Final = set_value(_KEY, True, _ROOT)


def untraced() -> bool:
    """Whether here is within such a request."""
    return get_value(_KEY) is not None


class Ahead(Sampler, RandomIdGenerator):
    """The sampler and the ids of a provider, one of which may be asked for ahead; otherwise they are the usual ones.

    `decide()` draws the id of a new trace and asks `inner` about it, once. If that is to be traced, the next root span
    has to be the one that was asked for: nothing may come between.
    """

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner
        self._trace_id = 0
        self._result: SamplingResult | None = None

    def decide(self, name: str, kind: SpanKind, attributes: dict[str, AttributeValue]) -> bool:
        """Whether such a root span is worth making."""
        trace_id = super().generate_trace_id()
        result = self._inner.should_sample(_ROOT, trace_id, name, kind, attributes, ())
        if result.decision is Decision.DROP:
            return False
        self._trace_id, self._result = trace_id, result
        return True

    def generate_trace_id(self) -> int:
        """The one that was drawn, or a new one."""
        drawn, self._trace_id = self._trace_id, 0
        return drawn or super().generate_trace_id()

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:  # noqa: ANN401  as `inner` has them
        """What was decided, or what `inner` says now."""
        result, self._result = self._result, None
        return result or self._inner.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        """Whose decisions they are."""
        return self._inner.get_description()
