"""A Redis server whose answers a test determines."""

import asyncio
from collections.abc import Callable
from typing import Self

import hiredis

__all__ = ["ScriptedRedis"]


class ScriptedRedis:
    """A server on a TCP port that answers each command with the bytes that `answer(words)` returns.

    The words are in upper case. Each answer is sent after `delay` seconds. Use it as `async with ScriptedRedis(...)`.
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
