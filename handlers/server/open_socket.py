"""The socket of a transport, as long as the event loop has not closed it."""

import asyncio
from typing import Any

__all__ = ["open_socket"]


def open_socket(transport: asyncio.BaseTransport) -> Any | None:  # noqa: ANN401  every event loop has its own class
    """Return the socket of a transport; None if it is closed.

    uvloop has no socket, or one with the descriptor -1, for a transport that it has closed, and asyncio a closed one.
    """
    opened = transport.get_extra_info("socket")
    return None if opened is None or opened.fileno() < 0 else opened
