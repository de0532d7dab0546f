"""Publishing: requests per second compared with simpler routes, and events per second of the batch route."""

import time

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.subjects import OURS, ROUTES, Server, batch_request, data_of, frame_of, request

__all__ = ["EMPTY", "ONLY_PUBLISH", "ROWS", "batches", "requests"]

EMPTY, ONLY_PUBLISH = "empty Litestar route", "Litestar route, only PUBLISH"
_LISTENERS = 10


def run_single(bench: Bench) -> None:
    """Measure requests with one event each."""
    body = frame_of(data_of(350))
    with bench.servers(OURS, ROUTES) as (ours, routes):
        routed = {
            OURS.name: (ours, ours.one(data_of(350))),
            EMPTY: (routes, request("/empty", body)),
            ONLY_PUBLISH: (routes, request("/publish", body)),
        }
        for connections in (1, 64) if bench.quick else (1, 8, 64):
            for number in range(bench.rounds + 1):
                for name, (server, ready) in routed.items():
                    values = requests(server, ready, connections, bench.seconds)
                    if number:
                        bench.results.add("publish", f"{connections} connections", name, values)
            bench.say(f"  {connections} connections")


def requests(server: Server, ready: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Send requests for one round; return requests per second, and CPU and latency in microseconds."""
    with server.extra_load() as load:
        load.open_posters(connections, server.port)
        probe = load.post(ready, 10 * connections)
        count = max(connections, int(probe.requests / probe.seconds * seconds))
        cpu = server.cpu()
        posted = load.post(ready, count)
        used = server.cpu() - cpu
    return {
        "rate": posted.requests / posted.seconds,
        "cpu": used / posted.requests * 1e6,
        "p50": posted.latency.p50,
        "p99": posted.latency.p99,
        "busy": min(1.0, used / posted.seconds),
        "client_busy": posted.cpu / posted.seconds,
    }


def run_batch(bench: Bench) -> None:
    """Measure requests with many events each, with a few connected clients."""
    with bench.servers(OURS) as (ours,):
        ours.connect(_LISTENERS)
        for size in (100, 1000):
            for connections in (8,) if bench.quick else (1, 8, 64):
                for number in range(bench.rounds + 1):
                    values = batches(ours, size, connections, bench.seconds)
                    if number:
                        bench.results.add("batch", f"batches of {size:,}, {connections} connections", OURS.name, values)
            bench.say(f"  batches of {size:,}")


def batches(server: Server, size: int, connections: int, seconds: float) -> dict[str, float]:
    """Send batches for one round; return events per second and per CPU second, until all clients have them."""
    ready = batch_request(data_of(350), size)
    count = max(connections, int(30_000 * seconds / size))
    with server.extra_load() as load:
        load.open_posters(connections, server.port)
        server.load.expect(count * size)
        cpu, start = server.cpu(), time.monotonic_ns()
        posted = load.post(ready, count)
        got = server.load.wait()
        used = server.cpu() - cpu
    taken = (got.last - start) / 1e9
    return {
        "rate": count * size / taken,
        "per_cpu": count * size / used,
        "p99": posted.latency.p99,
        "busy": min(1.0, used / taken),
        "client_busy": (posted.cpu + got.cpu) / taken,
    }


ROWS = [
    Row(
        "publish",
        Table(
            "Publish, one event per request",
            (
                Column("rate", "requests/s"),
                Column("cpu", "CPU µs each", 0),
                Column("p50", "p50 ms", 2, 1e-3),
                Column("p99", "p99 ms", 2, 1e-3),
                Column("busy", "server busy %", 0, 100),
            ),
            base=EMPTY,
        ),
        run_single,
    ),
    Row(
        "batch",
        Table(
            f"Publish, batches, {_LISTENERS} clients",
            (
                Column("rate", "events/s"),
                Column("per_cpu", "events per CPU second"),
                Column("p99", "p99 ms", 1, 1e-3),
                Column("busy", "server busy %", 0, 100),
            ),
        ),
        run_batch,
    ),
]
