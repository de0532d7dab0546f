"""Spans for Redis commands, made by `opentelemetry-instrumentation-redis` and kept within the publishes they belong to.

The instrumentation wraps redis-py as a whole, and asks for its spans here. A command outside a sampled publish
(position checks, reads of the history, the subscription) gets none. A pipeline is named after its first command, not
after all of them, and linked to the publishes that share it.
"""

import asyncio
from collections.abc import Iterator, Sequence
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
        """Note it."""
        self.attributes[key] = value

    def failed(self, error: Exception) -> None:
        """Note an error by its name."""
        self.attributes[names.ERROR_TYPE] = type(error).__name__

    def shorten(self, count: int) -> None:
        """Hundreds of commands that are all the same say no more than one, and how many they are."""
        for key in _STATEMENTS & self.attributes.keys():
            self.attributes[key] = str(self.attributes[key]).partition("\n")[0]
        self.attributes["db.operation.batch.size"] = count


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
        if publish is None:
            yield INVALID_SPAN
            return
        # all of a pipeline are the same here; a single command's name may have a blank, as SCRIPT LOAD has
        words = name.split(" ")
        shared = len(words) > 1 and len(set(words)) == 1
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
            if shared:
                said.shorten(len(words))
            companions = publish.companions
            span = self._tracer(publish.tracing.provider).start_span(
                words[0] if shared else name,
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
        instrumentor.instrument(tracer_provider=_Provider(), response_hook=_look_at)


def _look_at(said: Span, _: object, response: object) -> None:
    """A pipeline that came back may hold errors."""
    if isinstance(said, _Said) and isinstance(response, Sequence):
        for answer in response:
            if isinstance(answer, Exception):
                said.failed(answer)
                return
