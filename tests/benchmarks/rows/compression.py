"""Compression: the cost of permessage-deflate per event, by the number of clients that share it."""

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.single import one_at_a_time
from tests.benchmarks.subjects import FASTAPI, OURS, Server, data_of

__all__ = ["CLIENTS", "DEFLATED", "PLAIN", "ROW"]

CLIENTS = (1, 100, 1000)
_EVENTS = {1: 200, 100: 50, 1000: 10}
PLAIN, DEFLATED = "plain", "deflate"


def run(bench: Bench) -> None:
    """Publish the same events to clients with permessage-deflate and to clients without."""
    data = data_of(4096)
    with bench.servers(OURS, FASTAPI) as plain, bench.servers(OURS, FASTAPI) as deflated:
        for clients in CLIENTS:
            kinds = ((PLAIN, plain), (DEFLATED, deflated))
            for kind, servers in kinds:
                for server in servers:
                    server.connect(clients - server.load.clients, deflate=kind == DEFLATED)

            def measure(server: Server, clients: int = clients) -> dict[str, float]:
                return one_at_a_time(server, data, _EVENTS[clients])

            for number in range(bench.rounds + 1):
                for kind, servers in kinds:
                    for server in servers:
                        values = measure(server)
                        if number:
                            bench.results.add(
                                "compression", f"{clients:,} clients", f"{server.subject.name}, {kind}", values
                            )
            bench.say(f"  {clients:,} clients")


ROW = Row(
    "compression",
    Table(
        "Compression, 4096 B events one at a time",
        (
            Column("cpu_event", "CPU µs per event"),
            Column("cpu", "per delivery", 2),
            Column("bytes", "bytes per client"),
        ),
    ),
    run,
)
