"""A client of the WebSocket as users write them: it collects everything that comes, and waits for conditions."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

__all__ = ["Client", "Frame", "connected"]

Frame = dict[str, Any]
T = TypeVar("T")

PATIENCE: Final = 20.0


class Client:
    """One connection; `frames` is every message, decoded, in the order of arrival, and `kinds` how each came."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Frame] = []
        self.kinds: list[type[str] | type[bytes]] = []
        self._looked_at = 0
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        origin: str | None = None,
        deflate: bool = False,
    ) -> "Client":
        """Connect; raises what `websockets` raises when the upgrade is refused."""
        socket = await connect(
            url,
            additional_headers=headers,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            origin=None if origin is None else Origin(origin),
            compression="deflate" if deflate else None,
            proxy=None,
            ping_interval=None,
            max_size=None,
            close_timeout=5,
        )
        return cls(socket)

    async def send(self, message: object) -> None:
        """Send text as it is, bytes as a binary message, anything else as JSON."""
        await self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def next(self) -> Frame:
        """The next message that is no heartbeat."""
        return await self._first(lambda frame: not _is_heartbeat(frame))

    async def take(self, **fields: object) -> Frame:
        """The next message with these fields, passing over others."""
        return await self._first(lambda frame: fields.items() <= frame.items())

    def skip(self) -> None:
        """Pass over everything that is here."""
        self._looked_at = len(self.frames)

    async def reached(self, sequence: int) -> None:
        """Wait until this client's own place is at `sequence` or beyond: every matching event up to it is here."""
        await self.until(lambda: self.place >= sequence or None)

    async def receives(self, count: int) -> None:
        """Wait until so many more messages have come."""
        before = len(self.frames)
        await self.until(lambda: len(self.frames) >= before + count or None)

    async def until(self, found: Callable[[], T | None]) -> T:
        """Wait until `found` gives something; it is asked after each message."""
        async with asyncio.timeout(PATIENCE):
            while (result := found()) is None:
                assert not self._reading.done(), f"closed with {self.close}; the last: {self.frames[-3:]}"
                self._news.clear()
                await self._news.wait()
            return result

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait for the server's close: code and reason."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(self._reading)
        return self.close

    async def leave(self) -> None:
        """Close the connection, whatever state it is in."""
        await self.socket.close()
        await self._reading

    async def vanish(self) -> None:
        """Be gone without a word; the end of the connection is all that the server sees."""
        self.socket.transport.abort()
        await self._reading

    @property
    def close(self) -> tuple[int | None, str | None]:
        """Code and reason of the close."""
        return self.socket.close_code, self.socket.close_reason

    def kind_of(self, frame: Frame) -> type[str] | type[bytes]:
        """Whether a message came as text or binary."""
        return next(kind for kind, each in zip(self.kinds, self.frames, strict=False) if each is frame)

    @property
    def events(self) -> list[Frame]:
        """The numbered messages."""
        return [frame for frame in self.frames if "sequence" in frame]

    @property
    def numbers(self) -> list[int]:
        """Their numbers."""
        return [frame["sequence"] for frame in self.events]

    @property
    def messages(self) -> list[Frame]:
        """Everything but heartbeats."""
        return [frame for frame in self.frames if not _is_heartbeat(frame)]

    @property
    def heartbeats(self) -> list[Frame]:
        """The heartbeats alone."""
        return [frame for frame in self.frames if _is_heartbeat(frame)]

    @property
    def place(self) -> int:
        """The highest number seen, heartbeats included."""
        return max((frame.get("sequence") or frame.get("lastSeq") or 0 for frame in self.frames[1:]), default=0)

    async def _first(self, wanted: Callable[[Frame], bool]) -> Frame:
        def found() -> Frame | None:
            while self._looked_at < len(self.frames):
                self._looked_at += 1
                if wanted(self.frames[self._looked_at - 1]):
                    return self.frames[self._looked_at - 1]
            return None

        return await self.until(found)

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                self.kinds.append(type(message))
                self.frames.append(json.loads(message if isinstance(message, str) else _inflated(message)))
                self._news.set()
        except ConnectionClosed:
            pass
        finally:
            self._news.set()


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client for the length of a block."""
    client = await Client.open(url, **options)
    try:
        yield client
    finally:
        await client.leave()


def _is_heartbeat(frame: Frame) -> bool:
    return frame.get("type") == "ping"


def _inflated(message: bytes) -> bytes:
    """What `format=zlib` promises: one byte 0x00, then a zlib stream."""
    assert message[:1] == b"\x00", message[:20]
    return zlib.decompress(message[1:])
