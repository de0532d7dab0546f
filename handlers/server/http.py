"""uvicorn's HTTP protocol, extended to send the head and the body of an answer in one write.

Two writes cost the operating system, and the client, about as much as all of uvicorn's own work on a small answer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HttpProtocol", "JoiningTransport"]


class HttpProtocol(HttpToolsProtocol):
    """One HTTP connection; uvicorn writes its answers to a `JoiningTransport`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start on a transport that joins writes."""
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]  # a delegating transport

    def handle_websocket_upgrade(self) -> None:
        """Hand the underlying transport to the WebSocket protocol."""
        assert isinstance(self.transport, JoiningTransport)
        self.transport = self.transport.wrapped
        super().handle_websocket_upgrade()


class JoiningTransport:
    """A transport that holds back every other write and joins it with the next one.

    A write that is held back goes out at the end of the current iteration of the event loop if no other write follows.
    Everything but `write` and `close` is delegated to the `wrapped` transport.
    """

    def __init__(self, wrapped: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.wrapped = wrapped
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """Write together with the data that is held back, or hold the data back if there is none."""
        if self._held:
            held, self._held = self._held, b""
            self.wrapped.write(held + data)
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close after everything that was written."""
        self._flush()
        self.wrapped.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self.wrapped.write(held)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  any attribute of a transport
        return getattr(self.wrapped, name)
