"""Saturated fan-out: events are published as fast as possible, until every client has received all of them."""

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.subjects import CHANNELS, FASTAPI, OURS, RAW, SEND, SOCKETIO, Server, data_of

__all__ = ["FIGURES", "ROW", "events_for", "saturate"]

FIGURES = (
    Column("rate", "deliveries/s"),
    Column("cpu", "CPU µs each", 2),
    Column("busy", "server busy %", 0, 100),
    Column("client_busy", "client busy %", 0, 100),
)


def run(bench: Bench) -> None:
    """Measure both event sizes with an increasing number of clients."""
    with bench.servers(OURS, FASTAPI, CHANNELS, SOCKETIO, RAW, SEND) as servers:
        for clients in (1000,) if bench.quick else (100, 1000, 10_000):
            for server in servers:
                server.connect(clients - server.load.clients)
            for size in (350, 4096):
                saturate(bench, servers, size, "saturated", f"{clients:,} clients, {size} B")


def saturate(bench: Bench, servers: list[Server], size: int, *key: str) -> None:
    """Measure the servers in turn; the rate of each round sets the number of events of the next."""
    data = data_of(size)
    events = {server: events_for(server, server.subject.speed * 350 / size, bench.seconds / 4) for server in servers}

    def measure(server: Server) -> dict[str, float]:
        values = server.saturate(data, events[server])
        events[server] = events_for(server, values["rate"], bench.seconds)
        return values

    bench.in_turn(servers, measure, *key)


def events_for(server: Server, rate: float, seconds: float) -> int:
    """Return the number of events that keep a server busy for `seconds` at `rate` deliveries per second."""
    return max(1, int(rate * seconds / server.load.clients))


ROW = Row("saturated", Table("Fan-out, saturated", FIGURES, base=FASTAPI.name), run)
