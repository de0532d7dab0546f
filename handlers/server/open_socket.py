"""The socket of a transport, as long as the event loop has not closed it."""

import asyncio
import socket
import struct
from typing import Any, Final

__all__ = ["NO_LINGER", "discard_unsent", "open_socket"]

NO_LINGER: Final = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which closing resets the connection, and the system drops the unsent data."""


def open_socket(transport: asyncio.BaseTransport) -> Any | None:  # noqa: ANN401  every event loop has its own class
    """Return the socket of a transport; None if it is closed.

    uvloop has no socket, or one with the descriptor -1, for a transport that it has closed, and asyncio a closed one.
    """
    opened = transport.get_extra_info("socket")
    return None if opened is None or opened.fileno() < 0 else opened


def discard_unsent(transport: asyncio.BaseTransport) -> None:
    """Let the operating system drop what it still has to send when the transport is closed (RST instead of FIN)."""
    opened = open_socket(transport)
    if opened is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
