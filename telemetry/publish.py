"""The span of a publish, which is the current one while the publish is in progress."""

from collections.abc import Sequence
from contextvars import ContextVar, Token
from time import time_ns
from types import TracebackType
from typing import Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanContext, StatusCode, TracerProvider, set_span_in_context

from kernel.observer import Failed, Published, TraceContext
from telemetry import names
from telemetry.spans import Attributes

__all__ = ["CURRENT", "Publish"]

# A publish that waits for no other call still waits for the event loop, for fractions of a millisecond.
_LEAST_WAIT: Final = 0.001


class Publish:
    """One publish and its span, which is the current span while the publish is in progress.

    `id` is that of its event, None for a batch. `attempt` is the span of the last Redis command that was sent for this
    publish.

    Publishes may share one call of Redis. On the first that is sampled, `companions` are then the other sampled ones,
    and `publishes` is the number of all.
    """

    __slots__ = (
        "_retry",
        "_theirs",
        "_token",
        "_waited",
        "attempt",
        "companions",
        "id",
        "provider",
        "publishes",
        "span",
    )

    def __init__(self, provider: TracerProvider, span: Span, theirs: TraceContext, id: str | None) -> None:
        self.provider = provider
        self.span = span
        self.id = id
        self.companions: Sequence[Publish] = ()
        self.publishes = 1
        self.attempt: SpanContext | None = None
        self._retry: tuple[Span, int] | None = None
        self._theirs = theirs
        self._waited = 0.0

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
        self.end_retry()
        if error is not None:
            self.span.set_attribute(names.ERROR_TYPE, type(error.__cause__ or error).__name__)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()

    def start_retry(self, span: Span, seconds: float) -> None:
        """Keep the span of a retry that is due in `seconds`; it covers the time until then."""
        self.end_retry()
        self._retry = span, time_ns() + round(seconds * 1e9)

    def end_retry(self) -> None:
        """End the span of the retry when the retry was due, or now if that is earlier.

        It is earlier if the publish ends before, and if the timer of the retry fires a moment too early. The retry must
        end before the next attempt begins, or a trace viewer takes the retry for the cause of what follows.
        """
        if self._retry is not None:
            span, due = self._retry
            self._retry = None
            span.end(min(due, time_ns()))

    def sending(self, waited: float) -> None:
        """Note that the publish is about to be sent, after it has waited for the calls before for these seconds."""
        self.end_retry()
        self._waited += waited

    def published(self, published: Published) -> None:
        """Add the outcome to the span."""
        outcome: Attributes = {
            names.SEQUENCE: published.first.sequence,
            names.EPOCH: published.first.epoch,
            names.SUBSCRIBERS: published.subscribers,
        }
        if len(published.types) > 1:
            outcome[names.LAST_SEQUENCE] = published.first.sequence + len(published.types) - 1
        if published.retries:
            outcome[names.RETRIES] = published.retries
        if published.replayed:
            outcome[names.REPEATED] = True
        self._end(outcome, known=not published.replayed)

    def failed(self, failed: Failed) -> None:
        """Add to the span how often the publish was tried, and why no more often."""
        outcome: Attributes = {}
        if failed.retries:
            outcome[names.RETRIES] = failed.retries
        if failed.refused is not None:
            outcome[names.REFUSED] = failed.refused
        self._end(outcome, known=True)

    def _end(self, outcome: Attributes, *, known: bool) -> None:
        """Add these attributes to the span; `known` is false if the event has the id of an earlier publish."""
        if known and self.id is not None:
            outcome[names.MESSAGE_ID] = self.id
        if self._waited >= _LEAST_WAIT:
            outcome[names.WAITED] = names.seconds(self._waited)
        self.span.set_attributes(outcome)


CURRENT: Final[ContextVar[Publish | None]] = ContextVar("event_broadcaster_publish", default=None)
