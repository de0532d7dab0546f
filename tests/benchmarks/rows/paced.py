"""Paced: a fixed rate of events to 1,000 clients; each event is timed from when its request was due to each socket."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.subjects import CHANNELS, FASTAPI, OURS, SEND, Server, data_of

__all__ = ["ALIKE", "MIXES", "ROW", "SETS", "SLOW", "STUCK", "paced"]

CLIENTS = 1000

ALIKE = "100/s"
MIXES = "100/s, 10 mixes of patterns"
SETS = "100/s, 1,000 sets of patterns"
STUCK = "100/s, plus one stuck client"
SLOW = "100/s, plus one client that reads 1 kB/s"
HALF = "50/s"

_VARIANTS = (
    (ALIKE, OURS, 100),
    (ALIKE, SEND, 100),
    (MIXES, OURS, 100),
    (SETS, OURS, 100),
    (STUCK, OURS, 100),
    (SLOW, OURS, 100),
    (HALF, OURS, 50),
    (HALF, FASTAPI, 50),
    (HALF, CHANNELS, 50),
)

# Each mix matches the event, so that only the cost of the patterns differs.
_MIXES = (
    "event",
    "event.*",
    "*",
    "ev*,alert.*",
    "event,camera_status",
    "event.created",
    "[a-f]*",
    "e?ent",
    "*.created",
    "event*,detection.*,alert_*",
)


def run(bench: Bench) -> None:
    """Start all variants and measure them in turn."""
    seconds = 2 if bench.quick else 4
    with contextlib.ExitStack() as stack:
        servers = []
        for case, subject, rate in _VARIANTS:
            for server in stack.enter_context(bench.servers(subject, WEBSOCKET_SEND_BUFFER_BYTES="262144")):
                _join(server, case)
                if case == SLOW:
                    stack.enter_context(_Slow(server.port))
                if case in (STUCK, SLOW):
                    _fill(server)
                servers.append((case, rate, server))
        for number in range(bench.rounds + 1):
            for case, rate, server in servers:
                values = paced(server, rate, seconds if number else 0.5)
                if number:
                    bench.results.add("paced", case, server.subject.name, values)
            bench.say(f"  round {number} of {bench.rounds}")


def paced(server: Server, rate: int, seconds: float) -> dict[str, float]:
    """Publish for one round; return latencies and CPU per delivery in microseconds."""
    events = max(1, int(rate * seconds))
    server.load.expect(events, stamped=True)
    cpu = server.cpu()
    server.load.post(server.one(data_of(350)), events, rate=rate)
    got = server.load.wait()
    used = server.cpu() - cpu
    return {
        "p50": got.latency.p50,
        "p99": got.latency.p99,
        "max": got.latency.max,
        "cpu": used / got.frames * 1e6,
        "busy": used / (events / rate),
        "memory": server.memory(),
        "client_busy": got.cpu / (events / rate),
    }


def _join(server: Server, case: str) -> None:
    if case == MIXES:
        for mix in _MIXES:
            server.connect(CLIENTS // len(_MIXES), f"/ws/events?events={mix}")
    elif case == SETS:
        server.connect(CLIENTS, "/ws/events?events=event*,camera-{}.*,alert_created")
    else:
        server.connect(CLIENTS)
    if case == STUCK:
        server.connect(1, stuck=True)


def _fill(server: Server) -> None:
    """Publish more than the socket buffers and the high-water mark hold, so that slow clients fall behind."""
    for _ in range(10):
        server.load.expect(2000)
        server.publish(data_of(350), 2000)
        server.load.wait()


class _Slow:
    """A client that reads one kilobyte per second."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        lines = ("GET /ws/events HTTP/1.1", "Host: 127.0.0.1", "Connection: Upgrade", "Upgrade: websocket")
        key = ("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13")
        self._socket.sendall("\r\n".join((*lines, *key, "", "")).encode())
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gone.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._gone.wait(1) and self._socket.recv(1024):
            pass


ROW = Row(
    "paced",
    Table(
        "Paced, 1,000 clients: from HTTP request to socket",
        (
            Column("p50", "p50 ms", 2, 1e-3),
            Column("p99", "p99 ms", 2, 1e-3),
            Column("max", "max ms", 2, 1e-3),
            Column("cpu", "CPU µs each", 2),
            Column("busy", "server busy %", 0, 100),
            Column("memory", "server's MB", 0, 1e-6),
        ),
    ),
    run,
)
