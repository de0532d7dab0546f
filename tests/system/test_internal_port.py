"""INTERNAL_PORT: metrics and health on a port of their own, in the same server."""

import asyncio

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.system.client import connected
from tests.system.raw_http import raw_http
from tests.system.replica import PATIENCE, Replica, ReplicaFactory
from tests.system.test_run import run

PATHS = ("/health", "/health/live", "/health/ready", "/metrics")


@pytest.fixture(scope="module")
def replica(start_for_module: ReplicaFactory, valkey: str) -> Replica:
    """A replica with an internal port."""
    return start_for_module(
        redis_url=valkey, redis_event_channel="internal-port", internal_port=0, http_request_seconds=0.5
    )


async def test_metrics_and_health_are_there_alone(replica: Replica) -> None:
    """The four routes answer on the internal port, and the public port answers 404 as for any unknown path."""
    unknown = replica.get("/unknown")
    for path in PATHS:
        assert (path, replica.internal(path).status_code) == (path, 200)
        answer = replica.get(path)
        assert (answer.status_code, answer.content) == (404, unknown.content)
    assert replica.internal("/health").json()["status"] == "healthy"
    assert "event_broadcaster_connections" in replica.internal("/metrics").text


async def test_everything_else_is_public_alone(replica: Replica) -> None:
    """Publishing, listening and the schema are on the public port, and the internal port has none of them."""
    body = {"id": "x"}
    url = f"http://127.0.0.1:{replica.internal_port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as internal:
        assert (await internal.post("/broadcast/alert/deleted", json=body)).status_code == 404
        assert (await internal.get("/schema")).status_code == 404
    with pytest.raises(InvalidStatus) as refused:
        async with connected(f"ws://127.0.0.1:{replica.internal_port}/ws/events"):
            pass
    assert refused.value.response.status_code == 404
    assert replica.get("/schema").status_code == 200
    async with connected(replica.websocket()) as client:
        await client.take(type="connected")
        receipt = (await replica.post("/broadcast/alert/deleted", body)).json()
        await client.take(sequence=receipt["sequence"])
        assert replica.health()["connections"] == 1


async def test_the_limits_are_the_same(replica: Replica) -> None:
    """The internal port has the same limits on requests, and the same check of the host."""
    head = b"GET /health HTTP/1.1\r\nHost: %s\r\n%s\r\n"
    for request, status in (
        (head % (b"localhost", b""), 200),
        (head % (b"rebound.example", b""), 421),
        (head % (b"localhost", b"X: " + b"x" * 70_000 + b"\r\n"), 431),
        (b"GET /health HTTP/1.1\r\nHost: ", 408),
    ):
        async with raw_http(replica, replica.internal_port) as raw:
            await raw.send(request)
            answer = await raw.answer()
            assert answer.status == status
            assert answer.is_problem or status == 200


async def test_health_answers_during_the_drain(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """While the clients are sent away, the internal port still answers; then both ports are closed."""
    replica = await asyncio.to_thread(
        start, redis_url=valkey, redis_event_channel=channel, internal_port=0, drain_seconds=2
    )
    async with connected(replica.websocket()), connected(replica.websocket()) as last:
        replica.signal()
        await last.take(type="system.shutdown")
        assert replica.health()["status"] == "draining"
        assert replica.internal("/health/ready").status_code == 503
        assert replica.internal("/health/live").status_code == 200
        assert replica.metric("draining") == 1
        assert replica.get("/health/ready").status_code == 404
        await last.closed()
    assert await asyncio.to_thread(replica.ended) == 0
    for port in (replica.port, replica.internal_port):
        with pytest.raises(OSError, match=str(port)):
            await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), PATIENCE)


def test_ports_that_cannot_be_used(replica: Replica) -> None:
    """The port of the public routes stops the start with one line and status 2, and one in use with status 1."""
    same = run("serve", "--port", "8123", internal_port=8123)
    assert (same.returncode, same.stdout) == (2, "")
    assert same.stderr.startswith("event-broadcaster: INTERNAL_PORT=8123: must not be PORT; ")
    assert same.stderr.count("\n") == 1
    used = run("serve", "--port", "0", internal_port=replica.port)
    assert used.returncode == 1
    [line] = used.stderr.splitlines()
    assert str(replica.port) in line
