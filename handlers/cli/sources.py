"""Sources of frames for `tail`: the WebSocket `/ws/events`, or the stream of server-sent events `/events`.

Both yield the frames of one connection, until it ends with `Closed` or was refused with `Refused`. Errors of the
network are raised as they are.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httptools
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from handlers.cli.proxy import Proxy

__all__ = ["Closed", "Received", "Refused", "stream_frames", "websocket_frames"]

Headers = Iterable[tuple[str, str]]

_LARGEST_FRAME: Final = 64 * 1024 * 1024


class Received(NamedTuple):
    """One frame: its JSON as it came, "" for a heartbeat of a stream, and decoded."""

    text: str
    frame: dict[str, Any]


class Closed(Exception):
    """The connection was closed, by `code` of a WebSocket or without one."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"closed: {code} {text}".rstrip())
        self.code = code
        self.text = text


class Refused(Exception):
    """The service has answered with this status instead; `detail` is that of its problem document."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"server rejected the connection: HTTP {status}")
        self.status = status
        self.detail = detail


async def websocket_frames(url: str, headers: Headers, proxy: Proxy | None) -> AsyncIterator[Received]:
    """Yield the frames of a WebSocket, and answer its heartbeats."""
    try:
        async with connect(
            url, additional_headers=headers, max_size=_LARGEST_FRAME, close_timeout=1, proxy=proxy and proxy.url
        ) as socket:
            while True:
                text = await socket.recv()
                received = Received(str(text), _read(text))
                yield received
                if received.frame.get("type") == "ping":
                    # If the server has closed the connection, what it sent before can still be read.
                    with suppress(ConnectionClosed):
                        await socket.send('{"type":"pong"}')
    except ConnectionClosed as closed:
        code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "connection lost")
        raise Closed(code, reason) from None
    except InvalidStatus as refused:
        raise Refused(refused.response.status_code, _detail(refused.response.body)) from None


async def stream_frames(url: str, headers: Headers, proxy: Proxy | None) -> AsyncIterator[Received]:
    """Yield the frames of a stream of server-sent events; an id without data is a heartbeat, and is yielded as one."""
    reader, writer = await _request(url, headers, proxy)
    try:
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        block: dict[str, str] = {}
        while not answer.ended and (data := await reader.read(65536)):
            try:
                parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise OSError(f"the answer is not HTTP: {error}") from None
            if len(answer.body) > _LARGEST_FRAME:  # here, because the parser would wrap an error of its callback
                raise OSError("a line of the stream is too long")
            if not answer.begun or parser.get_status_code() != 200:
                continue
            for line in answer.lines():
                name, _, value = line.partition(":")
                if name:
                    block[name] = value.removeprefix(" ")
                elif not line:
                    if "data" in block:
                        yield Received(block["data"], _read(block["data"]))
                    elif "id" in block:
                        yield Received("", _heartbeat(block["id"]))
                    block = {}
        if answer.begun and parser.get_status_code() != 200:
            raise Refused(parser.get_status_code(), _detail(answer.body))
        raise Closed(1006, "the stream has ended")
    finally:
        writer.close()


class _Answer:
    """The part of an answer that the parser has read."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.begun = False
        self.ended = False
        self._has_lines = False

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self.body += body
        self._has_lines = self._has_lines or b"\n" in body

    def on_message_complete(self) -> None:
        self.ended = True

    def lines(self) -> list[str]:
        """Take the complete lines of the body; a long one that arrives in many parts is looked at once."""
        if not self._has_lines:
            return []
        self._has_lines = False
        *lines, rest = bytes(self.body).split(b"\n")
        self.body[:] = rest
        return [line.decode("utf-8", "replace") for line in lines]


async def _request(
    url: str, headers: Headers, proxy: Proxy | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, through a tunnel of the proxy if there is one, and send the request."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    address = proxy.address if proxy else (host, port)
    reader, writer = await asyncio.open_connection(*address, ssl=secure and not proxy)
    try:
        if proxy:
            lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
            await _send(writer, lines, proxy.headers.items())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if head.split(" ", 2)[1:2] != ["200"]:
                raise OSError(f"the proxy answers {head.partition(chr(13))[0]}")
            if secure:
                await writer.start_tls(ssl.create_default_context(), server_hostname=host)
        target = parts._replace(scheme="", netloc="", fragment="").geturl()
        lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Accept: text/event-stream, */*"]
        await _send(writer, lines, headers)
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def _send(writer: asyncio.StreamWriter, lines: list[str], headers: Headers) -> None:
    writer.write("\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode())
    await writer.drain()


def _heartbeat(id: str) -> dict[str, Any]:
    epoch, _, number = id.rpartition(":")
    return {"type": "ping", "epoch": epoch, "lastSeq": int(number) if number.isdecimal() else 0}


def _detail(body: bytes | bytearray) -> str:
    return str(_read(body).get("detail") or "")


def _read(text: str | bytes | bytearray) -> dict[str, Any]:
    """Decode a frame; return a frame of type "unreadable" if it is not a JSON object."""
    try:
        frame = json.loads(text)
    except ValueError:
        frame = None
    return frame if isinstance(frame, dict) else {"type": "unreadable"}
