"""A TCP switch in front of replicas: each connection leads to one of them, and lines can be cut, frozen and refused."""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Self

from tests.system.replica import Replica

__all__ = ["Switch"]


class _Line:
    """One connection of a client to a replica; data passes while `passing` is set."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.passing = asyncio.Event()
        self.passing.set()

    def cut(self) -> None:
        """Close both ends without sending what is left."""
        self.passing.set()
        for writer in self.writers:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on data in one direction until it ends."""
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                await self.passing.wait()
                writer.write(piece)
                await writer.drain()


class Switch:
    """Listens on a port of the loopback; use it as `async with Switch(replicas, rng)`.

    `refusing` makes it close new connections at once. `lines` counts the connections that it has accepted.
    """

    def __init__(self, replicas: Sequence[Replica], rng: random.Random) -> None:
        self._replicas = replicas
        self._rng = rng
        self._open: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.refusing = False
        self.lines = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self) -> str:
        """The URL of the WebSocket on one of the replicas."""
        return f"ws://127.0.0.1:{self.port}/ws/events"

    def cut(self) -> None:
        """Close every line; new ones are accepted."""
        for line in self._open:
            line.cut()

    def freeze(self) -> None:
        """Stop all data on the open lines without closing them; new ones work."""
        for line in self._open:
            line.passing.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(writer)
        self._open.add(line)
        try:
            if self.refusing:
                return
            port = self._rng.choice(self._replicas).port
            there, onward = await asyncio.open_connection("127.0.0.1", port)
            line.writers.append(onward)
            ways = [asyncio.ensure_future(line.carry(*way)) for way in ((reader, onward), (there, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # no replica listens there: the client sees its line end
        finally:
            for each in line.writers:
                each.close()  # after what was written
            self._open.discard(line)
