"""One event at a time: the next is published when every client has the last, so no writes can be combined."""

import statistics
from typing import Any

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.subjects import CHANNELS, FASTAPI, OURS, RAW, SEND, SOCKETIO, Server, data_of

__all__ = ["ROW", "one_at_a_time"]


def run(bench: Bench) -> None:
    """Measure with one number of clients, and with a larger one."""
    with bench.servers(OURS, RAW, SEND, FASTAPI, CHANNELS, SOCKETIO) as servers:
        data = data_of(350)
        for clients in (1000,) if bench.quick else (1000, 10_000):
            for server in servers:
                server.connect(clients - server.load.clients)

            def measure(server: Server, clients: int = clients) -> dict[str, float]:
                return one_at_a_time(server, data, max(3, int(20_000 * bench.seconds * 2 / clients)))

            bench.in_turn(servers, measure, "single", f"{clients:,} clients, 350 B")


def one_at_a_time(server: Server, data: dict[str, Any], events: int) -> dict[str, float]:
    """Publish events one by one; return CPU microseconds per delivery and event, and times to first and last client."""
    request = server.one(data)
    first, last = [], []
    frames = size = 0
    cpu = server.cpu()
    for _ in range(events):
        server.load.expect(1)
        posted = server.load.post(request)
        got = server.load.wait()
        first.append((got.first - posted.begun) / 1e3)
        last.append((got.last - posted.begun) / 1e3)
        frames += got.frames
        size += got.bytes
    used = (server.cpu() - cpu) * 1e6
    return {
        "cpu": used / frames,
        "cpu_event": used / events,
        "bytes": size / frames,
        "first": statistics.median(first),
        "last": statistics.median(last),
    }


ROW = Row(
    "single",
    Table(
        "One event at a time",
        (
            Column("cpu", "CPU µs each", 2),
            Column("first", "first client, ms", 2, 1e-3),
            Column("last", "last client, ms", 2, 1e-3),
        ),
        base=SEND.name,
    ),
    run,
)
