"""One run of the benchmarks: its length, its servers, its results."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tests.benchmarks.results import Results, Table
from tests.benchmarks.subjects import Server, Subject

__all__ = ["Bench", "Row"]


class Bench:
    """`quick` takes fewer clients and rounds; `seconds` is how long one round of one subject takes, about."""

    def __init__(self, redis_url: str, *, quick: bool = False, rounds: int = 0, seconds: float = 0.5) -> None:
        self.redis_url = redis_url
        self.quick = quick
        self.rounds = rounds or (2 if quick else 5)
        self.seconds = seconds
        self.results = Results()

    @contextlib.contextmanager
    def servers(self, *subjects: Subject | None, **settings: Any) -> Iterator[list[Server]]:
        """Start those that can run here, all at once: idle ones cost nothing, and so they can take turns."""
        with contextlib.ExitStack() as stack:
            servers = []
            for subject in subjects:
                if subject is None:
                    continue
                if subject.available():
                    servers.append(stack.enter_context(Server(subject, self.redis_url, **settings)))
                else:
                    self.say(f"left out, not installed: {subject.name}")
            yield servers

    def in_turn(self, servers: Sequence[Server], measure: Callable[[Server], dict[str, float]], *key: str) -> None:
        """Measure each in turn, several times over; the first time does not count. `key` is row and case."""
        row, case = key
        for number in range(self.rounds + 1):
            for server in servers:
                values = measure(server)
                if number:
                    self.results.add(row, case, server.subject.name, values)
        self.say(f"  {case}")

    def say(self, text: str) -> None:
        """Tell whoever waits how far it is."""
        print(text, file=sys.stderr, flush=True)


class Row(NamedTuple):
    """Something to be measured: `run` puts values into the results under the row's name."""

    name: str
    table: Table
    run: Callable[[Bench], Any]
