"""The probes ask the running service, in each of its states, what the manifests expect it to answer."""

import asyncio
import socket
from contextlib import closing
from typing import Any

import pytest

from handlers.server.embedded import EmbeddedValkey
from tests.k8s.tools import BUILDS, built, one
from tests.system.client import connected
from tests.system.replica import Replica, ReplicaFactory
from tests.waiting import wait_until

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# A Redis that is not there is logged as what it is.
NO_REDIS = "degraded mode|kernel"


def container(build: str) -> dict[str, Any]:
    """The service's container."""
    (only,) = one(built(build), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def passing(replica: Replica) -> set[str]:
    """The probes of the base that this replica passes; the kubelet takes 200 to 399 for a yes."""
    paths = {probe: container("base")[probe]["httpGet"]["path"] for probe in PROBES}
    return {probe for probe, path in paths.items() if 200 <= replica.get(path).status_code < 400}


@pytest.fixture
def nobody() -> str:
    """The URL of a Redis that is not there."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return f"redis://127.0.0.1:{free.getsockname()[1]}"


def test_starting(start: ReplicaFactory, nobody: str) -> None:
    """Section 10, health: without Redis at the start a pod lives without traffic: a wrong URL replaces no good one."""
    replica = start(ready=False, redis_url=nobody)
    assert passing(replica) == {"startupProbe", "livenessProbe"}
    replica.stop(tolerate=NO_REDIS)


def test_starting_with_a_silent_redis(start: ReplicaFactory) -> None:
    """Section 10, health: a Redis that says nothing does not keep a pod from answering within the start's budget."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        replica = start(ready=False, redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}", position_check_seconds=2)
        assert passing(replica) == {"startupProbe", "livenessProbe"}
        replica.stop(tolerate=NO_REDIS)


def test_ready(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Section 10, health: a pod that has reached Redis passes all probes."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    assert passing(replica) == set(PROBES)


def test_degraded(start: ReplicaFactory) -> None:
    """Section 10, health: a pod whose Redis goes away stays ready and alive, and keeps its clients."""
    server = EmbeddedValkey()
    try:
        replica = start(redis_url=server.start(), circuit_failure_threshold=1)
    finally:
        server.stop()
    wait_until(lambda: replica.health()["status"] == "degraded")
    assert passing(replica) == set(PROBES)
    replica.stop(tolerate=NO_REDIS)


async def test_draining(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """Section 10, health: a pod that drains is alive and not ready, for as long as the drain takes."""
    replica = start(redis_url=valkey, redis_event_channel=channel, drain_seconds=3)
    async with connected(replica.websocket()), connected(replica.websocket()) as last:
        replica.signal()
        await last.take(type="system.shutdown")
        assert await asyncio.to_thread(passing, replica) == {"startupProbe", "livenessProbe"}
        assert replica.health()["status"] == "draining"
        await last.closed()
    assert await asyncio.to_thread(replica.ended) == 0


@pytest.mark.parametrize("build", BUILDS)
def test_budgets(build: str) -> None:
    """Section 10, health: each probe asks its own route; a slow start is waited for, a busy loop is no dead one."""
    probes = {probe: container(build)[probe] for probe in PROBES}
    assert {probe: probes[probe]["httpGet"]["path"] for probe in PROBES} == {
        "startupProbe": "/health",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"http"}
    # the first attempt at Redis may take its whole deadline of 5 s before the server listens
    assert probes["startupProbe"]["periodSeconds"] * probes["startupProbe"]["failureThreshold"] >= 30
    assert probes["livenessProbe"]["periodSeconds"] * probes["livenessProbe"]["failureThreshold"] >= 30
    assert all(probe["timeoutSeconds"] > 1 for probe in probes.values())
