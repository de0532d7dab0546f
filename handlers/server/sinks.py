"""Sinks: where the kernel writes a client's messages.

A server that can write below ASGI says so in `scope["extensions"]` under `EXTENSION`: for a WebSocket with a
`FrameSink`, as `handlers.server.websocket` does, for an HTTP request with a `HttpConnection`, as `handlers.server.http`
does. `AsgiSink` is the fallback for other servers: a queue, and a task that empties it into ASGI's `send`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from litestar.types import Receive, Scope

from kernel.clients import CloseReason, Sink
from kernel.log import Joined

__all__ = [
    "EXTENSION",
    "AsgiSink",
    "FrameSink",
    "HttpConnection",
    "body_message",
    "http_connection",
    "until_disconnected",
    "websocket_message",
]

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


class StreamSink(Sink, Protocol):
    """A sink for server-sent events; it calls `on_blocked` when it becomes blocked.

    It takes chunks of HTTP/1.1's chunked coding, or plain data if `chunked` is False.
    """

    on_blocked: Callable[[], None] | None

    @property
    def chunked(self) -> bool:
        """True if the data must be chunks."""
        ...

    async def ended(self) -> None:
        """Wait until the sink was closed, or the connection is lost."""


class HttpConnection(Protocol):
    """The connection on which a request came; `on_lost`, if set, is called when it is lost."""

    on_lost: Callable[[], None] | None

    def open_stream(self, *, high_water: int, stall_seconds: float) -> StreamSink:
        """Return the sink that writes the body of this answer; to be called before the answer is started."""
        ...


def http_connection(scope: Scope) -> HttpConnection | None:
    """Return the connection of a request, None if the server offers none."""
    connection: HttpConnection | None = (scope.get("extensions") or {}).get(EXTENSION)  # type: ignore[assignment]  # any object
    return connection


async def until_disconnected(receive: Receive, then: Callable[[], None]) -> None:
    """Read a request until its client has left, and call `then`; for servers that offer no `HttpConnection`."""
    while (await receive())["type"] != "http.disconnect":
        pass
    then()


def websocket_message(message: object) -> dict[str, object]:
    """Return the ASGI message that sends a WebSocket message, or the close for a reason."""
    if isinstance(message, CloseReason):
        return {"type": "websocket.close", "code": message.code, "reason": message.text}
    return {"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message}


def body_message(message: object) -> dict[str, object]:
    """Return the ASGI message that sends a part of a body, or its end for a reason to close."""
    if isinstance(message, CloseReason):
        return {"type": "http.response.body", "body": b"", "more_body": False}
    return {"type": "http.response.body", "body": message, "more_body": True}


class AsgiSink:
    """A sink that takes messages without waiting and sends them by ASGI; `make` makes the ASGI messages.

    It becomes blocked when more than `high_water` characters or bytes are unsent, and unblocked when a quarter of that
    is left. If one `send` takes longer than `stall_seconds`, the sink is closed and everything unsent is dropped.
    """

    chunked = False

    def __init__(
        self, send: Send, make: Callable[[object], dict[str, object]], *, high_water: int, stall_seconds: float
    ) -> None:
        self.on_blocked: Callable[[], None] | None = None
        self._send = send
        self._make = make
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
        for message in [data] if isinstance(data, bytes) else data:
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

    async def ended(self) -> None:
        """Wait until the sink was closed, or the connection is lost."""
        await asyncio.wait([self._task])

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
                        await self._send(self._make(message))
                    if isinstance(message, CloseReason):
                        return
                    self._unsent -= len(message)
                    if self._unsent <= self._high_water // 4:
                        self._free.set()
        except (OSError, TimeoutError, RuntimeError):
            # The client is gone or accepts no data. The route learns of it by its own `receive`.
            pass
        finally:
            self._waiting.clear()
            self._free.set()
