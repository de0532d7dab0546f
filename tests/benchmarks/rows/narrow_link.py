"""A new replica whose link to Redis is slow: the time until it is ready, with large events in the history."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import redis

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.rows.hostile_memory import LARGE, filled
from tests.benchmarks.subjects import OURS, Server

__all__ = ["ROW", "narrow", "start"]

_RATE = 15_000_000


def run(bench: Bench) -> None:
    """Start a replica once a round."""
    events = 100 if bench.quick else 500
    with filled(bench.redis_url, events) as channel, narrow(bench.redis_url, _RATE) as url:
        for _ in range(bench.rounds):
            values = start(url, channel)
            bench.results.add("narrow-link", f"{events} events of 1 MB, {_RATE // 10**6} MB/s", OURS.name, values)


def start(redis_url: str, channel: str) -> dict[str, float]:
    """Return the seconds from the start of a new process until it is ready."""
    begin = time.monotonic()
    with Server(OURS, redis_url, channel=channel, **LARGE) as server:
        server.until_ready()
        return {"ready": time.monotonic() - begin}


@contextlib.contextmanager
def narrow(redis_url: str, rate: int) -> Iterator[str]:
    """Yield the URL of a link to this Redis on which each connection gets at most `rate` bytes a second."""
    with redis.Redis.from_url(redis_url) as link:
        target = link.connection_pool.connection_kwargs
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        opened: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    far = _connect(target)
                    opened.extend((near, far))
                    for source, sink in ((near, far), (far, near)):
                        threading.Thread(target=_pump, args=(source, sink, rate), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}/{target.get('db', 0)}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for each in opened:
                each.close()


def _connect(target: dict[str, object]) -> socket.socket:
    if "path" in target:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(target["path"]))
        return connection
    return socket.create_connection((str(target["host"]), int(str(target["port"]))))


def _pump(source: socket.socket, sink: socket.socket, rate: int) -> None:
    """Pass on what one side sends, until either side closes the connection."""
    due = time.monotonic()
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
            due = max(due, time.monotonic() - 0.01) + len(piece) / rate
            time.sleep(max(0.0, due - time.monotonic()))
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


ROW = Row("narrow-link", Table("A new replica on a slow link to Redis", (Column("ready", "s until ready", 1),)), run)
