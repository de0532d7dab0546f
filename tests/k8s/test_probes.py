"""The probes of the manifests, run against the service in each of its states."""

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
# The service logs these lines if Redis is unreachable.
NO_REDIS = "degraded mode|kernel"


def container(build: str) -> dict[str, Any]:
    """Return the service's container."""
    (only,) = one(built(build), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def passing(replica: Replica, build: str = "base") -> set[str]:
    """Return the probes of a build that this replica passes; for the kubelet, a status from 200 to 399 passes."""
    ask = {"http": replica.get, "internal": replica.internal}
    probes = {probe: container(build)[probe]["httpGet"] for probe in PROBES}
    answers = {probe: ask[http["port"]](http["path"]) for probe, http in probes.items()}
    return {probe for probe, answer in answers.items() if 200 <= answer.status_code < 400}


@pytest.fixture
def nobody() -> str:
    """Return the URL of a Redis that does not exist."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return f"redis://127.0.0.1:{free.getsockname()[1]}"


def test_starting(start: ReplicaFactory, nobody: str) -> None:
    """A pod that never reached Redis is alive but not ready, so a rollout with a wrong URL replaces no pod."""
    replica = start(ready=False, redis_url=nobody)
    assert passing(replica) == {"startupProbe", "livenessProbe"}
    replica.stop(tolerate=NO_REDIS)


def test_starting_with_a_silent_redis(start: ReplicaFactory) -> None:
    """If Redis accepts connections but does not answer, the startup probe still passes in time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        replica = start(ready=False, redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}", position_check_seconds=2)
        assert passing(replica) == {"startupProbe", "livenessProbe"}
        replica.stop(tolerate=NO_REDIS)


def test_ready(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A pod that has reached Redis passes all probes."""
    replica = start(redis_url=valkey, redis_event_channel=channel)
    assert passing(replica) == set(PROBES)


def test_ready_on_a_port_of_its_own(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """With the internal port, a pod passes the probes that the component moves there, and not those of the base."""
    replica = start(redis_url=valkey, redis_event_channel=channel, internal_port=0)
    assert passing(replica, "components/internal-port") == set(PROBES)
    assert passing(replica) == set()


def test_degraded(start: ReplicaFactory) -> None:
    """A pod that loses Redis stays ready and alive, so it keeps its clients."""
    server = EmbeddedValkey()
    try:
        replica = start(redis_url=server.start(), circuit_failure_threshold=1)
    finally:
        server.stop()
    wait_until(lambda: replica.health()["status"] == "degraded")
    assert passing(replica) == set(PROBES)
    replica.stop(tolerate=NO_REDIS)


async def test_draining(start: ReplicaFactory, valkey: str, channel: str) -> None:
    """A pod is alive but not ready for the whole drain."""
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
    """Each probe has its own route; a slow start is tolerated, and a busy event loop does not count as dead."""
    probes = {probe: container(build)[probe] for probe in PROBES}
    assert {probe: probes[probe]["httpGet"]["path"] for probe in PROBES} == {
        "startupProbe": "/health",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    # The first attempt to reach Redis may take its deadline of 5 s before the server listens.
    assert probes["startupProbe"]["periodSeconds"] * probes["startupProbe"]["failureThreshold"] >= 30
    assert probes["livenessProbe"]["periodSeconds"] * probes["livenessProbe"]["failureThreshold"] >= 30
    assert all(probe["timeoutSeconds"] > 1 for probe in probes.values())
