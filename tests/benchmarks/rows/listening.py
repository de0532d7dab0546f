"""Ways to listen beside the WebSocket: streams of server-sent events, and polls."""

import contextlib
import socket
import time
import urllib.request
from collections.abc import Iterator

import msgspec

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.publish import requests
from tests.benchmarks.rows.saturated import FIGURES, saturate
from tests.benchmarks.rows.single import one_at_a_time
from tests.benchmarks.subjects import OURS, STREAMS, Server, data_of

__all__ = ["POLLS", "ROWS", "held_polls", "poll_request"]

POLLS = "this service, /events/poll"
_WAIT = 60


def run_streams(bench: Bench) -> None:
    """Measure streams beside WebSockets: saturated, and one event at a time."""
    with bench.servers(OURS, STREAMS) as servers:
        for server in servers:
            server.connect(1000)
        saturate(bench, servers, 350, "streams", "1,000 clients, 350 B, saturated")
        data = data_of(350)

        def measure(server: Server) -> dict[str, float]:
            return one_at_a_time(server, data, int(40 * bench.seconds))

        bench.in_turn(servers, measure, "streams", "1,000 clients, 350 B, one at a time")


def run_waiting(bench: Bench) -> None:
    """Hold many idle clients of each kind once, each in a new process, because memory is not returned."""
    clients = 1000 if bench.quick else 5000
    for subject in (OURS, STREAMS):
        with bench.servers(subject) as (server,):
            server.connect(100)
            before = server.memory()
            server.connect(clients)
            bench.results.add("waiting", f"{clients:,}", subject.name, _at_rest(server, before, clients))
    with bench.servers(OURS) as (server,), held_polls(server, 100):
        before = server.memory()
        with held_polls(server, clients):
            bench.results.add("waiting", f"{clients:,}", POLLS, _at_rest(server, before, clients))


def _at_rest(server: Server, before: int, clients: int) -> dict[str, float]:
    """Return bytes of memory for each client, and the share of a CPU that all of them use while nothing happens."""
    time.sleep(0.5)
    cpu, begin = server.cpu(), time.monotonic()
    time.sleep(3)
    share = (server.cpu() - cpu) / (time.monotonic() - begin)
    return {"memory": (server.memory() - before) / clients, "busy": share}


@contextlib.contextmanager
def held_polls(server: Server, count: int) -> Iterator[None]:
    """Hold polls that wait for the length of a block."""
    request = poll_request(server, wait=_WAIT)
    with contextlib.ExitStack() as stack:
        already = _connections(server)
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(request)
        deadline = time.monotonic() + 30
        while _connections(server) < already + count:
            if time.monotonic() > deadline:
                raise RuntimeError("not every poll waits")
            time.sleep(0.05)
        yield


def poll_request(server: Server, *, wait: float, behind: int = 0) -> bytes:
    """Return a poll that asks from `behind` events before the newest one."""
    place = msgspec.json.decode(_get(server, "/events/poll"))
    query = f"since={place['lastSeq'] - behind}&epoch={place['epoch']}&wait={wait}"
    return f"GET /events/poll?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _connections(server: Server) -> int:
    return int(msgspec.json.decode(_get(server, "/health"))["connections"])


def _get(server: Server, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
        body: bytes = answer.read()
    return body


def run_polls(bench: Bench) -> None:
    """Measure polls that are answered at once, without events and with some from memory."""
    with bench.servers(OURS) as (server,):
        server.publish(data_of(350), 100)
        for connections in (1, 64):
            for events in (0, 1, 50):
                ready = poll_request(server, wait=0, behind=events)
                for number in range(bench.rounds + 1):
                    values = requests(server, ready, connections, bench.seconds / 2)
                    if number:
                        bench.results.add("polls", f"{connections} connections, {events} events", POLLS, values)
            bench.say(f"  {connections} connections")


ROWS = [
    Row(
        "streams",
        Table(
            "Server-sent events beside WebSockets",
            (*FIGURES, Column("last", "last client, ms", 2, 1e-3)),
            base=OURS.name,
        ),
        run_streams,
    ),
    Row(
        "waiting",
        Table(
            "Idle streams and waiting polls beside idle WebSockets",
            (Column("memory", "kB each", 1, 1e-3), Column("busy", "server busy %", 2, 100)),
            base=OURS.name,
        ),
        run_waiting,
    ),
    Row(
        "polls",
        Table(
            "Polls that are answered at once",
            (
                Column("rate", "polls/s"),
                Column("cpu", "CPU µs each"),
                Column("p50", "p50 ms", 2, 1e-3),
                Column("busy", "server busy %", 0, 100),
            ),
        ),
        run_polls,
    ),
]
