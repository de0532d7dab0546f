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

__all__ = ["ROW", "Probed"]


class Probed(Server):
    """This service with a probe; `pid` is that of the service."""

    def __init__(self, redis_url: str, *, channel: str = "", **settings: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-broadcaster-")
        self._file = Path(self._folder.name, "held")
        subject = OURS._replace(module="tests.benchmarks.held_service")
        super().__init__(subject, redis_url, channel=channel, HELD_FILE=str(self._file), **settings)

    def held(self) -> float:
        """Return the longest time, in milliseconds, for which the event loop was blocked since the last call."""
        self._file.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        while not (self._file.exists() and self._file.stat().st_size):
            time.sleep(0.01)
        return float(self._file.read_text())

    def close(self) -> None:
        """Stop the load client and the server."""
        super().close()
        self._folder.cleanup()


def run(bench: Bench) -> None:
    """Measure few and many clients, with events one at a time and saturated, small and large.

    The saturating events are published through a second replica, because a batch of hundreds of events blocks the event
    loop of the replica that decodes it.
    """
    with Probed(bench.redis_url) as server, Server(OURS, bench.redis_url, channel=server.channel) as publisher:
        for clients in (1000,) if bench.quick else (1000, 10_000):
            server.connect(clients - server.load.clients)
            for size in (350, 4096):
                data = data_of(size)
                events = events_for(server, server.subject.speed * 350 / size, bench.seconds)
                one_at_a_time(server, data, 2)
                for _ in range(bench.rounds):
                    server.held()
                    one_at_a_time(server, data, 10)
                    bench.results.add(
                        "held",
                        f"{clients:,} clients, {size} B, one at a time",
                        OURS.name,
                        {"held": server.held()},
                    )
                for _ in range(bench.rounds):
                    server.held()
                    server.load.expect(events)
                    publisher.publish(data, events)
                    server.load.wait(120)
                    bench.results.add(
                        "held", f"{clients:,} clients, {size} B, saturated", OURS.name, {"held": server.held()}
                    )
            bench.say(f"  {clients:,} clients")


ROW = Row("held", Table("Event loop blocked", (Column("held", "longest, ms", 1),)), run)
