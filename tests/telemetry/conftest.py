"""Fixtures that keep spans in memory, for tests without a network."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import format_span_id, format_trace_id

from kernel import BroadcastFailed, EventBroadcaster, PublishOptions, SceneChangeData
from telemetry.redis import instrument_redis
from telemetry.tracing import Tracing
from tests.fakes import FakeRedis

CHANNEL = "c"
SERVER = {"server.address": "cache", "server.port": 6379}
DATA = SceneChangeData(id=1, camera_id="door", detected_at="now", change_type="unknown", similarity_score=0.5)


class Watch:
    """A tracing observer and the spans that it has created."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.provider = provider
        self.tracing = Tracing(provider, channel=CHANNEL, version="1", replica="x2x4z", server=SERVER)

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


@pytest.fixture
def redis() -> FakeRedis:
    """Return a fake Redis for this test."""
    return FakeRedis()


def header(number: int, *, sampled: bool = True) -> str:
    """Return a producer's traceparent with that number as its trace id."""
    return f"00-{number:032x}-{number:016x}-0{int(sampled)}"


async def attempt(broadcaster: EventBroadcaster) -> None:
    """Publish an event with a sampled traceparent; a failure is ignored."""
    with suppress(BroadcastFailed):
        await broadcaster.broadcast_scene_change(DATA, options=PublishOptions(traceparent=header(7)))


def links(span: ReadableSpan) -> list[str]:
    """Return the links of a span as traceparents."""
    contexts = [link.context for link in span.links]
    return [f"00-{format_trace_id(c.trace_id)}-{format_span_id(c.span_id)}-{c.trace_flags:02x}" for c in contexts]


def parent(span: ReadableSpan) -> str:
    """Return the parent of a span as a traceparent."""
    context = span.parent
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def value(span: ReadableSpan, name: str) -> object:
    """Return an attribute by the last part of its name."""
    (found,) = [v for k, v in (span.attributes or {}).items() if k.rpartition(".")[2] == name]
    return found
