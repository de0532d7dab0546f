"""An HTTP client that sends any bytes, in any number of segments, and reads the answers one by one."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from tests.system.replica import PATIENCE, Replica

__all__ = ["HANDSHAKE", "RawHttp", "publish", "raw_http"]

HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
"""The header fields of an upgrade, without Host."""


class RawAnswer(NamedTuple):
    """One answer; the names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def is_problem(self) -> bool:
        """True if it is a problem document of its own status."""
        return self.headers.get("content-type") == "application/problem+json" and self.json["status"] == self.status


class RawHttp:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *segments: bytes, pause: float = 0.05) -> None:
        """Send each segment by itself."""
        for number, segment in enumerate(segments):
            if number:
                await asyncio.sleep(pause)
            self.writer.write(segment)
            with suppress(ConnectionError):
                await self.writer.drain()

    async def answer(self) -> RawAnswer:
        """Read the next answer."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            headers = {name.lower(): value for name, value in re.findall(r"^([^:\r\n]+): *(.*?)\r$", head, re.M)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return RawAnswer(int(head.split(" ", 2)[1]), headers, body)

    async def ended(self) -> bytes:
        """Wait until the server has closed its side; return what was still unread."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()


@asynccontextmanager
async def raw_http(replica: Replica, port: int = 0) -> AsyncIterator[RawHttp]:
    """Open a connection, to another `port` if it is given, and abort it at the end of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port or replica.port, limit=1 << 20)
    try:
        yield RawHttp(reader, writer)
    finally:
        writer.transport.abort()


def publish(name: str, *headers: str, host: str = "Host: localhost") -> tuple[bytes, bytes]:
    """Return the head and the body of a publish."""
    body = json.dumps({"id": name}).encode()
    lines = ["POST /broadcast/alert/deleted HTTP/1.1", *([host] if host else []), "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *headers, "", ""]).encode(), body
