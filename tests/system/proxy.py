"""A TCP proxy between a replica and Redis that breaks in the ways that networks do."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import Self

__all__ = ["Proxy", "Way"]

Matches = Callable[[bytes], bool]


class Way(Enum):
    """What the proxy does with what it is given."""

    PASS = auto()
    REFUSE = auto()  # nothing listens on the port
    HANG_UP = auto()  # connections are taken and reset at once
    SWALLOW = auto()  # connections stand, nothing arrives in either direction: a black hole
    DEAF = auto()  # commands arrive, answers and announcements do not


class _Connection:
    """One connection through the proxy; `commands` and `answers` are its own gates beside those of the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writers = [writer]
        self.commands = asyncio.Event()
        self.answers = asyncio.Event()
        self.commands.set()
        self.answers.set()
        self.subscribed = False
        self.lost = False  # no answer passes any more

    @property
    def stands(self) -> bool:
        """Whether its client has not ended it, as far as one can see from here."""
        return not (self.reader.at_eof() or self.reader.exception() or self.writers[0].is_closing())

    def abort(self) -> None:
        """Reset both ends; nothing is held up on them any more."""
        self.commands.set()
        self.answers.set()
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Listens on `port` of the loopback and passes on to the Redis at `upstream` (a socket's path, or a TCP port).

    `connections` counts those that were taken, `subscriptions` those of them that subscribed, `cuts` the answers that
    were cut off; `listeners` is the most subscriptions that stood at one time. Use it as `async with Proxy(...)`.
    """

    def __init__(self, upstream: str | int) -> None:
        self.upstream = upstream
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut_when: Matches | None = None
        self._hold_when: Matches | None = None
        self._way = Way.PASS
        self._passing = asyncio.Event()
        self._answering = asyncio.Event()
        # holds the port as long as this proxy lives: nobody else gets it while nothing listens
        self._claim = socket.socket()
        self.port = 0
        self.connections = 0
        self.subscriptions = 0
        self.cuts = 0
        self.listeners = 0
        self.held = asyncio.Event()

    @property
    def url(self) -> str:
        """Where a replica finds Redis behind this proxy."""
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._claim.bind(("127.0.0.1", 0))
        self.port = self._claim.getsockname()[1]
        await self.go(Way.PASS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go(Way.REFUSE)
        self._claim.close()

    async def go(self, way: Way) -> None:
        """Behave like that from now on; only REFUSE and HANG_UP touch the connections that there are."""
        self._way = way
        for gate, ways in ((self._passing, (Way.PASS, Way.DEAF)), (self._answering, (Way.PASS,))):
            (gate.set if way in ways else gate.clear)()
        if way in (Way.REFUSE, Way.HANG_UP):
            self.cut()
        if way is Way.REFUSE:
            if self._server is not None:
                self._server.close()
                self._server = None
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
        elif self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def move(self, upstream: str | int) -> None:
        """Lead to another Redis, as a failover does: who is connected is cut off."""
        self.upstream = upstream
        self.cut()

    def cut(self) -> None:
        """Reset every connection that there is; new ones are taken."""
        for connection in self._open:
            connection.abort()

    def cut_after(self, matches: Matches) -> None:
        """Once: pass on the next piece of a command for which `matches` is true, then reset before its answer."""
        self._cut_when = matches

    def freeze(self) -> None:
        """Let the connections that there are go dead without a word; new ones work."""
        for connection in self._open:
            connection.commands.clear()
            connection.answers.clear()

    def cut_frozen(self) -> None:
        """Reset the connections that are dead."""
        for connection in self._open:
            if not connection.commands.is_set():
                connection.abort()

    def deafen(self) -> None:
        """Let the subscriptions that there are hear nothing more; everything else works, new subscriptions too."""
        for connection in self._open:
            if connection.subscribed:
                connection.answers.clear()

    def hold(self, matches: Matches) -> None:
        """Once: pass on the next piece of a command for which `matches` is true, and hold its connection's answers.

        `held` is set when that has happened; `release` lets them go.
        """
        self.held.clear()
        self._hold_when = matches

    def release(self) -> None:
        """Let everything go that is held up on connections."""
        for connection in self._open:
            connection.commands.set()
            connection.answers.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._way is Way.HANG_UP:
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(_Connection(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: _Connection) -> None:
        self._open.add(connection)
        try:
            if isinstance(self.upstream, int):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            else:
                reader, writer = await asyncio.open_unix_connection(self.upstream)
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
            pass  # nobody there: the client sees a reset
        finally:
            connection.abort()
            self._open.discard(connection)

    async def _commands(self, connection: _Connection, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await connection.reader.read(1 << 16):
                await self._passing.wait()
                await connection.commands.wait()
                if b"SUBSCRIBE" in piece and not connection.subscribed:
                    connection.subscribed = True
                    self.subscriptions += 1
                    self.listeners = max(self.listeners, sum(each.subscribed and each.stands for each in self._open))
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
                    # Redis closes our end of it when it has read what we sent, so it has acted by then
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
