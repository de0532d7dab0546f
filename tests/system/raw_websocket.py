"""A WebSocket client at the level of frames and bytes: a test decides what it offers, sends and leaves unread."""

import asyncio
import json
import re
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from tests.system.replica import Replica

__all__ = ["BINARY", "CLOSE", "CONTINUATION", "PING", "PONG", "TEXT", "RawFrame", "RawWebSocket", "raw_websocket"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

PATIENCE: Final = 20.0


class RawFrame(NamedTuple):
    """One frame of RFC 6455, 5.2 as it came."""

    opcode: int
    payload: bytes
    fin: bool
    compressed: bool  # RSV1, RFC 7692, 6

    @property
    def text(self) -> str:
        """The message of an unfragmented text frame; each is compressed by itself (no context takeover)."""
        return self.inflated().decode()

    def inflated(self, window_bits: int = 15) -> bytes:
        """The payload, inflated if it is compressed."""
        if not self.compressed:
            return self.payload
        # RFC 7692, 7.2.2: the empty block at the end was left out
        return zlib.decompressobj(-window_bits).decompress(self.payload + b"\x00\x00\xff\xff")

    @property
    def json(self) -> dict[str, Any]:
        """The same, decoded."""
        message: dict[str, Any] = json.loads(self.text)
        return message

    @property
    def code(self) -> int:
        """The code of a close frame."""
        return int.from_bytes(self.payload[:2])


class RawWebSocket:
    """One upgraded (or refused) connection: `status` and `headers` (names in lower case) of the answer.

    After `ended`, `was_reset` is true if the connection was reset instead of closed.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.was_reset = False
        self._reader = reader
        self._writer = writer

    async def upgrade(self, path: str, headers: dict[str, str]) -> None:
        """Request the upgrade and read the head of the response."""
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        self.status = int(head.split(" ", 2)[1])
        self.headers = {name.lower(): value for name, value in re.findall(r"^([^:\r\n]+): *(.*?)\r$", head, re.M)}

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True, compressed: bool = False) -> None:
        """Send one frame; the mask is zero, which RFC 6455 does not forbid."""
        length = len(payload)
        first = bytes([(0x80 if fin else 0) | (0x40 if compressed else 0) | opcode])
        if length < 126:
            size = bytes([0x80 | length])
        elif length < 65536:
            size = bytes([0x80 | 126]) + length.to_bytes(2)
        else:
            size = bytes([0x80 | 127]) + length.to_bytes(8)
        self.send_bytes(first + size + bytes(4) + payload)

    def send_bytes(self, data: bytes) -> None:
        """Send anything."""
        self._writer.write(data)

    def send_eof(self) -> None:
        """Close the sending side; reading goes on."""
        self._writer.write_eof()

    async def sent(self) -> None:
        """Wait until the server or the buffers in between have taken nearly everything that was sent."""
        await self._writer.drain()

    async def receive(self) -> RawFrame:
        """The next frame."""
        async with asyncio.timeout(PATIENCE):
            first, second = await self._reader.readexactly(2)
            length = second & 0x7F
            if length >= 126:
                length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8))
            payload = await self._reader.readexactly(length)
        assert not second & 0x80, "a server does not mask"
        return RawFrame(first & 0x0F, payload, bool(first & 0x80), bool(first & 0x40))

    async def receive_close(self) -> RawFrame:
        """The close frame, passing over all before it."""
        while (frame := await self.receive()).opcode != CLOSE:
            pass
        return frame

    async def ended(self) -> bytes:
        """Wait until the server has closed or aborted the connection; returns what was still unread."""
        rest = b""
        try:
            async with asyncio.timeout(PATIENCE):
                while piece := await self._reader.read(1 << 16):
                    rest += piece
        except ConnectionResetError:
            self.was_reset = True
        return rest

    def abort(self) -> None:
        """Abort the connection without a close frame."""
        self._writer.transport.abort()


@asynccontextmanager
async def raw_websocket(
    replica: Replica, path: str = "/ws/events", *, receive_buffer: int | None = None, **headers: str
) -> AsyncIterator[RawWebSocket]:
    """Connect with more headers (underscores for hyphens); a small `receive_buffer` fills sooner.

    Data that the test does not read stays unread: the reader buffers only a few KB.
    """
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", replica.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2048)
    raw = RawWebSocket(reader, writer)
    try:
        await raw.upgrade(path, {name.replace("_", "-"): value for name, value in headers.items()})
        yield raw
    finally:
        raw.abort()
