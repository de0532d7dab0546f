"""A transport that sends the head and the body of an answer in one write.

Two writes cost the operating system, and the client, about as much as all of uvicorn's own work on a small answer.
"""

import asyncio
from typing import Any

from handlers.server.open_socket import discard_unsent

__all__ = ["JoiningTransport"]


class JoiningTransport:
    """A transport that holds back every other write and joins it with the next one.

    A write that is held back goes out at the end of the current iteration of the event loop if no other write follows.
    After `close`, a client that does not take what is left to send is cut off after `patience` seconds. Everything else
    is delegated to the `wrapped` transport.
    """

    def __init__(self, wrapped: asyncio.Transport, loop: asyncio.AbstractEventLoop, *, patience: float) -> None:
        self.wrapped = wrapped
        self.is_closing = wrapped.is_closing  # asked for with each answer, for which `__getattr__` takes too long
        self._loop = loop
        self._patience = patience
        self._held = b""

    def write(self, data: bytes) -> None:
        """Write together with the data that is held back, or hold the data back if there is none."""
        if self._held:
            held, self._held = self._held, b""
            self.wrapped.write(held + data)
        else:
            self._held = data
            self._loop.call_soon(self.flush)

    def write_eof(self) -> None:
        """Send everything that was written, and then the end of the stream; reading goes on."""
        self.flush()
        self.wrapped.write_eof()

    def close(self) -> None:
        """Close after everything that was written."""
        self.flush()
        self.wrapped.close()
        if self.wrapped.get_write_buffer_size():
            self._loop.call_later(self._patience, self.abort)

    def abort(self) -> None:
        """Close at once, and drop what is left to send, also what the operating system holds of it."""
        if self.wrapped.get_write_buffer_size():
            discard_unsent(self.wrapped)
        self.wrapped.abort()

    def flush(self) -> None:
        """Write what is held back."""
        if self._held:
            held, self._held = self._held, b""
            self.wrapped.write(held)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  any attribute of a transport
        return getattr(self.wrapped, name)
