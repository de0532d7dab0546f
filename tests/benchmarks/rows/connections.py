"""Connections: memory of an idle one, connects per second, and a storm of clients that resume."""

import contextlib
import time

import redis

from tests.benchmarks.bench import Bench, Row
from tests.benchmarks.results import Column, Table
from tests.benchmarks.subjects import CHANNELS, FASTAPI, OURS, SOCKETIO, Server, data_of

__all__ = ["DEFLATED", "FAR", "NEAR", "NEW", "PLAIN", "ROWS", "idle", "storm"]

PLAIN, DEFLATED = "plain", "permessage-deflate offered"
NEW, NEAR, FAR = "new clients", "50 events behind (memory)", "500 events behind (Redis)"
# More would overflow the backlog of the listening socket, and so measure TCP's retransmission timer.
_AT_ONCE = 4000


def run_idle(bench: Bench) -> None:
    """Open many idle connections to each subject once, each in a new process, because memory is not returned."""
    clients = 2000 if bench.quick else 10_000
    for deflate in (False, True):
        for subject in (OURS, FASTAPI) if bench.quick else (OURS, FASTAPI, CHANNELS, SOCKETIO):
            with bench.servers(subject) as servers:
                for server in servers:
                    case = f"{clients:,}, {DEFLATED if deflate else PLAIN}"
                    bench.results.add("idle", case, subject.name, idle(server, clients, deflate=deflate))
        bench.say(f"  {DEFLATED if deflate else PLAIN}")


def idle(server: Server, clients: int, *, deflate: bool) -> dict[str, float]:
    """Return bytes of memory and CPU microseconds per connection, and connects per second."""
    server.connect(100, deflate=deflate)
    before, cpu = server.memory(), server.cpu()
    connected = server.connect(clients, deflate=deflate)
    used = server.cpu() - cpu
    time.sleep(0.5)
    return {
        "memory": (server.memory() - before) / clients,
        "rate": clients / connected.seconds,
        "cpu": used / clients * 1e6,
    }


def run_storm(bench: Bench) -> None:
    """Connect many clients at once: new ones, ones that missed few events, and ones that need the history in Redis."""
    clients = 1000 if bench.quick else 5000
    with contextlib.ExitStack() as stack:
        servers = {case: stack.enter_context(bench.servers(OURS))[0] for case in (NEW, NEAR, FAR)}
        for number in range(bench.rounds + 1):
            for case, server in servers.items():
                values = storm(server, clients, {NEW: None, NEAR: 50, FAR: 500}[case])
                if number:
                    bench.results.add("storm", f"{clients:,} {case}", OURS.name, values)
            bench.say(f"  round {number} of {bench.rounds}")


def storm(server: Server, clients: int, behind: int | None) -> dict[str, float]:
    """Return the times from the start of a connection to its first message, or to the verdict of its resume."""
    server.publish(data_of(350), 700)  # events that nothing has read back from the history yet
    with redis.Redis.from_url(server.redis_url, decode_responses=True) as link:
        position: dict[str, str] = link.hgetall(f"{{{server.channel}}}:position")
        path, until = "/ws/events", "connected"
        if behind is not None:
            path = f"/ws/events?since={int(position['sequence']) - behind}&epoch={position['epoch']}"
            until = "resync_ack"
        reads, cpu = _reads(link), server.cpu()
        with server.extra_load() as load:
            connected = load.connect(clients, server.port, path, until=until, at_once=_AT_ONCE)
            used = server.cpu() - cpu
        return {
            "p50": connected.until.p50,
            "p99": connected.until.p99,
            "cpu": used / clients * 1e6,
            "reads": _reads(link) - reads,
        }


def _reads(link: "redis.Redis") -> float:
    """Return how many XRANGE commands Redis has run so far, including those for the oldest entry."""
    return float(link.info("commandstats").get("cmdstat_xrange", {"calls": 0})["calls"])


ROWS = [
    Row(
        "idle",
        Table(
            "Idle connections",
            (
                Column("memory", "kB each", 1, 1e-3),
                Column("rate", "connects/s"),
                Column("cpu", "CPU µs each"),
            ),
        ),
        run_idle,
    ),
    Row(
        "storm",
        Table(
            "A storm of clients that connect, or reconnect and resume",
            (
                Column("p50", "p50 ms", 0, 1e-3),
                Column("p99", "p99 ms", 0, 1e-3),
                Column("cpu", "CPU µs each"),
                Column("reads", "reads of Redis"),
            ),
        ),
        run_storm,
    ),
]
