"""Flow control of an HTTP connection: when it reads, and how long it waits for a client that takes no data."""

import asyncio
from collections.abc import Callable, Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from handlers.server.stall import StallTimer

__all__ = ["PipelineFlow"]


class PipelineFlow(FlowControl):
    """uvicorn's flow control, with bounds on what one client can make the server hold.

    Reading: uvicorn resumes it whenever the application reads a body. A client that pipelines requests could then fill
    the memory, because each of them lets a whole segment of further ones in. Here nothing more is read while complete
    requests wait to be answered (`waiting`), or while `held` is set.

    Writing: a client that takes no data for `stall_seconds` although there is some to send is cut off. `on_paused` is
    called when writing pauses.
    """

    def __init__(
        self,
        transport: Any,  # noqa: ANN401  a JoiningTransport
        waiting: Sized,
        *,
        loop: asyncio.AbstractEventLoop,
        stall_seconds: float,
    ) -> None:
        super().__init__(transport)
        self.held = False
        self.stall_seconds = stall_seconds
        self.on_paused: Callable[[], None] | None = None
        self._waiting = waiting
        self._loop = loop
        self._stall_timer: StallTimer | None = None

    def resume_reading(self) -> None:
        """Read again, unless that would only let more requests in."""
        if self.read_paused and not self._waiting and not self.held:
            super().resume_reading()

    def pause_writing(self) -> None:
        """Note that the operating system takes no more for the moment."""
        super().pause_writing()
        transport = self._transport
        self._stall_timer = StallTimer(transport, self._loop, seconds=self.stall_seconds, stalled=transport.abort)
        if self.on_paused is not None:
            self.on_paused()

    def resume_writing(self) -> None:
        """Note that the client has taken most of what there was to send, or has left."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.stop()
            self._stall_timer = None
