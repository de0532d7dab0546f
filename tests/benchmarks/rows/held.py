"""The loop: for how long a fan-out keeps it from turning, by a probe inside the service."""

import os
import signal
import tempfile
import time
from pathlib import Path

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.saturated import events_for
from tests.benchmarks.rows.single import one_at_a_time
from tests.benchmarks.subjects import OURS, Server, data_of

__all__ = ["ROW"]

_PROBED = OURS._replace(module="tests.benchmarks.held_service")


def run(bench: Bench) -> None:
    """Few and many clients; events one at a time and saturated, small and large.

    What saturates is published through a second replica: a batch of hundreds holds the loop of the one that takes it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-broadcaster-") as directory,
        bench.servers(_PROBED, HELD_FILE=f"{directory}/held") as (server,),
        Server(OURS, bench.redis_url, channel=server.channel) as publisher,
    ):
        file = Path(directory, "held")
        for clients in (1000,) if bench.quick else (1000, 10_000):
            server.connect(clients - server.load.clients)
            for size in (350, 4096):
                data = data_of(size)
                events = events_for(server, server.subject.speed * 350 / size, bench.seconds)
                one_at_a_time(server, data, 2)
                for _ in range(bench.rounds):
                    _held(server, file)
                    one_at_a_time(server, data, 10)
                    bench.results.add(
                        "held",
                        f"{clients:,} clients, {size} B, one at a time",
                        OURS.name,
                        {"held": _held(server, file)},
                    )
                for _ in range(bench.rounds):
                    _held(server, file)
                    server.load.expect(events)
                    publisher.publish(data, events)
                    server.load.wait(120)
                    bench.results.add(
                        "held", f"{clients:,} clients, {size} B, saturated", OURS.name, {"held": _held(server, file)}
                    )
            bench.say(f"  {clients:,} clients")


def _held(server: Server, file: Path) -> float:
    """Milliseconds since the last call."""
    file.unlink(missing_ok=True)
    os.kill(server.pid, signal.SIGUSR1)
    while not (file.exists() and file.stat().st_size):
        time.sleep(0.01)
    return float(file.read_text())


ROW = Row("held", Table("The loop did not turn for", (Column("held", "longest, ms", 1),)), run)
