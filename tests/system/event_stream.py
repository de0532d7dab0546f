"""A client of `/events` that parses the stream as WHATWG HTML, 9.2.6 says, strictly, and collects it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from tests.system.replica import PATIENCE, Replica

__all__ = ["EventStream", "Message", "event_stream"]


class Message(NamedTuple):
    """A message as `EventSource` fires it: the last id at that time, the name and the decoded data."""

    id: str
    event: str
    data: dict[str, Any]


class EventStream:
    """One connection; `messages` are those that fired, `last_id` and `retry` are what a browser would keep."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.messages: list[Message] = []
        self.comments = 0
        self.last_id = ""
        self.retry: int | None = None
        self.ended = False
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds, looking again after each line."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                assert not self._reading.done() or not self._reading.exception()
                self._changed.clear()
                await self._changed.wait()

    async def named(self, name: str, count: int = 1) -> Message:
        """Wait for `count` messages of this name, "message" for events, and return the last one."""
        await self.until(lambda: len(self.of(name)) >= count)
        return self.of(name)[count - 1]

    def of(self, name: str) -> list[Message]:
        """The messages of this name."""
        return [message for message in self.messages if message.event == name]

    @property
    def numbers(self) -> list[int]:
        """The numbers of the events, in the order in which they came."""
        return [message.data["sequence"] for message in self.of("message")]

    async def _read(self) -> None:
        buffer, name, data = b"", "", ""
        try:
            async for part in self.answer.aiter_bytes():
                buffer += part
                while b"\n" in buffer:
                    line, _, buffer = buffer.partition(b"\n")
                    text = line.decode()
                    assert "\r" not in text
                    field, colon, value = text.partition(":")
                    value = value.removeprefix(" ")
                    if text == "":
                        if data:
                            self.messages.append(Message(self.last_id, name or "message", json.loads(data)))
                        name = data = ""
                    elif field == "":
                        assert colon
                        self.comments += 1
                    elif field == "data":
                        assert not data, "JSON is on one line"
                        data = value
                    elif field == "event":
                        name = value
                    elif field == "id":
                        self.last_id = value
                    else:
                        assert field == "retry"
                        self.retry = int(value)
                    self._changed.set()
            assert buffer == b""
        except (httpx.RemoteProtocolError, httpx.ReadError):
            pass  # the replica was killed, or the line was cut
        finally:
            self.ended = True
            self._changed.set()


@asynccontextmanager
async def event_stream(
    replica: Replica, *, url: str | None = None, headers: Mapping[str, str] | None = None, **query: object
) -> AsyncIterator[EventStream]:
    """Open a stream with these query parameters, through the proxy at `url` if given; the answer must be one."""
    async with httpx.AsyncClient(
        verify=False, trust_env=False, base_url=url or replica.url, timeout=PATIENCE
    ) as client:
        parameters = {name: str(value) for name, value in query.items()}
        async with client.stream("GET", "/events", params=parameters, headers=headers, timeout=None) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            stream = EventStream(answer)
            try:
                yield stream
            finally:
                await stream.close()
