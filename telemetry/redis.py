"""Spans for Redis commands, created by `opentelemetry-instrumentation-redis` as children of sampled publishes.

The instrumentation patches redis-py as a whole; it gets a tracer from this module. A command outside a sampled publish
(position checks, reads of the history, the subscription) gets no span. The span of a command that several publishes
share is a child of the first of them and linked to the others, and those are linked to it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import time_ns
from typing import Any, Final
from urllib.parse import urlsplit
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

from kernel.redis import response_code
from telemetry import names
from telemetry.publish import CURRENT
from telemetry.spans import MOST_LINKS, Attributes

__all__ = ["instrument_redis", "server_attributes"]

_STATEMENTS: Final = {"db.statement", "db.query.text"}
# Attributes that the conventions for databases do not have.
_LEFT_OUT: Final = {"db.redis.args_length", "network.transport"}


class _CommandSpan(NonRecordingSpan):
    """Collects the attributes that the instrumentation sets; the real span is created when the command has ended."""

    def __init__(self) -> None:
        super().__init__(INVALID_SPAN.get_span_context())
        self.attributes: Attributes = {}

    def is_recording(self) -> bool:
        """Return True: the instrumentation sets no attributes otherwise."""
        return True

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Keep the attribute; of a statement only the command, as each of its arguments (hundreds) is shown as "?"."""
        if key not in _LEFT_OUT:
            self.attributes[key] = str(value).partition(" ?")[0] if key in _STATEMENTS else value


class _Commands:
    """The spans of the commands that one provider traces.

    All its commands go to the same Redis, so that those of one name have the same attributes. The instrumentation
    computes them for the first only.
    """

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.attributes: dict[str, Attributes] = {}


class _CommandTracer(Tracer):
    """The instrumentation's tracer: creates each span with the tracer provider of the current publish."""

    def __init__(self, *scope: Any) -> None:  # noqa: ANN401  what `get_tracer` takes
        self._scope = scope
        self._commands: WeakKeyDictionary[TracerProvider, _Commands] = WeakKeyDictionary()

    def start_span(self, *args: Any, **kwargs: Any) -> Span:  # noqa: ANN401  not used
        """Return a span that records nothing; the instrumentation does not use this method."""
        return NonRecordingSpan(INVALID_SPAN.get_span_context())

    @contextmanager
    def start_as_current_span(  # type: ignore[override]  # only the arguments that the instrumentation passes
        self,
        name: str,
        *args: Any,  # noqa: ANN401  not used
        kind: SpanKind = SpanKind.CLIENT,
        **kwargs: Any,  # noqa: ANN401  not used
    ) -> Iterator[Span]:
        """Create the span of one command, if the command belongs to a sampled publish."""
        publish = CURRENT.get()
        if publish is None:
            yield INVALID_SPAN
            return
        commands = self._of(publish.provider)
        failure: Attributes = {}
        begin = time_ns()
        try:
            if name in commands.attributes:
                yield INVALID_SPAN
            else:
                first = _CommandSpan()
                commands.attributes[name] = first.attributes
                yield first
        except asyncio.CancelledError:  # asyncio.timeout() enforces the deadline by cancelling
            failure = _failure(TimeoutError())
            raise
        except Exception as error:
            failure = _failure(error)
            raise
        finally:
            companions = publish.companions
            attributes = {**commands.attributes[name], **failure}
            if publish.publishes > 1:
                attributes[names.PUBLISHES] = publish.publishes
            span = commands.tracer.start_span(
                name,
                kind=kind,
                attributes=attributes,
                links=[Link(companion.span.get_span_context()) for companion in companions[:MOST_LINKS]],
                start_time=begin,
            )
            if failure:
                code = failure.get(names.RESPONSE_CODE)
                span.set_status(StatusCode.ERROR, None if code is None else str(code))
            context = publish.attempt = span.get_span_context()
            for companion in companions:
                companion.attempt = context
                if companion.span.is_recording():  # False after the publish was cancelled
                    companion.span.add_link(context)
            span.end()

    def _of(self, provider: TracerProvider) -> _Commands:
        commands = self._commands.get(provider)
        if commands is None:
            commands = self._commands[provider] = _Commands(provider.get_tracer(*self._scope))
        return commands


def _failure(error: Exception) -> Attributes:
    """Return the name of the error's class, and the code of an answer without its text, which may quote a payload."""
    attributes: Attributes = {names.ERROR_TYPE: type(error).__name__}
    code = response_code(error)
    if code is not None:
        attributes[names.RESPONSE_CODE] = code
    return attributes


class _Provider(TracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:  # noqa: ANN401  as the instrumentation calls it
        """Return the tracer for the instrumentation."""
        return _CommandTracer(*args, *kwargs.values())


def server_attributes(url: str) -> dict[str, AttributeValue]:
    """Return the attributes that say where the Redis with this URL is."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return {"server.address": parts.path}
    return {"server.address": parts.hostname or "localhost", "server.port": parts.port or 6379}


def instrument_redis() -> None:
    """Patch redis-py so that its commands are traced; further calls do nothing."""
    instrumentor = RedisInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(tracer_provider=_Provider())
