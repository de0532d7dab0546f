"""A TCP proxy between a replica and Redis that breaks in the ways that networks do."""

import asyncio
import contextlib
from collections.abc import Callable
from enum import Enum, auto
from typing import Self

__all__ = ["Proxy", "Way"]


class Way(Enum):
    """What the proxy does with what it is given."""

    PASS = auto()
    REFUSE = auto()  # nothing listens on the port
    SWALLOW = auto()  # connections stand, nothing arrives in either direction: a black hole
    DEAF = auto()  # commands arrive, answers and announcements do not


class Proxy:
    """Listens on `port` of the loopback and passes on to the Redis at `upstream` (a socket's path, or a TCP port).

    `delay` is added to each piece in both directions, in seconds. Use it as `async with Proxy(...)`.
    """

    def __init__(self, upstream: str | int) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut_when: Callable[[bytes], bool] | None = None
        self._passing = asyncio.Event()
        self._answering = asyncio.Event()
        self.port = 0
        self.delay = 0.0
        self.cuts = 0
        self.connections = 0

    @property
    def url(self) -> str:
        """Where a replica finds Redis behind this proxy."""
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.go(Way.PASS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go(Way.REFUSE)

    async def go(self, way: Way) -> None:
        """Behave like that from now on; only REFUSE touches the connections that there are."""
        for event, ways in ((self._passing, (Way.PASS, Way.DEAF)), (self._answering, (Way.PASS,))):
            if way in ways:
                event.set()
            else:
                event.clear()
        if way is Way.REFUSE:
            if self._server is not None:
                self._server.close()
                self._server = None
            self.cut()
            for pump in self._pumps:
                pump.cancel()
            if self._pumps:
                await asyncio.wait(self._pumps)
        elif self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection that there is; new ones are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    def cut_after(self, matches: Callable[[bytes], bool]) -> None:
        """Once: pass on the next piece of a command for which `matches` is true, then reset before its answer."""
        self._cut_when = matches

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if isinstance(self._upstream, int):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
            else:
                up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        lost = asyncio.Event()
        pumps = {
            asyncio.create_task(self._pump(reader, up_writer, self._passing, lost, commands=True)),
            asyncio.create_task(self._pump(up_reader, writer, self._answering, lost, commands=False)),
        }
        self._pumps |= pumps
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, up_writer):
                end.transport.abort()
                self._writers.discard(end)
            self._pumps -= pumps

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        lost: asyncio.Event,
        *,
        commands: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                await gate.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if lost.is_set():
                    continue
                if commands and self._cut_when is not None and self._cut_when(piece):
                    self._cut_when = None
                    self.cuts += 1
                    lost.set()  # from here on no answer passes
                    writer.write(piece)
                    await writer.drain()
                    # Redis closes our end of it when it has read what we sent, so it has acted by then
                    writer.write_eof()
                    await asyncio.Event().wait()
                writer.write(piece)
                await writer.drain()
