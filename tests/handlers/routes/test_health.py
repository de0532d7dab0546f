"""The probes and the health report."""

from typing import Any

import pytest

from kernel import CircuitState, CircuitStatus

OPEN = CircuitStatus(
    state=CircuitState.OPEN,
    failure_count=5,
    total_failures=7,
    total_successes=3,
    last_failure_time=1773528000.25,
    last_state_change=1773528000.25,
    opened_at=1773528000.25,
)


async def test_live_answers_always(client: Any, broadcaster: Any) -> None:
    """/health/live answers 200 whatever else is wrong."""
    broadcaster.ready, broadcaster.draining, broadcaster.circuit = False, True, OPEN

    answer = await client.get("/health/live")

    assert (answer.status_code, answer.json()) == (200, {"status": "live"})


async def test_ready_when_serving(client: Any) -> None:
    """/health/ready answers 200 while the replica serves."""
    answer = await client.get("/health/ready")

    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_ready_while_degraded(client: Any, broadcaster: Any) -> None:
    """A degraded replica is ready, because clients may connect."""
    broadcaster.circuit = OPEN

    assert (await client.get("/health/ready")).status_code == 200


async def test_not_ready_before_redis(client: Any, broadcaster: Any) -> None:
    """/health/ready answers 503 until Redis was reached once, and gives the reason."""
    broadcaster.ready = False

    answer = await client.get("/health/ready")

    assert answer.status_code == 503
    assert answer.json() == {"status": "not_ready", "reason": "Redis was never reached"}


async def test_not_ready_while_draining(client: Any, broadcaster: Any) -> None:
    """/health/ready answers 503 while draining, and gives the reason."""
    broadcaster.draining = True

    answer = await client.get("/health/ready")

    assert (answer.status_code, answer.json()) == (503, {"status": "not_ready", "reason": "draining"})


async def test_health_of_a_healthy_replica(client: Any, broadcaster: Any) -> None:
    """/health has exactly these fields."""
    broadcaster.connections, broadcaster.sequence = 3, 42
    broadcaster.metrics.record_success(retries=2)

    answer = await client.get("/health")

    assert answer.status_code == 200
    assert answer.json() == {
        "status": "healthy",
        "circuit_state": "closed",
        "listener_healthy": True,
        "is_degraded": False,
        "connections": 3,
        "epoch": broadcaster.epoch,
        "sequence": 42,
        "redis": "reachable",
        "circuit": {
            "state": "closed",
            "failure_count": 0,
            "success_count": 0,
            "total_failures": 0,
            "total_successes": 0,
            "last_failure_time": None,
            "last_state_change": None,
            "opened_at": None,
        },
        "retry": {
            "total_attempts": 3,
            "successful_broadcasts": 1,
            "failed_broadcasts": 0,
            "retries_exhausted": 0,
            "retry_counts": {"2": 1},
            "success_rate": 1.0,
        },
    }


async def test_health_of_a_degraded_replica(client: Any, broadcaster: Any) -> None:
    """/health answers 200 while degraded; times are ISO 8601 in UTC."""
    broadcaster.circuit, broadcaster.listener_healthy = OPEN, False

    answer = await client.get("/health")

    report = answer.json()
    assert answer.status_code == 200
    assert (report["status"], report["circuit_state"], report["redis"]) == ("degraded", "open", "unreachable")
    assert (report["is_degraded"], report["listener_healthy"]) == (True, False)
    assert report["circuit"]["opened_at"] == "2026-03-14T22:40:00.250+00:00"
    assert report["circuit"]["failure_count"] == 5


@pytest.mark.parametrize("circuit", [CircuitStatus(), OPEN])
async def test_draining_comes_first(client: Any, broadcaster: Any, circuit: CircuitStatus) -> None:
    """A replica that drains reports draining, even if it is degraded."""
    broadcaster.draining, broadcaster.circuit = True, circuit

    answer = await client.get("/health")

    assert (answer.status_code, answer.json()["status"]) == (200, "draining")


async def test_redis_is_unknown_at_first(client: Any, broadcaster: Any) -> None:
    """Before the first attempt to reach Redis its state is unknown."""
    broadcaster.ready = False

    assert (await client.get("/health")).json()["redis"] == "unknown"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_is_never_kept(client: Any, path: str) -> None:
    """Health answers are not cached, and HEAD is answered like GET."""
    for answer in (await client.get(path), await client.head(path)):
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
