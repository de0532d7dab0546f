"""A WebSocket client as users write them: it collects every message, and waits for conditions."""

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
    """One connection; `frames` has every message, decoded, in order of arrival; `kinds` has the type of each."""

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
        """Return the next message that is not a heartbeat."""
        return await self._first(lambda frame: not _is_heartbeat(frame))

    async def take(self, **fields: object) -> Frame:
        """Return the next message with these fields; others are skipped."""
        return await self._first(lambda frame: fields.items() <= frame.items())

    def skip(self) -> None:
        """Skip everything that has arrived."""
        self._looked_at = len(self.frames)

    async def reached(self, sequence: int) -> None:
        """Wait until the position is at `sequence` or later: every matching event up to it has arrived."""
        await self.until(lambda: self.place >= sequence or None)

    async def receives(self, count: int) -> None:
        """Wait until `count` more messages have arrived."""
        before = len(self.frames)
        await self.until(lambda: len(self.frames) >= before + count or None)

    async def until(self, found: Callable[[], T | None]) -> T:
        """Wait until `found` returns something other than None, and return that; it is called after each message."""
        async with asyncio.timeout(PATIENCE):
            while (result := found()) is None:
                assert not self._reading.done(), f"closed with {self.close}; the last: {self.frames[-3:]}"
                self._news.clear()
                await self._news.wait()
            return result

    async def heartbeat(self) -> None:
        """Wait until a heartbeat has been received, now or before."""
        await self.until(lambda: self.heartbeats or None)

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait until the server closes the connection; returns code and reason."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(self._reading)
        return self.close

    async def leave(self) -> None:
        """Close the connection, in whatever state it is."""
        await self.socket.close()
        await self._reading

    async def vanish(self) -> None:
        """Abort the connection without a closing handshake."""
        self.socket.transport.abort()
        await self._reading

    @property
    def close(self) -> tuple[int | None, str | None]:
        """Code and reason of the close."""
        return self.socket.close_code, self.socket.close_reason

    def kind_of(self, frame: Frame) -> type[str] | type[bytes]:
        """Return whether a message arrived as text (`str`) or binary (`bytes`)."""
        return next(kind for kind, each in zip(self.kinds, self.frames, strict=False) if each is frame)

    @property
    def events(self) -> list[Frame]:
        """The numbered messages."""
        return [frame for frame in self.frames if "sequence" in frame]

    @property
    def numbers(self) -> list[int]:
        """Their sequence numbers."""
        return [frame["sequence"] for frame in self.events]

    @property
    def messages(self) -> list[Frame]:
        """Everything but heartbeats."""
        return [frame for frame in self.frames if not _is_heartbeat(frame)]

    @property
    def heartbeats(self) -> list[Frame]:
        """Only the heartbeats."""
        return [frame for frame in self.frames if _is_heartbeat(frame)]

    @property
    def place(self) -> int:
        """The highest sequence number seen, heartbeats included."""
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
    """Connect a client for the length of a block."""
    client = await Client.open(url, **options)
    try:
        yield client
    finally:
        await client.leave()


def _is_heartbeat(frame: Frame) -> bool:
    return frame.get("type") == "ping"


def _inflated(message: bytes) -> bytes:
    """Decode a message of `format=zlib`: one byte 0x00, then a zlib stream."""
    assert message[:1] == b"\x00", message[:20]
    return zlib.decompress(message[1:])
