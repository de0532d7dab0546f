"""Sinks: where the kernel writes a client's messages.

A server that can write prebuilt WebSocket frames puts a `FrameSink` into `scope["extensions"]` under `EXTENSION`, as
`handlers.server.websocket` does. `AsgiSink` is the fallback for other servers: a queue, and a task that empties it into
ASGI's `send`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from kernel.clients import CloseReason, Sink
from kernel.log import Joined

__all__ = ["EXTENSION", "AsgiSink", "FrameSink"]

EXTENSION = "event_broadcaster.wire"

Send = Callable[[Any], Awaitable[None]]


class FrameSink(Sink, Protocol):
    """A sink that takes prebuilt WebSocket frames (RFC 6455); it calls `on_blocked` when it becomes blocked."""

    on_blocked: Callable[[], None] | None

    @property
    def deflates(self) -> bool:
        """True if the client negotiated permessage-deflate."""
        ...

    @property
    def closed(self) -> bool:
        """True once nothing more will be sent."""
        ...


class AsgiSink:
    """A sink that takes messages without waiting and sends them by ASGI.

    It becomes blocked when more than `high_water` characters or bytes are unsent, and unblocked when a quarter of that
    is left. If one `send` takes longer than `stall_seconds`, the sink is closed and everything unsent is dropped.
    """

    def __init__(self, send: Send, *, high_water: int, stall_seconds: float) -> None:
        self.on_blocked: Callable[[], None] | None = None
        self._send = send
        self._high_water = high_water
        self._stall_seconds = stall_seconds
        self._waiting: deque[str | bytes | CloseReason] = deque()
        self._unsent = 0
        self._filled = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()
        self._task = asyncio.create_task(self._send_all())

    @property
    def blocked(self) -> bool:
        """True while too much is unsent."""
        return not self._free.is_set()

    @property
    def closed(self) -> bool:
        """True once nothing more will be sent."""
        return self._task.done()

    def write(self, data: Joined) -> None:
        """Queue messages for sending, in order, without waiting."""
        if self._task.done():
            return
        for message in data:
            assert isinstance(message, str | bytes)
            self._waiting.append(message)
            self._unsent += len(message)
        self._filled.set()
        if self._unsent > self._high_water and self._free.is_set():
            self._free.clear()
            if self.on_blocked is not None:
                self.on_blocked()

    async def drained(self) -> None:
        """Wait until the sink is not blocked, or the connection is lost."""
        await self._free.wait()

    def close(self, reason: CloseReason) -> None:
        """Send a close once everything that was written is sent."""
        self._waiting.append(reason)
        self._filled.set()

    def stop(self) -> None:
        """Cancel the sending task; the connection has ended."""
        self._task.cancel()

    async def _send_all(self) -> None:
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                while self._waiting:
                    message = self._waiting.popleft()
                    async with asyncio.timeout(self._stall_seconds):
                        if isinstance(message, CloseReason):
                            await self._send({"type": "websocket.close", "code": message.code, "reason": message.text})
                            return
                        kind = "text" if isinstance(message, str) else "bytes"
                        await self._send({"type": "websocket.send", kind: message})
                    self._unsent -= len(message)
                    if self._unsent <= self._high_water // 4:
                        self._free.set()
        except (OSError, TimeoutError, RuntimeError):
            # The client is gone or accepts no data. The route learns of it by its own `receive`.
            pass
        finally:
            self._waiting.clear()
            self._free.set()
