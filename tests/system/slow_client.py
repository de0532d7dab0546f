"""A client that reads only when the test lets it."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from websockets.asyncio.client import connect

from tests.history import ClientRecord, Connection, Reader
from tests.system.client import Client
from tests.system.replica import Replica

__all__ = ["OVERFLOW_BYTES", "SlowClient", "slow_client"]

# Twice what the kernel buffers for one connection (about 4 MiB).
OVERFLOW_BYTES: Final = 8 << 20


class SlowClient(Client):
    """A client with a small receive buffer; `stall` stops it reading, `read` resumes."""

    def __init__(self, *args: object, since: int | None = None, epoch: str = "") -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked = (since, epoch)

    def stall(self) -> None:
        """Stop reading."""
        self.socket.transport.pause_reading()

    def read(self) -> None:
        """Resume reading."""
        self.socket.transport.resume_reading()

    def stands_at(self) -> tuple[str, int]:
        """Return the epoch and sequence number from which it would resume."""
        reader = Reader()
        reader.connect(self.asked[0])
        for frame in self.frames:
            reader.take(frame)
        assert reader.sequence is not None
        return reader.epoch, reader.sequence

    def record(self, name: str, patterns: Sequence[str] | None = None) -> ClientRecord:
        """Return its record for the history checker."""
        return ClientRecord(name, patterns, [Connection("", *self.asked, self.frames)])


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
    """Connect and wait for the first frame; the client reads until `stall`."""
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
        max_queue=None,  # only `stall` stops it reading
        close_timeout=5,
    )
    client = SlowClient(ended, since=since, epoch=epoch)
    try:
        await client.until(lambda: client.frames or None)
        yield client
    finally:
        await client.vanish()
