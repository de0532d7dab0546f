"""Measures a replica: memory per connection, CPU per connect and per delivery. A script to run by hand, not a test.

    python -m tests.k8s.measure [--clients 2000] [--rounds 3] [--deflate]

Each round starts a replica on an empty Redis server, opens idle WebSocket connections from this process over loopback,
publishes a steady stream, and reads the replica's resident memory and CPU time from /proc (Linux only). The numbers in
k8s/README.md are the medians of such a run.
"""

import argparse
import asyncio
import base64
import os
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from handlers.server.embedded import EmbeddedValkey

ROOT = Path(__file__).parents[2]
EVENT = (
    b'{"id":7,"event_id":7,"batch_id":"b-7","camera_id":"front-door","risk_score":40,"risk_level":"medium",'
    b'"summary":"A person walks up to the door","reasoning":"' + b"x" * 120 + b'"}'
)
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Cost(NamedTuple):
    """The results of one round: bytes and CPU seconds, per replica, connection, connect or delivery."""

    base_bytes: float
    bytes_per_connection: float
    cpu_per_connect: float
    cpu_per_delivery: float
    idle_cores: float


class _Client(asyncio.Protocol):
    """A client that upgrades, and then counts and discards the bytes that it receives."""

    def __init__(self, request: bytes, received: list[int]) -> None:
        self._request = request
        self._received = received
        self.open = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received[0] += len(data)
        if not self.open.done():
            assert data.startswith(b"HTTP/1.1 101"), data
            self.open.set_result(None)


async def _round(clients: int, seconds: float, rate: int, deflate: bool) -> Cost:
    valkey = EmbeddedValkey()
    environ = dict(os.environ, REDIS_URL=valkey.start(), PORT="0", HOST="127.0.0.1", DRAIN_SECONDS="0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "handlers", "serve", cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        port = await _port(process)
        extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
        request = (
            f"GET /ws/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"{extension}Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
            f"Sec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        received = [0]
        await _connect(port, request, received, 10)  # warm-up: imports and caches are not a cost per connection
        await asyncio.sleep(1)
        base, cpu = _resident(process.pid), _cpu(process.pid)
        protocols = await _connect(port, request, received, clients)
        await asyncio.sleep(1)
        per_connection, per_connect = (_resident(process.pid) - base) / clients, (_cpu(process.pid) - cpu) / clients
        cpu = _cpu(process.pid)
        await asyncio.sleep(seconds)
        idle = (_cpu(process.pid) - cpu) / seconds
        cpu = _cpu(process.pid)
        await _publish(port, rate, int(rate * seconds))
        per_delivery = (_cpu(process.pid) - cpu - idle * seconds) / (rate * seconds * clients)
        for protocol in protocols:
            protocol.transport.abort()
        return Cost(base, per_connection, per_connect, per_delivery, idle)
    finally:
        process.terminate()
        await process.wait()
        valkey.stop()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        if b"running on http://" in line:
            asyncio.get_running_loop().create_task(process.stderr.read()).add_done_callback(lambda _: None)
            return int(line.split(b"http://")[1].split()[0].rpartition(b":")[2])
    raise RuntimeError("the replica has not started")


async def _connect(port: int, request: bytes, received: list[int], number: int) -> list[_Client]:
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(number):
        _, protocol = await loop.create_connection(lambda: _Client(request, received), "127.0.0.1", port)
        await protocol.open
        made.append(protocol)
    return made


async def _publish(port: int, rate: int, number: int) -> None:
    """Publish at a steady rate on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    head = "POST /broadcast/event HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(EVENT)}\r\n\r\n".encode() + EVENT
    for count in range(number):
        await asyncio.sleep(max(0.0, begin + count / rate - loop.time()))
        writer.write(request)
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 202"), answer
    writer.close()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def main() -> None:
    """Print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of the idle and of the busy part")
    parser.add_argument("--rate", type=int, default=20, help="events per second in the busy part")
    parser.add_argument("--deflate", action="store_true", help="clients offer permessage-deflate, as browsers do")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        rounds.append(asyncio.run(_round(options.clients, options.seconds, options.rate, options.deflate)))
        _show(rounds[-1])
    print("median:")
    _show(Cost(*(statistics.median(values) for values in zip(*rounds, strict=True))))


def _show(cost: Cost) -> None:
    print(
        f"empty {cost.base_bytes / 2**20:.1f} MiB, a connection {cost.bytes_per_connection / 1024:.1f} KiB, "
        f"a connect {cost.cpu_per_connect * 1e3:.2f} ms of CPU, "
        f"a delivery {cost.cpu_per_delivery * 1e6:.1f} µs of CPU, "
        f"idle {cost.idle_cores:.3f} cores"
    )


if __name__ == "__main__":
    main()
