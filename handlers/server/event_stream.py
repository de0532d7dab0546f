"""The answer to a request as an endless stream, written below ASGI: one write for each batch of messages.

ASGI sends the head and the end of the answer. What comes between them is written directly to the transport, in chunks
that are made once for all clients that share them. Back-pressure is that of the WebSocket: the sink becomes blocked
when more than `high_water` bytes are unsent, and unblocked when a quarter of that is left. If the client's system
acknowledges no data for `stall_seconds` while the sink is blocked, or has not taken the end of the stream 5 seconds
after it, the connection is aborted.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from handlers.server.flow import PipelineFlow
from handlers.server.primitives import SlimEvent
from kernel.clients import CloseReason
from kernel.log import Joined

__all__ = ["EventStream"]

_CLOSE_SECONDS: Final = 5.0


class EventStream:
    """The body of one answer, and the `StreamSink` of its client.

    `chunked` is False for a client that knows no chunks, as those of HTTP/1.0 do not.
    """

    def __init__(
        self,
        transport: Any,  # noqa: ANN401  a JoiningTransport
        flow: PipelineFlow,
        loop: asyncio.AbstractEventLoop,
        *,
        chunked: bool,
        high_water: int,
        stall_seconds: float,
    ) -> None:
        self.chunked = chunked
        self.on_blocked: Callable[[], None] | None = None
        self._transport = transport
        self._flow = flow
        self._loop = loop
        self._open = SlimEvent()
        self._open.clear()
        self._timer: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(high=high_water, low=high_water // 4)
        flow.stall_seconds = stall_seconds
        flow.on_paused = self._paused

    @property
    def blocked(self) -> bool:
        """True while too much is unsent."""
        return self._flow.write_paused

    @property
    def closed(self) -> bool:
        """True once nothing more will be sent."""
        return self._open.is_set()

    def write(self, data: Joined) -> None:
        """Write prebuilt chunks, in order, without waiting; does nothing once the stream has ended."""
        if not self.closed:
            self._transport.flush()  # the head of the answer
            self._transport.wrapped.write(data)

    async def drained(self) -> None:
        """Wait until the sink is not blocked, or the connection is lost."""
        if self._flow.write_paused:
            await self._flow.drain()

    def close(self, reason: CloseReason) -> None:
        """End the stream after all that was written; if the client does not take it in 5 seconds, abort."""
        if not self.closed:
            self._open.set()
            self._timer = self._loop.call_later(_CLOSE_SECONDS, self._transport.abort)

    async def ended(self) -> None:
        """Wait until the stream was closed, or the connection is lost."""
        await self._open.wait()

    def lost(self) -> None:
        """Note that the connection is lost."""
        self._open.set()
        self.on_blocked = self._flow.on_paused = None
        if self._timer is not None:
            self._timer.cancel()

    def _paused(self) -> None:
        if self.on_blocked is not None:
            self.on_blocked()
