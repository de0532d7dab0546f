"""Run the benchmarks and print tables, aims, and a description of the machine.

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
    """Run the rows that the command line selects."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to measure: {', '.join(names)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer clients and rounds: 5 minutes instead of 20")
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds from which medians are taken; default 5, with --quick 2"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values of all rounds as JSON")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the throughput by clients and by replicas as SVG"
    )
    options = parser.parse_args()
    if unknown := set(options.rows) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # runs every `finally`, so that all servers are stopped
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
    """Yield `REDIS_URL` if it is set, or else the URL of an embedded Valkey."""
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
    """Describe the machine, and tell whether the load client may have been the bottleneck."""
    shares = [
        (value, f"{row}, {case}, {subject}")
        for row in (row.name for row in ROWS)
        for case, subject, value in results.every(row, "client_busy")
    ]
    busiest = max(shares, default=(0.0, "not measured"))
    verdict = "it was not the bottleneck" if busiest[0] < 0.9 else "IT MAY HAVE BEEN THE BOTTLENECK"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())  # type: ignore[attr-defined]
    return (
        f"Medians of {bench.rounds} rounds, measured in turn; {machine['date']}. {machine['machine']}; each server "
        f"alone on one core, Redis and the load client on the others. {versions}. "
        f"Load average at the start: {machine['load']:.1f}. "
        f"The load client used at most {busiest[0]:.0%} of a core ({busiest[1]}): {verdict}."
    )


if __name__ == "__main__":
    main()
