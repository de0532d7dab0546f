"""Spans of Redis commands: created for the commands of sampled publishes and for no others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, get_tracer

from kernel import BroadcasterConfig, BroadcastFailed, EventBroadcaster, PublishOptions, RedisTransport, SceneChangeData
from tests.proxy import Proxy, ProxyMode
from tests.telemetry.conftest import CHANNEL, Watch
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("instrumented")

DATA = SceneChangeData(id=1, camera_id="door", detected_at="now", change_type="secret", similarity_score=0.5)
SAMPLED = PublishOptions(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@asynccontextmanager
async def broadcasting(url: str, watch: Watch, deadline: float = 5.0) -> AsyncIterator[EventBroadcaster]:
    """Start a replica on a real Redis."""
    transport = RedisTransport(url, channel=CHANNEL, observers=[watch.tracing], deadline=deadline)
    config = BroadcasterConfig(max_retries=0, position_check_seconds=0.1)
    async with EventBroadcaster(transport, config, [watch.tracing]) as broadcaster:
        yield broadcaster


async def together(broadcaster: EventBroadcaster, options: list[PublishOptions | None]) -> None:
    """Publish an event for each of `options` at the same time, so that the publishes share a call."""
    await asyncio.gather(*(broadcaster.broadcast_scene_change(DATA, options=each) for each in options))


def linked(span: ReadableSpan) -> list[SpanContext]:
    """Return the contexts to which the span is linked."""
    return [link.context for link in span.links]


async def test_a_shared_call(redis_url: str, watch: Watch) -> None:
    """A call that several publishes share is one span: a child of the first publish, linked to the others."""
    async with broadcasting(redis_url, watch) as broadcaster:
        await broadcaster.broadcast_scene_change(DATA)
        before = len(watch.spans)
        await together(broadcaster, [None] * 5)
        await eventually(lambda: broadcaster.sequence == 6)
    publishes = watch.named("publish c")[1:]
    (command,) = [span for span in watch.spans[before:] if span.kind is SpanKind.CLIENT]
    first, *others = sorted(publishes, key=lambda span: span.start_time or 0)
    assert command.name == "EVALSHA"
    assert command.parent == first.context
    assert linked(command) == [other.context for other in others]
    attributes = command.attributes or {}
    assert attributes["db.statement"] == "EVALSHA"
    assert "secret" not in str(attributes)


async def test_a_call_of_mixed_publishes(redis_url: str, unsampled: Watch) -> None:
    """The span of a shared call is a child of the first sampled publish, and linked to the other sampled ones only."""
    async with broadcasting(redis_url, unsampled) as broadcaster:
        await broadcaster.broadcast_scene_change(DATA)
        assert unsampled.spans == []
        await together(broadcaster, [None, SAMPLED, None, SAMPLED, None])
    first, second = sorted(unsampled.named("publish c"), key=lambda span: span.start_time or 0)
    (command,) = unsampled.named("EVALSHA")
    assert command.parent == first.context
    assert linked(command) == [second.context]


async def test_a_huge_call(redis_url: str, watch: Watch) -> None:
    """The span of a shared call has at most 128 links."""
    async with broadcasting(redis_url, watch) as broadcaster:
        await broadcaster.broadcast_scene_change(DATA)
        await together(broadcaster, [None] * 300)
    command = max(watch.named("EVALSHA"), key=lambda span: len(span.links))
    assert len(command.links) == 128


async def test_a_lost_script(redis_url: str, watch: Watch) -> None:
    """If Redis has lost the script, SCRIPT LOAD and the repeated EVALSHA get spans under the same publishes."""
    async with broadcasting(redis_url, watch) as broadcaster:
        with redis.Redis.from_url(redis_url) as link:
            await together(broadcaster, [None])
            before = len(watch.spans)
            link.script_flush()
        await together(broadcaster, [None] * 3)
    spans = watch.spans[before:]
    publishes = sorted((span for span in spans if span.name == "publish c"), key=lambda span: span.start_time or 0)
    commands = [span for span in spans if span.kind is SpanKind.CLIENT]
    assert [span.name for span in commands] == ["EVALSHA", "SCRIPT LOAD", "EVALSHA"]
    assert [span.status.status_code is StatusCode.ERROR for span in commands] == [True, False, False]
    assert (commands[0].attributes or {})["error.type"] == "NoScriptError"
    for command in commands:
        assert command.parent == publishes[0].context
        assert linked(command) == [publish.context for publish in publishes[1:]]
    assert all(span.status.status_code is StatusCode.UNSET for span in publishes)


async def test_commands_outside_of_publishes(redis_url: str, watch: Watch) -> None:
    """Subscriptions, position checks and reads of the history get no span, even within another span."""
    async with broadcasting(redis_url, watch) as broadcaster:
        await broadcaster.broadcast_scene_change(DATA)
        await eventually(lambda: broadcaster.history_depth == 1)
        reader = RedisTransport(redis_url, channel=CHANNEL, observers=[watch.tracing])
        with get_tracer(__name__, tracer_provider=watch.provider).start_as_current_span("other"):
            await reader.read(1, 1)
        await reader.close()
    assert sorted(span.name for span in watch.spans) == ["EVALSHA", "deliver c", "other", "publish c"]


async def test_a_deadline(redis_url: str, watch: Watch) -> None:
    """A command without an answer in time is a failed attempt with `error.type` TimeoutError."""
    async with Proxy(redis_url) as proxy, broadcasting(proxy.url, watch, deadline=0.2) as broadcaster:
        await proxy.set_mode(ProxyMode.DEAF)
        with pytest.raises(BroadcastFailed):
            await broadcaster.broadcast_scene_change(DATA)
        await proxy.set_mode(ProxyMode.PASS)
    (command,), (publish,) = watch.named("EVALSHA"), watch.named("publish c")
    for span, name in ((command, "TimeoutError"), (publish, "TransportUnavailable")):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == name
