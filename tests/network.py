"""Networks and servers that misbehave on purpose."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Self
from urllib.parse import unquote

import hiredis

__all__ = ["Proxy", "ScriptedRedis"]


class _TcpServer:
    """A server on a local TCP port; leaving the context ends it and its connections."""

    def __init__(self) -> None:
        self.accepted = 0
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._writers)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        self.cut()
        self.release()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def listen(self) -> None:
        """Accept connections, always on the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Accept no more connections; those that there are stay."""
        assert self._server is not None
        self._server.close()

    def cut(self, *, reset: bool = False) -> None:
        """End every connection, with a TCP reset if so asked."""
        for writer in self._writers:
            if reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    def release(self) -> None:
        """Hold nothing up any longer."""

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._writers.discard(writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class Proxy(_TcpServer):
    """A TCP way to a server on a Unix socket; what goes through can be held up while `questions` or `answers` is clear.

    `carried` counts the pieces in which questions came.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._path = unquote(url.removeprefix("unix://"))
        self.carried = 0
        self.questions = asyncio.Event()
        self.answers = asyncio.Event()
        self._frozen: list[asyncio.Event] = []
        self.release()

    def freeze(self) -> None:
        """Let the connections that there are go dead, while new ones work."""
        self.questions.clear()
        self._frozen.append(self.questions)
        self.questions = asyncio.Event()
        self.questions.set()

    def release(self) -> None:
        """Hold nothing up any longer."""
        for flow in (*self._frozen, self.questions, self.answers):
            flow.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._path)
        await asyncio.gather(
            self._carry(reader, server_writer, self.questions), self._carry(server_reader, writer, self.answers)
        )

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, flow: asyncio.Event) -> None:
        try:
            while data := await source.read(1 << 20):
                self.carried += flow is not self.answers
                await flow.wait()
                target.write(data)
        except OSError:
            pass
        finally:
            target.close()


class ScriptedRedis(_TcpServer):
    """A server that answers as told: `answer(words)` gives the bytes to be sent for a command, in upper case.

    `delay`, in seconds, precedes each answer.
    """

    def __init__(self, answer: Callable[[list[bytes]], bytes], *, delay: float = 0.0) -> None:
        super().__init__()
        self._answer = answer
        self._delay = delay

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
