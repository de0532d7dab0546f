"""Fixtures that keep spans in memory, for tests without a network."""

from collections.abc import Iterator

import pytest
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler

from telemetry.redis import instrument_redis
from telemetry.tracing import Tracing

CHANNEL = "c"


class Watch:
    """A tracing observer and the spans that it has created."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.provider = provider
        self.tracing = Tracing(provider, CHANNEL, "1")

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every span that has ended, in the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the spans of that name."""
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def watch() -> Watch:
    """Return an observer that samples everything."""
    return Watch()


@pytest.fixture
def unsampled() -> Watch:
    """Return an observer that samples only publishes whose producer sampled them."""
    return Watch(ParentBased(ALWAYS_OFF))


@pytest.fixture
def instrumented() -> Iterator[None]:
    """Trace Redis commands during one test."""
    instrument_redis()
    yield
    RedisInstrumentor().uninstrument()
