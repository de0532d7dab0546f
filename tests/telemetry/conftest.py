"""Spans in memory, for tests of the observer without a network."""

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
    """An observer, and what it has made."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.provider = provider
        self.tracing = Tracing(provider, CHANNEL, "1")

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every span that has ended, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of that name."""
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def watch() -> Watch:
    """Everything is sampled."""
    return Watch()


@pytest.fixture
def unsampled() -> Watch:
    """Nothing is sampled but what its producer samples."""
    return Watch(ParentBased(ALWAYS_OFF))


@pytest.fixture
def instrumented() -> Iterator[None]:
    """Redis commands are traced for one test."""
    instrument_redis()
    yield
    RedisInstrumentor().uninstrument()
