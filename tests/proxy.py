"""A TCP proxy in front of Redis that fails as networks do: refused, reset, silent or half-open connections."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import Self
from urllib.parse import unquote

__all__ = ["Proxy", "ProxyMode"]

Matches = Callable[[bytes], bool]


class ProxyMode(Enum):
    """The treatment of connections and data."""

    PASS = auto()
    SHUT = auto()  # nothing listens on the port; open connections stay
    REFUSE = auto()  # the same, and open connections are closed
    HANG_UP = auto()  # connections are accepted and reset at once
    SWALLOW = auto()  # connections stay open, no data arrives in either direction: a black hole
    DEAF = auto()  # commands arrive, answers and announcements do not


class _Connection:
    """One connection through the proxy; data passes while its own events and those of the proxy are set."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writers = [writer]
        self.commands = asyncio.Event()
        self.answers = asyncio.Event()
        self.commands.set()
        self.answers.set()
        self.subscribed = False
        self.lost = False  # no further answer is passed on

    @property
    def alive(self) -> bool:
        """True unless the client is known to have ended it."""
        return not (self.reader.at_eof() or self.reader.exception() or self.writers[0].is_closing())

    def abort(self, *, reset: bool = False) -> None:
        """Close both ends, the client's with a TCP reset if `reset`, and let data that is held go."""
        self.commands.set()
        self.answers.set()
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writers[0].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Listens on `port` of the loopback and passes on to the Redis at `upstream` (a socket's path or URL).

    `connections` counts accepted connections, `subscriptions` those that subscribed, `cuts` the answers that were cut
    off, `carried` the chunks of commands that arrived; `listeners` is the highest number of subscriptions open at one
    time. Use it as `async with Proxy(...)`.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = unquote(upstream.removeprefix("unix://"))
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut_when: Matches | None = None
        self._hold_when: Matches | None = None
        self._mode = ProxyMode.PASS
        self._passing = asyncio.Event()
        self._answering = asyncio.Event()
        # reserves the port for the lifetime of the proxy, also while nothing listens
        self._claim = socket.socket()
        self.port = 0
        self.connections = 0
        self.subscriptions = 0
        self.cuts = 0
        self.carried = 0
        self.listeners = 0
        self.held = asyncio.Event()

    @property
    def url(self) -> str:
        """The URL under which a replica reaches Redis through this proxy."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """The number of open connections."""
        return len(self._open)

    async def __aenter__(self) -> Self:
        self._claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._claim.bind(("127.0.0.1", 0))
        self.port = self._claim.getsockname()[1]
        await self.set_mode(ProxyMode.PASS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.set_mode(ProxyMode.REFUSE)
        self._claim.close()

    async def set_mode(self, mode: ProxyMode) -> None:
        """Change the mode; only REFUSE and HANG_UP close open connections."""
        self._mode = mode
        for gate, modes in (
            (self._passing, (ProxyMode.PASS, ProxyMode.SHUT, ProxyMode.DEAF)),
            (self._answering, (ProxyMode.PASS, ProxyMode.SHUT)),
        ):
            (gate.set if mode in modes else gate.clear)()
        if mode in (ProxyMode.REFUSE, ProxyMode.HANG_UP):
            self.cut()
        if mode not in (ProxyMode.SHUT, ProxyMode.REFUSE):
            if self._server is None:
                self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            return
        if self._server is not None:
            self._server.close()
            self._server = None
        if mode is ProxyMode.REFUSE:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def move(self, upstream: str) -> None:
        """Lead to another Redis, as a failover does; open connections are closed."""
        self._upstream = upstream
        self.cut()

    def cut(self, *, reset: bool = False) -> None:
        """Close every open connection, with a TCP reset if `reset`; new ones are accepted."""
        for connection in self._open:
            connection.abort(reset=reset)

    def cut_after(self, matches: Matches) -> None:
        """Pass on the next chunk of commands for which `matches` is true, then cut off the answer; happens once."""
        self._cut_when = matches

    def freeze(self) -> None:
        """Stop all data on the open connections without closing them; new ones work."""
        for connection in self._open:
            connection.commands.clear()
            connection.answers.clear()

    def cut_frozen(self) -> None:
        """Close the connections that were frozen."""
        for connection in self._open:
            if not connection.commands.is_set():
                connection.abort()

    def deafen(self) -> None:
        """Stop the answers on the open subscriptions; everything else works, new subscriptions too."""
        for connection in self._open:
            if connection.subscribed:
                connection.answers.clear()

    def hold(self, matches: Matches) -> None:
        """Pass on the next chunk of commands for which `matches` is true, and hold the answers of its connection.

        This happens once; `held` is set when it has, and `release` lets the answers go.
        """
        self.held.clear()
        self._hold_when = matches

    def release(self) -> None:
        """Let all data that is held go."""
        for connection in self._open:
            connection.commands.set()
            connection.answers.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._mode is ProxyMode.HANG_UP:
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(_Connection(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: _Connection) -> None:
        self._open.add(connection)
        try:
            reader, writer = await asyncio.open_unix_connection(self._upstream)
            connection.writers.append(writer)
            pumps = [asyncio.ensure_future(self._commands(connection, writer))]
            pumps.append(asyncio.ensure_future(self._answers(reader, connection)))
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # no server: the client sees the connection end
        finally:
            connection.abort()
            self._open.discard(connection)

    async def _commands(self, connection: _Connection, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await connection.reader.read(1 << 16):
                self.carried += 1
                await self._passing.wait()
                await connection.commands.wait()
                if b"SUBSCRIBE" in piece and not connection.subscribed:
                    connection.subscribed = True
                    self.subscriptions += 1
                    self.listeners = max(self.listeners, sum(each.subscribed and each.alive for each in self._open))
                cut = self._cut_when is not None and self._cut_when(piece)
                if self._hold_when is not None and self._hold_when(piece):
                    self._hold_when = None
                    connection.answers.clear()
                    self.held.set()
                if cut:
                    self._cut_when = None
                    connection.lost = True
                writer.write(piece)
                await writer.drain()
                if cut:
                    # Redis closes this connection once it has read everything, so by then it has acted
                    writer.write_eof()
                    await asyncio.Event().wait()

    async def _answers(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        writer = connection.writers[0]
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                await self._answering.wait()
                await connection.answers.wait()
                if not connection.lost:
                    writer.write(piece)
                    await writer.drain()
        self.cuts += connection.lost
