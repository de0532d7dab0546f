"""Growth: throughput by the number of clients of one replica, and by the number of replicas on one Redis."""

import contextlib
import time
from typing import Any

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.saturated import FIGURES, events_for, saturate
from tests.benchmarks.subjects import FASTAPI, OURS, SEND, Server, data_of

__all__ = ["CLIENTS", "REPLICAS", "ROWS"]

CLIENTS = (1, 10, 100, 1000, 10_000)
REPLICAS = (1, 2, 3, 4)
_CLIENTS_EACH = 1000


def run_clients(bench: Bench) -> None:
    """Measure one replica with an increasing number of clients."""
    with bench.servers(OURS, FASTAPI, SEND) as servers:
        for clients in CLIENTS[:-1] if bench.quick else CLIENTS:
            for server in servers:
                server.connect(clients - server.load.clients)
            saturate(bench, servers, 350, "clients", f"{clients:,} clients")


def run_replicas(bench: Bench) -> None:
    """Measure an increasing number of replicas, each with its own clients, on all cores."""
    with contextlib.ExitStack() as stack:
        replicas: list[Server] = []
        for count in REPLICAS:
            channel = replicas[0].channel if replicas else ""
            replicas.append(stack.enter_context(Server(OURS, bench.redis_url, shared=True, channel=channel)))
            replicas[-1].connect(_CLIENTS_EACH)
            events = events_for(replicas[0], OURS.speed / count, bench.seconds / 4)
            for number in range(bench.rounds + 1):
                values = _together(replicas, data_of(350), events)
                events = events_for(replicas[0], values["rate"] / count, bench.seconds)
                if number:
                    bench.results.add("replicas", f"{count} replicas", OURS.name, values)
            bench.say(f"  {count} replicas")


def _together(replicas: list[Server], data: dict[str, Any], events: int) -> dict[str, float]:
    """Publish one round to the first replica, and count deliveries of all."""
    for replica in replicas:
        replica.load.expect(events)
    cpu, start = sum(replica.cpu() for replica in replicas), time.monotonic_ns()
    replicas[0].publish(data, events)
    got = [replica.load.wait(120) for replica in replicas]
    used = sum(replica.cpu() for replica in replicas) - cpu
    frames, seconds = sum(one.frames for one in got), (max(one.last for one in got) - start) / 1e9
    return {
        "rate": frames / seconds,
        "cpu": used / frames * 1e6,
        "busy": used / seconds,
        "client_busy": sum(one.cpu for one in got) / seconds,
    }


ROWS = [
    Row("clients", Table("Growth: clients of one replica, saturated, 350 B", FIGURES, base=FASTAPI.name), run_clients),
    Row(
        "replicas",
        Table(
            f"Growth: replicas on one Redis, {_CLIENTS_EACH:,} clients each, saturated, 350 B",
            (Column("rate", "deliveries/s"), Column("cpu", "CPU µs each", 2), Column("busy", "servers busy, cores", 2)),
        ),
        run_replicas,
    ),
]
