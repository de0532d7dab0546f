"""The server span of a request, and the decision whether there is one."""

from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, get_current_span

from kernel.observer import Publishing, TraceContext
from telemetry.http import http_spans
from telemetry.sampling import Ahead
from telemetry.tracing import Tracing

THEIRS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


class Every(Sampler):
    """Samples every `n`th trace that it is asked about."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.asked: list[int] = []

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, *args: Any, **kwargs: Any
    ) -> SamplingResult:
        """Count."""
        self.asked.append(trace_id)
        return SamplingResult(Decision.RECORD_AND_SAMPLE if len(self.asked) % self._n == 0 else Decision.DROP)

    def get_description(self) -> str:
        """Its name."""
        return "every"


class Service:
    """A service that publishes an event in each request, with the middleware around it."""

    def __init__(self, sampler: Sampler) -> None:
        ahead = Ahead(sampler)
        self.provider = TracerProvider(ahead, shutdown_on_exit=False, id_generator=ahead)
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._tracing = Tracing(self.provider, "c", "1")
        self._app = http_spans(self.provider, ahead, "1")(self._answer)
        self.carried: list[TraceContext] = []
        self.status = 202
        self.error: Exception | None = None

    async def get(self, *headers: tuple[bytes, bytes], type: str = "http") -> list[Any]:
        """Make a request; returns what was sent."""
        scope = {"type": type, "method": "POST", "path_template": "/x/{y}", "path": "/x/1", "scheme": "http"}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app({**scope, "headers": [(b"host", b"here"), *headers]}, None, send)
        return sent

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"]).get(b"traceparent")
        with self._tracing.publishing(Publishing(["event"], TraceContext(given and given.decode()))) as carried:
            self.carried.append(carried)
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": self.status})

    @property
    def names(self) -> list[str]:
        """What has ended."""
        return [span.name for span in self.exporter.get_finished_spans()]


async def test_decided_once() -> None:
    """Section 10, traces: the sampler is asked once about each request that begins a trace, and its word holds."""
    sampler = Every(3)
    service = Service(ParentBased(sampler))
    for _ in range(9):
        await service.get()
    assert len(sampler.asked) == len(set(sampler.asked)) == 9
    servers = [span for span in service.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [span.context.trace_id for span in servers if span.context] == sampler.asked[2::3]
    assert service.names == ["publish c", "POST /x/{y}"] * 3
    traced = [carried.traceparent for carried in service.carried]
    assert [header is not None for header in traced] == [False, False, True] * 3
    assert [format_trace_id(id) in str(header) for id, header in zip(sampler.asked, traced, strict=True)] == [
        False,
        False,
        True,
    ] * 3
    assert not get_current_span().get_span_context().is_valid


async def test_a_share() -> None:
    """Section 10, traces: of many requests the share that was asked for is traced."""
    service = Service(ParentBased(TraceIdRatioBased(0.25)))
    for _ in range(2000):
        await service.get()
    assert 400 <= len(service.names) / 2 <= 600


@pytest.mark.parametrize(("flag", "names"), [("1", ["publish c", "POST /x/{y}"]), ("0", [])])
@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF])
async def test_its_producer_decides(root: Sampler, flag: str, names: list[str]) -> None:
    """Section 10, traces: a producer's trace goes on, sampled or not, as it was decided there."""
    service = Service(ParentBased(root))
    await service.get((b"traceparent", (THEIRS + flag).encode()), (b"tracestate", b"a=b"))
    assert service.names == names
    (carried,) = service.carried
    assert str(carried.traceparent).startswith(THEIRS[:35])
    if not names:
        assert carried.traceparent == THEIRS + flag


async def test_without_its_producer() -> None:
    """Section 10, traces: where nothing is sampled, whoever asks, the producer's own context goes on untouched."""
    service = Service(ALWAYS_OFF)
    await service.get((b"traceparent", (THEIRS + "1").encode()))
    assert service.names == []
    assert service.carried == [TraceContext(THEIRS + "1")]


@pytest.mark.parametrize(("status", "failed"), [(202, False), (400, False), (404, False), (500, True), (503, True)])
async def test_status(status: int, failed: bool) -> None:
    """Section 10, traces: only what the server did wrong is an error, named by its status."""
    service = Service(ALWAYS_ON)
    service.status = status
    await service.get()
    span = service.exporter.get_finished_spans()[-1]
    attributes = span.attributes or {}
    assert attributes["http.response.status_code"] == status
    assert (span.status.status_code is StatusCode.ERROR) == failed
    assert attributes.get("error.type") == (str(status) if failed else None)


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
async def test_a_crash(sampler: Sampler) -> None:
    """Section 10, traces: an error that nobody answered is named by its class, and goes on its way."""
    service = Service(sampler)
    service.error = KeyError("secret")
    with pytest.raises(KeyError):
        await service.get()
    spans = service.exporter.get_finished_spans()
    assert len(spans) == (2 if sampler is ALWAYS_ON else 0)
    if spans:
        attributes = spans[-1].attributes or {}
        assert attributes["error.type"] == "KeyError"
        assert "secret" not in str(attributes)
        assert spans[-1].events == ()


async def test_http_alone() -> None:
    """Section 10, traces: a WebSocket passes through without a span."""
    service = Service(ALWAYS_ON)
    await service.get(type="websocket")
    # the publish within is the test's own
    assert service.names == ["publish c"]
