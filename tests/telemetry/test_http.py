"""The server span of an HTTP request, and the sampling decision made before it."""

import asyncio
import time
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

from kernel import FieldError, MessageInvalid
from kernel.observer import Publishing, TraceContext
from telemetry.http import http_spans, record_problem
from telemetry.sampling import EarlySampler
from telemetry.tracing import Tracing

PRODUCER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


class Every(Sampler):
    """A sampler that samples every `n`th trace."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.asked: list[int] = []

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, *args: Any, **kwargs: Any
    ) -> SamplingResult:
        """Sample every `n`th call."""
        self.asked.append(trace_id)
        return SamplingResult(Decision.RECORD_AND_SAMPLE if len(self.asked) % self._n == 0 else Decision.DROP)

    def get_description(self) -> str:
        """Return the name of the sampler."""
        return "every"


class Service:
    """An ASGI app, wrapped in the middleware, that publishes an event in each request."""

    def __init__(self, sampler: Sampler) -> None:
        early = EarlySampler(sampler)
        self.provider = TracerProvider(early, shutdown_on_exit=False, id_generator=early)
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._tracing = Tracing(self.provider, channel="c", version="1", replica="r", server={})
        self._app = http_spans(self.provider, early, "1")(self._answer)
        self.carried: list[TraceContext] = []
        self.sent_at: list[int] = []
        self.status = 202
        self.error: Exception | None = None
        self.client: tuple[str, int] | None = ("10.0.0.7", 4711)

    async def get(self, *headers: tuple[bytes, bytes], type: str = "http") -> list[Any]:
        """Make a request and return the ASGI messages that were sent."""
        scope = {"type": type, "method": "POST", "path_template": "/x/{y}", "path": "/x/1", "scheme": "http"}
        scope |= {"client": self.client}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            self.sent_at.append(time.time_ns())
            await asyncio.sleep(0.002)

        await self._app({**scope, "headers": [(b"host", b"here"), *headers]}, None, send)
        return sent

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"]).get(b"traceparent")
        with self._tracing.publishing(Publishing(["event"], TraceContext(given and given.decode()), "id-1")) as carried:
            self.carried.append(carried)
        if self.error is not None:
            await record_problem(self.error, scope)
            raise self.error
        await send({"type": "http.response.start", "status": self.status})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await send({"type": "http.response.body", "body": b"last"})

    @property
    def names(self) -> list[str]:
        """The names of the spans that have ended."""
        return [span.name for span in self.exporter.get_finished_spans()]


async def test_decided_once() -> None:
    """The sampler is asked once about each request that starts a trace, and its decision holds for the trace."""
    sampler = Every(3)
    service = Service(ParentBased(sampler))
    for _ in range(9):
        await service.get()
    assert len(sampler.asked) == len(set(sampler.asked)) == 9
    servers = [span for span in service.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [span.context.trace_id for span in servers if span.context] == sampler.asked[2::3]
    assert service.names == ["publish event", "POST /x/{y}"] * 3
    traced = [carried.traceparent for carried in service.carried]
    assert [header is not None for header in traced] == [False, False, True] * 3
    assert [format_trace_id(id) in str(header) for id, header in zip(sampler.asked, traced, strict=True)] == [
        False,
        False,
        True,
    ] * 3
    assert not get_current_span().get_span_context().is_valid


async def test_a_share() -> None:
    """With a ratio sampler, that share of the requests is traced."""
    service = Service(ParentBased(TraceIdRatioBased(0.25)))
    for _ in range(2000):
        await service.get()
    assert 400 <= len(service.names) / 2 <= 600


@pytest.mark.parametrize(("flag", "names"), [("1", ["publish event", "POST /x/{y}"]), ("0", [])])
@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF])
async def test_its_producer_decides(root: Sampler, flag: str, names: list[str]) -> None:
    """A request with a traceparent is traced exactly if its producer sampled the trace."""
    service = Service(ParentBased(root))
    await service.get((b"traceparent", (PRODUCER + flag).encode()), (b"tracestate", b"a=b"))
    assert service.names == names
    (carried,) = service.carried
    assert str(carried.traceparent).startswith(PRODUCER[:35])
    if not names:
        assert carried.traceparent == PRODUCER + flag


async def test_without_its_producer() -> None:
    """If a request of a sampled trace is not sampled here, its event carries the producer's context unchanged."""
    service = Service(ALWAYS_OFF)
    await service.get((b"traceparent", (PRODUCER + "1").encode()))
    assert service.names == []
    assert service.carried == [TraceContext(PRODUCER + "1")]


@pytest.mark.parametrize(("status", "failed"), [(202, False), (400, False), (404, False), (500, True), (503, True)])
async def test_status(status: int, failed: bool) -> None:
    """Only a 5xx response makes the span an error, with the status as its `error.type`."""
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
    """An unhandled exception is recorded by its class alone, without its text, and is raised again."""
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


async def test_the_end() -> None:
    """The span ends just before the last part of the answer is sent, so that it does not outlive its client's."""
    service = Service(ALWAYS_ON)
    await service.get()
    span = service.exporter.get_finished_spans()[-1]
    _, first, last = service.sent_at
    assert span.end_time is not None
    assert first < span.end_time <= last


@pytest.mark.parametrize("client", [("10.0.0.7", 4711), None])
async def test_the_client(client: tuple[str, int] | None) -> None:
    """The address of the peer, if it has one, and the beginning of its User-Agent header are attributes."""
    service = Service(ALWAYS_ON)
    service.client = client
    await service.get((b"user-agent", b"camera/1.0 \xe9" + b"x" * 10_000))
    attributes = service.exporter.get_finished_spans()[-1].attributes or {}
    assert attributes.get("client.address") == (client and "10.0.0.7")
    agent = str(attributes["user_agent.original"])
    assert agent.startswith("camera/1.0 \xe9xxx")
    assert len(agent) == 200
    await service.get()
    assert "user_agent.original" not in (service.exporter.get_finished_spans()[-1].attributes or {})


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (MessageInvalid([FieldError("data.id", "must be a string"), FieldError("type", "is unknown")]), "data.id"),
        (MessageInvalid([FieldError("", "the body must be JSON")]), "body"),
        (KeyError("data.id"), None),
    ],
)
@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
async def test_a_problem(sampler: Sampler, error: Exception, problem: str | None) -> None:
    """The first invalid field of a refused request is an attribute; its text is not, as it may quote the value."""
    service = Service(sampler)
    service.error = error
    with pytest.raises(type(error)):
        await service.get()
    for span in service.exporter.get_finished_spans():
        attributes = span.attributes or {}
        assert attributes.get("event_broadcaster.problem") == (problem if span.kind is SpanKind.SERVER else None)
        assert "must be" not in str(attributes)


async def test_http_alone() -> None:
    """A WebSocket connection gets no span."""
    service = Service(ALWAYS_ON)
    await service.get(type="websocket")
    # The span is that of the publish that `Service` makes.
    assert service.names == ["publish event"]
