"""Clients that read when the test lets them, and what fills their sockets."""

import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
from websockets.asyncio.client import connect

from tests.system.client import Client
from tests.system.history import Connection, History, Reader, Witnessed
from tests.system.producers import marked
from tests.system.replica import Replica

__all__ = ["FLOOD", "Flood", "SlowClient", "memory_of", "slow_client", "sockets_of"]

# More than the kernel's own buffers hold for one connection (some 4 MiB), by far.
FLOOD: Final = 8 << 20


class SlowClient(Client):
    """A client with a small receive buffer, that reads only between `read` and `stall`."""

    def __init__(self, *args: object, since: int | None = None, epoch: str = "") -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked = (since, epoch)

    def stall(self) -> None:
        """Read nothing from now on."""
        self.socket.transport.pause_reading()

    def read(self) -> None:
        """Read on."""
        self.socket.transport.resume_reading()

    def stands_at(self) -> tuple[str, int]:
        """Epoch and number from which it would resume."""
        reader = Reader()
        reader.connect(self.asked[0])
        for frame in self.frames:
            reader.take(frame)
        assert reader.sequence is not None
        return reader.epoch, reader.sequence

    def seen(self, name: str, patterns: Sequence[str] | None = None) -> Witnessed:
        """What the checker wants to know."""
        return Witnessed(name, patterns, [Connection("", *self.asked, self.frames)])


@asynccontextmanager
async def slow_client(
    replica: Replica,
    *,
    since: int | None = None,
    epoch: str = "",
    deflate: bool = False,
    receive_buffer: int = 8192,
    **query: object,
) -> AsyncIterator[SlowClient]:
    """Connect, and wait for the first frame; it reads until it is told to stall."""
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_buffer)
    connection.setblocking(True)
    connection.connect(("127.0.0.1", replica.port))
    if since is not None:
        query |= {"since": since, "epoch": epoch}
    ended = await connect(
        replica.websocket(**query),
        sock=connection,
        compression="deflate" if deflate else None,
        proxy=None,
        ping_interval=None,
        max_size=None,
        max_queue=None,  # whether it reads is the test's decision alone
        close_timeout=5,
    )
    client = SlowClient(ended, since=since, epoch=epoch)
    try:
        await client.until(lambda: client.frames or None)
        yield client
    finally:
        await client.vanish()


class Flood:
    """Publishes large messages in batches, and logs what it was answered; `name` is the beginning of the marks."""

    def __init__(self, history: History, replica: Replica, name: str = "flood") -> None:
        self._history = history
        self._replica = replica
        self._name = name
        self._count = 0
        self.epoch = ""
        self.last = 0

    async def pour(self, size: int, message: int = 16_000, kinds: Sequence[str] = ("event", "alert_deleted")) -> int:
        """Publish about `size` bytes in messages of about `message`, their kinds in turn; returns the last number."""
        async with self._replica.http() as http:
            while size > 0:
                batch: list[tuple[str, dict[str, object]]] = []
                while size > 0 and len(batch) * message < 600_000:
                    self._count += 1
                    kind = kinds[self._count % len(kinds)]
                    data = marked(kind, f"{self._name}-{self._count}")
                    text = random.Random(self._count).randbytes(message // 2).hex()
                    data["reason" if kind == "alert_deleted" else "reasoning"] = text
                    batch.append((kind, data))
                    size -= message
                await self._publish(http, batch)
        return self.last

    async def _publish(self, http: httpx.AsyncClient, batch: list[tuple[str, dict[str, object]]]) -> None:
        answer = await http.post("/broadcast/batch", json=[{"type": kind, "data": data} for kind, data in batch])
        assert answer.status_code == 202, answer.text
        for (kind, data), receipt in zip(batch, answer.json()["receipts"], strict=True):
            self._history.receipt(kind, data, receipt)
        self.epoch, self.last = receipt["epoch"], receipt["sequence"]


def memory_of(replica: Replica) -> int:
    """Bytes that the replica's process occupies."""
    return int(Path(f"/proc/{replica.pid}/statm").read_text().split()[1]) * 4096


def sockets_of(replica: Replica) -> int:
    """How many connections to its port the system still holds something for."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    states = [fields[3] for fields in lines if fields[1].endswith(f":{replica.port:04X}")]
    return sum(state not in ("06", "0A") for state in states)  # neither TIME_WAIT nor LISTEN
