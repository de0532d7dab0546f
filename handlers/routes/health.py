"""The liveness and readiness probes, and the health report.

None of them needs an API key or asks Redis, and none may be cached.
"""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from litestar import HttpMethod, Response, route
from litestar.openapi import ResponseSpec

from handlers.routes.dependencies import Broadcaster
from kernel import CircuitState, CircuitStatus, EventBroadcaster

__all__ = ["CircuitReport", "Health", "Readiness", "health_routes"]

_NO_STORE: Final = {"cache-control": "no-store"}
_NOW: Final = "The state at this moment"
_METHODS: Final = (HttpMethod.GET, HttpMethod.HEAD)


class Readiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of the probes; `reason` says why a replica is not ready."""

    status: Literal["live", "ready", "not_ready"]
    reason: str = ""


class CircuitReport(msgspec.Struct, frozen=True):
    """The circuit breaker of the link to Redis; times are ISO 8601 in UTC, or null if there was no such event yet."""

    state: CircuitState
    failure_count: int
    success_count: int
    total_failures: int
    total_successes: int
    last_failure_time: str | None
    last_state_change: str | None
    opened_at: str | None


class Retries(msgspec.Struct, frozen=True):
    """The outcomes of publishes; `retry_counts` maps a number of retries to how many publishes needed them."""

    total_attempts: int
    successful_broadcasts: int
    failed_broadcasts: int
    retries_exhausted: int
    retry_counts: dict[int, int]
    success_rate: float


class Health(msgspec.Struct, frozen=True):
    """The health of this replica.

    `epoch` and `sequence` are the position up to which it has delivered; `redis` is "reachable", "unreachable" (the
    circuit is not closed) or "unknown" (not tried yet).
    """

    status: Literal["healthy", "degraded", "draining"]
    circuit_state: CircuitState
    listener_healthy: bool
    is_degraded: bool
    connections: int
    epoch: str
    sequence: int
    redis: Literal["reachable", "unreachable", "unknown"]
    circuit: CircuitReport
    retry: Retries


@route(
    "/health/live",
    http_method=_METHODS,
    summary="Liveness probe",
    response_description=_NOW,
    description="Always 200, as long as the process can answer at all.",
    tags=["operation"],
    sync_to_thread=False,
)
def health_live() -> Response[Readiness]:
    """Answer 200 while the event loop runs."""
    return Response(Readiness("live"), headers=_NO_STORE)


@route(
    "/health/ready",
    http_method=_METHODS,
    summary="Readiness probe",
    response_description=_NOW,
    responses={503: ResponseSpec(Readiness, description="Not ready; `reason` says why", generate_examples=False)},
    description="A degraded replica is ready: clients may connect, and get missed events once Redis is back.",
    tags=["operation"],
    sync_to_thread=False,
)
def health_ready(broadcaster: Broadcaster) -> Response[Readiness]:
    """Answer 503 until Redis was reached once, and while draining."""
    if broadcaster.draining:
        return Response(Readiness("not_ready", "draining"), status_code=503, headers=_NO_STORE)
    if not broadcaster.ready:
        return Response(Readiness("not_ready", "Redis was never reached"), status_code=503, headers=_NO_STORE)
    return Response(Readiness("ready"), headers=_NO_STORE)


@route(
    "/health",
    http_method=_METHODS,
    summary="Health report",
    response_description=_NOW,
    description="Always 200; the status is in the body.",
    tags=["operation"],
    sync_to_thread=False,
)
def health(broadcaster: Broadcaster) -> Response[Health]:
    """Report what the replica knows, without asking Redis."""
    return Response(_report(broadcaster), headers=_NO_STORE)


def _report(broadcaster: EventBroadcaster) -> Health:
    circuit = broadcaster.get_circuit_state()
    degraded = broadcaster.is_degraded()
    if circuit.state is not CircuitState.CLOSED:
        redis: Literal["reachable", "unreachable", "unknown"] = "unreachable"
    else:
        redis = "reachable" if broadcaster.ready else "unknown"
    return Health(
        status="draining" if broadcaster.draining else "degraded" if degraded else "healthy",
        circuit_state=circuit.state,
        listener_healthy=broadcaster.is_listener_healthy(),
        is_degraded=degraded,
        connections=broadcaster.connections,
        epoch=broadcaster.epoch,
        sequence=broadcaster.sequence,
        redis=redis,
        circuit=_circuit(circuit),
        retry=msgspec.convert(broadcaster.get_broadcast_metrics(), Retries, from_attributes=True),
    )


def _circuit(status: CircuitStatus) -> CircuitReport:
    return CircuitReport(
        state=status.state,
        failure_count=status.failure_count,
        success_count=status.success_count,
        total_failures=status.total_failures,
        total_successes=status.total_successes,
        last_failure_time=_iso(status.last_failure_time),
        last_state_change=_iso(status.last_state_change),
        opened_at=_iso(status.opened_at),
    )


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


health_routes: Final = (health_live, health_ready, health)
