"""Spans for Redis commands, made by `opentelemetry-instrumentation-redis` and kept within the publishes they belong to.

The instrumentation wraps redis-py as a whole, and asks for its spans here. A command outside a sampled publish
(position checks, reads of the history, the subscription) gets none. A pipeline is named after its first command, not
after all of them, and linked to the publishes that share it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
    use_span,
)

from telemetry import names
from telemetry.tracing import CURRENT, MOST_LINKS

__all__ = ["instrument_redis"]

_STATEMENTS: Final = ("db.statement", "db.query.text")


class _Commands(Tracer):
    """Makes the instrumentation's spans, with the provider of the publish at hand."""

    def __init__(self, *scope: Any) -> None:  # noqa: ANN401  what `get_tracer` takes
        self._scope = scope
        self._tracers: WeakKeyDictionary[TracerProvider, Tracer] = WeakKeyDictionary()

    def start_span(self, *args: Any, **kwargs: Any) -> Span:  # noqa: ANN401
        """Nobody asks for this."""
        return NonRecordingSpan(INVALID_SPAN.get_span_context())

    @contextmanager
    def start_as_current_span(  # type: ignore[override]
        self,
        name: str,
        *args: Any,  # noqa: ANN401
        kind: SpanKind = SpanKind.CLIENT,
        **kwargs: Any,  # noqa: ANN401
    ) -> Iterator[Span]:
        """The span of one command or pipeline."""
        publish = CURRENT.get()
        if publish is None or not publish.span.is_recording():
            yield INVALID_SPAN
            return
        companions = publish.companions
        # all of a pipeline are the same here; a single command's name may have a blank, as SCRIPT LOAD has
        words = name.split(" ")
        shared = len(words) > 1 and len(set(words)) == 1
        span = self._tracer(publish.tracing.provider).start_span(
            words[0] if shared else name,
            kind=kind,
            attributes={"db.operation.batch.size": len(words)} if shared else None,
            links=[Link(companion.span.get_span_context()) for companion in companions[:MOST_LINKS]],
        )
        for each in (publish, *companions):
            each.attempt = span.get_span_context()
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        except asyncio.CancelledError:  # that is how a deadline comes
            _fail(span, TimeoutError())
            raise
        except Exception as error:
            _fail(span, error)
            raise
        finally:
            if shared:
                _shorten(span)
            span.end()

    def _tracer(self, provider: TracerProvider) -> Tracer:
        tracer = self._tracers.get(provider)
        if tracer is None:
            tracer = self._tracers[provider] = provider.get_tracer(*self._scope)
        return tracer


class _Provider(TracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:  # noqa: ANN401  passed on as it is
        """The tracer that the instrumentation asks for."""
        return _Commands(*args, *kwargs.values())


def instrument_redis() -> None:
    """Have Redis commands traced from now on; once is enough."""
    instrumentor = RedisInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(tracer_provider=_Provider(), response_hook=_look_at)


def _look_at(span: Span, _: object, response: object) -> None:
    """A pipeline that came back may hold errors."""
    if isinstance(response, Sequence) and span.is_recording():
        for answer in response:
            if isinstance(answer, Exception):
                _fail(span, answer)
                return


def _fail(span: Span, error: BaseException) -> None:
    span.set_attribute(names.ERROR_TYPE, type(error).__name__)
    span.set_status(StatusCode.ERROR)


def _shorten(span: Span) -> None:
    """Hundreds of commands that are all the same say no more than one."""
    attributes = getattr(span, "attributes", None) or {}
    for key in _STATEMENTS:
        if key in attributes:
            span.set_attribute(key, str(attributes[key]).partition("\n")[0])
