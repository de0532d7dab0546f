"""Connections of redis-py that are aborted when they are closed, and that pack their commands in C.

A connection that is aborted discards what it has not sent yet. Otherwise closing would wait until everything is sent,
beyond the deadline of the call. A command that a broken network has delayed would also reach Redis later, when the id
of its publish may be forgotten.

redis-py packs the commands of asyncio's connections in Python, argument by argument, and only those of its blocking
connections by hiredis.
"""

import asyncio
import socket
import struct
from typing import Any

import hiredis

__all__ = ["adapt_connections"]

# Linger for 0 seconds: closing also discards what the operating system has not sent yet.
_DISCARD = struct.pack("ii", 1, 0)


def adapt_connections(pool: Any) -> None:  # noqa: ANN401  redis-py's pools are generic
    """Let every connection that the pool makes from now on be aborted when it is closed, and pack commands in C."""
    pool.connection_class = type("Connection", (_Adapted, pool.connection_class), {})


class _Adapted:
    """The part of a connection that packs commands, and that closes it."""

    def pack_command(self, command: str | bytes, *arguments: Any) -> list[bytes]:  # noqa: ANN401  those of redis-py
        """Return a command as Redis reads it; `command` may have several words."""
        return [hiredis.pack_command((*command.split(), *arguments))]

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
