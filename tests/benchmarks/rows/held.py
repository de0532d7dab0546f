"""The event loop: how long a fan-out blocks it, measured by a probe inside the service."""

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

__all__ = ["PROBED", "ROW", "held"]

PROBED = OURS._replace(module="tests.benchmarks.held_service")


def run(bench: Bench) -> None:
    """Measure few and many clients, with events one at a time and saturated, small and large.

    The saturating events are published through a second replica, because a batch of hundreds of events blocks the event
    loop of the replica that decodes it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-broadcaster-") as directory,
        bench.servers(PROBED, HELD_FILE=f"{directory}/held") as (server,),
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
                    held(server, file)
                    one_at_a_time(server, data, 10)
                    bench.results.add(
                        "held",
                        f"{clients:,} clients, {size} B, one at a time",
                        OURS.name,
                        {"held": held(server, file)},
                    )
                for _ in range(bench.rounds):
                    held(server, file)
                    server.load.expect(events)
                    publisher.publish(data, events)
                    server.load.wait(120)
                    bench.results.add(
                        "held", f"{clients:,} clients, {size} B, saturated", OURS.name, {"held": held(server, file)}
                    )
            bench.say(f"  {clients:,} clients")


def held(server: Server, file: Path) -> float:
    """Return the longest time, in milliseconds, for which the event loop was blocked since the last call."""
    file.unlink(missing_ok=True)
    os.kill(server.pid, signal.SIGUSR1)
    while not (file.exists() and file.stat().st_size):
        time.sleep(0.01)
    return float(file.read_text())


ROW = Row("held", Table("Event loop blocked", (Column("held", "longest, ms", 1),)), run)
