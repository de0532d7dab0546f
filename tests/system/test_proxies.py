"""The service behind nginx and HAProxy, and spoken to by curl and by Java."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from handlers.cli.demo import run as demo
from handlers.cli.proxy import Proxy
from handlers.cli.tail import follow
from tests import processes
from tests.system.client import connected
from tests.system.event_stream import event_stream
from tests.system.proxies import haproxy, nginx, program
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

BODY = json.dumps({"id": "x"})
PATH = "/broadcast/alert/deleted"

JAVA = """
import java.net.URI;
import java.net.http.*;

public class Publish {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int number = 0; number < 3; number++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("{\\"id\\": \\"java\\"}"))
                .build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


@pytest.fixture(scope="module")
def proxied(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica behind proxies."""
    return start_for_module(redis_url=valkey, redis_event_channel="proxied")


def curl(url: str, *options: str) -> list[str]:
    """Publish twice on one connection with curl; return the statuses."""
    arguments = ["-sS", "--noproxy", "*", "-H", "Content-Type: application/json", "-d", BODY]
    ended = processes.run([program("curl"), *options, *arguments, "-w", " %{http_code}\n", url + PATH, url + PATH])
    assert ended.returncode == 0, ended.stderr
    return [line.split()[-1] for line in ended.stdout.splitlines()]


async def publish(replica: Replica) -> list[int]:
    """Publish one event, and return its number in a list."""
    return [(await replica.post(PATH, {"id": "x"})).json()["sequence"]]


def test_curl_asks_for_http_2(proxied: Replica) -> None:
    """`curl --http2` asks to upgrade to h2c; its publishes are served in HTTP/1.1."""
    assert curl(proxied.url, "--http2") == ["202", "202"]


def test_curl_asks_for_http_2_through_nginx(proxied: Replica) -> None:
    """So are they through nginx, whose usual snippet for WebSockets passes any upgrade on."""
    with nginx(proxied.port) as url:
        assert curl(url, "--http2") == ["202", "202"]


def test_java(proxied: Replica, tmp_path: Path) -> None:
    """Java's HttpClient asks to upgrade to h2c with every first request, and is served."""
    java = shutil.which("java")
    if java is None:
        pytest.skip("java is not installed")
    source = tmp_path / "Publish.java"
    source.write_text(JAVA)
    ended = processes.run([java, "-Xshare:auto", "-XX:TieredStopAtLevel=1", source, proxied.url + PATH])
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["202"] * 3, ended.stderr


@pytest.mark.parametrize("proxy", [nginx, haproxy])
async def test_websocket(proxied: Replica, proxy: Callable[[int], AbstractContextManager[str]]) -> None:
    """A WebSocket works through both proxies, beside publishes on their kept-alive connections."""
    with proxy(proxied.port) as url:
        async with connected(url.replace("http", "ws") + "/ws/events") as client:
            await client.next()
            async with httpx.AsyncClient(trust_env=False, base_url=url) as http:
                answers = [await http.post(PATH, json={"id": "x"}) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [202] * 3
            await client.reached(answers[-1].json()["sequence"])


PROXIES = [nginx, partial(nginx, upgrades=False), haproxy]


@pytest.mark.parametrize("proxy", PROXIES, ids=["nginx", "nginx with HTTP/1.0", "haproxy"])
async def test_event_stream(proxied: Replica, proxy: Callable[..., AbstractContextManager[str]]) -> None:
    """Through proxies that end idle answers, events come at once, and heartbeats keep the stream alive without them."""
    with proxy(proxied.port, idle="1s") as url:
        async with event_stream(proxied, url=url) as stream, asyncio.timeout(15):
            await stream.named("connected")
            for count in (1, 2):
                [number] = await publish(proxied)
                async with asyncio.timeout(3):
                    assert (await stream.named("message", count)).data["sequence"] == number
                await asyncio.sleep(2.5)
            assert not stream.ended
        await eventually(lambda: proxied.metric("connections") == 0)


@pytest.mark.parametrize("proxy", PROXIES, ids=["nginx", "nginx with HTTP/1.0", "haproxy"])
async def test_poll(proxied: Replica, proxy: Callable[[int], AbstractContextManager[str]]) -> None:
    """A poll waits behind a proxy, is answered at once when an event comes, and ends when its client has left."""
    with proxy(proxied.port) as url:
        async with httpx.AsyncClient(trust_env=False, base_url=url, timeout=15) as http:
            place = (await http.get("/events/poll")).json()
            waiting = asyncio.create_task(http.get("/events/poll", params={"since": place["lastSeq"], "wait": 10}))
            await eventually(lambda: proxied.metric("connections") == 1)
            numbers = await publish(proxied)
            assert [frame["sequence"] for frame in (await waiting).json()["events"]] == numbers
            waiting = asyncio.create_task(http.get("/events/poll", params={"since": numbers[0], "wait": 60}))
            await eventually(lambda: proxied.metric("connections") == 1)
            waiting.cancel()
        await eventually(lambda: proxied.metric("connections") == 0)


async def test_kept_alive_upstreams(proxied: Replica) -> None:
    """The service keeps idle connections longer than a proxy needs them, so that no publish meets a closed one."""
    with nginx(proxied.port) as url:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(trust_env=False, base_url=url, limits=limits, timeout=20) as http:

            async def publish(pause: float) -> int:
                await asyncio.sleep(pause)
                return (await http.post(PATH, json={"id": "x"})).status_code

            statuses = await asyncio.gather(*(publish(0) for _ in range(64)))
            kept = proxied.sockets
            assert kept > 1
            # uvicorn's default closes them after 5 seconds
            statuses += await asyncio.gather(publish(4.95), publish(5), publish(5.05), publish(5.5))
            assert proxied.sockets == kept
            statuses += await asyncio.gather(*(publish(0) for _ in range(64)))
        assert set(statuses) == {202}


async def test_default_health_check(proxied: Replica) -> None:
    """HAProxy's default health check, `OPTIONS /` in HTTP/1.0, finds the service healthy."""
    with haproxy(proxied.port) as url:
        await asyncio.sleep(0.5)
        async with httpx.AsyncClient(trust_env=False, base_url=url) as http:
            assert (await http.get("/health/live")).status_code == 200


@asynccontextmanager
async def forward_proxy(upstream: int) -> AsyncIterator[tuple[Proxy, list[bytes]]]:
    """An HTTP proxy that asks for a password and passes everything on to one port; yields it and the request lines."""
    lines: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines.append(head.split(b"\r\n")[0])
        assert b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in head
        service_reader, service_writer = await asyncio.open_connection("127.0.0.1", upstream)
        writers.extend((writer, service_writer))
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            service_writer.write(head)
        await asyncio.gather(copy(reader, service_writer), copy(service_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield Proxy(f"http://me:p%40ss@127.0.0.1:{port}", "http_proxy"), lines
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize("stream", [False, True])
async def test_tail_and_demo_through_a_proxy(start: ReplicaFactory, valkey: str, channel: str, stream: bool) -> None:
    """`demo` publishes through a forward proxy, and `tail` reads the same events through it."""
    replica = start(redis_url=valkey, redis_event_channel=channel, allowed_origins="*")
    seen: list[str] = []
    async with forward_proxy(replica.port) as (proxy, lines), asyncio.timeout(30):
        tail = asyncio.create_task(follow("ws://events.example", proxy=proxy, emit=seen.append, stream=stream))
        await eventually(lambda: len(seen) == 1)
        sent: list[str] = []
        publish = partial(demo, "http://events.example", rate=0, count=20, seed=1, proxy=proxy, emit=sent.append)
        assert await asyncio.to_thread(publish) == 0
        await eventually(lambda: len(seen) == 21)
        tail.cancel()
    numbers = [(line.split()[0], line.split()[1]) for line in sent]
    assert [(line.split()[1], line.split()[2]) for line in seen[1:]] == numbers
    assert lines[0] == b"CONNECT events.example:80 HTTP/1.1"
    assert lines[1].startswith(b"POST http://events.example/broadcast/")
