"""The HTTP protocol of uvicorn, extended to send an answer's head and body in one write."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HttpProtocol"]


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but for the head of an answer: it waits for the body, and both are one write to the socket.

    Two writes cost the kernel, and whoever reads, about as much as all of uvicorn's own work on a small answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin on a transport that joins."""
        super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]

    def handle_websocket_upgrade(self) -> None:
        """Hand the bare transport over."""
        assert isinstance(self.transport, _Joining)
        self.transport = self.transport.bare
        super().handle_websocket_upgrade()


class _Joining:
    """A transport that keeps every other write back until the next one, but never beyond this turn of the loop."""

    def __init__(self, bare: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.bare = bare
        self._loop = loop
        self._kept = b""

    def write(self, data: bytes) -> None:
        """Write, now or a little later."""
        if self._kept:
            kept, self._kept = self._kept, b""
            self.bare.write(kept + data)
        else:
            self._kept = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close behind all that was written."""
        self._flush()
        self.bare.close()

    def _flush(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, b""
            self.bare.write(kept)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  everything else is the bare transport's
        return getattr(self.bare, name)
