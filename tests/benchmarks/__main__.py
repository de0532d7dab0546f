"""The one command: measure, and print tables, aims and what they were measured on.

python -m tests.benchmarks [ROW ...] [--quick] [--rounds N] [--json FILE] [--picture FILE]
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from handlers.server.embedded import EmbeddedValkey
from tests.benchmarks.aims import aims_table
from tests.benchmarks.bench import Bench
from tests.benchmarks.machine import describe, keep_off_server_core
from tests.benchmarks.picture import picture
from tests.benchmarks.results import Results
from tests.benchmarks.rows import ROWS


def main() -> None:
    """Measure what was asked for."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"what to measure: {', '.join(names)}; default all")
    parser.add_argument("--quick", action="store_true", help="fewer clients and rounds: under 3 minutes, not 15")
    parser.add_argument("--rounds", type=int, default=0, help="rounds whose median counts (5; with --quick 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw how the cost grows, as SVG")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through every `finally`: no server is left behind
    keep_off_server_core()
    chosen = [row for row in ROWS if row.name in (options.rows or names)]
    started = time.monotonic()
    with _redis() as url:
        bench = Bench(url, quick=options.quick, rounds=options.rounds)
        with redis.Redis.from_url(url, decode_responses=True) as link:
            info = link.info("server")
        machine = describe(f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}")
        for row in chosen:
            bench.say(row.name)
            row.run(bench)
            print(bench.results.table(row.name, row.table), end="\n\n", flush=True)

    results = bench.results
    print(f"### Aims\n\n{aims_table(results)}\n")
    print(_footer(machine, bench, results))
    bench.say(f"{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({**machine, "rounds": bench.rounds, "rows": results.as_json()}, indent=1))
    if options.picture and (drawn := picture(results)):
        options.picture.write_text(drawn)


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    """The server at `REDIS_URL`, or an embedded Valkey."""
    given = os.environ.get("REDIS_URL")
    if given:
        yield given
        return
    embedded = EmbeddedValkey()
    try:
        yield embedded.start()
    finally:
        embedded.stop()


def _footer(machine: dict[str, object], bench: Bench, results: Results) -> str:
    """What the figures were measured on, and whether the load client stood in the way."""
    shares = [
        (value, f"{row}, {case}, {subject}")
        for row in (row.name for row in ROWS)
        for case, subject, value in results.every(row, "client_busy")
    ]
    busiest = max(shares, default=(0.0, "not looked at"))
    verdict = "it was not the limit" if busiest[0] < 0.9 else "IT MAY HAVE BEEN THE LIMIT THERE"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())  # type: ignore[attr-defined]
    return (
        f"Medians of {bench.rounds} rounds, taken in turn; {machine['date']}. {machine['machine']}; servers alone "
        f"on one core, Redis and the load client on the others. {versions}. "
        f"Load average before: {machine['load']:.1f}. "
        f"The load client was busiest with {busiest[0]:.0%} of a core ({busiest[1]}): {verdict}."
    )


if __name__ == "__main__":
    main()
