"""Connections of redis-py that discard what they have not sent yet when they are closed.

Otherwise closing would wait until everything is sent, beyond the deadline of the call. A command that a broken network
has delayed would also reach Redis later, when the id of its publish may be forgotten.
"""

import asyncio
import socket
import struct
from typing import Any

__all__ = ["abort_on_disconnect"]

# Linger for 0 seconds: closing also discards what the operating system has not sent yet.
_DISCARD = struct.pack("ii", 1, 0)


def abort_on_disconnect(pool: Any) -> None:  # noqa: ANN401  redis-py's pools are generic
    """Let every connection that the pool makes from now on be aborted when it is closed."""
    pool.connection_class = type("Connection", (_Aborting, pool.connection_class), {})


class _Aborting:
    """The part of a connection that closes it."""

    async def disconnect(self, nowait: bool = False, **details: Any) -> None:  # noqa: ANN401  those of redis-py
        """Close the connection at once."""
        writer: asyncio.StreamWriter | None = self._writer  # type: ignore[attr-defined]  # the other base has it
        if writer is not None:
            # uvloop has no socket any more, asyncio a closed one, once Redis has closed the connection.
            connected: Any = writer.get_extra_info("socket")
            if connected is not None and connected.family != socket.AF_UNIX and connected.fileno() >= 0:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
            writer.transport.abort()
        await super().disconnect(nowait=True, **details)  # type: ignore[misc]  # the other base has it
