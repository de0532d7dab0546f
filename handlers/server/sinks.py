"""What a client's messages are written to: the server's own socket where it offers that, plain ASGI otherwise.

A server that can write ready frames puts a `ReadySink` into `scope["extensions"]` under `EXTENSION`
(`handlers.server.websocket` does). `AsgiSink` is the fallback on ASGI's `send`, with one task to empty it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from kernel.clients import CloseReason, Sink
from kernel.log import Joined

__all__ = ["EXTENSION", "AsgiSink", "ReadySink"]

EXTENSION = "event_broadcaster.wire"

Send = Callable[[Any], Awaitable[None]]


class ReadySink(Sink, Protocol):
    """A socket that takes RFC 6455 frames; `on_blocked` is called when more is unsent than it wants to hold."""

    on_blocked: Callable[[], None] | None

    @property
    def deflates(self) -> bool:
        """Whether permessage-deflate was agreed."""
        ...


class AsgiSink:
    """Takes messages at once and sends them as fast as the server does; blocked from `high_water` bytes unsent."""

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
        self._task = asyncio.create_task(self._empty())

    @property
    def blocked(self) -> bool:
        """Whether more is unsent than the mark allows."""
        return not self._free.is_set()

    def write(self, data: Joined) -> None:
        """Take messages for sending, at once and in order."""
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
        """Return when no longer blocked; at once if the socket is gone."""
        await self._free.wait()

    def close(self, reason: CloseReason) -> None:
        """Close behind everything that was written."""
        self._waiting.append(reason)
        self._filled.set()

    def stop(self) -> None:
        """End the task; the connection is over."""
        self._task.cancel()

    async def _empty(self) -> None:
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
            # the server's word that the peer is gone, or takes nothing; the route hears of it by its own receive
            pass
        finally:
            self._waiting.clear()
            self._free.set()
