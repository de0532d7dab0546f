"""Detects a client that takes no data although there is some to send."""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable

from handlers.server.open_socket import open_socket

__all__ = ["StallTimer", "bytes_in_flight"]


class StallTimer:
    """Calls `stalled` once the client's system has acknowledged no data for `seconds`; runs until `stop`."""

    __slots__ = ("_handle", "_loop", "_seconds", "_stalled", "_transport")

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        loop: asyncio.AbstractEventLoop,
        *,
        seconds: float,
        stalled: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._stalled = stalled
        self._handle = self._watch(bytes_in_flight(transport))

    def stop(self) -> None:
        """Stop watching."""
        self._handle.cancel()

    def _watch(self, unsent: int) -> asyncio.TimerHandle:
        return self._loop.call_later(self._seconds, self._check, unsent)

    def _check(self, unsent: int) -> None:
        left = bytes_in_flight(self._transport)
        if left >= unsent:
            self._stalled()
        else:
            self._handle = self._watch(left)


def bytes_in_flight(transport: asyncio.WriteTransport) -> int:
    """Return the number of bytes that were written and that the client's system has not acknowledged.

    The transport's own count is not enough, because the operating system buffers megabytes. It takes more data only
    after a large part of them was acknowledged, which takes minutes for a client that reads a few kB per second.
    """
    held = bytes(4)
    opened = open_socket(transport)
    if opened is not None:
        with contextlib.suppress(OSError):  # not supported by this operating system
            held = fcntl.ioctl(opened.fileno(), termios.TIOCOUTQ, held)
    unsent, *_ = struct.unpack("i", held)
    return transport.get_write_buffer_size() + int(unsent)
