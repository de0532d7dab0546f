"""Spans of Redis commands: created for the commands of sampled publishes and for no others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, get_tracer

from kernel import BroadcasterConfig, BroadcastFailed, EventBroadcaster, PublishOptions, RedisTransport, SceneChangeData
from telemetry.redis import server_attributes
from tests.proxy import Proxy, ProxyMode
from tests.system.redis_server import RedisServer
from tests.telemetry.conftest import CHANNEL, Watch, value
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
    publishes = watch.named("publish scene_change")[1:]
    (command,) = [span for span in watch.spans[before:] if span.kind is SpanKind.CLIENT]
    first, *others = sorted(publishes, key=lambda span: span.start_time or 0)
    assert command.name == "EVALSHA"
    assert command.parent == first.context
    assert linked(command) == [other.context for other in others]
    attributes = command.attributes or {}
    assert attributes["db.query.text"] == "EVALSHA"
    assert attributes["db.system.name"] == "redis"
    assert attributes["server.address"]
    (alone,) = watch.named("EVALSHA")[-2:-1]
    assert {**(alone.attributes or {}), "event_broadcaster.publishes": 5} == attributes
    assert not [name for name in attributes if name.startswith("net.") or name in ("db.system", "db.statement")]
    assert attributes["event_broadcaster.publishes"] == 5
    assert linked(first) == []
    assert [linked(other) for other in others] == [[command.context]] * 4
    assert {value(each, "id") for each in publishes} == {
        value(each, "id") for each in watch.named("deliver scene_change")[1:]
    }
    assert "secret" not in str(attributes)


async def test_a_call_of_mixed_publishes(redis_url: str, unsampled: Watch) -> None:
    """The span of a shared call is a child of the first sampled publish, and linked to the other sampled ones only."""
    async with broadcasting(redis_url, unsampled) as broadcaster:
        await broadcaster.broadcast_scene_change(DATA)
        assert unsampled.spans == []
        await together(broadcaster, [None, SAMPLED, None, SAMPLED, None])
    first, second = sorted(unsampled.named("publish scene_change"), key=lambda span: span.start_time or 0)
    (command,) = unsampled.named("EVALSHA")
    assert command.parent == first.context
    assert linked(command) == [second.context]
    assert (linked(first), linked(second)) == ([], [command.context])
    assert value(command, "publishes") == 5


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
    publishes = sorted(
        (span for span in spans if span.name == "publish scene_change"), key=lambda span: span.start_time or 0
    )
    commands = [span for span in spans if span.kind is SpanKind.CLIENT]
    assert [span.name for span in commands] == ["EVALSHA", "SCRIPT LOAD", "EVALSHA"]
    assert [span.status.status_code is StatusCode.ERROR for span in commands] == [True, False, False]
    assert (commands[0].attributes or {})["error.type"] == "NoScriptError"
    assert value(commands[0], "status_code") == commands[0].status.description == "NOSCRIPT"
    for command in commands:
        assert command.parent == publishes[0].context
        assert linked(command) == [publish.context for publish in publishes[1:]]
    for publish in publishes[1:]:
        assert linked(publish) == [command.context for command in commands]
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
    assert sorted(span.name for span in watch.spans) == [
        "EVALSHA",
        "deliver scene_change",
        "other",
        "publish scene_change",
    ]


async def test_a_deadline(redis_url: str, watch: Watch) -> None:
    """A command without an answer in time is a failed attempt with `error.type` TimeoutError."""
    async with Proxy(redis_url) as proxy, broadcasting(proxy.url, watch, deadline=0.2) as broadcaster:
        await proxy.set_mode(ProxyMode.DEAF)
        with pytest.raises(BroadcastFailed):
            await broadcaster.broadcast_scene_change(DATA)
        await proxy.set_mode(ProxyMode.PASS)
    (command,), (publish,) = watch.named("EVALSHA"), watch.named("publish scene_change")
    for span, name in ((command, "TimeoutError"), (publish, "TransportUnavailable")):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == name
    assert command.status.description is None
    assert "db.response.status_code" not in (command.attributes or {})


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("CONFIG SET min-replicas-to-write 1", "NOREPLICAS"),
        ("CONFIG SET maxmemory 1", "OOM"),
        ("REPLICAOF 127.0.0.1 1", "READONLY"),
    ],
)
async def test_an_answer_that_is_an_error(watch: Watch, setting: str, code: str) -> None:
    """The code that Redis answers, without the text after it, is an attribute and the description of the status."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as link:
        async with broadcasting(server.url, watch) as broadcaster:
            link.execute_command(*setting.split())
            with pytest.raises(BroadcastFailed):
                await broadcaster.broadcast_scene_change(DATA)
    command = watch.named("EVALSHA")[-1]
    assert command.status.status_code is StatusCode.ERROR
    assert command.status.description == value(command, "status_code") == code
    assert "secret" not in str(command.attributes)


async def test_a_publish_that_is_given_up(redis_url: str, watch: Watch) -> None:
    """A publish that is cancelled during a shared call gets no link to it, and the others get theirs."""
    async with Proxy(redis_url) as proxy, broadcasting(proxy.url, watch) as broadcaster:
        await broadcaster.broadcast_scene_change(DATA)
        await proxy.set_mode(ProxyMode.DEAF)
        publishes = [asyncio.create_task(broadcaster.broadcast_scene_change(DATA)) for _ in range(3)]
        await asyncio.sleep(0.1)
        publishes[1].cancel()
        await asyncio.gather(publishes[1], return_exceptions=True)
        await proxy.set_mode(ProxyMode.PASS)
        await asyncio.gather(publishes[0], publishes[2])
    command = watch.named("EVALSHA")[-1]
    assert value(command, "publishes") == 3
    linked_to_it = [span for span in watch.named("publish scene_change") if linked(span) == [command.context]]
    assert len(linked_to_it) == 1
    (given_up,) = [span for span in watch.spans if (span.attributes or {}).get("error.type") == "CancelledError"]
    assert linked(given_up) == []


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("redis://user:secret@cache:6380/1", "cache", 6380),
        ("rediss://cache", "cache", 6379),
        ("redis://[::1]:1/", "::1", 1),
        ("redis:///1", "localhost", 6379),
        ("unix:///run/redis?password=secret", "/run/redis", None),
    ],
)
def test_where_redis_is(url: str, address: str, port: int | None) -> None:
    """The address is the host or the path of the socket, never a credential."""
    assert server_attributes(url) == {"server.address": address, **({} if port is None else {"server.port": port})}
