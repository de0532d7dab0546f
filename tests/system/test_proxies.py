"""The service behind nginx and HAProxy, and spoken to by curl and by Java."""

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests import processes
from tests.system.client import connected
from tests.system.proxies import haproxy, nginx, program
from tests.system.replica import Replica, ReplicaFactory

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
