"""Health endpoints of a healthy and of a degraded replica."""

import asyncio
import re

import pytest

from tests.proxy import Proxy, ProxyMode
from tests.system.client import connected
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import eventually

CIRCUIT = ["state", "failure_count", "success_count", "total_failures", "total_successes"]
TIMES = ["last_failure_time", "last_state_change", "opened_at"]
RETRY = ["total_attempts", "successful_broadcasts", "failed_broadcasts", "retries_exhausted", "retry_counts"]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/health"])
async def test_probes(replica: Replica, path: str) -> None:
    """The probes of a serving replica answer 200 to GET and HEAD, and forbid caching."""
    for method in ("GET", "HEAD"):
        answer = await replica.request(method, path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/json")
        assert "no-store" in answer.headers["cache-control"]


async def test_report(replica: Replica) -> None:
    """The health report has all its fields, with true values."""
    await eventually(lambda: replica.health()["connections"] == 0, 15)
    async with connected(replica.websocket()) as client:
        await client.next()
        receipt = (await replica.post("/broadcast/alert/deleted", {"id": "x"})).json()
        await client.next()
        health = replica.health()
        assert health["status"] == "healthy"
        assert (health["circuit_state"], health["listener_healthy"], health["is_degraded"]) == ("closed", True, False)
        assert (health["connections"], health["redis"]) == (1, "reachable")
        assert (health["epoch"], health["sequence"]) == (receipt["epoch"], receipt["sequence"])
    assert sorted(health["circuit"]) == sorted(CIRCUIT + TIMES)
    assert sorted(health["retry"]) == sorted([*RETRY, "success_rate"])
    assert health["circuit"]["state"] == "closed"
    assert all(type(health["circuit"][name]) is int for name in CIRCUIT[1:])
    assert health["retry"]["successful_broadcasts"] >= 1
    assert health["retry"]["success_rate"] == 1.0


async def test_degraded_and_back(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A replica without Redis is alive, ready only once Redis was reached, and notifies clients of both changes."""
    async with Proxy(valkey) as proxy:
        await proxy.set_mode(ProxyMode.SHUT)
        settings = {"redis_event_channel": channel, "circuit_recovery_seconds": 0.3, "ready": False}
        replica = await asyncio.to_thread(start, redis_url=proxy.url, **settings)
        assert (await replica.request("GET", "/health/live")).status_code == 200
        assert (await replica.request("GET", "/health/ready")).status_code == 503
        health = replica.health()
        assert (health["status"], health["is_degraded"], health["listener_healthy"]) == ("degraded", True, False)
        assert health["circuit_state"] in ("open", "half_open")
        assert (health["redis"], health["epoch"], health["sequence"]) == ("unreachable", "", 0)
        assert re.match(r"\d{4}-\d\d-\d\dT", health["circuit"]["opened_at"])
        assert (await replica.post("/broadcast/alert/deleted", {"id": "x"})).status_code == 503
        async with connected(replica.websocket()) as client:
            await client.next()
            notice = await client.next()
            assert notice.keys() == {"type", "data", "timestamp"}
            data = notice["data"]
            assert (data["service"], data["status"]) == ("event_broadcaster", "degraded")
            assert data["circuit_state"] == "open"
            await proxy.set_mode(ProxyMode.PASS)
            back = await client.take(type="service_status")
            assert (back["data"]["status"], back["data"]["circuit_state"]) == ("healthy", "closed")
            await client.take(type="epoch_changed")
        assert (await replica.request("GET", "/health/ready")).status_code == 200
        await eventually(lambda: replica.health()["listener_healthy"], 15)
        assert replica.health()["status"] == "healthy"
        assert (await replica.post("/broadcast/alert/deleted", {"id": "x"})).status_code == 202

        await proxy.set_mode(ProxyMode.REFUSE)
        await eventually(lambda: replica.health()["is_degraded"], 15)
        # a degraded replica stays ready: clients may connect, and get what they missed when Redis is back
        assert (await replica.request("GET", "/health/ready")).status_code == 200
        await eventually(lambda: len(re.findall("CRITICAL", replica.log)) == 2)
        await asyncio.to_thread(replica.stop, tolerate="CRITICAL kernel")
