"""A run of the benchmarks: its rounds, its servers and its results."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tests.benchmarks.results import Results, Table
from tests.benchmarks.subjects import Server, Subject

__all__ = ["Bench", "Row"]


class Bench:
    """A run; `quick` uses fewer clients and rounds, `seconds` is the approximate length of a round of one subject."""

    def __init__(self, redis_url: str, *, quick: bool = False, rounds: int = 0, seconds: float = 0.5) -> None:
        self.redis_url = redis_url
        self.quick = quick
        self.rounds = rounds or (2 if quick else 5)
        self.seconds = seconds
        self.results = Results()

    @contextlib.contextmanager
    def servers(self, *subjects: Subject | None, **settings: Any) -> Iterator[list[Server]]:
        """Start all subjects that are installed at once; idle servers cost nothing, so they can be measured in turn."""
        with contextlib.ExitStack() as stack:
            servers = []
            for subject in subjects:
                if subject is None:
                    continue
                if subject.available():
                    servers.append(stack.enter_context(Server(subject, self.redis_url, **settings)))
                else:
                    self.say(f"skipping {subject.name}: not installed")
            yield servers

    def in_turn(self, servers: Sequence[Server], measure: Callable[[Server], dict[str, float]], *key: str) -> None:
        """Measure the servers in turn in each round; the first round does not count. `key` is row and case."""
        row, case = key
        for number in range(self.rounds + 1):
            for server in servers:
                values = measure(server)
                if number:
                    self.results.add(row, case, server.subject.name, values)
        self.say(f"  {case}")

    def say(self, text: str) -> None:
        """Print the progress to stderr."""
        print(text, file=sys.stderr, flush=True)


class Row(NamedTuple):
    """A measurement: `run` adds values to the results under the row's name."""

    name: str
    table: Table
    run: Callable[[Bench], Any]
