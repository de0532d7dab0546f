"""Networks and servers that misbehave on purpose: a proxy that breaks as networks do, a server that says anything."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import Self
from urllib.parse import unquote

import hiredis

__all__ = ["Proxy", "ScriptedRedis", "Way"]

Matches = Callable[[bytes], bool]


class Way(Enum):
    """What the proxy does with what it is given."""

    PASS = auto()
    SHUT = auto()  # nothing listens on the port; the connections that there are stay
    REFUSE = auto()  # the same, and they are cut off
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

    def abort(self, *, reset: bool = False) -> None:
        """End both ends, the client's with a TCP reset if so asked; nothing is held up on them any more."""
        self.commands.set()
        self.answers.set()
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writers[0].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Listens on `port` of the loopback and passes on to the Redis at `upstream` (a socket's path or URL).

    `connections` counts those that were taken, `subscriptions` those of them that subscribed, `cuts` the answers that
    were cut off, `carried` the pieces in which commands came; `listeners` is the most subscriptions that stood at one
    time. Use it as `async with Proxy(...)`.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = unquote(upstream.removeprefix("unix://"))
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
        self.carried = 0
        self.listeners = 0
        self.held = asyncio.Event()

    @property
    def url(self) -> str:
        """Where a replica finds Redis behind this proxy."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

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
        for gate, ways in ((self._passing, (Way.PASS, Way.SHUT, Way.DEAF)), (self._answering, (Way.PASS, Way.SHUT))):
            (gate.set if way in ways else gate.clear)()
        if way in (Way.REFUSE, Way.HANG_UP):
            self.cut()
        if way not in (Way.SHUT, Way.REFUSE):
            if self._server is None:
                self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            return
        if self._server is not None:
            self._server.close()
            self._server = None
        if way is Way.REFUSE:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def move(self, upstream: str) -> None:
        """Lead to another Redis, as a failover does: who is connected is cut off."""
        self._upstream = upstream
        self.cut()

    def cut(self, *, reset: bool = False) -> None:
        """End every connection that there is, with a TCP reset if so asked; new ones are taken."""
        for connection in self._open:
            connection.abort(reset=reset)

    def cut_after(self, matches: Matches) -> None:
        """Once: pass on the next piece of a command for which `matches` is true, then cut off its answer."""
        self._cut_when = matches

    def freeze(self) -> None:
        """Let the connections that there are go dead without a word; new ones work."""
        for connection in self._open:
            connection.commands.clear()
            connection.answers.clear()

    def cut_frozen(self) -> None:
        """End the connections that are dead."""
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
            pass  # nobody there: the client sees the end
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


class ScriptedRedis:
    """A server on a TCP port that answers as told: `answer(words)` gives the bytes for a command, in upper case.

    `delay`, in seconds, precedes each answer. Use it as `async with ScriptedRedis(...)`.
    """

    def __init__(self, answer: Callable[[list[bytes]], bytes], *, delay: float = 0.0) -> None:
        self._answer = answer
        self._delay = delay
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        try:
            while data := await reader.read(1 << 20):
                parser.feed(data)
                while command := parser.gets():
                    words: list[bytes] = [word.upper() for word in command]
                    await asyncio.sleep(self._delay)
                    writer.write(b"+OK\r\n" if words[0] == b"CLIENT" else self._answer(words))
        finally:
            writer.close()
