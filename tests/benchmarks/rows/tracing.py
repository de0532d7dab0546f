"""Tracing: the cost of publishing and fan-out without telemetry, with tracing off, sampled and always on."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator

from tests import processes
from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.publish import requests
from tests.benchmarks.rows.saturated import FIGURES, saturate
from tests.benchmarks.subjects import OURS, Server, data_of

__all__ = ["ALWAYS", "CASE", "NONE", "OFF", "ROWS", "SAMPLED", "variants"]

NONE, OFF, SAMPLED, ALWAYS = "no telemetry at all", "tracing off", "1 % sampled", "always on"
CASE = "64 connections"
_CLIENTS = 1000


@contextlib.contextmanager
def variants(bench: Bench) -> Iterator[dict[str, Server]]:
    """Start the service in each variant, and a collector on another core that accepts the spans."""
    with _sink() as endpoint, contextlib.ExitStack() as stack:
        on = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}
        ways = {
            NONE: ("tests.benchmarks.bare_service", {}),
            OFF: (OURS.module, {}),
            SAMPLED: (
                OURS.module,
                {**on, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
            ),
            ALWAYS: (OURS.module, {**on, "OTEL_TRACES_SAMPLER": "parentbased_always_on"}),
        }
        servers = {}
        for name, (module, settings) in ways.items():
            subject = OURS._replace(name=name, module=module)
            (servers[name],) = stack.enter_context(bench.servers(subject, **settings))
        yield servers


@contextlib.contextmanager
def _sink() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with processes.running([sys.executable, "-m", "tests.benchmarks.peers.sink", str(port)]) as process:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1/traces"


def run_publish(bench: Bench) -> None:
    """Measure publishes; the export of spans counts too, because it runs in the same process."""
    with variants(bench) as servers:
        ready = next(iter(servers.values())).one(data_of(350))
        bench.in_turn(
            list(servers.values()), lambda server: requests(server, ready, 64, bench.seconds), "traced-publish", CASE
        )


def run_fanout(bench: Bench) -> None:
    """Measure the saturated fan-out, which delivers batches; more than 16 events at once get one span."""
    with variants(bench) as servers:
        for server in servers.values():
            server.connect(_CLIENTS)
        saturate(bench, list(servers.values()), 350, "traced-fanout", f"{_CLIENTS:,} clients, 350 B")


ROWS = [
    Row(
        "traced-publish",
        Table(
            "Tracing, publish, one event per request",
            (
                Column("cpu", "CPU µs each", 0),
                Column("rate", "requests/s"),
                Column("p50", "p50 ms", 2, 1e-3),
                Column("p99", "p99 ms", 2, 1e-3),
            ),
            base=OFF,
        ),
        run_publish,
    ),
    Row("traced-fanout", Table("Tracing, fan-out, saturated", FIGURES, base=OFF), run_fanout),
]
