"""Spans for Redis commands, made by `opentelemetry-instrumentation-redis` and kept within the publishes they belong to.

The instrumentation wraps redis-py as a whole, and asks for its spans here. A command outside a sampled publish
(position checks, reads of the history, the subscription) gets none. One that several publishes share is under the
first of them, and linked to the others.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import time_ns
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
)
from opentelemetry.util.types import AttributeValue

from telemetry import names
from telemetry.tracing import CURRENT, MOST_LINKS

__all__ = ["instrument_redis"]

_STATEMENTS: Final = {"db.statement", "db.query.text"}


class _Said(NonRecordingSpan):
    """What the instrumentation has to say of a command: its span is made of all of it at once, when that is over.

    Ten attributes set one by one cost as much as the span itself.
    """

    def __init__(self, name: str) -> None:
        super().__init__(INVALID_SPAN.get_span_context())
        self.name = name
        self.attributes: dict[str, AttributeValue] = {}

    def is_recording(self) -> bool:
        """Whether it is worth saying."""
        return True

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Note it; of a statement the command alone, as its arguments are question marks, hundreds of them."""
        self.attributes[key] = str(value).partition(" ?")[0] if key in _STATEMENTS else value

    def failed(self, error: Exception) -> None:
        """Note an error by its name."""
        self.attributes[names.ERROR_TYPE] = type(error).__name__


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
        """The span of one command."""
        publish = CURRENT.get()
        if publish is None:
            yield INVALID_SPAN
            return
        said = _Said(name)
        begin = time_ns()
        try:
            yield said
        except asyncio.CancelledError:  # that is how a deadline comes
            said.failed(TimeoutError())
            raise
        except Exception as error:
            said.failed(error)
            raise
        finally:
            companions = publish.companions
            span = self._tracer(publish.tracing.provider).start_span(
                name,
                kind=kind,
                attributes=said.attributes,
                links=[Link(companion.span.get_span_context()) for companion in companions[:MOST_LINKS]],
                start_time=begin,
            )
            if names.ERROR_TYPE in said.attributes:
                span.set_status(StatusCode.ERROR)
            for each in (publish, *companions):
                each.attempt = span.get_span_context()
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
        instrumentor.instrument(tracer_provider=_Provider())
