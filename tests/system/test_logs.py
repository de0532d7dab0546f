"""Logs: every line has the same format and its trace ids, and none contains a secret."""

import asyncio
import fcntl
import json
import os
import re
import signal
import sys
from functools import partial
from typing import Any

import httpx
import pytest
import redis

from tests import processes
from tests.collector import Collector
from tests.proxy import Proxy, ProxyMode
from tests.system.client import connected
from tests.system.replica import ROOT, Replica, ReplicaFactory, clean_environment
from tests.waiting import eventually

ROUTE = "/broadcast/alert/deleted"

# Each of these reaches the service in some input, and none may appear in a log.
SECRETS = {
    "key": "SECRET-key-1",
    "token": "SECRET-token-2",
    "redis": "SECRET-redis-3",
    "collector": "SECRET-collector-4",
    "payload": "SECRET-payload-5",
    "wrong": "SECRET-wrong-6",
    "jwt": "SECRET-jwt-7",
    "baggage": "SECRET-baggage-8",
}


def entries(replica: Replica) -> list[dict[str, Any]]:
    """Return every entry of a JSON log."""
    return [json.loads(line) for line in replica.log.splitlines()]


def entries_about(replica: Replica, text: str) -> list[dict[str, Any]]:
    """Return the entries whose message contains this text."""
    return [entry for entry in entries(replica) if text in entry["message"]]


async def connect_all_kinds_of_clients(replica: Replica) -> None:
    """Connect as every kind of client, valid and invalid, with a secret in each input."""
    key, token, wrong, payload = (SECRETS[name] for name in ("key", "token", "wrong", "payload"))
    good: dict[str, Any] = {
        "X-API-Key": key,
        "baggage": f"user={SECRETS['baggage']}",
        "traceparent": "garbage",
    }
    for path in (ROUTE, f"{ROUTE}?api_key={key}&token={token}", "/nothing?token=" + token):
        for headers in (good, {"Authorization": f"Bearer {wrong}"}, {"X-API-Key": wrong}):
            for body in ({"id": payload}, {"id": 7, "x": payload}, [payload]):
                await replica.request("POST", path, json=body, headers=headers)
            await replica.request("POST", path, content=payload.encode(), headers=headers)
    await replica.request("GET", f"/metrics?api_key={key}")
    ways: list[dict[str, Any]] = [
        {"query": {"api_key": key, "token": token}},
        {"query": {"api_key": wrong, "token": wrong}},
        {"query": {"token": token, "since": payload, "events": payload}, "subprotocols": [f"api-key.{key}"]},
        {"query": {"api_key": key}, "headers": {"Authorization": f"Bearer {token}"}},
    ]
    for way in ways:
        url = replica.websocket(**way.pop("query"))
        async with connected(url, **way) as client:
            if "wrong" in url:
                await client.closed()
                continue
            await client.next()
            for message in (payload, {"type": payload}, {"type": "subscribe", "data": {"events": [payload]}}, b"\xff"):
                await client.send(message)
                await client.next()


async def send_invalid_http(replica: Replica) -> None:
    """Send bytes that are not HTTP."""
    for text in (f"GET /?token={SECRETS['token']}\r\n\r\n", f"{SECRETS['payload']}\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
        writer.write(text.encode())
        await reader.read()
        writer.close()


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
async def test_no_secrets(start: ReplicaFactory, private_redis: str, channel: str, level: str) -> None:
    """JSON logs contain neither payloads nor credentials at any level, in uvicorn's own lines too."""
    with redis.Redis.from_url(private_redis) as link:
        link.config_set("requirepass", SECRETS["redis"])
    with Collector() as collector:
        replica = start(
            redis_url=private_redis.replace("unix://", f"unix://:{SECRETS['redis']}@"),
            redis_event_channel=channel,
            log_format="json",
            log_level=level,
            api_keys=SECRETS["key"],
            websocket_token=SECRETS["token"],
            jwt_secret=SECRETS["jwt"],
            otel_exporter_otlp_endpoint=collector.url,
            otel_exporter_otlp_headers=f"authorization=Bearer {SECRETS['collector']}",
            otel_bsp_schedule_delay=20,
            otel_metric_export_interval=100,
        )
        await connect_all_kinds_of_clients(replica)
        await send_invalid_http(replica)
        await eventually(lambda: {"/v1/traces", "/v1/metrics"} <= set(collector.requests), 15)
        await asyncio.to_thread(replica.stop)
    log = replica.log
    assert [name for name, secret in SECRETS.items() if secret in log] == []
    lines = entries(replica)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (settings,) = entries_about(replica, "settings: ")
    assert "API_KEYS=***" in settings["message"]
    assert f"REDIS_EVENT_CHANNEL={channel}" in settings["message"]
    assert entries_about(replica, "running on")[0]["logger"] == "uvicorn.error"
    assert entries_about(replica, "JWT_SECRET is set but has no effect")
    joined, left = entries_about(replica, " connected"), entries_about(replica, " disconnected with code ")
    assert {line["level"] for line in joined + left} == ({"DEBUG"} if level == "DEBUG" else set())
    assert len(joined) == len(left) == (3 if level == "DEBUG" else 0)
    assert entries_about(replica, "draining 0 connections")[0]["level"] == "INFO"


async def malformed(port: int, count: int) -> None:
    """Send requests that are not HTTP, one after the other, and read each answer."""
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / NONSENSE\r\n\r\n")
        await reader.read()
        writer.close()


async def test_lines_that_strangers_cause(start: ReplicaFactory) -> None:
    """Malformed requests are one line a minute, however many there are."""
    replica = await asyncio.to_thread(start, log_format="json")
    before = len(entries(replica))
    await malformed(replica.port, 200)
    await asyncio.sleep(0.5)
    assert len(entries(replica)) == before + 1
    assert entries(replica)[-1]["level"] == "WARNING"


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_nobody_reads_the_log(valkey: str, channel: str, log_format: str) -> None:
    """A full pipe on stderr stops nothing: requests are answered, and SIGTERM ends the service in time."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    environment = clean_environment(
        redis_url=valkey,
        redis_event_channel=channel,
        log_format=log_format,
        log_level="DEBUG",
        host="127.0.0.1",
        port=0,
        drain_seconds=0.1,
    )
    command = [sys.executable, "-m", "handlers", "serve"]
    try:
        with processes.running(command, cwd=ROOT, env=environment, stderr=writer) as process:
            log = b""
            while not (running := re.search(rb"running on http://127.0.0.1:(\d+)", log)):
                log += await asyncio.to_thread(os.read, reader, 4096)
            port = int(running[1])
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http:
                await eventually(partial(_is_ready, http), 15)
                for _ in range(100):  # each is two DEBUG lines, so the pipe is soon full
                    async with connected(f"ws://127.0.0.1:{port}/ws/events") as client:
                        await client.next()
                await malformed(port, 801)
                for _ in range(10):
                    assert (await http.get("/health")).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 15) == 0
    finally:
        os.close(writer)
        os.close(reader)


async def _is_ready(http: httpx.AsyncClient) -> bool:
    return (await http.get("/health/ready")).status_code == 200


async def test_trace_ids(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Lines logged during a publish have its trace ids, and other lines have none; each has its level."""
    async with Proxy(valkey) as proxy:
        with Collector() as collector:
            replica = await asyncio.to_thread(
                start,
                redis_url=proxy.url,
                redis_event_channel=channel,
                log_format="json",
                otel_exporter_otlp_traces_endpoint=f"{collector.url}/v1/traces",
                otel_bsp_schedule_delay=20,
                broadcast_max_retries=1,
                circuit_failure_threshold=2,
                circuit_recovery_seconds=0.3,
                position_check_seconds=60,
                supervision_interval_seconds=60,
            )
            await proxy.set_mode(ProxyMode.SHUT)
            with redis.Redis.from_url(valkey) as link:
                link.client_kill_filter(_type="normal", skipme=True)
            trace = os.urandom(16).hex()
            headers = {"traceparent": f"00-{trace}-{'1' * 16}-01"}
            answer = await replica.request("POST", ROUTE, json={"id": "x"}, headers=headers)
            assert answer.status_code == 503
            await eventually(lambda: entries_about(replica, "circuit open"))
            (retry,) = entries_about(replica, "alert_deleted failed with TransportUnavailable, retry 1 of 1")
            assert "Redis cannot be reached: ECONN" in retry["message"]
            (opened,) = entries_about(replica, "circuit open, degraded mode")
            assert "Redis cannot be reached: ECONNREFUSED: nothing listens at this address; check " in opened["message"]
            (publish,) = await collector.wait("publish alert_deleted")
            for line, level in ((retry, "WARNING"), (opened, "CRITICAL")):
                assert (line["trace_id"], line["span_id"], line["level"]) == (trace, publish.id, level)
            await proxy.set_mode(ProxyMode.PASS)
            # a resume from a number that is not there yet makes the listener ask Redis
            async with connected(replica.websocket(since=9)):
                await eventually(lambda: entries_about(replica, "Redis is back"), 15)
            (closed,) = entries_about(replica, "Redis is back")
            assert closed["level"] == "WARNING"
            assert "trace_id" not in closed
            replica.signal(signal.SIGTERM)
            assert await asyncio.to_thread(replica.ended) == 0
